# SPDX-License-Identifier: BSD-3-Clause
"""Data and models of a run by their content: changed ones are refused by name, moved ones are the same."""

import shutil
from dataclasses import dataclass, field

import pytest

from blip_hf.tasks.options import option
from blip_hf.tasks.run_inputs import digest_inputs, find_input_changes, path_options
from tests.support.files import write_json, write_tar
from tests.support.images import write_images


@dataclass
class Options:
    data: list[str] = field(metadata={"metavar": "SOURCE"})
    model: str | None = option(None, "", "CHECKPOINT")
    image_root: str | None = option(None, "", "DIR")
    split: str = option("train", "", "NAME")


def command(**values):
    options = Options(**values)
    names = path_options(options)
    assert names == {"data", "model", "image_root"}
    return {**vars(options), "digests": digest_inputs(options, names)}


def changes(old, new):
    return [change for name in ("data", "model", "image_root") for change in find_input_changes(name, old, new)]


@pytest.fixture
def folder(tmp_path):
    """A list with images, a folder of tars, and a model."""
    folder = tmp_path / "first"
    write_images(folder / "images", "red", "lime", size=(4, 4))
    write_json(folder / "web.json", [{"image": "red.png", "caption": "red"}])
    for name in "ab":
        write_tar(folder / "tars" / f"{name}.tar", [(f"{name}.png", b"1"), (f"{name}.txt", b"a")])
    write_json(folder / "model" / "config.json", {})
    write_json(folder / "model" / "training_run.json", {"is_finished": True})
    (folder / "model" / "model.safetensors").write_bytes(b"12")
    return folder


def command_in(folder, **values):
    data = [str(folder / "web.json"), str(folder / "tars"), str(folder / "tars" / "{a,b}.tar"), "scenes:4"]
    return command(data=data, model=str(folder / "model"), image_root=str(folder / "images"), **values)


def change(folder, name):
    path = folder / name
    if path.suffix == ".png":
        write_images(path.parent, path.stem, size=(9, 9))
    else:
        path.write_bytes(path.read_bytes()[::-1])


def test_moved_inputs_are_the_same(folder, monkeypatch):
    before = command_in(folder)
    shutil.copytree(folder, folder.with_name("second"))
    assert changes(before, command_in(folder.with_name("second"))) == []
    monkeypatch.chdir(folder)
    assert changes(before, command_in(folder.relative_to(folder))) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web.json", ["data: {folder}/web.json has changed"]),
        (
            "tars/b.tar",
            ["data: b.tar of {folder}/tars has changed", "data: b.tar of {folder}/tars/{{a,b}}.tar has changed"],
        ),
        ("model/model.safetensors", ["model: model.safetensors of {folder}/model has changed"]),
        ("model/training_run.json", []),
        ("images/red.png", ["image_root: {folder}/images has changed"]),
    ],
)
def test_changed_inputs_are_named(folder, name, expected):
    before = command_in(folder)
    change(folder, name)
    assert changes(before, command_in(folder)) == [change.format(folder=folder) for change in expected]


def test_other_inputs_are_named(folder):
    before = command(data=[str(folder / "web.json")], model="owner/name")
    write_json(folder / "other.json", [])
    after = command(data=[str(folder / "other.json")], model="owner/other")
    assert changes(before, after) == [
        f"data was ['{folder}/web.json'], is ['{folder}/other.json']",
        "model was 'owner/name', is 'owner/other'",
    ]
    two = command(data=["scenes", "scenes:4"], model="owner/name")
    assert changes(before, two) == [f"data was ['{folder}/web.json'], is ['scenes', 'scenes:4']"]


def test_records_of_earlier_versions_are_compared_by_path(folder):
    before = {name: value for name, value in command_in(folder).items() if name != "digests"}
    change(folder, "web.json")
    assert changes(before, command_in(folder)) == []
