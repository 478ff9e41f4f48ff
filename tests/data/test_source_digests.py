# SPDX-License-Identifier: BSD-3-Clause
"""Digests of sources: what counts as a change."""

import os

import pytest

from blip_hf.data.readers.sources import open_source
from blip_hf.data.source_digests import digest_source, find_changes
from tests.support.file_server import serve_files
from tests.support.files import write_json, write_json_lines, write_tar
from tests.support.images import write_image


def digest(*sources):
    return digest_source(open_source([str(source) for source in sources]))


def test_the_order_of_a_list_counts_and_its_time_does_not(tmp_path):
    records = [{"image": "a.png", "caption": "a"}, {"image": "b.png", "caption": "b"}]
    for write, name in ((write_json, "web.json"), (write_json_lines, "web.jsonl")):
        before = digest(write(tmp_path / name, records))
        assert digest(write(tmp_path / name, records)) == before
        after = digest(write(tmp_path / name, records[::-1]))
        assert find_changes(before, after) == [f"{tmp_path / name} has changed"]


def test_the_order_of_a_tar_counts(tmp_path):
    members = [("a.jpg", b"1"), ("a.txt", b"a"), ("b.jpg", b"2"), ("b.txt", b"b")]
    before = digest(write_tar(tmp_path / "web.tar", members))
    assert find_changes(before, digest(write_tar(tmp_path / "web.tar", members[2:] + members[:2])))


def test_added_and_removed_files_are_named(tmp_path):
    paths = [write_tar(tmp_path / f"{name}.tar", [("a.jpg", b"1"), ("a.txt", b"a")]) for name in "abcd"]
    assert find_changes(digest(*paths[:3]), digest(*paths[2:])) == [
        f"{paths[0]} is gone (and 1 others)",
        f"{paths[3]} is new",
    ]


@pytest.mark.parametrize("change", ["image", "text", "longer text"])
def test_a_folder_of_images_is_its_listing(tmp_path, change):
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    before = digest(tmp_path)
    (tmp_path / "notes.md").write_text("not part of the source")
    assert digest(tmp_path) == before
    if change == "image":
        write_image(tmp_path / "c.png")
    else:
        (tmp_path / ("c.txt" if change == "text" else "b.txt")).write_text("longer")
    assert (digest(tmp_path) != before) == (change != "text")  # a text without an image is not read


def test_files_at_addresses_have_the_version_of_their_server(tmp_path):
    pytest.importorskip("aiohttp")
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [("a.jpg", b"1"), ("a.txt", name.encode())])
    with serve_files(tmp_path) as server:
        address = f"{server.address}/{{a,b}}.tar"
        before = digest(address)
        assert digest(address) == before
        os.utime(tmp_path / "b.tar", (1, 1))
        assert find_changes(before, digest(address)) == [f"{server.address}/b.tar has changed"]


def test_drawn_scenes_have_no_digest():
    assert digest("scenes:4") == {}
