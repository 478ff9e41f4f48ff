# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf caption`: options, output formats, and file names in any encoding."""

import csv
import io
import json
import logging
import os
import shutil
import sys

import datasets
import pytest
from datasets import Dataset

from blip_hf.captioner import BlipCaptioner, Caption
from blip_hf.cli import main
from blip_hf.cli.caption_formats import format_of, write_records
from blip_hf.cli.errors import UsageError
from blip_hf.cli.image_sources import find_images
from blip_hf.cli.output import open_output
from tests.support.files import write_json, write_tar
from tests.support.images import encode_image, plain_image, write_image, write_images


def caption(*arguments):
    return main(["caption", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def paths(image_folder):
    return [image_folder / "a.PNG", image_folder / "b, c.png"]


def test_a_folder_is_captioned_in_order_and_a_broken_image_is_named(captioner_folder, image_folder, paths, capsys):
    assert caption(captioner_folder, image_folder) == 0
    output, error = capsys.readouterr()
    expected = BlipCaptioner.from_pretrained(captioner_folder, device="cpu")(paths)
    assert [line.split("\t") for line in output.splitlines()] == [
        [str(path), text] for path, text in zip(paths, expected, strict=True)
    ]
    assert "broken.jpg" in error
    assert "skipped 1 of 3 images" in error


def read_output(path):
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return json.load(file) if path.suffix == ".json" else [json.loads(line) for line in file]


def test_the_suffix_of_the_output_gives_the_format(captioner_folder, matcher_folder, image_folder, paths, tmp_path):
    records = {}
    for suffix in ("json", "jsonl", "csv"):
        path = tmp_path / f"captions.{suffix}"
        extra = ["--scores", "--matcher", matcher_folder, "--num_captions", "2", "--output", path]
        assert caption(captioner_folder, image_folder, *extra) == 0
        records[suffix] = read_output(path)
    assert records["json"] == records["jsonl"]
    assert [{key: str(value) for key, value in record.items()} for record in records["json"]] == records["csv"]
    captioner = BlipCaptioner.from_pretrained(captioner_folder, matcher=matcher_folder, device="cpu")
    expected = captioner.caption(paths, num_return_sequences=2, return_scores=True)
    for record, item in zip(records["json"], expected, strict=True):
        assert record == {
            "image": str(paths[item.image_index]),
            "caption": item.text,
            "log_probability": pytest.approx(item.log_probability, rel=1e-5),
            "num_tokens": item.num_tokens,
            "itm_probability": pytest.approx(item.itm_probability, rel=1e-5),
        }


def test_a_format_that_contradicts_the_suffix_is_an_error(tmp_path):
    assert [format_of(tmp_path / name, None) for name in ("a.txt", "a.CSV", "a", "a.md")] == [
        "text",
        "csv",
        "text",
        "text",
    ]
    assert format_of(tmp_path / "a", "json") == format_of(tmp_path / "a.json", "json") == "json"
    with pytest.raises(UsageError, match="--format csv contradicts --output"):
        format_of(tmp_path / "a.jsonl", "csv")


def test_existing_file_is_replaced_only_when_all_captions_are_written(
    captioner_folder, paths, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "captions.txt"
    path.write_text("old")
    argv = [captioner_folder, paths[0], "--output", path]
    assert caption(*argv) == 2
    assert f"{path} exists. Pass another path, or pass --overwrite or --skip_existing." in capsys.readouterr().err
    with monkeypatch.context() as context:
        context.setattr(BlipCaptioner, "iter_captions", lambda *args, **kwargs: iter([None]))
        with pytest.raises(AttributeError):
            caption(*argv, "--overwrite")
    assert path.read_text() == "old"
    assert caption(*argv, "--overwrite") == 0
    assert path.read_text().startswith(str(paths[0]))
    assert list(tmp_path.iterdir()) == [path]


def test_options_reach_the_captioner(captioner_folder, paths, capsys):
    options = ["--sample", "--top-p", "0.7", "--seed", "5", "--max_new_tokens", "4", "--prompt", "a b"]
    assert caption(captioner_folder, *paths, *options, "--batch_size", "1", "--dtype", "float32") == 0
    captioner = BlipCaptioner.from_pretrained(
        captioner_folder, device="cpu", prompt="a b", batch_size=1, do_sample=True, top_p=0.7, seed=5, max_new_tokens=4
    )
    expected = captioner(paths)
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == expected
    assert expected != BlipCaptioner.from_pretrained(captioner_folder, device="cpu")(paths)


def test_the_status_is_1_if_every_image_fails(captioner_folder, image_folder, capsys):
    assert caption(captioner_folder, image_folder / "broken.jpg", image_folder / "missing.jpg") == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert "missing.jpg" in error
    assert "skipped 2 of 2 images" in error


def test_missing_device_raises_with_its_name(captioner_folder, paths, capsys):
    assert main(["caption", str(captioner_folder), str(paths[0]), "--device", "gpu"]) == 2
    assert "device='gpu' cannot be used" in capsys.readouterr().err


def test_checkpoint_of_another_class_prints_one_line(matcher_folder, paths, capsys, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert caption(matcher_folder, paths[0]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"blip-hf caption: error: {matcher_folder} has no weights for text_decoder")
    assert line.endswith("Pass a checkpoint of BlipForConditionalGeneration.")
    assert "allow_new_heads" not in line
    assert not caplog.text  # no load report


def test_checkpoint_with_mismatched_sizes_prints_one_line(captioner_folder, paths, tmp_path, capsys):
    shutil.copytree(captioner_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["intermediate_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert caption(tmp_path, paths[0]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "weights whose shapes differ from its configuration, such as vision_model.encoder.layers.0.mlp" in error
    assert "ignore_mismatched_sizes" not in error


def names_of(sources, **options):
    found = find_images(map(str, sources), **options)
    assert len(found) == len(list(found))
    return found.names


def test_folders_expand_to_their_images(image_folder):
    names = ["a.PNG", "b, c.png", "broken.jpg"]
    assert names_of([image_folder]) == [str(image_folder / name) for name in names]
    names.insert(2, "below/d.png")
    assert names_of([image_folder], recursive=True) == [str(image_folder / name) for name in names]
    given = [image_folder / "notes.txt", image_folder / "a.PNG", image_folder / "missing.png"]
    assert names_of(given) == [str(path) for path in given]


def test_images_in_subfolders_need_recursive(tmp_path):
    with pytest.raises(ValueError, match="has no known format"):
        find_images([str(tmp_path)])
    write_image(tmp_path / "below" / "a.png")
    with pytest.raises(UsageError, match="Pass --recursive"):
        find_images([str(tmp_path)])


def test_images_of_records_are_captioned(captioner_folder, tmp_path, capsys):
    write_images(tmp_path, "red", "blue")
    write_json(tmp_path / "list.json", [{"image": "red.png", "image_id": 7}, {"image": "blue.png", "image_id": 9}])
    write_tar(tmp_path / "web.tar", [("green.png", encode_image(plain_image("green")))])
    assert caption(captioner_folder, tmp_path / "list.json", tmp_path / "web.tar", "scenes:2") == 0
    output = capsys.readouterr().out
    assert [line.split("\t")[0] for line in output.splitlines()][:3] == ["7", "9", "green"]
    assert len(output.splitlines()) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not UTF-8")
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_non_utf8_file_name_is_escaped_on_any_terminal(encoding, captioner_folder, tmp_path, monkeypatch):
    image = tmp_path / os.fsdecode(b"\xff\xe4\xb8\xad.png")
    write_image(tmp_path / "a.png").rename(image)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert caption(captioner_folder, image) == 0
    stream.flush()
    assert b"\\udcff" in stream.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
@pytest.mark.parametrize("output_format", ["json", "jsonl"])
def test_json_parses_back_in_any_encoding(encoding, output_format):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    record = {"image": "\udcff\x81中😀é.png", "caption": "a"}
    write_records([record], stream, columns=list(record), output_format=output_format)
    text = stream.buffer.getvalue().decode(encoding)
    assert json.loads(text) == ([record] if output_format == "json" else record)


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "captions.txt"])
def test_output_file_accepts_non_utf8_names(name, tmp_path):
    record = {"image": "\udcff.png", "caption": Caption(image_index=0, text="é").text}
    with open_output(tmp_path / name) as stream:
        write_records([record], stream, columns=list(record), output_format=format_of(tmp_path / name, None))
    assert "\\udcff.png" in (tmp_path / name).read_text(encoding="utf-8")


def test_options_come_from_a_file_and_the_command_line_wins(captioner_folder, paths, tmp_path, capsys):
    settings = {"images": [str(path) for path in paths], "min_length": 8, "num_beams": 1, "prefix": "sks, "}
    config = write_json(tmp_path / "caption.json", settings)
    assert caption("--model", captioner_folder, "--config", config, "--num_beams", "2", "--workers", "0") == 0
    captioner = BlipCaptioner.from_pretrained(captioner_folder, device="cpu", min_length=8, num_beams=2)
    expected = [f"{path}\tsks, {text}" for path, text in zip(paths, captioner(paths), strict=True)]
    assert capsys.readouterr().out.splitlines() == expected


def test_no_ngram_is_repeated(captioner_folder, paths, capsys):
    argv = [captioner_folder, *paths, "--min_length", "20", "--max_length", "20"]
    assert caption(*argv, "--no_repeat_ngram_size", "1") == 0
    for line in capsys.readouterr().out.splitlines():
        words = line.split("\t")[1].split()
        assert len(words) == len(set(words))
    captioner = BlipCaptioner.from_pretrained(captioner_folder, device="cpu", min_length=20, max_length=20)
    assert any(len(set(text.split())) < len(text.split()) for text in captioner(paths))


def test_lengths_that_contradict_are_refused(captioner_folder, paths, capsys):
    assert caption(captioner_folder, paths[0], "--min_length", "30") == 2
    assert "min_length=30 is greater than max_length=20" in capsys.readouterr().err


def test_linked_folders_are_entered_on_request(tmp_path):
    write_image(tmp_path / "elsewhere" / "a.png")
    write_image(tmp_path / "photos" / "b.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    names = [str(tmp_path / "photos" / name) for name in ("b.png", "link/a.png")]
    assert names_of([tmp_path / "photos"], recursive=True) == names[:1]
    assert names_of([tmp_path / "photos"], recursive=True, follow_links=True) == names


def test_control_characters_of_a_name_keep_the_columns_of_text(captioner_folder, tmp_path, capsys):
    image = tmp_path / "a\tb\nc.png"
    write_image(tmp_path / "a.png").rename(image)
    assert caption(captioner_folder, image) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("\t")[0] == f"{tmp_path}/a\\tb\\nc.png"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not UTF-8")
def test_a_list_with_a_name_that_is_no_unicode_is_captioned_without_it(captioner_folder, tmp_path, capsys, caplog):
    write_images(tmp_path, "red")
    write_json(tmp_path / "list.json", [{"image": "\udcff.png"}, {"image": "red.png"}])
    assert caption(captioner_folder, tmp_path / "list.json") == 0
    assert capsys.readouterr().out.startswith("red.png\t")
    assert "skipped 1 bad_record" in caplog.text


def test_a_broken_image_inside_a_file_or_a_data_set_is_skipped_by_name(captioner_folder, tmp_path, capsys):
    broken = {"bytes": b"not an image", "path": None}
    images = [{"bytes": encode_image(plain_image("red")), "path": None}, broken]
    records = Dataset.from_dict({"image": images, "image_id": ["right", "wrong"]})
    records.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    write_tar(tmp_path / "a.tar", [("t1.png", encode_image(plain_image("blue"))), ("t2.png", b"not an image")])
    assert caption(captioner_folder, tmp_path / "saved", tmp_path / "a.tar") == 0
    output, error = capsys.readouterr()
    assert [line.split("\t")[0] for line in output.splitlines()] == ["right", "t1"]
    assert "skipped: wrong: Cannot read the image" in error
    assert "skipped: t2: Cannot read the image" in error
    assert "skipped 2 of 4 images (2 not_an_image)" in error
