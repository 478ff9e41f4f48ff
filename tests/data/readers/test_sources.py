# SPDX-License-Identifier: BSD-3-Clause
"""Format detection, and errors of invalid sources."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_hf.data.readers import find_shards, load_images, load_pairs
from blip_hf.data.readers.hub import is_hub_name
from blip_hf.data.readers.sources import expand_pattern, make_absolute
from tests.support.files import write_json, write_tar
from tests.support.images import encoded_image, write_images
from tests.support.sources import read, summary


ENTRY_POINTS = pytest.mark.parametrize("read_source", [load_pairs, find_shards, load_images])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("lost.tar", r"lost.tar does not exist. Pass JSON lists"),
        ("lost.json", r"lost.json does not exist. Pass JSON lists"),
        ("/lost/folder", r"/lost/folder does not exist"),
        ("~/lost", r"~/lost does not exist"),
        ("./lost", r"./lost does not exist"),
        ("a/b/c", r"a/b/c does not exist"),
        ([], r"list of sources is empty"),
        ([{"image": "a.jpg", "caption": "a"}], r"source is a dict.*pass them to `PairDataset`"),
        (5, r"source is a int"),
        ("scenes", r"expected scenes:NUMBER"),
        ("scenes:0", r"expected scenes:NUMBER"),
        ("scenes:5:1.5", r"expected scenes:NUMBER"),
        ("lost/*.tar", r"No file matches the pattern lost/\*.tar"),
        ("lost/{0..1}.tar", r"lost/0.tar of the pattern lost/\{0..1\}.tar does not exist"),
    ],
)
@ENTRY_POINTS
def test_a_source_that_does_not_exist_is_named_without_asking_the_hub(read_source, source, message, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match=message):
        read_source(source)


@pytest.mark.parametrize("name", ["owner/name", "mnist", "owner/name-1.5"])
def test_name_without_prefix_is_not_sent_but_the_prefix_is_named(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    assert not is_hub_name(name)
    assert is_hub_name(f"hf://datasets/{name}")
    assert make_absolute(f"hf://datasets/{name}") == f"hf://datasets/{name}"
    with pytest.raises(ValueError, match=f"{name} does not exist. If it is .*, pass hf://datasets/{name}. Pass JSON"):
        load_pairs(name)


@pytest.mark.parametrize("name", ["owner/photos.json", "tests/lost", "a/b/c", "./a", "~/a", "/a", "a b"])
def test_paths_are_not_taken_for_names_on_the_hub(name, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name(f"hf://datasets/{name}")
    assert make_absolute(name) == make_absolute(make_absolute(name))
    with pytest.raises(ValueError, match=f"{name} does not exist. Pass JSON"):
        load_pairs(name)


@ENTRY_POINTS
def test_folder_of_two_formats_raises_with_its_contents(read_source, tmp_path):
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "b.tar", [])
    write_json(tmp_path / "a.json", [])
    with pytest.raises(ValueError, match=r"contains 1 JSON lists \(a.json\) and 2 tars \(a.tar, ...\). Pass one kind"):
        read_source(tmp_path)


def test_images_beside_tars_are_not_left_out(tmp_path):
    write_images(tmp_path, "red")
    (tmp_path / "a.tar").touch()
    with pytest.raises(ValueError, match=r"contains 1 images \(red.png\) and 1 tars \(a.tar\)|1 tars .* and 1 images"):
        find_shards(tmp_path)


@ENTRY_POINTS
def test_folder_without_a_known_format_raises_with_its_contents(read_source, tmp_path):
    with pytest.raises(ValueError, match=r"has no known format \(it is empty\)"):
        read_source(tmp_path)
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match=r"has no known format \(it contains notes.md, sub/\)"):
        read_source(tmp_path)
    with pytest.raises(ValueError, match=r"notes.md has an unknown format"):
        read_source(tmp_path / "notes.md")
    with pytest.raises(ValueError, match=r"image_root='/lost' is not a folder"):
        read_source(tmp_path, image_root="/lost")


@ENTRY_POINTS
def test_two_metadata_files_raise(read_source, tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a")
    with pytest.raises(ValueError, match=r"has both metadata.jsonl and metadata.csv"):
        read_source(tmp_path)


@pytest.mark.parametrize("columns", [{"URL": ["http://a"], "TEXT": ["a"]}, {"image": ["https://a"], "text": ["a"]}])
@ENTRY_POINTS
def test_parquet_of_urls_raises_with_the_remedy(read_source, columns, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(
        ValueError, match=r"has URLs \(column '\w+'\) and no images. Download .* img2dataset --url_list"
    ):
        read_source(tmp_path / "x.parquet")


def test_parquet_without_required_columns_raises(tmp_path):
    pq.write_table(pa.table({"picture": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"has the columns picture, expected 'image' .* and one of 'caption'"):
        find_shards(tmp_path / "x.parquet")


def test_lists_may_be_in_the_folder_of_their_images(tmp_path):
    write_images(tmp_path, "red", "lime")
    write_json(tmp_path / "a.json", [{"image": "red.png", "caption": "red"}])
    assert summary(read(tmp_path)) == [("a/00000000", ("red",))]
    (tmp_path / "lime.txt").write_text("green")
    with pytest.raises(ValueError, match=r"contains 1 JSON lists \(a.json\) and 2 images"):
        find_shards(tmp_path)


def test_splits_may_have_their_own_folders(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_tar(tmp_path / split / "a.tar", [("0.png", encoded_image()), ("0.txt", split.encode())])
    assert [load_pairs(tmp_path, split=split)["caption"][:] for split in ("train", "test")] == [["train"], ["test"]]
    assert [sample.texts for shard in find_shards(tmp_path, split="test") for sample in shard.samples()] == [("test",)]


def test_patterns_are_expanded_in_order(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b-08"):
        (tmp_path / f"{name}.tar").touch()

    def names(pattern):
        return [path.stem for path in expand_pattern(tmp_path / pattern)]

    assert names("a-{08..10}.tar") == ["a-08", "a-09", "a-10"]
    assert names("{b,a}-08.tar") == ["b-08", "a-08"]
    assert names("{a,b}-*.tar") == ["a-08", "a-09", "a-10", "b-08"]
    assert names("a-[01]?.tar") == ["a-08", "a-09", "a-10"]
    assert names("a.tar") == []


def test_files_of_the_same_name_are_distinguished_by_folder(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [])
    shards = find_shards([tmp_path / "x" / "0.tar", tmp_path / "y" / "0.tar"])
    assert [shard.name for shard in shards] == ["x_0", "y_0"]
    with pytest.raises(ValueError, match="Several sources are called '0'"):
        find_shards([tmp_path / "x" / "0.tar"] * 2)
    # A list has several shards, and the name of one may equal that of another file.
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["a"]}), tmp_path / "web-00000.parquet")
    records = write_json(tmp_path / "web.json", [{"image": "a.png", "caption": "a"}])
    with pytest.raises(ValueError, match="Several sources are called 'web-00000'"):
        find_shards([records, tmp_path / "web-00000.parquet"])


def test_ignored_files_are_counted_once(tmp_path, caplog):
    members = [
        ("0.png", encoded_image()),
        ("0.txt", b"a"),
        ("0.zyx", b""),
        ("1.zyx", b""),
        (".hidden/1.png", encoded_image()),
    ]
    source = write_tar(tmp_path / "a.tar", members)
    assert len(read(source)) == len(read(source)) == 1
    assert caplog.text.count("a.tar: skipped files that are neither images nor their texts (2 .zyx)") == 1
