# SPDX-License-Identifier: BSD-3-Clause
"""The command line: what is imported when, errors in one line, and captions in each format."""

import csv
import importlib
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
    __version__,
)
from blip_hf.captioner import BlipCaptioner
from blip_hf.cli import COMMANDS, main
from blip_hf.cli.caption import find_images
from tests.support.paths import ROOT


WORDS = tuple("abcdefghijklmnopqr")


def run_python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, *arguments], env=environment, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of a tiny captioner and a tiny matcher."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=32)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={**processor.config_token_ids(), **sizes, "encoder_hidden_size": 16, "initializer_range": 0.5},
        vision_config={**sizes, "image_size": 32, "patch_size": 16, "initializer_range": 0.5},
    )
    torch.manual_seed(2)
    folders = []
    for model_class in (BlipForConditionalGeneration, BlipForImageTextRetrieval):
        folders.append(tmp_path_factory.mktemp(model_class.__name__))
        model_class(config).save_pretrained(folders[-1])
        processor.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images, one of them broken, a text, and an image in a folder below."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    # A comma, so that CSV has something to quote.
    for colour, name in (("red", "b, c.png"), ("blue", "a.PNG"), ("green", "below/d.png")):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not an image either")
    return folder


def expected_captions(checkpoints, folder, **options):
    captioner = BlipCaptioner.from_pretrained(checkpoints[0], device="cpu", **options)
    return captioner([folder / "a.PNG", folder / "b, c.png"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_without_torch(command):
    code = (
        "import sys\n"
        "from blip_hf.cli import main\n"
        "try:\n"
        f"    main([{command!r}, '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print({'torch', 'transformers', 'numpy', 'PIL', 'datasets'} & set(sys.modules))\n"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert f"usage: blip-hf {command}" in result.stdout
    assert result.stdout.splitlines()[-1] == "set()"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "blip_hf", "caption", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `head` does
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


def test_the_package_runs_as_a_module():
    assert run_python("-m", "blip_hf", "--version").stdout == f"blip-hf {__version__}\n"


def test_help_names_each_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert all(f"{name} " in output and purpose in output for name, purpose in COMMANDS.items())


@pytest.mark.parametrize("arguments", [["capton"], []])
def test_without_a_known_command_the_status_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_list(capsys):
    with pytest.raises(SystemExit):
        main(["capton"])
    error = capsys.readouterr().err
    assert all(name in error for name in COMMANDS)


def fail(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    "error", [ValueError("size is -1.\n\nPass  more."), FileNotFoundError("size is -1. Pass more.")]
)
def test_a_mistake_of_the_user_is_told_in_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module("blip_hf.cli.caption"), "main", fail(error))
    assert main(["caption"]) == 2
    assert capsys.readouterr().err == "blip-hf caption: error: size is -1. Pass more.\n"
    with pytest.raises(type(error)):
        main(["caption", "--debug"])


def test_a_mistake_of_ours_shows_its_traceback(monkeypatch):
    monkeypatch.setattr(importlib.import_module("blip_hf.cli.caption"), "main", fail(KeyError("size")))
    with pytest.raises(KeyError):
        main(["caption"])


def test_a_folder_is_captioned_in_order_and_a_broken_image_is_named(checkpoints, folder, capsys):
    assert main(["caption", str(checkpoints[0]), str(folder), "--device", "cpu"]) == 0
    output, error = capsys.readouterr()
    names = [str(folder / "a.PNG"), str(folder / "b, c.png")]
    rows = [line.split("\t") for line in output.splitlines()]
    assert rows == [list(row) for row in zip(names, expected_captions(checkpoints, folder), strict=True)]
    assert "broken.jpg" in error
    assert "skipped 1 of 3 images" in error


def test_json_lines_and_csv_parse_back_to_the_same_records(checkpoints, folder, tmp_path):
    records = {}
    for output_format in ("jsonl", "csv"):
        path = tmp_path / f"captions.{output_format}"
        arguments = [str(checkpoints[0]), str(folder), "--scores", "--matcher", str(checkpoints[1])]
        arguments += ["--num_captions", "2", "--format", output_format, "--output", str(path), "--device", "cpu"]
        assert main(["caption", *arguments]) == 0
        with path.open(newline="") as file:
            records[output_format] = list(csv.DictReader(file)) if output_format == "csv" else map(json.loads, file)
            records[output_format] = list(records[output_format])
    assert len(records["jsonl"]) == 4
    assert [{key: str(value) for key, value in record.items()} for record in records["jsonl"]] == records["csv"]
    captioner = BlipCaptioner.from_pretrained(checkpoints[0], matcher=checkpoints[1], device="cpu")
    paths = [folder / "a.PNG", folder / "b, c.png"]
    for record, caption in zip(
        records["jsonl"], captioner.caption(paths, num_return_sequences=2, return_scores=True), strict=True
    ):
        assert record == {
            "image": str(paths[caption.image_index]),
            "caption": caption.text,
            "log_probability": pytest.approx(caption.log_probability, rel=1e-5),
            "num_tokens": caption.num_tokens,
            "itm_probability": pytest.approx(caption.itm_probability, rel=1e-5),
        }
        assert math.isfinite(caption.log_probability)


def test_the_output_file_is_replaced_whole_and_leaves_nothing_beside_it(checkpoints, folder, tmp_path, monkeypatch):
    path = tmp_path / "captions.txt"
    path.write_text("old")
    arguments = ["caption", str(checkpoints[0]), str(folder / "a.PNG"), "--output", str(path), "--device", "cpu"]
    with monkeypatch.context() as context:
        context.setattr(BlipCaptioner, "iter_captions", lambda *args, **kwargs: iter([None]))
        with pytest.raises(AttributeError):
            main(arguments)
    assert path.read_text() == "old"
    assert main(arguments) == 0
    assert path.read_text().startswith(str(folder / "a.PNG"))
    assert list(tmp_path.iterdir()) == [path]


def test_options_reach_the_captioner(checkpoints, folder, capsys):
    arguments = [str(checkpoints[0]), str(folder / "a.PNG"), str(folder / "b, c.png"), "--device", "cpu"]
    options = ["--sample", "--top_p", "0.7", "--seed", "5", "--max_new_tokens", "4", "--prompt", "a b"]
    assert main(["caption", *arguments, *options, "--batch_size", "1", "--dtype", "float32"]) == 0
    expected = expected_captions(
        checkpoints, folder, prompt="a b", batch_size=1, do_sample=True, top_p=0.7, seed=5, max_new_tokens=4
    )
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == expected
    assert expected != expected_captions(checkpoints, folder)


def test_the_status_is_1_if_every_image_fails(checkpoints, folder, capsys):
    missing = folder / "missing.jpg"
    assert main(["caption", str(checkpoints[0]), str(folder / "broken.jpg"), str(missing), "--device", "cpu"]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert "missing.jpg" in error
    assert "skipped 2 of 2 images" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere", "a.png"], "./nowhere does not exist"),
        (["MODEL", "a.png", "--device", "gpu"], "--device gpu cannot be used"),
        (["MODEL", "a.png", "--matcher", "MODEL"], "Load it with BlipForConditionalGeneration"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, message, checkpoints, capsys):
    arguments = [str(checkpoints[0]) if argument == "MODEL" else argument for argument in arguments]
    assert main(["caption", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("blip-hf caption: error: ")
    assert message in error[-1]


@pytest.mark.parametrize("options", [["--top_p", "0.9"], ["--batch_size", "0"], ["--format", "xml"]])
def test_options_that_cannot_be_are_refused_by_the_parser(options, capsys):
    with pytest.raises(SystemExit) as end:
        main(["caption", "model", "a.png", *options])
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_folders_become_the_images_in_them(folder):
    names = ["a.PNG", "b, c.png", "broken.jpg"]
    assert find_images([folder], recursive=False) == [folder / name for name in names]
    assert find_images([folder], recursive=True) == [
        folder / name for name in ("a.PNG", "b, c.png", "below/d.png", "broken.jpg")
    ]
    given = [folder / "notes.txt", folder / "a.PNG"]
    assert find_images(given, recursive=False) == given


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--recursive"):
        find_images([tmp_path], recursive=False)


def test_a_configuration_that_refuses_a_value_says_so_in_one_line(capsys, tmp_path):
    argv = ["--data", "scenes", "--num_scenes", "8", "--image_size", "32", "--queue_size", "-1", "--use_cpu"]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "blip-hf pretrain: error: queue_size is -1, expected 0 (no queue) or more."
