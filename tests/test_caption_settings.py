# SPDX-License-Identifier: BSD-3-Clause
"""Caption settings: values, and saving with the checkpoint."""

import warnings

import pytest
import transformers

from blip_hf import BlipCaptioner, BlipProcessor, CaptionSettings
from blip_hf.capfilt.engine import CapFilt
from blip_hf.capfilt.settings import CapFiltSettings
from blip_hf.caption_settings import PRETRAINING_SETTINGS
from blip_hf.data.collators import BlipCaptioningCollator
from blip_hf.data.readers.samples import Sample, Shard
from tests.support.images import encode_image
from tests.support.processors import make_processor, random_photo
from tests.support.tiny_models import tiny_capfilt


OWN = CaptionSettings(prompt="a b ", max_length=9, min_length=6, num_beams=2)
IMAGES = [random_photo(seed) for seed in range(4)]


def test_defaults_equal_caption_coco_yaml_and_the_papers_section_4():
    assert CaptionSettings().to_dict() == {
        "prompt": "a picture of ",
        "num_beams": 3,
        "max_length": 20,
        "min_length": 5,
        "top_p": 0.9,
        "repetition_penalty": 1.0,
    }


def test_given_values_override_the_checkpoint_which_overrides_the_defaults():
    settings = CaptionSettings.resolve(OWN, prompt=None, num_beams=4)
    assert (settings.prompt, settings.num_beams, settings.max_length, settings.top_p) == ("a b ", 4, 9, 0.9)
    assert CaptionSettings.resolve(OWN, prompt="").prompt == ""
    assert CaptionSettings.resolve(None) == CaptionSettings()
    assert CaptionSettings.resolve(OWN, prompt="", max_length=4).min_length == 4
    assert CaptionSettings.for_finetuning(OWN) == OWN


def test_fine_tuning_after_pre_training_learns_the_default_prompt():
    assert PRETRAINING_SETTINGS.prompt == ""
    assert CaptionSettings.for_finetuning(PRETRAINING_SETTINGS, num_beams=1) == CaptionSettings(num_beams=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": None}, "prompt=None is not a string. Pass '' for no prompt."),
        ({"num_beams": 0}, "num_beams=0 is too small. Pass 1 or more."),
        ({"max_length": 4}, "max_length=4 leaves no room for a caption after the prompt 'a picture of '. Pass 5 or"),
        ({"min_length": 21}, "min_length=21 is greater than max_length=20"),
        ({"top_p": 0.0}, "top_p=0.0 is not a probability mass"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is not positive"),
    ],
)
def test_values_out_of_range_raise(values, message):
    with pytest.raises(ValueError, match=message):
        CaptionSettings(**values)


def test_capfilt_validates_caption_settings_and_defaults_to_the_captioners():
    with pytest.raises(ValueError, match="leaves no room"):
        CapFiltSettings(prompt="a b c", max_length=4)
    with pytest.raises(ValueError, match=r"top_p=1\.5"):
        CapFiltSettings(top_p=1.5)
    assert CapFiltSettings(max_length=3).resolve(CaptionSettings(prompt="")).max_length == 3
    with pytest.raises(ValueError, match="leaves no room"):
        CapFiltSettings(max_length=3).resolve(OWN)


def test_settings_are_saved_with_the_processor_and_ignored_by_transformers(tmp_path, caplog, monkeypatch):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    without = (tmp_path / "processor_config.json").read_bytes()
    assert BlipProcessor.from_pretrained(tmp_path).caption_settings is None
    processor.caption_settings = OWN
    processor.save_pretrained(tmp_path)
    assert BlipProcessor.from_pretrained(tmp_path).caption_settings == OWN
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    for loader in (transformers.BlipProcessor, transformers.AutoProcessor):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is transformers.BlipProcessor
        assert not caplog.records
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").read_bytes() == without


def test_a_collator_trains_with_the_prompt_of_the_processor():
    processor = make_processor()
    assert BlipCaptioningCollator(processor).prompt == "a picture of "
    processor.caption_settings = OWN
    assert BlipCaptioningCollator(processor).prompt == "a b "
    assert BlipCaptioningCollator(processor, prompt="").prompt == ""


@pytest.fixture(scope="module", params=["a b ", "c d e "])
def checkpoint(request, tmp_path_factory):
    """A prompt, and a folder with a captioner and a filter saved with that prompt."""
    folder = tmp_path_factory.mktemp("checkpoint")
    captioner, processor, matcher, _ = tiny_capfilt()
    processor.caption_settings = CaptionSettings(prompt=request.param, max_length=12)
    for name, model in {"captioner": captioner, "filter": matcher}.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return request.param, folder


def test_captioner_uses_the_settings_of_its_checkpoint(checkpoint):
    prompt, folder = checkpoint
    captioner, given, other, none = (
        BlipCaptioner.from_pretrained(folder / "captioner", device="cpu", **settings)
        for settings in ({}, {"prompt": prompt, "max_length": 12, "num_beams": 3}, {"prompt": "f g"}, {"prompt": ""})
    )
    assert captioner.prompt == prompt
    assert captioner(IMAGES) == given(IMAGES)
    assert other(IMAGES) != captioner(IMAGES) != none(IMAGES)


def test_capfilt_uses_the_settings_of_the_captioner(checkpoint):
    prompt, folder = checkpoint

    def texts(**settings):
        engine = CapFilt.from_pretrained(
            folder / "captioner", folder / "filter", device="cpu", settings=CapFiltSettings(num_workers=0, **settings)
        )
        samples = [
            Sample(str(number), encode_image(image), ("a",), str(number)) for number, image in enumerate(IMAGES)
        ]
        table, _ = engine.score_shard(Shard("s", lambda: iter(samples)))
        return engine.settings, table.to_pylist()

    own_settings, own = texts()
    given_settings, given = texts(prompt=prompt, max_length=12)
    assert own == given
    # run.json does not depend on where a value comes from.
    assert own_settings == given_settings
    assert (own_settings.prompt, own_settings.max_length) == (prompt, 12)
    assert texts(prompt="f g")[1] != own
