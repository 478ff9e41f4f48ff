# SPDX-License-Identifier: BSD-3-Clause
"""The captioner: batches, order, settings, scores and broken images."""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import GenerationConfig

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor
from blip_hf.caption_settings import CaptionSettings
from blip_hf.captioner import BlipCaptioner, Caption
from blip_hf.image_utils import UnreadableImageError
from blip_hf.modeling.cpu import optimize_for_cpu
from tests.support.images import noise_images
from tests.support.tiny_models import tiny_model_for, write_as_transformers_4
from tests.support.vocabularies import make_processor


PROMPT = "a b"


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    processor.caption_settings = CaptionSettings(prompt="")
    return processor


@pytest.fixture(scope="module")
def model(processor):
    # With this seed some captions are empty, some end, and some are truncated.
    return tiny_model_for(BlipForConditionalGeneration, processor, seed=38, initializer_range=0.5)


@pytest.fixture(scope="module")
def matcher(processor):
    return tiny_model_for(BlipForImageTextRetrieval, processor, seed=1, initializer_range=0.5)


@pytest.fixture(scope="module")
def images():
    return noise_images(5)


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not an image")
    return path


def test_batched_captions_equal_single_captions_in_order(model, processor, images):
    single = BlipCaptioner(model, processor, batch_size=1)(images)
    assert BlipCaptioner(model, processor, batch_size=3)(images) == single
    assert BlipCaptioner(model, processor)(reversed(images)) == single[::-1]
    assert len(set(single)) > 1


def test_all_image_types_give_the_same_caption(model, processor, images, tmp_path):
    captioner = BlipCaptioner(model, processor)
    expected = captioner([images[0]])
    path = tmp_path / "image.png"
    images[0].save(path)
    for image in (images[0], path, str(path), np.asarray(images[0]), path.read_bytes(), {"path": str(path)}):
        assert captioner(image) == expected
    with path.open("rb") as file:
        assert captioner(file) == expected


def test_tensors_and_arrays_of_either_layout_and_range_give_the_same_captions(model, processor, images):
    captioner = BlipCaptioner(model, processor, batch_size=2)
    expected = captioner(images)
    levels = torch.stack([torch.from_numpy(np.array(image)) for image in images])  # (n, h, w, 3)
    floats = levels.permute(0, 3, 1, 2) / 255  # (n, 3, h, w)
    for batch in (levels, floats, levels.numpy(), floats.numpy(), list(floats), [floats[:2], floats[2:]]):
        assert captioner(batch) == expected
    for image in (levels[0], floats[0], floats[0].double(), levels.numpy()[0]):
        assert captioner(image) == expected[:1]


def test_a_chinese_captioner_writes_without_spaces(images):
    processor = make_processor(tuple("一只狗在沙滩上跑图片"))
    model = tiny_model_for(BlipForConditionalGeneration, processor, initializer_range=0.5)
    settings = {"max_new_tokens": 8, "suppress_tokens": processor.tokenizer.all_special_ids}
    captions = BlipCaptioner(model, processor, prompt="图片", **settings)(images)
    assert all(re.fullmatch("[一只狗在沙滩上跑图片]{2,8}", caption) for caption in captions), captions


def test_no_images_give_no_captions(model, processor):
    assert BlipCaptioner(model, processor)([]) == []


def test_the_models_are_put_in_evaluation_mode(model, processor, matcher):
    BlipCaptioner(model.train(), processor, matcher=matcher.train())
    assert not model.training
    assert not matcher.training


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_default_settings_equal_the_papers(model, processor, images, prompt):
    explicit = BlipCaptioner(model, processor, prompt=prompt, num_beams=3, max_length=20, min_length=5)
    assert BlipCaptioner(model, processor, prompt=prompt)(images) == explicit(images)
    greedy = BlipCaptioner(model, processor, prompt=prompt, num_beams=1)
    assert greedy(images) != explicit(images)


def test_checkpoint_without_settings_uses_the_papers_prompt(model, processor):
    bare = BlipProcessor(processor.image_processor, processor.tokenizer)
    assert BlipCaptioner(model, bare).prompt == "a picture of "
    assert BlipCaptioner(model, bare, prompt="").prompt == ""


def num_tokens(captioner, image):
    return captioner.caption(image, return_scores=True)[0].num_tokens


@pytest.fixture
def endless(model, processor):
    """Makes captioners that never end a caption, so that each has the maximum length."""
    return partial(BlipCaptioner, model, processor, suppress_tokens=[processor.tokenizer.sep_token_id])


def test_max_length_includes_the_prompt_and_max_new_tokens_does_not(endless, images):
    assert num_tokens(endless(), images[0]) == 19
    assert num_tokens(endless(prompt=PROMPT), images[0]) == 17
    assert num_tokens(endless(max_length=8), images[0]) == 7
    assert num_tokens(endless(max_new_tokens=3), images[0]) == 3
    assert num_tokens(endless(max_new_tokens=3, prompt=PROMPT), images[0]) == 3


def test_captions_have_at_least_min_length_tokens(model, processor, images):
    ends = BlipCaptioner(model, processor, sequence_bias=[[[processor.tokenizer.sep_token_id], 100.0]])
    assert num_tokens(ends, images[0]) == 5  # four, and [SEP]
    ends.generation_settings["max_length"] = 3
    assert num_tokens(ends, images[0]) == 2
    ends.generation_settings = {"max_new_tokens": 2, **ends.generation_settings, "max_length": None}
    assert num_tokens(ends, images[0]) == 1


def test_arguments_override_the_models_generation_config_which_overrides_settings(endless, model, images):
    try:
        model.generation_config.max_new_tokens = 3
        assert num_tokens(endless(), images[0]) == 3
        assert num_tokens(endless(max_new_tokens=5), images[0]) == 5
        assert num_tokens(endless(max_length=8), images[0]) == 7
    finally:
        model.generation_config.max_new_tokens = None


def test_generation_config_of_the_captioner_overrides_the_models(model, processor, images):
    never_ends = {"suppress_tokens": [processor.tokenizer.sep_token_id]}
    own = GenerationConfig(max_new_tokens=2, **never_ends)
    assert num_tokens(BlipCaptioner(model, processor, generation_config=own), images[0]) == 2
    assert num_tokens(BlipCaptioner(model, processor, generation_config=own, max_new_tokens=3), images[0]) == 3
    assert (
        num_tokens(BlipCaptioner(model, processor, generation_config=GenerationConfig(**never_ends)), images[0]) == 19
    )


def test_defaults_saved_by_transformers_4_are_ignored(model, processor, images, tmp_path):
    expected = BlipCaptioner(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    write_as_transformers_4(tmp_path)
    captioner = BlipCaptioner.from_pretrained(tmp_path, device="cpu")
    assert captioner(images) == expected(images)
    assert len(captioner.caption(images[:1], num_return_sequences=3)) == 3
    captioner.model.save_pretrained(tmp_path)
    assert BlipCaptioner.from_pretrained(tmp_path, device="cpu")(images) == expected(images)


def test_the_prompt_conditions_the_caption_and_is_removed_from_it(model, processor, images):
    inputs = processor(images, [PROMPT] * len(images), return_tensors="pt")
    sequences = model.generate(**inputs, num_beams=3, max_length=20, min_length=5)
    decoded = processor.batch_decode(sequences, skip_special_tokens=True)
    assert all(text.startswith(PROMPT) for text in decoded)
    captions = BlipCaptioner(model, processor, prompt=PROMPT)(images)
    assert captions == [text.removeprefix(PROMPT).strip() for text in decoded]


def reference_log_probability(model, processor, image, prompt, sequence):
    """Sum and count, token by token, in one forward pass each."""
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    num_context = 1 if prompt is None else 1 + len(processor.tokenizer.tokenize(prompt))
    total, count = 0.0, 0
    for position in range(num_context, len(sequence)):
        with torch.no_grad():
            logits = model(pixel_values, input_ids=sequence[None, :position]).logits[0, -1]
        total += logits.log_softmax(dim=-1)[sequence[position]].item()
        count += 1
        if sequence[position] == processor.tokenizer.sep_token_id:
            break
    return total, count


@pytest.mark.parametrize("prompt", [None, PROMPT])
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 1}])
def test_log_probability_equals_that_of_a_forward_pass(model, processor, images, prompt, settings):
    captioner = BlipCaptioner(model, processor, prompt=prompt, max_new_tokens=6, **settings)
    captions = captioner.caption(images, return_scores=True)
    assert len({caption.num_tokens for caption in captions}) > 1
    for image, caption in zip(images, captions, strict=True):
        inputs = processor(image, prompt, return_tensors="pt")
        sequence = model.generate(**inputs, max_new_tokens=6, **settings)[0]
        total, count = reference_log_probability(model, processor, image, prompt, sequence)
        assert caption.num_tokens == count
        assert caption.log_probability == pytest.approx(total, rel=1e-4)  # one pass and cached steps round differently
        assert caption.mean_log_probability == pytest.approx(total / count, rel=1e-4)


def test_log_probability_of_a_sample_does_not_depend_on_temperature(model, processor, images):
    # Both sample the most likely token, from different distributions.
    mild = BlipCaptioner(model, processor, do_sample=True, top_k=1, temperature=2.0)
    sharp = BlipCaptioner(model, processor, do_sample=True, top_k=1, temperature=0.5)
    greedy = BlipCaptioner(model, processor, num_beams=1)
    expected = greedy.caption(images, return_scores=True)
    for captioner in (mild, sharp):
        assert captioner.caption(images, return_scores=True) == expected


def test_several_captions_of_an_image_are_consecutive_with_their_own_scores(model, processor, images):
    captioner = BlipCaptioner(model, processor, batch_size=2, length_penalty=0.0, max_new_tokens=4)
    captions = captioner.caption(images, num_return_sequences=4, return_scores=True)
    assert [caption.image_index for caption in captions] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    for number in range(len(images)):
        # Without a length penalty, beam search ranks by the sum of log-probabilities.
        totals = [caption.log_probability for caption in captions if caption.image_index == number]
        assert totals == sorted(totals, reverse=True)
        assert len(set(totals)) > 1


def test_itm_probability_is_the_softmax_of_the_matcher(model, processor, matcher, images):
    captions = BlipCaptioner(model, processor, matcher=matcher).caption(images, num_return_sequences=2)
    for caption in captions:
        inputs = processor(images[caption.image_index], [caption.text], role="matching", return_tensors="pt")
        with torch.no_grad():
            probability = matcher(**inputs).itm_score.softmax(dim=-1)[0, 1]
        assert_close(torch.tensor(caption.itm_probability), probability, rtol=1e-4, atol=1e-6)
        assert caption.log_probability is None
    assert len({caption.itm_probability for caption in captions}) > 1


def test_matcher_can_use_cls_instead_of_enc(model, processor, matcher, images):
    enc = BlipCaptioner(model, processor, matcher=matcher).caption(images[0])[0]
    matcher.config.itm_start_token = "cls"
    try:
        cls = BlipCaptioner(model, processor, matcher=matcher).caption(images[0])[0]
        inputs = processor(images[0], [cls.text], role="contrast", return_tensors="pt")
        with torch.no_grad():
            probability = matcher(**inputs, itm_start_token="cls").itm_score.softmax(dim=-1)[0, 1]
    finally:
        matcher.config.itm_start_token = "enc"
    assert cls.itm_probability == pytest.approx(probability.item(), rel=1e-4)
    assert cls.itm_probability != enc.itm_probability


def test_each_image_is_encoded_once_for_all_its_captions(model, processor, matcher, images):
    rows = []
    hook = matcher.vision_model.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    BlipCaptioner(model, processor, matcher=matcher).caption(images[:2], num_return_sequences=3)
    hook.remove()
    assert rows == [2]


def test_broken_image_raises_with_its_name_by_default(model, processor, images, broken):
    captioner = BlipCaptioner(model, processor)
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        captioner.caption([images[0], broken])
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        captioner([broken])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_broken_image_can_be_skipped(model, processor, matcher, images, broken, batch_size):
    captioner = BlipCaptioner(model, processor, matcher=matcher, batch_size=batch_size)
    captions = captioner.caption([images[0], broken, images[1]], return_scores=True, on_error="skip")
    assert [caption.image_index for caption in captions] == [0, 1, 2]
    assert [captions[0].text, captions[2].text] == captioner(images[:2])
    assert captions[1].text is None
    assert captions[1].mean_log_probability is None
    assert "broken.jpg" in captions[1].error


def test_sampling_repeats_with_a_seed_and_keeps_the_generator_state(model, processor, images):
    seeded = BlipCaptioner(model, processor, do_sample=True, seed=3, batch_size=2)
    state = torch.get_rng_state()
    first = seeded(images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert seeded(images) == first
    assert BlipCaptioner(model, processor, do_sample=True, seed=4, batch_size=2)(images) != first


@pytest.mark.parametrize("num_beams", [1, 2])
def test_sampling_in_several_threads_equals_that_in_one(num_beams, model, processor, images):
    def caption(seed):
        captioner = BlipCaptioner(model, processor, do_sample=True, num_beams=num_beams, seed=seed, top_p=1.0)
        return captioner(images)

    alone = [caption(seed) for seed in range(8)]
    assert len(set(map(tuple, alone))) > 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(caption, range(8))) == alone


def test_sampling_with_a_seed_draws_as_with_the_global_generator(model, processor, images):
    captioner = BlipCaptioner(model, processor, do_sample=True, batch_size=len(images))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = captioner(images)
    captioner.seed = 5
    assert captioner(images) == expected


def test_equal_images_in_different_batches_get_different_samples(model, processor, images):
    captions = BlipCaptioner(model, processor, do_sample=True, seed=0, batch_size=1)([images[0]] * 5)
    assert len(set(captions)) > 1


def test_captions_are_yielded_batch_by_batch(model, processor, images):
    opened = []

    def feed():
        for number, image in enumerate(images):
            opened.append(number)
            yield image

    captions = BlipCaptioner(model, processor, batch_size=2).iter_captions(feed())
    assert next(captions).image_index == 0
    assert opened == [0, 1]


@pytest.mark.parametrize("matcher_size", [32, 48])
def test_from_pretrained_gives_the_same_captions(model, processor, images, tmp_path, matcher_size):
    # The matcher has its own processor.
    matcher_processor = BlipProcessor.from_bert_tokenizer(processor.tokenizer, image_size=matcher_size)
    matcher = tiny_model_for(BlipForImageTextRetrieval, matcher_processor)
    for folder, parts in {"captioner": (model, processor), "matcher": (matcher, matcher_processor)}.items():
        for part in parts:
            part.save_pretrained(tmp_path / folder)
    loaded = BlipCaptioner.from_pretrained(tmp_path / "captioner", matcher=tmp_path / "matcher", device="cpu")
    for part in (model, matcher):
        optimize_for_cpu(part)  # as `from_pretrained` does on CPUs
    expected = BlipCaptioner(model, processor, matcher=matcher, matcher_processor=matcher_processor)
    captions = loaded.caption(images, return_scores=True)
    assert captions == expected.caption(images, return_scores=True)
    assert all(0 < caption.itm_probability < 1 for caption in captions)


def test_captions_in_bfloat16(processor, images):
    model = tiny_model_for(BlipForConditionalGeneration, processor).to(torch.bfloat16)
    caption = BlipCaptioner(model, processor).caption(images[0], return_scores=True)[0]
    assert caption.log_probability < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_return_sequences": 2}, "pass num_return_sequences to `caption`"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    ],
)
def test_invalid_options_raise(model, processor, options, message):
    with pytest.raises(ValueError, match=message):
        BlipCaptioner(model, processor, **options)


def test_deprecated_names_still_work_and_warn(model, processor, images):
    captioner = BlipCaptioner(model, processor)
    expected = captioner(images)
    for method in (captioner, captioner.caption, captioner.iter_captions):
        with pytest.warns(FutureWarning, match="`pictures` is deprecated"):
            captions = list(method(pictures=images))
        assert [getattr(caption, "text", caption) for caption in captions] == expected
    with pytest.warns(FutureWarning, match=r"Use `Caption\.image_index`"):
        assert Caption(image_index=3).picture == 3


def test_unknown_settings_raise(model, processor, images):
    with pytest.raises(ValueError, match="num_beasm"):
        BlipCaptioner(model, processor, num_beasm=2)(images)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        BlipCaptioner(model, processor).caption(Image.new("RGB", (8, 8)), on_error="ignore")


def test_reading_ahead_changes_nothing(model, processor, images):
    settings = {"do_sample": True, "seed": 3, "batch_size": 2}
    expected = BlipCaptioner(model, processor, **settings).caption(images, return_scores=True)
    ahead = BlipCaptioner(model, processor, num_workers=3, **settings).caption(images, return_scores=True)
    assert ahead == expected


def test_a_part_of_the_images_gets_the_captions_of_the_whole(model, processor, images):
    captioner = BlipCaptioner(model, processor, do_sample=True, seed=3, batch_size=2)
    rest = captioner.iter_captions(images[2:], first_index=2)
    assert list(rest) == captioner.caption(images)[2:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_of_extreme_shapes_are_captioned(model, processor, num_workers):
    shapes = [(1, 1), (3, 1), (1, 3), (3, 3), (4, 4), (2000, 1), (1, 2000)]
    images = [Image.new("RGB", shape) for shape in shapes]
    assert len(BlipCaptioner(model, processor, num_workers=num_workers)(images)) == len(shapes)
