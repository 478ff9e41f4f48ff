# SPDX-License-Identifier: BSD-3-Clause
"""New tensors have the device and the dtype of the inputs for any default dtype."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering
from blip_hf.capfilt.engine import CapFilt, CapFiltSettings
from blip_hf.captioner import BlipCaptioner
from blip_hf.data.readers.samples import Sample, Shard
from blip_hf.data.scenes import Scenes
from blip_hf.demo.evaluate import evaluate as evaluate_demo
from blip_hf.evaluation.features import multimodal_embeds
from blip_hf.evaluation.recall import retrieval_recalls
from blip_hf.evaluation.retrieval import evaluate_retrieval
from blip_hf.evaluation.zero_shot import ZeroShotClassifier
from blip_hf.training.metrics import RunningMeans, recalls_in_set
from tests.support.batches import CONTRASTIVE_TASKS, TASK_MODELS, make_model_and_batch, weighted_vqa_batch
from tests.support.images import encode_image, noise_images
from tests.support.pretended_device import DEVICE, on_cpu, pretended_device
from tests.support.tiny_models import tiny_batch, tiny_capfilt, tiny_config, tiny_model_for
from tests.support.vocabularies import make_scene_processor


def moved(batch: dict[str, Tensor], device: torch.device = DEVICE) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def assert_same_there(run_on, *modules, **tolerance):
    """Asserts that `run_on(device)` gives equal results on the CPU and on the pretended device."""
    expected = run_on(torch.device("cpu"))
    with pretended_device():
        for module in modules:
            module.to(DEVICE)
        assert_close(on_cpu(run_on(DEVICE)), expected, **{"atol": 1e-6, "rtol": 1e-5, **tolerance})


# The device


def test_pretended_device_raises_where_cuda_does():
    with pretended_device():
        there = torch.ones(2, device=DEVICE)
        assert there.device == DEVICE
        assert (there + 1).device == DEVICE
        assert there.cpu().device == torch.device("cpu")
        with pytest.raises(AssertionError, match="mixes devices"):
            there + torch.ones(2)
        with pytest.raises(AssertionError, match="mixes devices"):
            torch.ones(3)[torch.zeros(1, dtype=torch.long, device=DEVICE)]
    with pretended_device(may_wait=False):
        waiting = (
            there.tolist,
            there.nonzero,
            there.cpu,
            lambda: there[there > 0],
            lambda: torch.tensor(1.0, device=DEVICE),
            lambda: there.copy_(torch.ones(2)),
        )
        for wait in waiting:
            with pytest.raises(AssertionError, match="waits"):
                wait()


# Training


@pytest.mark.parametrize("task", TASK_MODELS)
def test_training_step_stays_on_the_device_without_synchronizing(task):
    model, batch = make_model_and_batch(task)
    with pretended_device():
        model.to(DEVICE)
        batch = moved(batch)
    means = RunningMeans()
    with pretended_device(may_wait=False):
        output = model(**batch)
        assert output.loss.device == DEVICE
        if task in CONTRASTIVE_TASKS:
            model.update_momentum()
            model.enqueue(output)
            means.add_output(output, weight=1)
    assert on_cpu(output.loss).isfinite()
    assert all(value.device == DEVICE for value in model.state_dict().values())


@pytest.mark.parametrize("task", TASK_MODELS)
def test_losses_equal_the_cpus(task):
    model, batch = make_model_and_batch(task)

    def loss(device):
        torch.manual_seed(0)  # for the hard negatives
        return model(**moved(batch, device)).loss.detach()

    assert_same_there(loss, model)


def test_uneven_numbers_of_answers_stay_on_the_device():
    model, batch = BlipForQuestionAnswering(tiny_config()).eval(), weighted_vqa_batch()
    assert_same_there(lambda device: model(**moved(batch, device)).loss.detach(), model)


# Inference


def test_generated_texts_equal_the_cpus():
    captioner, answerer = BlipForConditionalGeneration(tiny_config()), BlipForQuestionAnswering(tiny_config())
    batch = tiny_batch()
    settings = {"max_length": 8, "min_length": 5, "num_beams": 2}

    def write(device):
        there = moved(batch, device)
        return captioner.generate(**there, **settings), answerer.generate(**there, **settings)

    assert_same_there(write, captioner.eval(), answerer.eval())


def test_ranked_answers_equal_the_cpus():
    model, batch, answers = BlipForQuestionAnswering(tiny_config()).eval(), tiny_batch(), tiny_batch((4, 6, 3), seed=3)

    def rank(device):
        there = moved(batch, device)
        ranking = model.rank_answers(**there, answer_ids=answers["input_ids"].to(device), num_candidates=2)
        return ranking.best, ranking.candidates, ranking.scores

    assert_same_there(rank, model)


def test_retrieval_metrics_equal_the_cpus():
    _, _, model, processor = tiny_capfilt()
    pairs = [
        {"image": image, "caption": f"{'abcd'[number]} {caption}", "image_id": number}  # equal texts would tie
        for number, image in enumerate(noise_images(4))
        for caption in ("a b c", "d e", "f g h i")[: 1 + number % 3]
    ]

    def evaluate(device):
        result = evaluate_retrieval(model, processor, pairs, k=2, image_batch_size=3, text_batch_size=2)
        candidates = result.image_candidates, result.text_candidates
        return result.metrics(), [(found.index, found.scores) for found in candidates]

    assert_same_there(evaluate, model)


def test_capfilt_scores_equal_the_cpus():
    parts = tiny_capfilt()
    images = map(encode_image, noise_images(3))
    samples = [Sample(f"s/{i}", image, ("a b", "c d e")[: 1 + i % 2], str(i)) for i, image in enumerate(images)]

    def score(device):
        settings = CapFiltSettings(prompt="a b", num_captions=2, max_length=10, num_workers=0)
        table, _ = CapFilt(*parts, settings).score_shard(Shard("s", lambda: iter(samples)))
        rows = table.to_pylist()
        texts = [row["text"] for row in rows]
        scores = [[row[name] or 0.0 for name in ("itm", "itc", "log_prob")] for row in rows]
        return dict(zip(texts, torch.tensor(scores), strict=True))

    assert_same_there(score, parts[0], parts[2], atol=1e-5)


def test_tool_results_equal_the_cpus():
    captioner, processor, matcher, _ = tiny_capfilt()
    images = noise_images(3)

    def describe(device):
        writer = BlipCaptioner(captioner, processor, matcher=matcher, prompt="a b", max_new_tokens=5, batch_size=2)
        captions = writer.caption(images, num_return_sequences=2, return_scores=True)
        labels = ZeroShotClassifier(matcher, processor, ["a", "b c"])(images)
        return (
            {
                caption.text or str(n): (caption.log_probability, caption.itm_probability)
                for n, caption in enumerate(captions)
            },
            [{entry.label: entry.probability for entry in own} for own in labels],
            multimodal_embeds(matcher, processor, images, ["a", "b c", "d"], batch_size=2),
        )

    assert_same_there(describe, captioner, matcher, atol=1e-5)


def test_recalls_equal_the_cpus():
    scores, features = torch.randn(3, 5), torch.randn(2, 4, 6)

    def recalls(device):
        there = features.to(device)
        return [
            retrieval_recalls(scores.to(device), [0, 0, 1, 2, 2]),
            recalls_in_set(there[0], there[1], torch.tensor([7, 7, -100, 8], device=device)),
        ]

    assert_same_there(recalls)


# Precision


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASK_MODELS)
def test_states_and_logits_have_the_precision_of_the_weights_and_losses_fp32(task, dtype):
    model, batch = make_model_and_batch(task)
    model.to(dtype)
    output = model(**batch)
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    for name, value in output.items():
        if "logits" in name or name in ("last_hidden_state", "image_embeds", "question_embeds"):
            assert value.dtype == dtype, name
            assert value.isfinite().all(), name
        elif "features" in name:
            assert value.dtype == torch.float32, name
    output.loss.backward()
    if task in CONTRASTIVE_TASKS:
        model.update_momentum()
        model.enqueue(output)
        assert model.queue.image_features.dtype == dtype


@pytest.fixture
def _fp64_by_default():
    """Makes tensors without a dtype fp64, to detect them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("task", TASK_MODELS)
def test_no_tensor_of_a_step_has_the_default_precision(task, request):
    model, batch = make_model_and_batch(task)
    request.getfixturevalue("_fp64_by_default")
    output = model(**batch)
    if task in CONTRASTIVE_TASKS:
        model.update_momentum()
        model.enqueue(output)
    assert {value.dtype for value in output.values() if isinstance(value, Tensor) and value.is_floating_point()} == {
        torch.float32
    }


def test_no_tensor_of_an_evaluation_has_the_default_precision(request):
    _, processor, matcher, _ = tiny_capfilt()
    answerer, batch, answers = BlipForQuestionAnswering(tiny_config()).eval(), tiny_batch(), tiny_batch((4, 6), seed=3)
    pairs = [{"image": image, "caption": "a b", "image_id": n} for n, image in enumerate(noise_images(2))]
    request.getfixturevalue("_fp64_by_default")
    assert answerer.rank_answers(**batch, answer_ids=answers["input_ids"]).scores.dtype == torch.float32
    assert ZeroShotClassifier(matcher, processor, ["a", "b"]).label_features.dtype == torch.float32
    result = evaluate_retrieval(matcher, processor, pairs, k=2)
    assert result.image_candidates.scores.dtype == result.text_candidates.scores.dtype == torch.float32


def test_scores_of_the_demo_equal_the_cpus():
    processor = make_scene_processor()
    models = [
        tiny_model_for(model_class, processor, initializer_range=0.5)
        for model_class in (BlipForConditionalGeneration, BlipForImageTextRetrieval)
    ]

    def score(device):
        result = evaluate_demo(*models, processor, Scenes(4, image_size=32), training_captions=["a red ring"])
        return [score.value for score in result.scores]

    assert_same_there(score, *models)
