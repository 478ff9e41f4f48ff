# SPDX-License-Identifier: BSD-3-Clause
"""`generate()`: beams, prompts, settings and caches."""

import itertools

import pytest
import torch
from torch.testing import assert_close
from transformers import GenerationConfig

from blip_hf import BlipForConditionalGeneration
from tests.support.tiny_models import CLS, DEC, PAD, SEP, tiny_batch, tiny_config, write_as_transformers_4
from tests.support.vocabularies import make_tokenizer


MAX_NEW = 6


@pytest.fixture
def model():
    return BlipForConditionalGeneration(tiny_config()).eval()


@pytest.fixture
def prompts():
    """Three images with prompts of 3, 1 and 4 words, as a processor pads them."""
    return tiny_batch(lengths=(5, 3, 6))


def strip(row):
    """Tokens from [DEC] on, up to the first [SEP] or padding: beam search pads with either."""
    ids = row.tolist()
    ids = ids[ids.index(DEC) :]
    return list(itertools.takewhile(lambda token: token not in (SEP, PAD), ids))


@pytest.mark.parametrize("num_beams", [1, 3, 5])
@pytest.mark.parametrize("num_returns", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_num_beams_and_num_return_sequences_set_the_number_of_rows(
    model, num_beams, num_returns, batch_size, do_sample
):
    if not do_sample and num_returns > num_beams:
        pytest.skip("greedy search has one answer")
    pixel_values = tiny_batch(lengths=(4,) * batch_size)["pixel_values"]
    sequences = model.generate(
        pixel_values,
        num_beams=num_beams,
        num_return_sequences=num_returns,
        do_sample=do_sample,
        max_new_tokens=MAX_NEW,
    )
    assert len(sequences) == batch_size * num_returns


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "limits", [{"max_new_tokens": MAX_NEW}, {"max_length": 8}, {"max_length": 12, "min_length": 10}]
)
def test_unequal_prompts_in_a_batch_equal_each_prompt_alone(model, prompts, num_beams, limits):
    together = model.generate(**prompts, num_beams=num_beams, **limits)
    for row, sequence in enumerate(together):
        length = int(prompts["attention_mask"][row].sum())
        alone = model.generate(
            prompts["pixel_values"][row : row + 1],
            prompts["input_ids"][row : row + 1, :length],
            num_beams=num_beams,
            **limits,
        )
        assert strip(sequence) == strip(alone[0])


def test_left_padded_prompts_equal_right_padded_ones(model, prompts):
    left = torch.stack([row.roll(int((row == PAD).sum())) for row in prompts["input_ids"]])
    expected = model.generate(**prompts, max_new_tokens=MAX_NEW)
    actual = model.generate(prompts["pixel_values"], left, (left != PAD).long(), max_new_tokens=MAX_NEW)
    assert_close(actual, expected)


def test_batched_images_equal_single_images(model, prompts):
    pixel_values = prompts["pixel_values"]
    together = model.generate(pixel_values, num_beams=3, max_new_tokens=MAX_NEW)
    for row in range(3):
        alone = model.generate(pixel_values[row : row + 1], num_beams=3, max_new_tokens=MAX_NEW)
        assert strip(together[row]) == strip(alone[0])


def test_prompt_is_kept_and_starts_with_dec(model, prompts):
    sequences = model.generate(**prompts, max_new_tokens=MAX_NEW)
    for row, sequence in enumerate(sequences):
        words = prompts["input_ids"][row][prompts["attention_mask"][row].bool()].tolist()[1:-1]
        assert strip(sequence)[: len(words) + 1] == [DEC, *words]
        assert CLS not in sequence.tolist()


def test_generate_does_not_change_its_inputs(model, prompts):
    before = {key: value.clone() for key, value in prompts.items()}
    model.generate(**prompts, num_beams=2, max_new_tokens=MAX_NEW)
    for key, value in before.items():
        assert_close(prompts[key], value, atol=0, rtol=0)


def test_generation_config_of_the_model_is_used_and_saved(model, prompts, tmp_path):
    model.generation_config.max_new_tokens = 3
    model.generation_config.min_new_tokens = 3
    assert model.generate(prompts["pixel_values"]).shape == (3, 4)
    model.save_pretrained(tmp_path)
    loaded = BlipForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generate(prompts["pixel_values"]).shape == (3, 4)
    assert loaded.generate(prompts["pixel_values"], max_new_tokens=2, min_new_tokens=2).shape == (3, 3)
    own = GenerationConfig(max_new_tokens=5, min_new_tokens=5)
    assert loaded.generate(prompts["pixel_values"], generation_config=own).shape == (3, 6)


def test_defaults_saved_by_transformers_4_do_not_limit_the_prompt(model, tmp_path):
    batch = tiny_batch(lengths=(25, 25))
    model.save_pretrained(tmp_path)
    write_as_transformers_4(tmp_path)
    loaded = BlipForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.max_length is None
    assert loaded.generate(**batch, max_new_tokens=2, min_new_tokens=2).shape == (2, 24 + 2)
    model.save_pretrained(tmp_path)
    write_as_transformers_4(tmp_path, max_length=6, num_beams=2)
    chosen = BlipForConditionalGeneration.from_pretrained(tmp_path)
    assert (chosen.generation_config.max_length, chosen.generation_config.num_beams) == (6, 2)
    assert chosen.generate(batch["pixel_values"]).shape[1] <= 6


@pytest.mark.parametrize("num_beams", [1, 3])
def test_end_tokens_of_a_generation_config_are_used(model, prompts, num_beams):
    pixel_values = prompts["pixel_values"]
    settings = {"max_new_tokens": MAX_NEW, "num_beams": num_beams}
    plain = model.generate(pixel_values, **settings)
    word = int(plain[0, 2])
    expected = model.generate(pixel_values, eos_token_id=[SEP, word], **settings)
    assert expected.tolist() != plain.tolist()
    own = GenerationConfig(eos_token_id=[SEP, word], **settings)
    assert_close(model.generate(pixel_values, generation_config=own), expected)
    model.generation_config.eos_token_id = [SEP, word]
    assert_close(model.generate(pixel_values, **settings), expected)


def test_min_length_holds_for_several_end_tokens(model, prompts):
    ends = [SEP, *range(4, 20)]
    sequences = model.generate(**prompts, eos_token_id=ends, min_length=10, max_length=12)
    prompt_lengths = (prompts["attention_mask"].sum(dim=1) - 1).tolist()  # [DEC] in, [CLS] and [SEP] out
    for row, num_prompt in zip(sequences, prompt_lengths, strict=True):
        ids = row[int((row == DEC).nonzero()[0]) :].tolist()
        assert not set(ids[num_prompt:9]) & set(ends)


def test_settings_of_none_default_to_those_of_the_model(model, prompts):
    expected = model.generate(**prompts, min_length=8, max_length=10)
    nothing = {"eos_token_id": None, "logits_processor": None, "stopping_criteria": None}
    assert_close(model.generate(**prompts, min_length=8, max_length=10, **nothing), expected)


def test_the_wrong_end_token_of_released_files_is_ignored(model, prompts, tmp_path):
    expected = model.generate(**prompts, max_new_tokens=MAX_NEW)
    model.save_pretrained(tmp_path)
    write_as_transformers_4(tmp_path)
    loaded = BlipForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == 2
    assert_close(loaded.generate(**prompts, max_new_tokens=MAX_NEW), expected)


def test_max_length_counts_the_prompt_and_max_new_tokens_does_not(model):
    batch = tiny_batch(lengths=(5, 5))  # [CLS], three words, [SEP]
    assert model.generate(**batch, max_length=9, min_length=9).shape == (2, 9)
    assert model.generate(**batch, max_new_tokens=9, min_new_tokens=9).shape == (2, 4 + 9)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cache_does_not_change_the_tokens(model, prompts, num_beams):
    settings = {"num_beams": num_beams, "max_new_tokens": MAX_NEW}
    cached = model.generate(**prompts, **settings, use_cache=True)
    assert_close(cached, model.generate(**prompts, **settings, use_cache=False))


def test_static_cache_gives_the_same_tokens(model, prompts):
    expected = model.generate(**prompts, max_new_tokens=MAX_NEW)
    assert_close(model.generate(**prompts, max_new_tokens=MAX_NEW, cache_implementation="static"), expected)


def test_stop_strings_end_a_caption(model, prompts):
    pixel_values = prompts["pixel_values"]
    # Transformers spells "abcdef" with the tokenizer to learn how it joins tokens.
    tokenizer = make_tokenizer(["abcdef", *(f"w{number}" for number in range(6, DEC))])
    full = model.generate(pixel_values, max_new_tokens=MAX_NEW)[0].tolist()
    stop = next(number for number in full[1:] if number > 5)
    stopped = model.generate(
        pixel_values[:1],
        max_new_tokens=MAX_NEW,
        stop_strings=[tokenizer.convert_ids_to_tokens(stop)],
        tokenizer=tokenizer,
    )[0]
    assert stopped.tolist() == full[: full.index(stop) + 1]
    assert len(stopped) < len(full)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_image_keys_are_projected_once_for_any_number_of_beams(model, prompts, num_beams):
    seen = []
    cross = model.text_decoder.bert.encoder.layer[0].crossattention.self
    cross.key.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    model.generate(prompts["pixel_values"], num_beams=num_beams, max_new_tokens=MAX_NEW)
    assert seen == [3]


def test_sampling_repeats_with_a_seed(model, prompts):
    settings = {"do_sample": True, "top_p": 0.9, "max_new_tokens": MAX_NEW, "num_return_sequences": 4}
    torch.manual_seed(1)
    first = model.generate(prompts["pixel_values"], **settings)
    torch.manual_seed(1)
    assert_close(model.generate(prompts["pixel_values"], **settings), first)


def test_eager_and_sdpa_generate_the_same_tokens(model, prompts):
    expected = model.generate(**prompts, num_beams=3, max_new_tokens=MAX_NEW)
    model.set_attn_implementation("eager")
    assert_close(model.generate(**prompts, num_beams=3, max_new_tokens=MAX_NEW), expected)


def test_bf16_model_accepts_fp32_pixels(model, prompts):
    assert model.to(torch.bfloat16).generate(**prompts, max_new_tokens=MAX_NEW).dtype == torch.long


def test_forward_without_text_starts_from_dec(model, prompts):
    pixel_values = prompts["pixel_values"]
    start = torch.full((3, 1), DEC)
    assert_close(model(pixel_values).logits, model(pixel_values, start).logits)


def test_image_memory_replaces_pixel_values(model, prompts):
    memory = model.get_image_memory(prompts["pixel_values"])
    text = {key: prompts[key] for key in ("input_ids", "attention_mask")}
    settings = {"num_beams": 3, "max_new_tokens": MAX_NEW}
    assert_close(model.generate(image_memory=memory, **text, **settings), model.generate(**prompts, **settings))
    assert_close(model(image_memory=memory, **text).logits, model(**prompts).logits)
    with pytest.raises(ValueError, match="exactly one of pixel_values"):
        model(**prompts, image_memory=memory)
    with pytest.raises(ValueError, match="exactly one of pixel_values"):
        model.generate(**text)
