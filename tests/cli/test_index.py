# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf index`: messages, status, interrupted runs, and another model."""

import os
import signal

import pytest

from blip_hf.cli import main
from blip_hf.search.store import Store
from tests.support.forks import run_forked
from tests.support.images import noise_images
from tests.support.tiny_models import tiny_capfilt


pytestmark = pytest.mark.usefixtures("one_thread", "_needs_faiss")


@pytest.fixture(scope="module")
def _needs_faiss():
    pytest.importorskip("faiss")


def index(*arguments):
    return main(["index", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def photos(tmp_path):
    """Nine images in a folder and a subfolder, one of them broken."""
    for number, image in enumerate(noise_images(8)):
        path = tmp_path / "photos" / ("trip" if number > 5 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (tmp_path / "photos" / "broken\x1b[2J.png").write_bytes(b"broken")
    return tmp_path / "photos"


def test_a_run_says_what_it_found_and_the_next_one_what_changed(matcher_folder, photos, tmp_path, capsys):
    argv = [photos, "--model", matcher_folder, "--output_dir", tmp_path / "my.index"]
    assert index(*argv) == 0
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("blip-hf index: skipped: Cannot read the image")
    assert "broken\\x1b[2J.png" in first
    assert last == f"blip-hf index: {tmp_path / 'my.index'}: 8 new, 1 skipped (1 not_an_image)"
    (photos / "0.png").rename(photos / "trip" / "moved.png")
    (photos / "1.png").unlink()
    assert index(*argv) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("my.index: 1 moved, 1 removed, 6 unchanged, 1 skipped (1 not_an_image)")


def test_the_status_is_1_without_an_image(matcher_folder, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert index(tmp_path / "broken.png", "--model", matcher_folder, "--output_dir", tmp_path / "my.index") == 1
    assert "1 skipped (1 not_an_image)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_is_resumed(number, matcher_folder, photos, tmp_path, capfd, monkeypatch):
    argv = [photos, "--model", matcher_folder, "--batch_size", "3", "--output_dir"]
    assert index(*argv, tmp_path / "whole") == 0

    def interrupt():
        append = Store.append

        def append_and_stop(self, *arguments):
            if self.num_rows() == 3:
                os.kill(os.getpid(), number)
            append(self, *arguments)

        monkeypatch.setattr(Store, "append", append_and_stop)
        raise SystemExit(index(*argv, tmp_path / "resumed"))

    status = run_forked(interrupt)
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number
        assert "blip-hf index: interrupted after 3 images. The same command resumes." in capfd.readouterr().err
    assert len(Store(tmp_path / "resumed").vectors()) == 3
    assert index(*argv, tmp_path / "resumed") == 0
    assert "5 new, 3 unchanged" in capfd.readouterr().err
    assert (tmp_path / "resumed" / "vectors.f32").read_bytes() == (tmp_path / "whole" / "vectors.f32").read_bytes()


def test_another_model_or_other_files_in_the_folder_are_refused(matcher_folder, photos, tmp_path, capsys):
    argv = [photos, "--output_dir", tmp_path / "my.index", "--model"]
    assert index(*argv, matcher_folder) == 0
    _, _, other, processor = tiny_capfilt()
    other.itm_head.bias.data += 1
    for part in (other, processor):
        part.save_pretrained(tmp_path / "other")
    assert index(*argv, tmp_path / "other") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"is an index of the model {matcher_folder} (weights " in message
    assert f"and {tmp_path / 'other'} has the weights " in message
    assert index(*argv, tmp_path / "other", "--overwrite") == 0
    assert index(photos, "--output_dir", photos, "--model", matcher_folder, "--overwrite") == 2
    assert "has files and is not an index" in capsys.readouterr().err
    assert (photos / "0.png").is_file()


def test_options_of_ray_need_the_engine(matcher_folder, photos, tmp_path, capsys):
    argv = [photos, "--model", matcher_folder, "--output_dir", tmp_path / "my.index"]
    assert index(*argv, "--num_actors", "2") == 2
    assert "--num_actors is an option of Ray. Add --engine ray, or remove it." in capsys.readouterr().err
    assert index(*argv, "--batch_size", "0") == 2
    assert "--batch_size is 0, expected 1 or more." in capsys.readouterr().err


def test_ray_writes_the_vectors_of_this_machine(cluster, matcher_folder, photos, tmp_path):
    argv = [photos, "--model", matcher_folder, "--batch_size", "2", "--output_dir"]
    assert index(*argv, tmp_path / "local") == 0
    assert index(*argv, tmp_path / "ray", "--engine", "ray", "--address", cluster.address, "--num_actors", "1") == 0
    assert (tmp_path / "ray" / "vectors.f32").read_bytes() == (tmp_path / "local" / "vectors.f32").read_bytes()
