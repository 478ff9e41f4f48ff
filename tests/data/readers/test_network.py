# SPDX-License-Identifier: BSD-3-Clause
"""No reader uses the network, whatever its source is called, unless the source is an address or starts with hf://datasets/."""

import socket

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_hf.cli import main
from blip_hf.data.readers import find_shards, load_images, load_nlvr2, load_nocaps, load_pairs, load_vqa
from tests.support.files import write_json, write_tar
from tests.support.images import encoded_image, write_images


@pytest.fixture(autouse=True)
def requests(monkeypatch):
    """The addresses that were asked for; each request fails."""
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network in tests")

    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", "red")
    (tmp_path / "images" / "red.txt").write_text("red")
    record = {"image": "images/red.png", "caption": "red"}
    write_json(tmp_path / "list.json", [record, {**record, "image": "http://example.com/a.png"}])
    write_tar(tmp_path / "tars" / "a.tar", [("0.png", encoded_image()), ("0.txt", b"red")])
    table = pa.table({"image": [encoded_image()], "caption": ["red"]})
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    return tmp_path


@pytest.mark.parametrize(
    "source", ["images", "list.json", "tars", "parquet", "parquet/a.parquet", "saved", "scenes:2"]
)
def test_local_sources_ask_nobody(source, folder, requests):
    assert len(load_pairs(source)) > 0
    assert len(load_images(source)) > 0
    assert any(item.sample_id for shard in find_shards(source) for item in shard.samples())
    assert requests == []


@pytest.mark.parametrize("name", ["runs/datast", "datast", "owner/name", "./runs/x", "/data/x", "a.json"])
@pytest.mark.parametrize("read", [load_pairs, load_images, find_shards, load_vqa, load_nlvr2, load_nocaps])
def test_mistyped_paths_are_not_sent(name, read, folder, requests):
    with pytest.raises(ValueError, match="does not exist"):
        read(name)
    assert requests == []


@pytest.mark.parametrize("name", ["s3://a/b", "http://a/b"])
@pytest.mark.parametrize("read", [load_vqa, load_nlvr2, load_nocaps])
def test_addresses_of_lists_are_not_read(name, read, folder, requests):
    with pytest.raises(ValueError, match="does not exist"):
        read(name)
    assert requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--data", "runs/datast", "--output_dir", "out"],
        ["capfilt", "run", "--source", "runs/datast", "--captioner", "m", "--filter", "m", "--output_dir", "out"],
        ["caption", "./models/lost", "images"],
        ["match", "./models/lost", "images", "a dog"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_mistyped_paths_of_commands_are_not_sent(arguments, folder, requests, capsys):
    assert main(arguments) != 0
    assert "does not exist" in capsys.readouterr().err
    assert requests == []


def test_names_that_a_user_marks_are_sent(requests):
    with pytest.raises(ValueError, match="hf://datasets/owner/name cannot be loaded from the Hub"):
        load_pairs("hf://datasets/owner/name")
    assert {address[0] for address in requests} <= {"huggingface.co"}
