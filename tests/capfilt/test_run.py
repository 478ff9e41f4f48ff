# SPDX-License-Identifier: BSD-3-Clause
"""CapFilt runs: killed and resumed, by one process or two, with the same bytes; and their commands."""

import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import torch

from blip_hf.capfilt.engine import CapFilt, CapFiltSettings
from blip_hf.capfilt.filters import Rule
from blip_hf.capfilt.refilter import refilter
from blip_hf.capfilt.report import write_report
from blip_hf.capfilt.run import Run
from blip_hf.capfilt.runner import run_capfilt
from blip_hf.cli import main
from tests.support.files import run_contents, write_json, write_tar
from tests.support.forkserver import forkserver
from tests.support.images import encoded_image, write_image
from tests.support.tiny_models import tiny_capfilt


pytestmark = pytest.mark.usefixtures("one_thread")


SOURCE, NUM_IMAGES, SHARD_SIZE, NUM_SHARDS = "scenes:24:0.4", 24, 4, 6
SETTINGS = CapFiltSettings(prompt="a b", max_length=12, batch_size=2, num_workers=1)
IMAGE = encoded_image()
# The filter is not trained: its scores lie around one half.
RULE = Rule(threshold=0.5)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    captioner, captioner_processor, matcher, matcher_processor = tiny_capfilt()
    for part in (captioner, captioner_processor):
        part.save_pretrained(folder / "captioner")
    for part in (matcher, matcher_processor):
        part.save_pretrained(folder / "filter")
    return folder


@pytest.fixture
def engine(checkpoints):
    return load(checkpoints)


def load(checkpoints, settings=SETTINGS):
    return CapFilt.from_pretrained(checkpoints / "captioner", checkpoints / "filter", device="cpu", settings=settings)


def run(engine, out_dir, source=SOURCE, **options):
    options = {"shard_size": SHARD_SIZE, "rule": RULE, "show_progress": False, **options}
    return run_capfilt(engine, source, out_dir, **options)


def run_process(checkpoints, out_dir, process_index, num_processes):
    torch.set_num_threads(1)
    run(load(checkpoints), out_dir, process_index=process_index, num_processes=num_processes)


@pytest.fixture(scope="module")
def undisturbed(checkpoints, tmp_path_factory):
    """Folder, totals and seconds of a run by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start = time.perf_counter()
    totals = run(load(checkpoints), folder)
    return folder, totals, time.perf_counter() - start


@pytest.fixture(scope="module")
def processes():
    """Starts processes from a server with all imports done."""
    context = forkserver()

    def start(checkpoints, out_dir, num_processes=2):
        started = [
            context.Process(target=run_process, args=(checkpoints, out_dir, index, num_processes))
            for index in range(num_processes)
        ]
        for process in started:
            process.start()
        return started

    return start


def written_at(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def whole_shards(folder):
    return {path.name: path.stat().st_ino for path in Path(folder, "scores").glob("*.parquet")}


def test_a_run_writes_scores_skipped_records_and_pairs_of_each_shard_and_the_totals(undisturbed):
    folder, totals, _ = undisturbed
    shards = [f"scenes-{number:05d}" for number in range(NUM_SHARDS)]
    expected = [
        f"{part}/{shard}.{suffix}"
        for part, suffix in (("pairs", "parquet"), ("scores", "parquet"), ("skipped", "json"))
        for shard in shards
    ]
    assert sorted(run_contents(folder)) == [*expected, "source.json", "summary.json"]
    scores, pairs = (pq.read_table(folder / part).to_pylist() for part in ("scores", "pairs"))
    kept = [row for row in scores if row["itm"] >= RULE.threshold]
    assert 0 < len(kept) < len(scores)
    assert [(row["sample_id"], row["caption"]) for row in pairs] == [(row["sample_id"], row["text"]) for row in kept]
    assert (totals["num_images"], totals["num_texts"], totals["num_kept"]) == (NUM_IMAGES, len(scores), len(kept))
    assert totals["num_shards"] == NUM_SHARDS


@pytest.mark.parametrize("num_kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_two_processes_write_the_bytes_of_one(
    checkpoints, processes, undisturbed, tmp_path, num_kills
):
    expected, _, seconds = undisturbed
    rng, whole, num_cut_short = random.Random(num_kills), {}, 0
    for _ in range(num_kills):
        started = processes(checkpoints, tmp_path)
        time.sleep(rng.uniform(0.1, 1) * seconds / num_kills)
        for process in rng.sample(started, k=2):
            process.kill()
            process.join()
        num_cut_short += not (tmp_path / "summary.json").is_file()
        # Complete shards are kept and not repeated.
        now = whole_shards(tmp_path)
        assert whole.items() <= now.items()
        whole = now
    assert num_cut_short > num_kills / 2
    for process in processes(checkpoints, tmp_path):
        process.join()
        assert process.exitcode == 0
    assert whole.items() <= whole_shards(tmp_path).items()
    assert run_contents(tmp_path) == run_contents(expected)


def test_a_process_takes_over_the_shards_of_a_killed_one(checkpoints, processes, undisturbed, tmp_path):
    killed, survivor = processes(checkpoints, tmp_path)
    while not whole_shards(tmp_path):
        time.sleep(0.01)
    killed.kill()
    killed.join()
    survivor.join()
    assert (killed.exitcode, survivor.exitcode) == (-signal.SIGKILL, 0)
    assert run_contents(tmp_path) == run_contents(undisturbed[0])


def test_finished_run_only_reports_its_totals(engine, undisturbed, monkeypatch):
    folder, totals, _ = undisturbed
    before = written_at(folder)
    monkeypatch.setattr(engine, "score_batches", None)
    assert run(engine, folder) == totals
    assert written_at(folder) == before


def test_resuming_refuses_another_filter_or_model_but_accepts_another_batch_size(checkpoints, undisturbed):
    folder, totals, _ = undisturbed
    with pytest.raises(ValueError, match=r"other settings: rule.threshold was 0.5, is 0.6. Pass the same"):
        run(load(checkpoints), folder, rule=Rule(threshold=0.6))
    with pytest.raises(ValueError, match=r"capfilt.seed was 0, is 1; rule.by was 'itm', is 'itc'"):
        run(load(checkpoints, replace(SETTINGS, seed=1)), folder, rule=Rule(by="itc"))
    other = load(checkpoints)
    other.matcher.itm_head.bias.data[0] += 1
    with pytest.raises(ValueError, match=r"models.filter.fingerprint was"):
        run(other, folder)
    assert run(load(checkpoints, replace(SETTINGS, batch_size=3)), folder) == totals


def test_keep_share_applies_to_all_shards_together(engine, tmp_path):
    totals = run(engine, tmp_path, rule=Rule(keep_share=0.25))
    assert [source["num_kept"] for source in totals["by_source"].values()] == [NUM_IMAGES // 4] * 2
    assert pq.read_table(tmp_path / "pairs").num_rows == NUM_IMAGES // 2


def test_scores_do_not_depend_on_the_working_directory(engine, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png")
    write_json(tmp_path / "web.json", [{"image": "a.png", "caption": "a dog"}])
    (tmp_path / "below").mkdir()
    for folder, source in ((tmp_path, "web.json"), (tmp_path / "below", "../web.json")):
        monkeypatch.chdir(folder)
        run(engine, "out", source)
    assert run_contents(tmp_path / "out") == run_contents(tmp_path / "below" / "out")
    assert pq.read_table(tmp_path / "out" / "scores")["image"][0].as_py() == str(tmp_path / "a.png")


def test_broken_records_are_skipped_and_counted(engine, tmp_path):
    records = [{"image": f"{number}.png", "caption": "a dog"} for number in range(7)]
    for record in records[1:]:
        write_image(tmp_path / record["image"])
    cut = tmp_path / "2.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    records[3]["caption"] = "..."
    records[4]["caption"] = "a" * 10_000
    records.append({"image": 5})
    write_json(tmp_path / "web.json", records)
    totals = run(engine, tmp_path / "out", tmp_path / "web.json", shard_size=3)
    assert totals["skipped"] == {"unreadable_image": 2, "empty_text": 1, "huge_text": 1, "bad_record": 1}
    assert totals["num_images"] == 3
    assert len(pq.read_table(tmp_path / "out" / "scores")) == totals["num_texts"] == 6


def write_list(path, records):
    for record in records:
        if not (path.parent / record["image"]).is_file():
            write_image(path.parent / record["image"])
    return write_json(path, records)


def test_a_run_is_not_resumed_or_filtered_again_on_a_changed_source(engine, tmp_path, monkeypatch):
    records = [{"image": f"{number}.png", "caption": f"dog {number}"} for number in range(6)]
    source, out = write_list(tmp_path / "web.json", records), tmp_path / "out"
    monkeypatch.setattr(Run, "finish", lambda _: None)  # as if it was killed then
    run(engine, out, source, shard_size=2)
    (out / "scores" / "web-00002.parquet").unlink()
    monkeypatch.undo()
    before = whole_shards(out)
    write_list(source, records[::-1])
    changed = rf"out holds scores of other data: since the run started, {source} has changed. Restore the data, or"
    with pytest.raises(ValueError, match=changed):
        run(engine, out, source, shard_size=2)
    assert whole_shards(out) == before
    write_list(source, records)
    run(engine, out, source, shard_size=2)
    write_list(source, records[::-1])
    with pytest.raises(ValueError, match=changed):
        refilter(out, RULE, tmp_path / "again")
    write_report(out)  # shows no images, which would be those of other texts
    assert json.loads((out / "report.json").read_text())["examples"] == []
    write_list(source, records)
    write_report(out)
    assert json.loads((out / "report.json").read_text())["examples"]


def test_tars_at_an_address_give_the_same_files_and_their_changes_are_noticed(engine, tmp_path):
    members = [(f"{n}.{suffix}", content) for n in range(3) for suffix, content in (("png", IMAGE), ("txt", b"a dog"))]
    memory = fsspec.filesystem("memory")
    for number in range(2):
        path = write_tar(tmp_path / "tars" / f"web-{number}.tar", members)
        memory.pipe(f"/capfilt/{path.name}", path.read_bytes())
    run(engine, tmp_path / "local", tmp_path / "tars")
    address = "memory://capfilt/web-{0..1}.tar"
    run(engine, tmp_path / "remote", address)
    local, remote = (run_contents(tmp_path / name) for name in ("local", "remote"))

    assert set(json.loads(remote.pop("source.json"))) == {f"memory:///capfilt/web-{n}.tar" for n in range(2)}
    del local["source.json"]
    assert remote == local
    run(engine, tmp_path / "remote", address)  # is complete
    memory.pipe("/capfilt/web-1.tar", memory.cat("/capfilt/web-1.tar") + bytes(10_240))
    with pytest.raises(ValueError, match=r"since the run started, memory:///capfilt/web-1.tar has changed"):
        refilter(tmp_path / "remote", RULE, tmp_path / "again")


def test_a_checkpoint_is_the_same_by_any_path(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoints)
    settings = {"device": "cpu", "settings": SETTINGS}
    run(CapFilt.from_pretrained("captioner", "filter", **settings), tmp_path, "scenes:2")
    (tmp_path / "summary.json").unlink()
    (tmp_path / "scores" / "scenes-00000.parquet").unlink()
    run(load(checkpoints), tmp_path, "scenes:2")
    models = json.loads((tmp_path / "run.json").read_text())["models"]
    names = set(pq.read_table(tmp_path / "pairs")["filter"].to_pylist())
    assert names == {f"filter@{models['filter']['fingerprint']}"}
    other = load(checkpoints)
    other.matcher_processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"models.filter.processor was"):
        run(other, tmp_path, "scenes:2")


def test_the_output_is_not_written_into_the_source(engine, tmp_path):
    write_image(tmp_path / "web" / "a.png")
    (tmp_path / "web" / "a.txt").write_text("a dog")
    with pytest.raises(ValueError, match=r"web holds the source, which the output would overwrite"):
        run(engine, tmp_path / "web", tmp_path / "web")
    assert len(list((tmp_path / "web").iterdir())) == 2


def flags(checkpoints, out_dir):
    models = ("--captioner", str(checkpoints / "captioner"), "--filter", str(checkpoints / "filter"))
    settings = ("--prompt", "a b", "--max_length", "12", "--batch_size", "2", "--device", "cpu", "--no_progress")
    return ["--source", SOURCE, "--shard_size", str(SHARD_SIZE), *models, *settings, "--output_dir", str(out_dir)]


def test_the_commands_run_refilter_and_report(checkpoints, undisturbed, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["capfilt", "run", *flags(checkpoints, out)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == undisturbed[1]
    written = run_contents(out)
    assert {name: written.pop(name) is not None for name in ("report.html", "report.json")}
    assert written == run_contents(undisturbed[0])

    # A report written during the run is replaced at its end.
    last = (out / "report.json").read_bytes()
    content = json.loads(last)
    content["totals"]["num_shards"] = 1
    write_json(out / "report.json", content)
    assert main(["capfilt", "run", *flags(checkpoints, out)]) == 0
    assert (out / "report.json").read_bytes() == last
    capsys.readouterr()

    pairs = tmp_path / "pairs"
    assert main(["capfilt", "refilter", str(out), "--output_dir", str(pairs)]) == 0
    kept = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(kept.values()) == undisturbed[1]["num_kept"]
    assert run_contents(pairs) == run_contents(out / "pairs")

    (out / "report.html").unlink()
    assert main(["capfilt", "report", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "report.html")
    assert (out / "report.html").is_file()


def test_command_reads_its_rank_from_the_launcher(checkpoints, undisturbed, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["capfilt", "run", *flags(checkpoints, tmp_path)]) == 0
    # No other process runs: it did all shards, and left the totals to the first process.
    assert capsys.readouterr().out == ""
    assert run_contents(tmp_path) == run_contents(undisturbed[0])


def test_progress_bar_shows_speed_kept_shares_and_time_left(engine, tmp_path, capsys):
    run(engine, tmp_path, "scenes:8", show_progress=True)
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "8/8 [00:" in bar
    assert " images/s, kept web " in bar
    assert "synthetic" in bar
