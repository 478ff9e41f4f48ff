# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf caption --format sidecar`: text files beside images, or under another folder."""

import os
import signal
import sys

import pytest

from blip_hf.captioner import BlipCaptioner
from blip_hf.cli import main
from blip_hf.data.readers import load_pairs
from tests.support.files import write_json
from tests.support.images import noise_images, write_image
from tests.support.stopping import signal_after


def caption(*arguments):
    return main(["caption", *map(str, arguments), "--format", "sidecar", "--device", "cpu"])


@pytest.fixture
def photos(tmp_path):
    """Six images, two in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, image in enumerate(noise_images(6)):
        image.save(folder / "below" / f"{number}.png" if number > 3 else folder / f"{number}.png")
    return folder


def texts_of(folder, extension=".txt"):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob(f"*{extension}"))}


@pytest.fixture
def expected(captioner_folder, photos):
    paths = sorted(photos.rglob("*.png"))
    captions = BlipCaptioner.from_pretrained(captioner_folder, device="cpu")(paths)
    return {
        path.relative_to(photos).with_suffix("").as_posix(): text for path, text in zip(paths, captions, strict=True)
    }


def test_the_readers_read_what_was_written(captioner_folder, photos, expected):
    assert caption(captioner_folder, photos, "--recursive") == 0
    pairs = load_pairs(photos)
    assert dict(zip(pairs["image"], pairs["caption"], strict=True)) == {
        str(photos / f"{name}.png"): text for name, text in expected.items()
    }
    assert texts_of(photos) == {f"{name}.txt": f"{text}\n" for name, text in expected.items()}
    assert sorted(path.suffix for path in photos.rglob("*") if path.is_file()) == [".png"] * 6 + [".txt"] * 6


def test_output_dir_mirrors_the_folder(captioner_folder, photos, expected, tmp_path):
    argv = ["--recursive", "--output_dir", tmp_path / "texts", "--extension", "caption", "--prefix", "sks, "]
    assert caption(captioner_folder, photos, *argv, "--suffix", ", best") == 0
    assert texts_of(tmp_path / "texts", ".caption") == {
        f"{name}.caption": f"sks, {text}, best\n" for name, text in expected.items()
    }
    assert texts_of(photos) == {}


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ([], "mine"),
        (["--skip_existing"], "mine"),
        (["--overwrite"], "{}\n"),
        (["--append"], "mine, {}\n"),
    ],
)
def test_an_existing_text_is_kept_unless_told(options, result, captioner_folder, photos, expected, capsys):
    (photos / "1.txt").write_text("mine")
    assert caption(captioner_folder, photos, *options) == 0
    texts = texts_of(photos)
    assert texts["1.txt"] == result.format(expected["1"])
    assert texts["0.txt"] == f"{expected['0']}\n"
    assert ("existing captions kept: 1" in capsys.readouterr().err) == (result == "mine")


def test_appending_twice_changes_nothing(captioner_folder, photos):
    (photos / "1.txt").write_text("mine\n")
    (photos / "2.txt").write_text("")
    assert caption(captioner_folder, photos, "--append") == 0
    texts = texts_of(photos)
    assert caption(captioner_folder, photos, "--append") == 0
    assert texts_of(photos) == texts


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--append"]])
def test_a_stopped_run_writes_the_same_files(options, captioner_folder, photos, tmp_path, capsys):
    (photos / "3.txt").write_text("mine")
    argv = [captioner_folder, photos, *options, "--recursive", "--batch_size", "4", "--sample", "--seed", "1"]
    for number in (signal.SIGINT, signal.SIGTERM):
        with signal_after(2, number):
            assert caption(*argv) == 128 + number
    # Each was stopped after it noted a caption and before it wrote the file.
    assert len(list(photos.rglob("*.txt"))) < 5
    assert caption(*argv) == 0
    assert "resuming after 4 of 6" in capsys.readouterr().err
    resumed = texts_of(photos)
    for path in photos.rglob("*.txt"):
        path.unlink()
    (photos / "3.txt").write_text("mine")
    assert caption(*argv) == 0
    assert resumed == texts_of(photos)
    assert not list(photos.glob(".blip*"))


def test_two_images_of_one_text_file_are_reported(captioner_folder, photos, capsys):
    write_image(photos / "1.jpg")
    assert caption(captioner_folder, photos) == 0
    error = capsys.readouterr().err
    assert f"skipped: {photos / '1.png'}: {photos / '1.txt'} is the file of {photos / '1.jpg'} already." in error
    assert "skipped 1 of 5 images (1 same_sidecar)" in error


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not UTF-8")
def test_bad_names_texts_and_images_end_nothing(captioner_folder, photos, capsys):
    names = {
        b"\xff\xe4.png": b"\xff\xe4.txt",
        b"tab\t new\n line.png": b"tab\t new\n line.txt",
        "中文 é.png".encode(): "中文 é.txt".encode(),
        b"n" * 251 + b".png": b"n" * 251 + b".txt",
    }
    for name in names:
        write_image(photos / "new.png").rename(os.path.join(photos, os.fsdecode(name)))
    (photos / "missing.png").symlink_to(photos / "nowhere.png")
    (photos / "empty.png").write_bytes(b"")
    (photos / "1.txt").write_bytes(b"\xff\xff")
    assert caption(captioner_folder, photos, "--append") == 0
    assert {path for path in os.listdir(os.fsencode(photos)) if path.endswith(b".txt")} == {
        *names.values(),
        *(f"{number}.txt".encode() for number in range(4)),
    }
    error = capsys.readouterr().err
    assert "skipped 3 of 10 images (1 bad_sidecar, 1 missing, 1 not_an_image)" in error
    assert caption(captioner_folder, photos, "--extension", ".caption") == 0
    assert "1 long_name" in capsys.readouterr().err


def test_images_of_a_data_set_have_no_place_for_a_text(captioner_folder, photos, tmp_path, capsys):
    write_json(tmp_path / "list.json", [{"image": str(photos / "0.png")}])
    assert caption(captioner_folder, tmp_path / "list.json") == 2
    assert "takes image files and folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "a.txt"], "--format sidecar contradicts --output a.txt"),
        (["--output", "a"], "--output does not go with --format sidecar"),
        (["--scores"], "--scores does not go with --format sidecar"),
        (["--num_captions", "2"], "writes one caption for each image"),
        (["--append", "--overwrite"], "--append and --overwrite contradict each other"),
        (["--extension", ".jpg"], "--extension .jpg is not for text files"),
        (["--extension", "json"], "--extension .json is not for text files"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, captioner_folder, photos, capsys):
    assert caption(captioner_folder, photos, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--output_dir", "a"], ["--append"]])
def test_options_of_sidecars_need_their_format(option, captioner_folder, photos, capsys):
    assert main(["caption", str(captioner_folder), str(photos), *option]) == 2
    assert f"{option[0]} does not go without --format sidecar" in capsys.readouterr().err


def test_text_files_of_an_interrupted_run_are_kept_without_its_journal(captioner_folder, photos, capsys):
    with signal_after(2, signal.SIGINT):
        assert caption(captioner_folder, photos) == 130
    assert caption(captioner_folder, photos, "--prefix", "sks, ") == 2
    journal = photos / ".blip-hf-caption.part"
    assert f"Or remove {journal}: then its text files are kept like others." in capsys.readouterr().err
    journal.unlink()
    assert caption(captioner_folder, photos, "--prefix", "sks, ") == 0
    assert [text.startswith("sks, ") for text in texts_of(photos).values()] == [False, True, True, True]
