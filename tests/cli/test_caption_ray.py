# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf caption --engine ray`: the bytes of the local engine, and runs that continue on the other one."""

import signal
import sys

import pytest

from blip_hf.captioner import BlipCaptioner
from blip_hf.cli import main
from blip_hf.ray_captioner import RayCaptioner
from blip_hf.ray_pool import RayCluster
from tests.support.files import write_tar
from tests.support.images import encode_image, noise_images
from tests.support.stopping import signal_after


pytestmark = pytest.mark.usefixtures("one_thread")

# Sampling depends on the batch, and scores on its rounding.
OPTIONS = ("--num_captions", "2", "--scores", "--sample", "--seed", "3", "--batch_size", "2")


def caption(*arguments):
    return main(["caption", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def on_ray(cluster):
    return ("--engine", "ray", "--address", cluster.address, "--shard_size", "2")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven images, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(noise_images(11)):
        image.save(folder / f"{number:02d}.png")
    (folder / "05.png").write_bytes(b"broken")
    return folder


@pytest.mark.slow
def test_an_interrupted_run_continues_on_ray_with_the_same_bytes(
    on_ray, captioner_folder, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(photos.parent)  # actors have another working directory
    argv = [captioner_folder, photos.name, *OPTIONS, "--output"]
    assert caption(*argv, tmp_path / "whole.jsonl") == 0
    with signal_after(3, signal.SIGINT):
        assert caption(*argv, tmp_path / "resumed.jsonl") == 130
    assert caption(*argv, tmp_path / "resumed.jsonl", *on_ray, "--num_actors", "1") == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # Ray's own would end a later training
    shown = capsys.readouterr().err.splitlines()
    assert f"blip-hf caption: resuming after 3 of 11 images of {tmp_path / 'resumed.jsonl'}.part" in shown
    assert shown[-1] == "blip-hf caption: skipped 1 of 11 images (1 not_an_image)"
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_on_ray_that_is_stopped_continues_on_either_engine(on_ray, captioner_folder, photos, tmp_path, capsys):
    # The same images twice: each has its own captions.
    argv = [captioner_folder, photos, photos, *OPTIONS, "--output"]
    assert caption(*argv, tmp_path / "whole.jsonl") == 0
    for number, engine in enumerate([(), on_ray]):
        resumed = tmp_path / str(number) / "resumed.jsonl"
        with signal_after(5, signal.SIGTERM):
            assert caption(*argv, resumed, *on_ray) == 143
        assert "interrupted after 5 of 22 images" in capsys.readouterr().err
        assert caption(*argv, resumed, *engine) == 0
        assert "resuming after 5 of 22 images" in capsys.readouterr().err
        assert resumed.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_scores_of_a_matcher_are_those_of_the_local_engine(on_ray, captioner_folder, matcher_folder, photos, tmp_path):
    argv = [captioner_folder, photos, *OPTIONS, "--matcher", matcher_folder, "--output"]
    assert caption(*argv, tmp_path / "local.csv") == 0
    assert caption(*argv, tmp_path / "ray.csv", *on_ray) == 0
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


@pytest.mark.slow
def test_sidecars_and_stdout_are_those_of_the_local_engine(on_ray, captioner_folder, photos, tmp_path, capsys):
    written, shown = [], []
    for name, engine in (("local", ()), ("ray", on_ray)):
        argv = [captioner_folder, photos, "--batch_size", "2", *engine]
        assert caption(*argv, "--format", "sidecar", "--output_dir", tmp_path / name) == 0
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        capsys.readouterr()
        assert caption(*argv) == 0
        shown.append(capsys.readouterr().out)
    assert len(written[0]) == 10
    assert written[0] == written[1]
    assert shown[0] == shown[1]


@pytest.mark.slow
def test_records_are_sent_to_the_actors(on_ray, captioner_folder, tmp_path):
    members = [(f"{number}.png", encode_image(image)) for number, image in enumerate(noise_images(5))]
    source = write_tar(tmp_path / "web.tar", [*members, *((f"{number}.txt", b"a") for number in range(5))])
    argv = [captioner_folder, source, "--batch_size", "2", "--output"]
    assert caption(*argv, tmp_path / "local.jsonl") == 0
    assert caption(*argv, tmp_path / "ray.jsonl", *on_ray) == 0
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


@pytest.mark.slow
def test_the_captioner_on_ray_gives_the_captions_of_the_local_one(cluster, captioner_folder):
    images = noise_images(7)
    settings = {"device": "cpu", "batch_size": 2, "do_sample": True, "seed": 1}
    expected = BlipCaptioner.from_pretrained(captioner_folder, **settings).caption(images, return_scores=True)
    with RayCaptioner.from_pretrained(
        captioner_folder, cluster=RayCluster(address=cluster.address), shard_size=1, **settings
    ) as captioner:
        first = next(captioner.iter_captions(images, return_scores=True))
        assert [first, *expected[1:]] == list(captioner.iter_captions(images, return_scores=True)) == expected


@pytest.mark.slow
def test_an_error_of_an_actor_is_one_line(on_ray, photos, tmp_path, capsys):
    assert caption("nowhere", photos, *on_ray) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("blip-hf caption: error: nowhere does not exist.")


def test_wrong_options_are_named(captioner_folder, photos, capsys, monkeypatch):
    assert caption(captioner_folder, photos, "--shard_size", "2") == 2
    assert "--shard_size is an option of Ray. Add --engine ray, or remove it." in capsys.readouterr().err
    assert caption(captioner_folder, photos, "--engine", "ray", "--shard_size", "0") == 2
    assert "--shard_size is 0, expected 1 or more." in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert caption(captioner_folder, photos, "--engine", "ray") == 2
    assert "needs Ray, which is not installed: pip install 'blip_hf[ray]'" in capsys.readouterr().err
