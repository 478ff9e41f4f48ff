# SPDX-License-Identifier: BSD-3-Clause
"""Kept pairs on disk, and refiltering of a run."""

import hashlib
import json
import os
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_hf.capfilt.filters import Rule, find_cutoffs, keep_mask
from blip_hf.capfilt.refilter import refilter
from blip_hf.capfilt.scores import SCHEMA, RunFolder, write_scores
from blip_hf.capfilt.writers import SUFFIXES, write_pairs
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import Sample, Shard, find_shards, load_pairs
from blip_hf.data.scenes import Scenes
from blip_hf.image_utils import open_image
from blip_hf.locks import Locks
from tests.support.files import write_json
from tests.support.scores import score_row, table_of


MODELS = {
    "captioner": {"name": "writer", "fingerprint": "0123", "dtype": "float32"},
    "filter": {"name": "judge", "fingerprint": "4567", "dtype": "float32"},
}
NUM_SCENES = 7


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def fake_score(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 0x10000


def scored(shard: Shard) -> pa.Table:
    """A web text and a synthetic text for each image, with scores computed from their letters."""
    rows = []
    for sample in shard.samples():
        path = sample.image if isinstance(sample.image, str) else ""
        for index, (source, text) in enumerate(
            [("web", sample.texts[0]), ("synthetic", f"an image {sample.sample_id}")]
        ):
            scores = {"itc": fake_score(text[::-1]), "log_prob": -1.5 if source == "synthetic" else None}
            row = score_row(sample.sample_id, sample.image_id, text, source, fake_score(text), **scores)
            rows.append(row | {"image": path, "text_index": index})
    return table_of(rows)


def fake_run(source, folder: Path, rule: Rule, format: str) -> RunFolder:
    run = RunFolder(folder)
    shards = find_shards(source, shard_size=3)
    for shard in shards:
        write_scores(scored(shard), run.scores(shard.name))
    cutoffs = find_cutoffs(rule, run.tables)
    for shard in shards:
        table = scored(shard)
        rows = table.filter(keep_mask(table, rule, cutoffs))
        write_pairs(shard.samples(), rows, run.pairs(shard.name), format, models=MODELS)
    settings = {"source": source, "image_root": None, "shard_size": 3, "models": MODELS, "rule": asdict(rule)}
    write_json(run.settings, settings)
    return run


def photo_list(folder: Path) -> str:
    """Scenes as image files with a JSON list."""
    folder.mkdir()
    records = []
    for scene in Scenes(NUM_SCENES):
        scene["image"].save(folder / f"{scene['image_id']}.webp", lossless=True)
        records.append({"image": f"{scene['image_id']}.webp", "caption": scene["caption"]})
    return str(write_json(folder / "list.json", records))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_all(folder: Path, format: str, source=f"scenes:{NUM_SCENES}") -> tuple[Path, Shard, pa.Table]:
    (shard,) = find_shards(source)
    table = scored(shard)
    return write_pairs(shard.samples(), table, folder / shard.name, format, models=MODELS), shard, table


# Formats


@pytest.mark.parametrize("format", ["parquet", "json"])
@pytest.mark.parametrize("kind", ["bytes", "paths"])
def test_pairs_are_read_by_load_pairs(format, kind, tmp_path):
    source = f"scenes:{NUM_SCENES}" if kind == "bytes" else photo_list(tmp_path / "photos")
    written, _, table = write_all(tmp_path / "pairs", format, source)
    pairs = load_pairs(written.parent if format == "parquet" else written, allow_outside=True)
    assert pairs["caption"][:] == table["text"].to_pylist()
    assert pairs["image_id"][:] == [i for i in range(NUM_SCENES) for _ in range(2)]
    items = PairDataset(pairs, normalize_captions=False)
    scenes = Scenes(NUM_SCENES)
    assert all(items[i]["image"].tobytes() == scenes[i // 2]["image"].tobytes() for i in range(len(items)))


def test_parquet_output_is_a_dataset_of_images(tmp_path):
    written, *_ = write_all(tmp_path, "parquet")
    dataset = datasets.load_dataset("parquet", data_files=str(written), split="train")
    assert isinstance(dataset.features["image"], datasets.Image)
    scene = Scenes(NUM_SCENES)[1]
    assert dataset[3]["image"].tobytes() == scene["image"].tobytes()
    record = dataset.select_columns([name for name in dataset.column_names if name != "image"])[3]
    text = "an image scenes/00000001"
    assert record == {
        "caption": text,
        "image_id": "1",
        "sample_id": "scenes/00000001",
        "text_index": 1,
        "source": "synthetic",
        "itm": pytest.approx(fake_score(text)),
        "itc": pytest.approx(fake_score(text[::-1])),
        "log_prob": -1.5,
        "captioner": "writer@0123",
        "filter": "judge@4567",
    }
    assert (dataset[2]["source"], dataset[2]["captioner"], dataset[2]["filter"]) == ("web", None, "judge@4567")


def test_images_are_not_re_encoded(tmp_path):
    source = photo_list(tmp_path / "photos")
    content = (tmp_path / "photos" / "2.webp").read_bytes()
    parquet, *_ = write_all(tmp_path, "parquet", source)
    assert pq.read_table(parquet)["image"][4].as_py()["bytes"] == content
    tar, *_ = write_all(tmp_path, "webdataset", source)
    with tarfile.open(tar) as members:
        assert members.getnames()[12:15] == ["00000004.webp", "00000004.txt", "00000004.json"]
        assert members.extractfile("00000004.webp").read() == content
    listed, *_ = write_all(tmp_path, "json", source)
    assert json.loads(listed.read_text())[4]["image"] == str(tmp_path / "photos" / "2.webp")
    assert not (tmp_path / "list-00000").exists()


def test_image_with_several_texts_is_stored_once_in_parquet(tmp_path):
    noise = os.urandom(100_000)
    samples = [Sample("s/0", noise, ("a",), "0")]
    rows = table_of(score_row("s/0", "0", "a", "web", 0.9, text_index=i) for i in range(5))
    written = write_pairs(samples, rows, tmp_path / "s", "parquet")
    assert pq.read_table(written).num_rows == 5
    assert written.stat().st_size < 150_000


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_output_can_be_read_as_a_source(format, tmp_path):
    written, shard, table = write_all(tmp_path, format)
    (again,) = find_shards(written)
    samples = list(again.samples())
    texts = table["text"].to_pylist()
    # Both texts of an image have its id.
    assert [sample.texts for sample in samples] == list(zip(texts[::2], texts[1::2], strict=True))
    assert [sample.image for sample in samples] == [sample.image for sample in shard.samples()]


def test_webdataset_has_the_scores_of_each_image(tmp_path):
    written, *_ = write_all(tmp_path, "webdataset")
    with tarfile.open(written) as members:
        record = json.load(members.extractfile("00000001.json"))
        assert open_image(members.extractfile("00000001.png").read()).size == (64, 64)
        assert members.extractfile("00000001.txt").read() == b"an image scenes/00000000"
    assert (record["source"], record["filter"], record["log_prob"]) == ("synthetic", "judge@4567", -1.5)


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_the_same_pairs_give_the_same_bytes(format, tmp_path, monkeypatch):
    write_all(tmp_path / "one", format)
    monkeypatch.setattr("time.time", lambda: 1e9)
    monkeypatch.setattr("os.getpid", lambda: 4)
    write_all(tmp_path / "two", format)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_shard_without_kept_texts_is_written(format, tmp_path):
    (shard,) = find_shards("scenes:3")
    written = write_pairs(shard.samples(), SCHEMA.empty_table(), tmp_path / "pairs" / "a", format)
    assert written.is_file()
    other, _, table = write_all(tmp_path / "pairs", format)
    if format != "webdataset":
        pairs = load_pairs(other.parent if format == "parquet" else [written, other])
        assert pairs["caption"][:] == table["text"].to_pylist()


def test_only_empty_lists_raise(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text("[]")
    with pytest.raises(ValueError, match="There are no records in"):
        load_pairs([tmp_path / "a.json", tmp_path / "b.json"])


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_source_that_lost_samples_raises_and_writes_nothing(format, tmp_path):
    (shard,) = find_shards("scenes:3")
    samples = list(shard.samples())[:2]
    with pytest.raises(ValueError, match="lacks 1 samples that have scores, such as 'scenes/00000002'"):
        write_pairs(samples, scored(shard), tmp_path / "pairs" / "a", format)
    assert list((tmp_path / "pairs").iterdir()) == []


def test_images_of_an_interrupted_list_are_replaced(tmp_path):
    (tmp_path / "scenes-00000").mkdir()
    (tmp_path / "scenes-00000" / "00000099.png").write_bytes(b"")
    write_all(tmp_path, "json")
    assert len(list((tmp_path / "scenes-00000").iterdir())) == NUM_SCENES
    assert not (tmp_path / "scenes-00000" / "00000099.png").exists()


def test_foreign_files_are_not_replaced_by_images_of_a_list(tmp_path):
    (tmp_path / "scenes-00000").mkdir()
    mine = tmp_path / "scenes-00000" / "holiday.png"
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds another file: holiday\.png\. Pass an empty output folder"):
        write_all(tmp_path, "json")
    assert mine.read_bytes() == b"mine"


def test_list_is_removed_before_its_images(tmp_path, monkeypatch):
    written, shard, table = write_all(tmp_path, "json")

    def killed(path):
        rmtree(path)
        raise KeyboardInterrupt

    rmtree = shutil.rmtree
    monkeypatch.setattr("blip_hf.capfilt.writers.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(shard.samples(), table, tmp_path / shard.name, "json")
    assert not written.exists()


def test_image_counts_once_per_pair(tmp_path, monkeypatch):
    (shard,) = find_shards("scenes:1")
    (sample,) = shard.samples()
    row = scored(shard).slice(0, 1)
    monkeypatch.setattr("blip_hf.capfilt.writers._GROUP_BYTES", 3 * len(sample.image))
    written = write_pairs([sample], pa.concat_tables([row] * 7), tmp_path / "a", "parquet")
    file = pq.ParquetFile(written)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 1]


def test_unknown_format_raises(tmp_path):
    with pytest.raises(ValueError, match="format='csv' is unknown; pass one of 'parquet', 'webdataset', 'json'"):
        write_pairs([], SCHEMA.empty_table(), tmp_path / "a", "csv")


# Refiltering

RULES = [Rule(), Rule(threshold=0.3, sources=("web",)), Rule(keep_share=0.4), Rule(best_per_image=True, by="itc")]


@pytest.mark.parametrize("format", list(SUFFIXES))
@pytest.mark.parametrize("rule", RULES)
def test_refiltering_with_the_same_filter_gives_the_same_bytes(rule, format, tmp_path):
    run = fake_run("scenes:8:0.3", tmp_path / "run", rule, format)
    num_kept = refilter(tmp_path / "run", rule, tmp_path / "again", format)
    files = files_below(tmp_path / "again")
    assert files == files_below(run.pairs_folder)
    assert len(files) >= 3
    assert set(num_kept) == set(rule.sources)
    assert 0 < sum(num_kept.values()) < 16


def test_refiltering_equals_a_run_with_that_filter(tmp_path):
    source = photo_list(tmp_path / "photos")
    fake_run(source, tmp_path / "run", Rule(), "parquet")
    other = fake_run(source, tmp_path / "other", Rule(keep_share=0.6), "json")
    refilter(tmp_path / "run", Rule(keep_share=0.6), tmp_path / "again", "json")
    assert files_below(tmp_path / "again") == files_below(other.pairs_folder)


def test_refiltering_does_not_open_images_with_a_path(tmp_path, monkeypatch):
    fake_run(photo_list(tmp_path / "web"), tmp_path / "run", Rule(), "json")

    def refuse(*_):
        raise AssertionError("an image was opened")

    monkeypatch.setattr("blip_hf.data.readers.samples.Image.open", refuse)
    assert refilter(tmp_path / "run", Rule(threshold=0.0), tmp_path / "again", "json")["web"] == NUM_SCENES


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_files_of_a_killed_process_are_removed(format, tmp_path):
    fake_run("scenes:2", tmp_path / "run", Rule(), format)
    out = tmp_path / "again"
    (out / "scenes-00000.12.part").mkdir(parents=True)
    (out / f"scenes-00000{SUFFIXES[format]}.12.part").write_text("half")
    refilter(tmp_path / "run", Rule(), out, format)
    assert files_below(out) == files_below(tmp_path / "run" / "pairs")
    assert not list(out.glob("*.part"))


def test_neither_the_source_nor_the_run_is_overwritten(tmp_path, monkeypatch):
    web = tmp_path / "web"
    web.mkdir()
    write_all(web, "parquet")
    run = fake_run([str(web / "scenes-00000.parquet")], tmp_path / "run", Rule(), "parquet")
    before = files_below(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("run")
    own = (run.root, "link", run.scores_folder, run.skipped_folder, run.pairs_folder, run.locks_folder)
    for folder in (web, "web", "run/../web", *own):
        with pytest.raises(ValueError, match="holds the source or the files of the run"):
            refilter(tmp_path / "run", Rule(), folder)
    assert files_below(tmp_path) == before
    refilter(tmp_path / "run", Rule(), tmp_path / "web" / "kept")


def test_missing_or_unfinished_run_raises(tmp_path):
    with pytest.raises(ValueError, match=r"run\.json does not exist"):
        refilter(tmp_path / "lost", Rule(), tmp_path / "again")
    run = fake_run("scenes:8", tmp_path / "run", Rule(), "parquet")
    run.scores("scenes-00001").unlink()
    with pytest.raises(ValueError, match="lacks the scores of 1 shards, such as scenes-00001"):
        refilter(tmp_path / "run", Rule(), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_links_to_folders_are_followed_and_links_to_nowhere_refused(tmp_path):
    fake_run("scenes:2", tmp_path / "run", Rule(), "parquet")
    (tmp_path / "link").symlink_to("disk")
    with pytest.raises(ValueError, match=r"link is a link to disk, which does not exist"):
        refilter(tmp_path / "run", Rule(), tmp_path / "link")
    (tmp_path / "disk").mkdir()
    refilter(tmp_path / "run", Rule(), tmp_path / "link")
    assert files_below(tmp_path / "disk") == files_below(tmp_path / "run" / "pairs")


def test_a_second_refilter_into_the_same_folder_is_refused(tmp_path):
    fake_run("scenes:2", tmp_path / "run", Rule(), "parquet")
    refused = pytest.raises(ValueError, match=r"Another `blip-hf capfilt refilter` writes to .*out")
    with Locks(tmp_path / "out").hold(".refilter", wait=False), refused:
        refilter(tmp_path / "run", Rule(), tmp_path / "out")
    refilter(tmp_path / "run", Rule(), tmp_path / "out")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "run" / "pairs")
