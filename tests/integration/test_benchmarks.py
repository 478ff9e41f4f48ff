# SPDX-License-Identifier: BSD-3-Clause
"""Baselines equal our results, instruments measure correctly, and each job runs."""

import json
import re
import subprocess
from contextlib import nullcontext
from unittest.mock import patch

import datasets
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch.testing import assert_close

from benchmarks import __main__ as everything
from benchmarks import (
    caption,
    export,
    finetune_step,
    growth,
    harness,
    imports,
    limit,
    lists,
    matching,
    original,
    pretraining_step,
    processor,
    reranking,
    savings,
    serving,
    sizes,
    streams,
    tried,
    vqa_ranking,
)
from benchmarks.bad_records import ALL_RECORDS
from benchmarks.stream_files import write_stream_files
from blip_hf import (
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
)
from blip_hf.data.skips import SkipCounts
from blip_hf.evaluation.features import TokenizedTexts
from blip_hf.evaluation.two_stage import EncodedImages, matching_scores, rerank
from blip_hf.modeling import contrastive
from blip_hf.modeling.projection import with_first_token
from blip_hf.serving import ServedModels, create_app
from tests.support.optimization import gradients_of
from tests.support.paths import ROOT
from tests.support.tiny_models import (
    DEC,
    PAD,
    tiny_batch,
    tiny_config,
    tiny_pretraining_config,
)


TINY = ["--size", "tiny", "--device", "cpu", "--rounds", "1"]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
CPU = torch.device("cpu")


def padded(batch, length):
    ids, mask = sizes.pad_to(batch["input_ids"], length)
    return {"pixel_values": batch["pixel_values"], "input_ids": ids, "attention_mask": mask}


# ---- The original's procedure


def test_original_step_has_our_losses_and_gradients():
    """Two pairs leave each row a single negative, so that both implementations draw the same."""
    ours, theirs = (BlipForPreTraining(tiny_pretraining_config()).train() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    batch = tiny_batch(lengths=(7, 5))
    output = ours(**batch, alpha=0.4)
    losses = original.pretraining_losses(theirs, **padded(batch, 30), alpha=0.4)
    for name, loss in zip(("loss_itc", "loss_itm", "loss_lm"), losses, strict=True):
        assert_close(loss, output[name], **TOLERANCE)
    expected, actual = gradients_of(ours, output.loss), gradients_of(theirs, sum(losses))
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, msg=name, **TOLERANCE)
    ours.enqueue(output)
    assert_close(theirs.queue.image_features, ours.queue.image_features, **TOLERANCE)


def test_original_momentum_update_equals_ours():
    ours, theirs = (BlipForPreTraining(tiny_pretraining_config()) for _ in range(2))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1)
    theirs.load_state_dict(ours.state_dict())
    ours.update_momentum()
    original.update_momentum_encoder(theirs)
    momentum_parameters = dict(ours.momentum_towers.named_parameters())
    for name, momentum_parameter in theirs.momentum_towers.named_parameters():
        assert_close(momentum_parameter, momentum_parameters[name], msg=name, **TOLERANCE)


def test_original_projects_an_image_for_every_pass():
    model, projected = BlipForPreTraining(tiny_pretraining_config()), []
    for text_model in (model.text_encoder, model.text_decoder.bert):
        key = text_model.encoder.layer[0].crossattention.self.key
        key.register_forward_hook(lambda _, inputs, __: projected.append(len(inputs[0])))
    original.pretraining_losses(model, **padded(tiny_batch(), 30), alpha=0.4)
    assert sum(projected) == 3 + 6 + 3  # positives, negatives and captions
    projected.clear()
    model(**tiny_batch())
    assert sum(projected) == 3


@torch.no_grad()
def test_original_reranking_has_our_scores():
    model = BlipForImageTextRetrieval(tiny_config()).eval()
    batch = tiny_batch(lengths=(7, 7, 7, 7, 7, 7))
    states = model.vision_model(batch["pixel_values"][:4]).last_hidden_state
    similarity = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    rows = TokenizedTexts(batch["input_ids"], torch.full((6,), 7))
    images = EncodedImages(torch.arange(4), torch.empty(0), torch.arange(4), dict(enumerate(states)))
    score = matching_scores(model, images, rows, batch_size=4, show_progress=False)
    of_images, of_texts, _ = rerank(similarity, 2, score)
    texts = padded(batch, 12)
    image_scores, text_scores = original.rerank(
        model, states, texts["input_ids"], texts["attention_mask"], similarity, 2, (4, 6)
    )
    for candidates, scores in ((of_images, image_scores), (of_texts, text_scores)):
        found = scores.topk(2, dim=1)
        assert torch.equal(found.indices, candidates.index)
        assert_close(found.values, candidates.scores, **TOLERANCE)


@torch.no_grad()
def test_original_answer_ranking_equals_ours():
    model, batch = BlipForQuestionAnswering(tiny_config()).eval(), tiny_batch(lengths=(7, 5))
    answers = torch.tensor([[DEC, 5, 3, PAD], [DEC, 6, 7, 3], [DEC, 8, 3, PAD], [DEC, 9, 10, 3]])
    mask = (answers != PAD).long()
    ours = model.rank_answers(**batch, answer_ids=answers, answer_attention_mask=mask, num_candidates=3)
    image_states = model.vision_model(batch["pixel_values"]).last_hidden_state
    questions = with_first_token(batch["input_ids"], model.config.text_config.enc_token_id)
    states = model.text_encoder(
        questions, batch["attention_mask"], encoder_hidden_states=image_states
    ).last_hidden_state
    candidates, scores = original.rank_answers(model, states, batch["attention_mask"], answers, mask, 3)
    assert torch.equal(candidates, ours.candidates)
    assert_close(scores, ours.scores, **TOLERANCE)


@pytest.mark.parametrize(
    "change",
    [
        savings.memory_for_captions,
        savings.all_positions,
        savings.copied_memory,
        original.nothing_recomputed,
        lambda: patch.object(BlipForPreTraining, "_match", savings.match_in_two_passes),
        lambda: patch.object(BlipForPreTraining, "_embed_words", savings.embed_by_role),
        lambda: patch.object(contrastive, "_similarities", savings.to_one_copy),
    ],
)
def test_ablations_do_not_change_losses_or_gradients(change):
    model, batch = BlipForPreTraining(tiny_pretraining_config()).train(), tiny_batch(lengths=(7, 5, 6, 4))
    found = []
    for context in (nullcontext, change):
        with context():
            output = model(**batch, generator=torch.Generator().manual_seed(0))
            found.append((output.loss, gradients_of(model, output.loss)))
    assert_close(found[1], found[0], **TOLERANCE)


# ---- The instruments


def test_flops_and_bytes_of_a_product_are_counted():
    left, right = torch.ones(4, 8), torch.ones(8, 16)
    with limit.DemandCounter(limit.Rates(flops_per_second=1024, bytes_per_second=1e9)) as counter:
        (left @ right).relu()
    demand = counter.demand()
    assert demand.flops == 2 * 4 * 8 * 16
    assert demand.bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert demand.seconds == 1.0


def test_attention_of_the_cpu_is_counted_forward_and_backward():
    query = torch.ones(1, 2, 8, 16, requires_grad=True)
    with limit.DemandCounter(limit.Rates(1.0, 1e12)) as counter:
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        assert counter.flops == 2 * (2 * 2 * 8 * 8 * 16)  # two products in two heads
        attended.sum().backward()
    assert counter.flops > 2 * 2 * (2 * 2 * 8 * 8 * 16)


def test_multi_tensor_updates_count_as_memory_traffic():
    tensors = [torch.ones(10), torch.ones(6)]
    with limit.DemandCounter(limit.Rates(1.0, 1.0)) as counter:
        torch._foreach_add_(tensors, 1.0)
    assert counter.demand().flops == 0
    assert counter.demand().bytes >= 2 * 16  # the whole tensor at least once


def test_peak_memory_is_the_maximum_held_at_once():
    million = 1_000_000

    def one_after_the_other():
        for _ in range(3):
            torch.ones(million, dtype=torch.uint8)

    def at_once():
        return [torch.ones(million, dtype=torch.uint8) for _ in range(3)]

    assert million <= harness.peak_memory(one_after_the_other, CPU) < 1.5 * million
    assert 3 * million <= harness.peak_memory(at_once, CPU) < 3.5 * million


def test_replacing_tensors_does_not_add_memory():
    held = {"tensor": torch.ones(1_000_000, dtype=torch.uint8)}

    def replace():
        held["tensor"] = None
        held["tensor"] = torch.ones(1_000_000, dtype=torch.uint8)

    assert harness.peak_memory(replace, CPU) < 100_000


def test_implementations_are_timed_alternately():
    calls = []
    implementations = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = harness.measure_seconds(implementations, CPU, rounds=2)
    assert calls == ["a", "b", "a", "b"]
    assert [len(durations) for durations in seconds.values()] == [2, 2]


@pytest.mark.parametrize(("speedup", "memory", "met"), [(2.0, 50, True), (1.4, 50, False), (2.0, 70, False)])
def test_a_target_is_met_in_speed_and_memory(speedup, memory, met):
    row = {"speedup": {"original": speedup}, "targets": {"original": 1.5}}
    row |= {"peak_bytes": {harness.OURS: memory, "original": 100}, "memory_targets": {"original": 0.6}}
    assert harness.is_met(row) is met


def test_row_without_targets_has_no_result():
    assert harness.is_met({"targets": {}, "memory_targets": {}}) is None


def test_answers_have_different_first_tokens():
    answers, mask = vqa_ranking.answer_list(12, harness.parse_options(TINY))
    assert len(answers[:, 1].unique()) == 12
    assert sorted(set(mask.sum(dim=1).tolist())) == sorted(vqa_ranking.ANSWER_LENGTHS)


def test_all_pairs_of_the_first_images_are_used_once():
    similarity = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    images, texts = reranking.pairs_of_first_images(similarity, 2, 2)
    expected = {(image, text) for image in range(2) for text in similarity[image].topk(2).indices.tolist()}
    expected |= {
        (image, text) for text in range(6) for image in similarity[:, text].topk(2).indices.tolist() if image < 2
    }
    assert sorted(expected) == list(zip(images.tolist(), texts.tolist(), strict=True))


# ---- The jobs


@pytest.mark.parametrize(
    "job", [caption, matching, reranking, pretraining_step, finetune_step, vqa_ranking, processor, savings, tried]
)
def test_a_job_ends_with_json(job, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # it takes minutes
    name = job.__name__.rpartition(".")[2]
    assert name in everything.JOBS
    result = harness.run(name, job.cases, TINY)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert {"date", "commit", "device", "versions"} <= result.keys()
    for row in result["rows"]:
        assert row["seconds"][harness.OURS]["median"] > 0
        assert set(row["targets"]) <= set(row["speedup"])
    table = list(everything.table_lines([result]))
    assert len(table) == 3 + sum(len(row["speedup"]) for row in result["rows"])


def test_the_request_of_the_load_test_gives_a_caption_of_its_length(tmp_path):
    options = harness.parse_options(TINY)
    serving.save_captioner(options.size, tmp_path)
    content, content_type = serving.request_body(serving.NUM_TOKENS["tiny"])
    models = ServedModels.from_pretrained(tmp_path, device="cpu")
    with TestClient(create_app(models)) as client:
        response = client.post("/caption", content=content, headers={"Content-Type": content_type})
    assert response.status_code == 200, response.text
    assert len(response.json()["captions"]) == 1


@pytest.mark.slow
def test_the_load_test_ends_with_json(capsys):
    result = serving.main(TINY)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert len(result["rows"]) == 3 * len(serving.CLIENTS["tiny"])
    assert len(list(everything.table_lines([result]))) == 3 + len(result["rows"])


@pytest.mark.slow
def test_exports_are_compared(capsys):
    result = export.main(TINY)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert [len(row["peak_bytes"]) for row in result["rows"]] == [0, 0, 0, 0, 5, 7]
    assert set(result["rows"][0]["limit"]["rates"]) == {"fp32", "bf16", "int8"}
    assert len(list(everything.table_lines([result]))) == 3 + 6 + 7 + 7 + 6 + 4 + 6


def test_memory_growth_is_plotted(tmp_path):
    result = growth.main(TINY, folder=tmp_path)
    assert set(result["series"]) == set(growth.POINTS["tiny"])
    assert Image.open(tmp_path / "growth-tiny.png").size[0] > 500
    assert any("by queue" in line for line in everything.table_lines([result]))


def test_streams_count_all_kinds_of_bad_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(streams, "WORKERS", (2,))  # the passes have none
    # A new process for each pass would only import everything again.
    monkeypatch.setattr(streams, "run_pass", lambda name, files: streams.PASSES[name](files))
    result = streams.main(TINY, folder=tmp_path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert sum(result["bad_records"].values()) == len(ALL_RECORDS) == 50
    for name in ("training", "capfilt"):
        found = result["passes"][name]
        assert found["is_exact"]
        assert found["num_usable"] == 950
        assert found["by_reason"] == result["bad_records"]
    for name in ("webdataset", "datasets"):
        assert result["passes"][name]["num_read"] == 861  # of 880 in tars; both accept a text of 1 MiB
    assert len(list(everything.table_lines([result]))) == 3 + 2 * len(result["rows"])
    assert Image.open(tmp_path / "streams-tiny.png").size[0] > 500


def test_a_wrong_count_of_bad_records_is_not_exact(tmp_path):
    files = write_stream_files(tmp_path, 1_000, 4)
    counts = SkipCounts(num_usable=files.num_usable, by_reason=files.by_reason)
    assert streams.counted(counts, files)["is_exact"]
    counts.add("bad_record", "one more")
    assert not streams.counted(counts, files)["is_exact"]


def pretend_jobs(monkeypatch, failing=()):
    """Replaces jobs by functions that return a row or fail."""
    row = {"case": "import", "note": "at most 1 s", "seconds": {harness.OURS: {"median": 0.5}}, "speedup": {}}
    found = {"size": "tiny", "date": "today", "commit": None, "device": "CPU", "threads": 1, "versions": {}}
    called = []

    def run_job(command, **_):
        job = command[2].rpartition(".")[2]
        assert command[3:] == TINY
        called.append(job)
        result = {"job": job, **found, "rows": [row | {"limit": None, "number": len(called)}]}
        output = "" if job in failing else f"for people\n{json.dumps(result)}\n"
        return subprocess.CompletedProcess(command, int(job in failing), stdout=output)

    monkeypatch.setattr(everything.subprocess, "run", run_job)
    return called


def test_all_jobs_are_written_to_one_report(tmp_path, capsys, monkeypatch):
    called = pretend_jobs(monkeypatch, failing=["caption"])
    assert everything.main(TINY, folder=tmp_path) == 1
    assert tuple(called) == everything.JOBS
    (report,) = tmp_path.glob("*.json")
    saved = json.loads(report.read_text())
    assert saved["failed"] == ["caption"]
    assert [result["job"] for result in saved["jobs"]] == list(everything.JOBS[1:])
    assert "| import | - | 0.5 |" in report.with_suffix(".md").read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == saved


def test_rerun_jobs_replace_only_their_own_results(tmp_path, monkeypatch):
    pretend_jobs(monkeypatch)
    everything.main(["imports", "caption", *TINY], folder=tmp_path)
    everything.main(["imports", *TINY], folder=tmp_path)
    (report,) = tmp_path.glob("*.json")
    found = {result["job"]: result["rows"][0]["number"] for result in json.loads(report.read_text())["jobs"]}
    assert found == {"caption": 2, "imports": 3}
    with pytest.raises(SystemExit, match="Unknown jobs: captions"):
        everything.main(["captions", *TINY], folder=tmp_path)


def test_help_names_the_jobs_and_runs_none(tmp_path, capsys, monkeypatch):
    called = pretend_jobs(monkeypatch)
    assert everything.main(["--help"], folder=tmp_path) == 0
    assert ", ".join(everything.JOBS) in capsys.readouterr().out
    assert not called
    assert not list(tmp_path.iterdir())


def test_help_runs_in_a_fresh_process():
    assert 0 < imports.help_seconds() < 60


@pytest.mark.parametrize("file_format", lists.FORMATS)
def test_lists_to_measure_can_be_loaded(file_format, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / f"list{lists.SUFFIXES.get(file_format, '.json')}"
    lists.write_list(path, file_format, 5)
    assert lists.measure_load(file_format, path)["num_records"] == 5


def test_the_performance_page_names_existing_jobs():
    page = (ROOT / "docs" / "performance.md").read_text()
    called = set(re.findall(r"python -m benchmarks\.(\w+)", page))
    assert called
    assert called <= {*everything.JOBS, "plan", "lists"}  # these two have no rivals
    in_table = set(re.findall(r"`(\w+)\.py`", page))
    assert in_table == set(everything.JOBS)
