# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf convert`: both directions, and the table of dropped tensors."""

import pytest
import torch

from blip_hf import BlipForImageTextRetrieval, BlipForRetrievalTraining
from blip_hf.cli import main
from blip_hf.cli.convert import COMMAND
from blip_hf.cli.parser import parse
from tests.support.originals import HEAD_WIDTH, original_state, save_bert_tokenizer
from tests.support.paths import ROOT


HEADS = ("--head_width", HEAD_WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    save_bert_tokenizer(folder / "bert")
    torch.save({"model": original_state("retrieval")}, folder / "retrieval.pth")
    torch.save({"model": original_state("pretraining")}, folder / "pretraining.pth")
    (folder / "x.pth").write_text("no checkpoint")
    return folder


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def test_every_dropped_tensor_is_in_the_table_with_a_reason(folder, tmp_path, capsys):
    assert convert(folder / "retrieval.pth", "--output_dir", tmp_path, "--tokenizer", folder / "bert", *HEADS) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "BlipForImageTextRetrieval at 12 px, 92 tensors" in head
    cells = [row.split(maxsplit=2) for row in rows]
    assert sum(int(count) for _, count, _ in cells) == len(original_state("retrieval")) - 92
    named = {name: reason for name, _, reason in cells}
    assert "--training_state keeps it" in named["text_queue"]
    assert "--training_state keeps it" in named["temp"]
    assert "text_encoder_m.encoder.layer.*.crossattention.*" in named
    BlipForImageTextRetrieval.from_pretrained(tmp_path)


def test_training_state_round_trips(folder, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back.pth"
    argv = [folder / "retrieval.pth", "--output_dir", ours, "--tokenizer", folder / "bert", "--training_state", *HEADS]
    assert convert(*argv) == 0
    assert "BlipForRetrievalTraining" in capsys.readouterr().out
    assert BlipForRetrievalTraining.from_pretrained(ours).temp.item() == pytest.approx(0.031)
    assert convert("--to-original", ours, "--output", back) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1  # nothing was dropped
    state, original = torch.load(back)["model"], original_state("retrieval")
    assert state.keys() == original.keys()
    assert torch.equal(state["idx_queue"], original["idx_queue"])
    assert convert("--to-original", ours, "--output", back) == 2
    assert "back.pth exists. Pass another path, or pass --overwrite" in capsys.readouterr().err


def test_parts_and_the_width_of_a_head_reach_the_conversion(folder, tmp_path):
    argv = [folder / "pretraining.pth", "--output_dir", tmp_path, "--tokenizer", folder / "bert"]
    assert convert(*argv, "--parts", "--head_width", "32") == 0
    assert {"captioner", "retriever", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    config = BlipForImageTextRetrieval.from_pretrained(tmp_path / "retriever").config
    assert config.text_config.num_attention_heads == 2


def test_an_existing_model_is_replaced_only_with_overwrite(folder, tmp_path, capsys):
    argv = [folder / "retrieval.pth", "--tokenizer", folder / "bert", "--output_dir", tmp_path, *HEADS]
    (tmp_path / "notes.txt").touch()
    assert convert(*argv) == 2
    assert "is not empty" in capsys.readouterr().err
    assert convert(*argv, "--overwrite") == 2
    assert "holds no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").touch()
    assert convert(*argv, "--overwrite") == 0
    assert not (tmp_path / "notes.txt").exists()
    BlipForImageTextRetrieval.from_pretrained(tmp_path)


def test_deprecated_target_argument_works_with_a_warning(folder, tmp_path, capsys):
    assert convert(folder / "retrieval.pth", tmp_path / "ours", "--tokenizer", folder / "bert", *HEADS) == 0
    assert "warning: name the target with --output_dir" in capsys.readouterr().err
    assert (tmp_path / "ours" / "config.json").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ours", "--to_original", "--output", "b.pth", "--tokenizer", "bert"], "--tokenizer applies to original"),
        (["ours", "--to_original", "--output", "b.pth", "--training_state"], "--training_state applies to original"),
        (["ours", "--to_original", "--output", "b.pth", "--parts"], "--parts applies to original"),
        (["ours", "--to_original", "--output", "b.pth", "--head_width", "64"], "--head_width applies to original"),
        (["ours", "--to_original", "--output_dir", "b"], "--output_dir does not go with --to_original"),
        (["ours.pth", "--output", "b"], "--output does not go without --to_original"),
        (["ours.pth"], "--output_dir DIR missing"),
        (["{folder}/retrieval.pth", "--output_dir", "{folder}/new", "--tokenizer", "{folder}"], "cannot be loaded"),
        (["{folder}/bert", "--output_dir", "{folder}/new"], "needs no conversion"),
        (["nowhere.pth", "--output_dir", "{folder}/new"], "No such file"),
        (["{folder}/x.pth", "--output_dir", "{folder}/new"], "as tensors"),
    ],
)
def test_usage_errors_print_one_line(argv, message, folder, capsys):
    assert convert(*(word.format(folder=folder) for word in argv)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert not (folder / "new").exists()


def test_the_commands_of_the_documentation_parse():
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    commands = [line.partition("#")[0].split() for line in text.splitlines() if line.startswith("blip-hf convert ")]
    assert [parse(COMMAND, command[2:])[0].to_original for command in commands] == [False, True, False]
