# SPDX-License-Identifier: BSD-3-Clause
"""A run of `blip-hf caption` that is stopped at any moment is resumed by the same command, with the same result."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from blip_hf import BlipForConditionalGeneration
from blip_hf.captioner import BlipCaptioner
from blip_hf.cli import main
from blip_hf.cli.caption_journal import Journal, keys_of, open_journal
from blip_hf.cli.errors import UsageError
from tests.support.images import noise_images, write_image
from tests.support.paths import ROOT
from tests.support.stopping import leave_half_a_line, signal_after


NUM_IMAGES = 11


def caption(*arguments):
    return main(["caption", *map(str, arguments), "--device", "cpu"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven images, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(noise_images(NUM_IMAGES)):
        image.save(folder / f"{number:02d}.png")
    (folder / "05.png").write_bytes(b"broken")
    return folder


def run_stopped(argv, stops):
    """Runs a command that is stopped by each signal after a number of images, and then to its end."""
    for num_images, number in stops:
        with signal_after(num_images, number):
            assert caption(*argv) == 128 + number
    assert caption(*argv) == 0


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.json", "captions.csv", "captions.txt"])
def test_a_stopped_run_gives_the_file_of_an_undisturbed_one(name, captioner_folder, photos, tmp_path, capsys):
    # Sampling depends on the batch, and scores on its rounding.
    options = ["--num_captions", "2", "--scores", "--sample", "--seed", "3", "--batch_size", "4"]
    whole, resumed = tmp_path / "whole" / name, tmp_path / "resumed" / name
    assert caption(captioner_folder, photos, *options, "--output", whole) == 0
    argv = [captioner_folder, photos, *options, "--output", resumed]
    run_stopped(argv, [(3, signal.SIGINT), (3, signal.SIGTERM), (1, signal.SIGINT)])
    assert resumed.read_bytes() == whole.read_bytes()
    assert list(resumed.parent.iterdir()) == [resumed]
    error = capsys.readouterr().err
    assert f"interrupted after 3 of 11 images, noted in {resumed}.part. The same command resumes." in error
    assert "resuming after 7 of 11 images" in error
    assert error.rstrip().endswith("skipped 1 of 11 images (1 not_an_image)")


def test_until_the_run_ends_only_the_journal_is_there(captioner_folder, photos, tmp_path):
    output = tmp_path / "captions.jsonl"
    with signal_after(4, signal.SIGINT):
        assert caption(captioner_folder, photos, "--output", output) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl.part"]
    _, *lines = (tmp_path / "captions.jsonl.part").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == [str(photos / f"0{number}.png") for number in range(4)]


@pytest.mark.parametrize("half", [b'{"image": "05.p', b"\0\0\0\0", b"\0\0\0\n", b"{}"])
def test_half_a_line_of_a_killed_process_is_removed(half, captioner_folder, photos, tmp_path):
    output, whole = tmp_path / "captions.jsonl", tmp_path / "whole.jsonl"
    assert caption(captioner_folder, photos, "--output", whole) == 0
    with signal_after(4, signal.SIGTERM):
        assert caption(captioner_folder, photos, "--output", output) == 143
    leave_half_a_line(tmp_path / "captions.jsonl.part", half)
    assert caption(captioner_folder, photos, "--output", output) == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("change", "was", "now"),
    [
        (["--num_beams", "1"], "--num_beams 3", "--num_beams 1"),
        (["--prompt", "a photo of"], "--prompt 'a picture of '", "--prompt 'a photo of'"),
        (["--suffix", "!"], "no --suffix", "--suffix '!'"),
    ],
)
def test_another_setting_is_refused_by_its_name(change, was, now, captioner_folder, photos, tmp_path, capsys):
    output = tmp_path / "captions.jsonl"
    with signal_after(4, signal.SIGINT):
        caption(captioner_folder, photos, "--output", output)
    assert caption(captioner_folder, photos, "--output", output, *change) == 2
    error = capsys.readouterr().err
    assert f"holds 4 images of an interrupted run with {was}, now {now}." in error
    assert "--overwrite to start again" in error
    assert caption(captioner_folder, photos, "--output", output, *change, "--overwrite") == 0
    assert len(output.read_text().splitlines()) == NUM_IMAGES - 1


def test_another_batch_size_resumes(captioner_folder, photos, tmp_path):
    output = tmp_path / "captions.jsonl"
    with signal_after(4, signal.SIGINT):
        caption(captioner_folder, photos, "--output", output)
    assert caption(captioner_folder, photos, "--output", output, "--batch_size", "2", "--workers", "0") == 0


def test_other_weights_are_refused(captioner_folder, photos, tmp_path, capsys):
    output, other = tmp_path / "captions.jsonl", tmp_path / "other"
    with signal_after(4, signal.SIGINT):
        caption(captioner_folder, photos, "--output", output)
    captioner = BlipCaptioner.from_pretrained(captioner_folder, device="cpu")
    captioner.model.vision_model.embeddings.class_embedding.data += 1
    captioner.model.save_pretrained(other)
    captioner.processor.save_pretrained(other)
    assert caption(other, photos, "--output", output) == 2
    assert "an interrupted run with --model with weights" in capsys.readouterr().err


def test_the_same_command_with_overwrite_resumes_and_an_added_one_starts_again(
    captioner_folder, photos, tmp_path, capsys
):
    output = tmp_path / "captions.jsonl"
    output.write_text("old")
    argv = [captioner_folder, photos, "--output", output, "--overwrite"]
    with signal_after(4, signal.SIGINT):
        caption(*argv)
    assert output.read_text() == "old"
    assert caption(*argv) == 0
    assert "resuming after 4 of 11" in capsys.readouterr().err
    output.unlink()
    with signal_after(4, signal.SIGINT):
        caption(*argv[:-1])
    assert caption(*argv) == 0
    assert "resuming" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.json", "captions.csv", "captions.txt"])
def test_skip_existing_captions_only_what_the_file_lacks(name, captioner_folder, photos, tmp_path, monkeypatch):
    output, whole = tmp_path / name, tmp_path / f"whole-{name}"
    some = [photos / f"{number:02d}.png" for number in (0, 3, 4)]
    assert caption(captioner_folder, *some, "--output", output) == 0
    assert caption(captioner_folder, photos, "--output", output) == 2
    captioned = []
    iter_captions = BlipCaptioner.iter_captions

    def spy(self, images, **kwargs):
        captioned.extend(images)
        return iter_captions(self, captioned, **kwargs)

    monkeypatch.setattr(BlipCaptioner, "iter_captions", spy)
    assert caption(captioner_folder, photos, "--output", output, "--skip_existing") == 0
    assert len(captioned) == NUM_IMAGES - 3
    assert not set(captioned) & set(some)
    monkeypatch.undo()
    assert caption(captioner_folder, photos, "--output", whole) == 0
    assert output.read_bytes() == whole.read_bytes()


def in_second_batch(act):
    """A method that generates captions, and does something before the second batch."""
    generate, calls = BlipForConditionalGeneration.generate, []

    def counted(self, **kwargs):
        calls.append(kwargs)
        if len(calls) == 2:
            act()
        return generate(self, **kwargs)

    return counted


def raise_machine_error():
    raise OSError(errno.EIO, "Input/output error", "04.png")


def test_an_error_keeps_what_was_captioned(captioner_folder, photos, tmp_path, monkeypatch, capsys):
    output = tmp_path / "captions.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(BlipForConditionalGeneration, "generate", in_second_batch(raise_machine_error))
        assert caption(captioner_folder, photos, "--output", output, "--batch_size", "4") == 2
    error = capsys.readouterr().err
    assert "interrupted after 4 of 11 images" in error
    assert "Input/output error: '04.png'" in error
    assert caption(captioner_folder, photos, "--output", output, "--batch_size", "4") == 0
    assert "resuming after 4 of 11" in capsys.readouterr().err


def test_stdout_says_how_far_it_came(captioner_folder, photos, capsys, monkeypatch):
    stop = in_second_batch(lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(BlipForConditionalGeneration, "generate", stop)
    assert caption(captioner_folder, photos, "--batch_size", "4") == 130
    output, error = capsys.readouterr()
    assert len(output.splitlines()) == 4
    assert "interrupted after 4 of 11 images. With --output FILE a run can be resumed." in error


def test_two_processes_do_not_write_one_file(tmp_path):
    with (
        open_journal(tmp_path / "a.part", {}, overwrite=False),
        pytest.raises(UsageError, match="Another blip-hf caption"),
        open_journal(tmp_path / "a.part", {}, overwrite=False),
    ):
        pass


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "a.part"
    path.write_text("1\nnot mine")
    with pytest.raises(UsageError, match="is not the journal"):
        Journal(path)
    assert path.read_text() == "1\nnot mine"


def test_images_of_one_name_are_kept_apart_in_any_order(tmp_path):
    names = ["a", "\udcff\n", "a", "a"]
    keys = keys_of(names)
    with open_journal(tmp_path / "a.part", {}, overwrite=False) as journal:
        for number in (2, 0, 1, 3):
            name, occurrence = keys[number]
            journal.append({"image": name, "captions": [{"caption": str(number)}], "occurrence": occurrence})
    with open_journal(tmp_path / "a.part", {}, overwrite=False) as journal:
        assert [journal[key]["captions"][0]["caption"] for key in keys] == ["0", "1", "2", "3"]


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "blip_hf", "caption", *map(str, arguments), "--device", "cpu"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def num_lines(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.fixture
def drawn_images(tmp_path):
    folder = tmp_path / "photos"
    for number in range(600):
        write_image(folder / f"{number:03d}.png", (number % 256, number // 3, 90))
    return folder


@pytest.fixture
def flickr8k(data_root):
    return data_root / "flickr8k" / "images"


@pytest.mark.slow
@pytest.mark.parametrize(("images", "name"), [("drawn_images", "captions.csv"), ("flickr8k", "captions.jsonl")])
def test_real_signals_at_random_moments_lose_nothing(images, name, captioner_folder, tmp_path, request):
    folder = request.getfixturevalue(images)
    num_images = len(list(folder.iterdir()))
    argv = [captioner_folder, folder, "--scores", "--batch_size", "32", "--output"]
    whole, resumed = tmp_path / f"whole-{name}", tmp_path / name
    assert start(*argv, whole).wait() == 0
    journal, rng = tmp_path / f"{name}.part", random.Random(0)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        wanted = num_lines(journal) + rng.randrange(num_images // 20, num_images // 7)
        process = start(*argv, resumed)
        while num_lines(journal) < wanted and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate()
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), error
        assert "Traceback" not in error
        assert not resumed.exists()
    process = start(*argv, resumed)
    assert "resuming after" in process.communicate()[1]
    assert resumed.read_bytes() == whole.read_bytes()
