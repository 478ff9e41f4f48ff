# SPDX-License-Identifier: BSD-3-Clause
"""The CapFilt engine: captions depend only on their sample, scores only on their pair; one pass per image."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import LogitsProcessorList, TopPLogitsWarper

from benchmarks import capfilt as benchmark
from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval
from blip_hf.capfilt import engine
from blip_hf.capfilt.engine import CapFilt, CapFiltSettings, fingerprint
from blip_hf.capfilt.sampling import SeededNucleus, caption_seed, gumbel_noise
from blip_hf.data.readers.samples import Sample, Shard, Skipped
from blip_hf.data.text import pre_caption
from tests.support.images import encode_image, noise_images
from tests.support.tiny_models import tiny_capfilt, tiny_model_for
from tests.support.vocabularies import make_processor


NUM_IMAGES = 8
TEXTS = ("a b.", "C d e f", "g", "h i j k l m n", "o p")
LENGTHS = {"max_length": 12, "min_length": 5, "prompt": "a b"}


@pytest.fixture(scope="module")
def samples():
    """Eight images with one to three texts."""
    return [
        Sample(f"s/{i}", encode_image(image), tuple(TEXTS[j % len(TEXTS)] for j in range(i, i + 1 + i % 3)), str(i))
        for i, image in enumerate(noise_images(NUM_IMAGES))
    ]


@pytest.fixture(scope="module")
def parts():
    return tiny_capfilt()


def run(parts, samples, **settings):
    engine = CapFilt(*parts, CapFiltSettings(**{**LENGTHS, **settings}))
    table, skipped = engine.score_shard(Shard("s", lambda: iter(samples)))
    return table.to_pylist(), skipped


def texts_of(rows):
    return [(row["sample_id"], row["text_index"], row["text"]) for row in rows]


@pytest.mark.parametrize(
    "settings", [{"num_captions": 2}, {"strategy": "beam", "num_captions": 2}, {"strategy": "greedy"}]
)
def test_batch_size_does_not_change_texts_or_scores(parts, samples, settings):
    expected, _ = run(parts, samples, batch_size=1, **settings)
    assert len({row["text"] for row in expected if row["source"] == "synthetic"}) > NUM_IMAGES / 2
    for batch_size in (3, 8):
        actual, _ = run(parts, samples, batch_size=batch_size, num_workers=0, **settings)
        assert texts_of(actual) == texts_of(expected)
        for name in ("itm", "itc"):
            scores = torch.tensor([[row[name] for row in rows] for rows in (actual, expected)])
            assert_close(scores[0], scores[1], atol=1e-5, rtol=0)
            assert scores[0].std() > 0.01


def test_many_texts_are_scored_in_batches_of_bounded_size(parts, samples, monkeypatch):
    many = [*samples, Sample("s/many", samples[0].image, tuple(f"a {text}" for text in "bcdefghijkl"), "many")]
    expected, _ = run(parts, many, num_captions=0, batch_size=9)
    logits, num_rows = parts[2].get_itm_logits, []

    def counting_logits(memory, input_ids, mask):
        num_rows.append(len(input_ids))
        return logits(memory, input_ids, mask)

    monkeypatch.setattr(parts[2], "get_itm_logits", counting_logits)
    monkeypatch.setattr(engine, "MAX_ROWS", 4)
    actual, _ = run(parts, many, num_captions=0, batch_size=9)
    assert max(num_rows) == 4
    assert sum(num_rows) == len(expected)
    assert texts_of(actual) == texts_of(expected)
    for name in ("itm", "itc"):
        scores = torch.tensor([[row[name] for row in rows] for rows in (actual, expected)])
        assert_close(scores[0], scores[1], atol=1e-5, rtol=0)


def test_caption_depends_only_on_seed_and_sample(parts, samples):
    expected, _ = run(parts, samples)
    synthetic = {row["sample_id"]: row["text"] for row in expected if row["source"] == "synthetic"}
    some, _ = run(parts, samples[::-3])
    assert {row["sample_id"]: row["text"] for row in some if row["source"] == "synthetic"}.items() < synthetic.items()
    other_seed, _ = run(parts, samples, seed=1)
    other_names, _ = run(parts, [replace(sample, sample_id=f"t{sample.sample_id}") for sample in samples])
    for rows in (other_seed, other_names):
        changed = [row["text"] for row in rows if row["source"] == "synthetic"]
        assert sum(new != old for new, old in zip(changed, synthetic.values(), strict=True)) > NUM_IMAGES / 2


@pytest.mark.parametrize("num_captions", [0, 1, 4])
def test_each_model_encodes_an_image_once(parts, samples, num_captions, monkeypatch):
    seen = {0: 0, 2: 0}
    for position in seen:
        vision_model = parts[position].vision_model
        forward = vision_model.forward

        def counting(pixel_values, *args, position=position, forward=forward, **kwargs):
            seen[position] += len(pixel_values)
            return forward(pixel_values, *args, **kwargs)

        monkeypatch.setattr(vision_model, "forward", counting)
    run(parts, samples, num_captions=num_captions, batch_size=3)
    assert seen == {0: NUM_IMAGES if num_captions else 0, 2: NUM_IMAGES}


def test_scores_equal_direct_calls_of_the_filter(parts, samples):
    rows, _ = run(parts, samples, num_captions=2, batch_size=3)
    by_id = {sample.sample_id: sample for sample in samples}
    _, _, matcher, processor = parts
    for row in rows:
        inputs = processor(
            by_id[row["sample_id"]].open_image(), [pre_caption(row["text"])], role="contrast", return_tensors="pt"
        )
        with torch.no_grad():
            itm = matcher(**inputs).itm_logits.softmax(dim=1)[0, 1]
            itc = matcher(**inputs, use_itm_head=False).itc_similarity[0, 0]
        assert_close(torch.tensor([row["itm"], row["itc"]]), torch.stack([itm, itc]), atol=1e-5, rtol=0)


def test_log_probabilities_are_those_of_the_captioner(parts, samples):
    rows, _ = run(parts, samples, num_captions=2)
    captioner, processor = parts[:2]
    by_id = {sample.sample_id: sample for sample in samples}
    checked = 0
    for row in rows:
        if row["source"] == "web":
            assert row["log_prob"] is None
            continue
        tokens = processor(
            by_id[row["sample_id"]].open_image(),
            [row["text"]],
            role="captioning",
            prompt=LENGTHS["prompt"],
            return_tensors="pt",
        )
        input_ids, targets = tokens["input_ids"], tokens["labels"][:, 1:]
        with torch.no_grad():
            log_probs = captioner(pixel_values=tokens["pixel_values"], input_ids=input_ids).logits.log_softmax(dim=2)
        own = log_probs[:, :-1].gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets >= 0)
        if input_ids.shape[1] > LENGTHS["max_length"]:  # cut off before its [SEP]
            own = own[:, :-1]
        assert_close(torch.tensor(row["log_prob"]), own.sum(), atol=1e-4, rtol=0)
        checked += 1
    assert checked >= NUM_IMAGES


def test_texts_are_stored_unchanged_and_numbered_by_source(parts, samples):
    rows, skipped = run(parts, samples, num_captions=2)
    assert skipped == []
    web = [row for row in rows if row["source"] == "web"]
    assert texts_of(web) == [
        (sample.sample_id, index, text) for sample in samples for index, text in enumerate(sample.texts)
    ]
    assert {row["text_index"] for row in rows if row["source"] == "synthetic"} == {0, 1}
    assert {row["image"] for row in rows} == {""}


def test_equal_captions_of_an_image_are_kept_once(parts, samples):
    rows, _ = run(parts, samples, num_captions=5, top_p=0.01)  # only the most likely token: all five are equal
    assert sum(row["source"] == "synthetic" for row in rows) == NUM_IMAGES


def test_skipped_and_broken_images_are_counted(parts, samples):
    cut = replace(samples[0], sample_id="cut", image=samples[0].image[:-200])
    given = Skipped("gone", "truncated_tar", "ends early")
    expected, _ = run(parts, samples)
    rows, skipped = run(parts, [given, *samples[:3], cut, *samples[3:]], batch_size=2)
    assert texts_of(rows) == texts_of(expected)
    assert [(item.sample_id, item.reason) for item in skipped] == [
        ("gone", "truncated_tar"),
        ("cut", "unreadable_image"),
    ]
    assert run(parts, [given]) == ([], [given])


def test_filter_of_another_image_size_gets_its_own_pixels(parts, samples):
    captioner, processor = parts[:2]
    large = tiny_capfilt(image_size=48)
    rows, _ = run((captioner, processor, *large[2:]), samples[:2])
    own, _ = run((*large[:2], *large[2:]), samples[:2])
    web = [[row["itm"] for row in table if row["source"] == "web"] for table in (rows, own)]
    assert_close(*map(torch.tensor, web), atol=1e-5, rtol=0)


def test_bf16_weights_run(parts, samples):
    captioner, processor, matcher, _ = tiny_capfilt()
    rows, _ = run((captioner.bfloat16(), processor, matcher.bfloat16(), processor), samples)
    assert all(0 <= row["itm"] <= 1 and -1.01 <= row["itc"] <= 1.01 for row in rows)


def test_samples_are_read_no_further_ahead_than_two_batches(parts, samples):
    num_read = 0

    def stream():
        nonlocal num_read
        for sample in samples * 4:
            num_read += 1
            yield replace(sample, sample_id=str(num_read))

    engine = CapFilt(*parts, CapFiltSettings(batch_size=2, **LENGTHS))
    batches = engine.score_batches(stream())
    for number in range(1, 5):
        next(batches)
        assert num_read <= 2 * number + 4


def test_fingerprints_of_different_models_differ(parts):
    captioner = tiny_capfilt()[0]
    assert fingerprint(captioner) == fingerprint(parts[0]) != fingerprint(parts[2])
    captioner.text_decoder.cls.predictions.bias.data[0] += 1
    assert fingerprint(captioner) != fingerprint(parts[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "topk"}, "strategy='topk' is unknown"),
        ({"strategy": "greedy", "num_captions": 2}, "greedy search writes one"),
        ({"top_p": 0.0}, "top_p=0.0 is not a probability mass"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
    ],
)
def test_settings_out_of_range_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        CapFiltSettings(**settings)


def test_noise_is_gumbel_and_independent_over_seeds_positions_and_tokens():
    seeds = torch.tensor([caption_seed(0, str(i), 0) for i in range(50)])
    grid = torch.stack(
        [gumbel_noise(seeds.repeat_interleave(40), position, torch.arange(40).repeat(50)) for position in range(20)]
    ).view(20, 50, 40)
    levels = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    shares = torch.stack([(grid < level).float().mean() for level in levels])
    assert_close(shares, (-(-levels).exp()).exp(), atol=0.01, rtol=0)  # 40,000 draws: a standard error of 0.0025
    for axis in range(3):
        left, right = grid.narrow(axis, 0, grid.shape[axis] - 1), grid.narrow(axis, 1, grid.shape[axis] - 1)
        assert abs(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]) < 0.03


def test_samples_follow_the_nucleus_distribution():
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -3.0, -4.0])
    expected = TopPLogitsWarper(0.9)(None, logits[None]).softmax(dim=1)[0]
    num_draws = 20_000
    seeds = torch.tensor([caption_seed(7, str(i), 0) for i in range(num_draws)])
    draws = SeededNucleus(seeds, 0.9)(torch.zeros(num_draws, 3), logits.expand(num_draws, -1)).argmax(dim=1)
    shares = draws.bincount(minlength=len(logits)) / num_draws
    assert_close(shares, expected, atol=0.015, rtol=0)  # a standard error of at most 0.0035
    assert (shares[expected == 0] == 0).all()


def test_captions_follow_the_distribution_of_transformers_sampling(parts, samples):
    captioner, processor = parts[:2]
    num_draws, num_new = 4_000, 2
    pixels = processor(images=samples[0].open_image(), return_tensors="pt")["pixel_values"]
    memory = captioner.get_image_memory(pixels)
    prompts = torch.tensor([processor(text="")["input_ids"]]).expand(num_draws, -1)
    options = {"image_memory": memory, "input_ids": prompts, "max_new_tokens": num_new}
    seeds = torch.tensor([caption_seed(0, str(i), 0) for i in range(num_draws)])
    ours = captioner.generate(
        **options, do_sample=False, logits_processor=LogitsProcessorList([SeededNucleus(seeds, 0.9)])
    )
    theirs = captioner.generate(**options, do_sample=True, top_p=0.9, top_k=0)
    vocab_size = captioner.config.text_config.vocab_size
    counts = [
        (rows[:, -2] * vocab_size + rows[:, -1]).bincount(minlength=vocab_size**2).float() for rows in (ours, theirs)
    ]
    likely = counts[1] > 0.02 * num_draws
    assert likely.sum() >= 3
    # Two shares of 4,000 draws each: a standard error of at most 0.011.
    assert_close(counts[0][likely] / num_draws, counts[1][likely] / num_draws, atol=0.045, rtol=0)


def test_the_benchmark_compares_scores_in_the_precision_of_the_weights():
    rows = [("a ring", 0.5, 0.25)] * benchmark.TEXTS
    close, far = ([("a ring", 0.5 + gap, 0.25)] * benchmark.TEXTS for gap in (1e-3, 1e-1))
    benchmark.check_agreement({"blip_hf": rows, "batched": close, "single": rows}, 1, "bfloat16")
    for other, dtype in ((close, "float32"), (far, "bfloat16")):
        with pytest.raises(AssertionError):
            benchmark.check_agreement({"blip_hf": rows, "batched": other, "single": rows}, 1, dtype)


def test_chinese_captions_have_no_spaces(samples):
    processor = make_processor(tuple("一只狗在沙滩上跑图片"))
    captioner = tiny_model_for(BlipForConditionalGeneration, processor, initializer_range=0.5)
    captioner.text_decoder.cls.predictions.bias.data[processor.tokenizer.all_special_ids] = -100
    matcher = tiny_model_for(BlipForImageTextRetrieval, processor, initializer_range=0.5)
    web = "一只狗\uff0c在跑\u3002"
    settings = {"prompt": "图片", "max_length": 9, "min_length": 5, "num_captions": 2}
    rows, _ = run((captioner, processor, matcher, processor), [replace(samples[0], texts=(web,))], **settings)
    texts = [row["text"] for row in rows]
    assert texts[0] == web
    assert [len(text) for text in texts[1:]] == [6, 6]  # without [DEC] and the prompt
    assert not any(" " in text for text in texts)
