# SPDX-License-Identifier: BSD-3-Clause
"""Results of evaluation, captioner, CapFilt and classifier on CUDA equal those of the CPU."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from blip_hf.capfilt.engine import CapFilt, CapFiltSettings
from blip_hf.captioner import BlipCaptioner
from blip_hf.data.readers.samples import Sample, Shard
from blip_hf.evaluation.features import multimodal_embeds
from blip_hf.evaluation.retrieval import evaluate_retrieval
from blip_hf.evaluation.zero_shot import ZeroShotClassifier
from tests.support.cuda import NEEDS_CUDA, TOLERANCE
from tests.support.images import encode_image, noise_images
from tests.support.tiny_models import tiny_capfilt


pytestmark = NEEDS_CUDA
NUM_IMAGES = 5
TEXTS = ("a b", "c d e f", "g")


@pytest.fixture(scope="module")
def images():
    return noise_images(NUM_IMAGES)


@pytest.fixture(scope="module")
def shard(images):
    samples = [Sample(f"s/{i}", encode_image(image), TEXTS[: 1 + i % 3], str(i)) for i, image in enumerate(images)]
    return Shard("s", lambda: iter(samples))


@pytest.fixture(scope="module")
def pairs(images):
    """One to three different captions per image: the order of equal scores on CUDA is undefined."""
    letters = iter("abcdefghi")
    return [
        {"image": image, "caption": f"{next(letters)} {'j k l'[: 1 + number]}", "image_id": number}
        for number, image in enumerate(images)
        for _ in range(1 + number % 3)
    ]


def on_cpu_and_cuda(run, dtype=torch.float32):
    """Returns `run(captioner, matcher, processor)` on the CPU and on CUDA."""
    captioner, processor, matcher, _ = tiny_capfilt()
    expected = run(captioner, matcher, processor)
    return expected, run(captioner.to("cuda", dtype), matcher.to("cuda", dtype), processor)


def test_retrieval_equals_the_cpu(pairs):
    def evaluate(captioner, matcher, processor):
        return evaluate_retrieval(matcher, processor, pairs, k=3, image_batch_size=2, text_batch_size=4)

    expected, result = on_cpu_and_cuda(evaluate)
    assert result.metrics() == expected.metrics()
    for found, wanted in (
        (result.image_candidates, expected.image_candidates),
        (result.text_candidates, expected.text_candidates),
    ):
        assert torch.equal(found.index, wanted.index)
        assert_close(found.scores, wanted.scores, **TOLERANCE)


@pytest.mark.parametrize("states_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_retrieval_is_finite_in_half_precision(pairs, dtype, states_dtype):
    def evaluate(captioner, matcher, processor):
        return evaluate_retrieval(matcher, processor, pairs, k=3, states_dtype=states_dtype)

    _, result = on_cpu_and_cuda(evaluate, dtype)
    assert result.image_candidates.scores.isfinite().all()
    assert result.text_candidates.scores.dtype == torch.float32


def test_retrieval_under_autocast_is_near_the_cpu(pairs):
    def evaluate(captioner, matcher, processor):
        with torch.autocast("cuda", torch.bfloat16, enabled=matcher.device.type == "cuda"):
            return evaluate_retrieval(matcher, processor, pairs, k=NUM_IMAGES)

    expected, result = on_cpu_and_cuda(evaluate)
    # All images are candidates of each text, best first. Eight bits of precision, of scores below 1.
    assert_close(result.text_candidates.scores, expected.text_candidates.scores, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "settings", [{"num_captions": 2}, {"strategy": "beam", "num_captions": 2}, {"strategy": "greedy"}]
)
def test_capfilt_captions_and_scores_equal_the_cpus(shard, settings):
    def score(captioner, matcher, processor):
        chosen = CapFiltSettings(prompt="a b", max_length=10, batch_size=3, **settings)
        table, skipped = CapFilt(captioner, processor, matcher, processor, chosen).score_shard(shard)
        return table.to_pylist(), skipped

    (expected, expected_skipped), (rows, skipped) = on_cpu_and_cuda(score)
    assert skipped == expected_skipped
    assert [(row["sample_id"], row["text"]) for row in rows] == [(row["sample_id"], row["text"]) for row in expected]
    for name in ("itm", "itc", "log_prob"):
        found, wanted = (torch.tensor([row[name] or 0.0 for row in own]) for own in (rows, expected))
        assert_close(found, wanted, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_capfilt_scores_are_finite_in_half_precision(shard, dtype):
    def score(captioner, matcher, processor):
        chosen = CapFiltSettings(prompt="a b", max_length=10)
        return CapFilt(captioner, processor, matcher, processor, chosen).score_shard(shard)[0]

    _, table = on_cpu_and_cuda(score, dtype)
    for name in ("itm", "itc", "log_prob"):
        assert np.isfinite(table[name].drop_null().to_numpy()).all()


def test_captioner_equals_the_cpu(images):
    def describe(captioner, matcher, processor):
        writer = BlipCaptioner(captioner, processor, matcher=matcher, prompt="a b", max_new_tokens=6, batch_size=2)
        return writer.caption(images, num_return_sequences=2, return_scores=True)

    expected, captions = on_cpu_and_cuda(describe)
    assert [caption.text for caption in captions] == [caption.text for caption in expected]
    assert [caption.num_tokens for caption in captions] == [caption.num_tokens for caption in expected]
    for name in ("log_probability", "itm_probability"):
        found, wanted = (torch.tensor([getattr(caption, name) for caption in own]) for own in (captions, expected))
        assert_close(found, wanted, **TOLERANCE)


def test_seeded_samples_repeat_and_keep_the_device_generator_state(images):
    captioner, processor, _, _ = tiny_capfilt()
    writer = BlipCaptioner(captioner.cuda(), processor, do_sample=True, max_new_tokens=6, seed=3)
    state = torch.cuda.get_rng_state()
    first = writer(images)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert writer(images) == first


def test_classifier_equals_the_cpu(images):
    def classify(captioner, matcher, processor):
        return ZeroShotClassifier(matcher, processor, ["a", "b c", "d"])(images, batch_size=2)

    expected, results = on_cpu_and_cuda(classify)
    assert [[entry.label for entry in own] for own in results] == [[entry.label for entry in own] for own in expected]
    found, wanted = (torch.tensor([[e.probability for e in own] for own in all_]) for all_ in (results, expected))
    assert_close(found, wanted, **TOLERANCE)


def test_multimodal_embeds_equal_the_cpu(images):
    def embed(captioner, matcher, processor):
        return multimodal_embeds(matcher, processor, images, ["a", "b c", "d", "e f g", "h"], batch_size=2).cpu()

    expected, embeds = on_cpu_and_cuda(embed)
    assert_close(embeds, expected, **TOLERANCE)
