# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints with absurd sizes, other shapes, damaged weights or pickles: one message each, before memory is taken."""

import json
import os
import resource
import shutil

import pytest
import torch

from blip_hf import BlipForPreTraining
from blip_hf.cli import main
from tests.support.tiny_models import tiny_capfilt, tiny_pretraining_config


SIZES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
TEXT_SIZES = [*SIZES, "vocab_size", "max_position_embeddings", "encoder_hidden_size"]
VISION_SIZES = [*SIZES, "image_size", "patch_size"]
FIELDS = [("text_config", name) for name in TEXT_SIZES] + [("vision_config", name) for name in VISION_SIZES]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    model, processor, *_ = tiny_capfilt()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def broken(captioner, tmp_path):
    """A copy of the captioner to damage."""
    return shutil.copytree(captioner, tmp_path / "broken")


def change_config(folder, section, name, value):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config if section is None else config[section])[name] = value
    path.write_text(json.dumps(config))


def error_of(folder, capsys):
    """The message of a command that loads a checkpoint, which takes less than 200 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["caption", str(folder), str(folder / "image.png")]) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize("value", [-5, 0, 10**9, 10**30, "x"])
def test_a_size_that_no_model_has_is_named(value, broken, capsys):
    config = (broken / "config.json").read_text()
    for section, name in FIELDS:
        change_config(broken, section, name, value)
        message = error_of(broken, capsys)
        assert message.startswith(f"blip-hf caption: error: config.json of {broken} cannot be used:")
        assert name in message
        assert "\n" not in message
        (broken / "config.json").write_text(config)


@pytest.mark.parametrize(
    ("name", "value"), [("queue_size", 10**9), ("queue_size", -1), ("image_text_hidden_size", 10**9)]
)
def test_an_absurd_queue_is_named(name, value, tmp_path):
    BlipForPreTraining(tiny_pretraining_config()).save_pretrained(tmp_path)
    change_config(tmp_path, None, name, value)
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        BlipForPreTraining.from_pretrained(tmp_path)


def test_large_weights_that_the_file_does_not_have_are_refused_before_they_are_made(broken, capsys):
    change_config(broken, "text_config", "hidden_size", 2**16)  # 17 GB for one matrix
    message = error_of(broken, capsys)
    assert "weights whose shapes differ from its configuration" in message
    assert "(16,), expected (65536,)" in message


@pytest.mark.parametrize("size", [0, 7, 1000, 100_000])
def test_truncated_weights_are_named(size, broken, capsys):
    os.truncate(broken / "model.safetensors", size)
    message = error_of(broken, capsys)
    assert "\n" not in message
    assert f"The weights of {broken} are damaged" in message


def test_weights_in_a_pickle_are_refused(broken, capsys):
    (broken / "model.safetensors").unlink()
    torch.save({"weight": shutil.rmtree}, broken / "pytorch_model.bin")
    message = error_of(broken, capsys)
    assert "\n" not in message
    assert f"The weights of {broken} are damaged" in message
