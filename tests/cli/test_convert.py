# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf convert`: both ways from the command line, and the table of what was left out."""

import pytest
import torch

from blip_hf import BlipForImageTextRetrieval, BlipForRetrievalTraining
from blip_hf.cli import main
from blip_hf.cli.convert import build_parser
from tests.support.originals import original_state, save_bert_tokenizer
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    save_bert_tokenizer(folder / "bert")
    torch.save({"model": original_state("retrieval")}, folder / "retrieval.pth")
    torch.save({"model": original_state("pretraining")}, folder / "pretraining.pth")
    return folder


def convert(*arguments):
    return main(["convert", *(str(argument) for argument in arguments)])


def test_every_dropped_tensor_is_in_the_table_with_a_reason(folder, tmp_path, capsys):
    assert convert(folder / "retrieval.pth", tmp_path / "ours", "--tokenizer", folder / "bert") == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "BlipForImageTextRetrieval at 12 px, 92 tensors" in head
    cells = [row.split(maxsplit=2) for row in rows]
    assert sum(int(count) for _, count, _ in cells) == len(original_state("retrieval")) - 92
    named = {name: reason for name, _, reason in cells}
    assert "--training_state keeps it" in named["text_queue"]
    assert "--training_state keeps it" in named["temp"]
    assert "reads no image" in named["text_encoder_m.encoder.layer.*.crossattention.*"]
    assert "a constant" in named["text_encoder.embeddings.position_ids"]
    BlipForImageTextRetrieval.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize("flag", ["--to-original", "--to_original"])
def test_the_state_of_training_goes_there_and_back(flag, folder, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back.pth"
    assert convert(folder / "retrieval.pth", ours, "--tokenizer", folder / "bert", "--training_state") == 0
    assert "BlipForRetrievalTraining" in capsys.readouterr().out
    assert BlipForRetrievalTraining.from_pretrained(ours).temp.item() == pytest.approx(0.031)
    assert convert(flag, ours, back) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1  # nothing was dropped
    state, original = torch.load(back)["model"], original_state("retrieval")
    assert state.keys() == original.keys()
    assert torch.equal(state["idx_queue"], original["idx_queue"])


def test_parts_are_saved_beside(folder, tmp_path):
    arguments = [folder / "pretraining.pth", tmp_path / "ours", "--tokenizer", folder / "bert"]
    assert convert(*arguments, "--parts") == 0
    assert {"captioner", "retriever", "model.safetensors"} <= {path.name for path in (tmp_path / "ours").iterdir()}


def test_the_width_of_a_head_reaches_the_configuration(folder, tmp_path):
    arguments = [folder / "retrieval.pth", tmp_path / "ours", "--tokenizer", folder / "bert"]
    assert convert(*arguments, "--head_width", "32") == 0
    assert BlipForImageTextRetrieval.from_pretrained(tmp_path / "ours").config.text_config.num_attention_heads == 2


@pytest.mark.parametrize(
    "option", [["--tokenizer", "bert"], ["--training_state"], ["--parts"], ["--head_width", "64"]]
)
def test_options_of_reading_are_refused_on_the_way_back(option, capsys):
    with pytest.raises(SystemExit) as end:
        convert("ours", "back.pth", "--to-original", *option)
    assert end.value.code == 2
    assert f"{option[0]} is about reading originals" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_there_is_named_with_its_option(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert convert(folder / "retrieval.pth", tmp_path / "ours", "--tokenizer", tmp_path / "empty") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "empty cannot be loaded" in error
    assert "bert-base-uncased with --tokenizer" in error
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("source", "message"), [("bert", "needs no conversion"), ("nowhere.pth", "No such file"), ("x.pth", "as tensors")]
)
def test_what_is_no_checkpoint_is_told_in_one_line(source, message, folder, tmp_path, capsys):
    (folder / "x.pth").write_text("no checkpoint")
    assert convert(folder / source, tmp_path / "ours", "--tokenizer", folder / "bert") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]


def test_the_commands_of_the_documentation_parse():
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    commands = [line.partition("#")[0].split() for line in text.splitlines() if line.startswith("blip-hf convert ")]
    assert len(commands) == 3
    assert [build_parser().parse_args(command[2:]).to_original for command in commands] == [False, True, False]
