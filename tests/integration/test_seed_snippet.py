# SPDX-License-Identifier: BSD-3-Clause
"""The snippet on the model cards of BLIP runs with only its import line changed."""

import warnings

import pytest
import torch
import transformers
from PIL import Image

import blip_hf
from tests.support.tiny_models import TEXT, VISION
from tests.support.vocabularies import make_tokenizer


@pytest.fixture
def directory(tmp_path):
    """A checkpoint and a processor saved by transformers, with an image."""
    tokenizer = make_tokenizer(("a", "photography", "of", "dog", "red", "hat"))
    image_processor = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(image_processor, tokenizer).save_pretrained(tmp_path)
    size = len(tokenizer)
    text_config = {key: value for key, value in TEXT.items() if key not in ("cls_token_id", "enc_token_id")}
    text_config |= {"vocab_size": size + 2, "bos_token_id": size, "sep_token_id": 3, "eos_token_id": 3}
    config = transformers.BlipConfig(text_config=text_config, vision_config=dict(VISION))
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / "1.jpg")
    return tmp_path


def run_snippet(package, directory, device):
    processor = package.BlipProcessor.from_pretrained(directory)
    model = package.BlipForConditionalGeneration.from_pretrained(directory).to(device)
    raw_image = Image.open(directory / "1.jpg").convert("RGB")
    text = "a photography of"
    inputs = processor(raw_image, text, return_tensors="pt").to(device)
    out = model.generate(**inputs)
    conditional = processor.decode(out[0], skip_special_tokens=True)
    inputs = processor(raw_image, return_tensors="pt").to(device)
    out = model.generate(**inputs)
    return conditional, processor.decode(out[0], skip_special_tokens=True)


def test_seed_snippet_gives_the_captions_of_transformers(directory):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conditional, unconditional = run_snippet(blip_hf, directory, device)
    assert conditional.startswith("a photography of")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns about its default length
        theirs = run_snippet(transformers, directory, device)
    assert (conditional, unconditional) == theirs
