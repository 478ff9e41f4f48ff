# SPDX-License-Identifier: BSD-3-Clause
"""Two processes train and evaluate as one process, also with unreadable records or losses of weight 0."""

from dataclasses import asdict

import pytest
import torch
from torch.testing import assert_close

from blip_hf import BlipForQuestionAnswering, BlipForVisualReasoning
from blip_hf.data.pairs import PairDataset
from blip_hf.evaluation.nlvr2 import evaluate_nlvr2
from blip_hf.evaluation.vqa import evaluate_vqa
from tests.support.ranks import run_on_ranks
from tests.support.tiny_models import tiny_model_for, tiny_nlvr2_config
from tests.support.trainers import make_captioning_trainer, make_contrastive_trainer, make_records
from tests.support.vocabularies import make_processor


# Trainer and a metric of the task.
TASKS = {
    "contrastive": (make_contrastive_trainer, "image_to_text_r@1"),
    "captioning": (make_captioning_trainer, "cider"),
}
NUM_STEPS = 2
WEIGHTS = {
    "all": {},
    "no itm": {"itm_weight": 0.0},
    "no lm": {"lm_weight": 0.0},
    "itc": {"itm_weight": 0.0, "lm_weight": 0.0},
}


def evaluate(folder, task):
    # Five records in batches of one: the second process has no record in the last round. Two of five are unreadable.
    make, metric = TASKS[task]
    metrics = {}
    for name, broken in (("whole", ()), ("lost", (1, 2))):
        dataset = PairDataset(make_records(5, broken))
        metrics[name] = make(
            folder, evaluate=dataset, per_device_eval_batch_size=1, metric_for_best_model=metric
        ).evaluate()
    return metrics


def answer():
    """Results for three questions and sentences, one of them unreadable."""
    processor = make_processor()
    records = make_records(4, broken=(2,))
    questions = [
        {**record, "question": "a", "question_id": f"q{i}", "answers": ["a"], "weights": [1.0]}
        for i, record in enumerate(records)
    ]
    pairs = [
        {"images": [record["image"]] * 2, "sentence": f"a {i}", "label": True} for i, record in enumerate(records)
    ]
    vqa = tiny_model_for(BlipForQuestionAnswering, processor)
    config = tiny_nlvr2_config()
    config.text_config.update(processor.config_token_ids())
    nlvr2 = BlipForVisualReasoning(config)
    return {
        "vqa": asdict(evaluate_vqa(vqa, processor, questions, batch_size=1)),
        "nlvr2": asdict(evaluate_nlvr2(nlvr2, processor, pairs, batch_size=1)),
    }


def train(folder, weights):
    # One record is unreadable, so one process has a batch of one pair, which has no negatives.
    fields = {"per_device_train_batch_size": 2, "max_steps": NUM_STEPS}
    trainer = make_contrastive_trainer(folder, PairDataset(make_records(8, broken=(3,))), weights=weights, **fields)
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    end = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    still = [name for name in end if torch.equal(start[name], end[name]) and not name.startswith("momentum_towers.")]
    return {"still": still, "end": end, "num_steps": trainer.state.global_step}


def batches_until(folder, num_steps, resume_from_checkpoint=None):
    """Image ids of the batches of one process: three steps per epoch, and a checkpoint in the second epoch."""
    fields = {"per_device_train_batch_size": 2, "train_sampling_strategy": "group_by_length"}
    fields |= {"max_steps": num_steps, "save_strategy": "steps", "save_steps": 4}
    trainer = make_contrastive_trainer(f"{folder}/resumed", PairDataset(make_records(12)), **fields)
    collator, batches = trainer.data_collator, []

    def collate(records):
        batches.append([record["image_id"] for record in records])
        return collator(records)

    trainer.data_collator = collate
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return batches


# What two processes do in each fixture.


def evaluate_all(rank, folder):
    return {task: evaluate(folder, task) for task in TASKS} | answer()


def train_all(rank, folder):
    return {name: train(folder, weights) for name, weights in WEIGHTS.items()}


def collect_batches(rank, folder):
    return {
        "batches": batches_until(folder, 6),
        "resumed": batches_until(folder, 6, f"{folder}/resumed/checkpoint-4"),
    }


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Metrics of two processes."""
    return run_on_ranks(evaluate_all, tmp_path_factory.mktemp("evaluations"))


@pytest.mark.parametrize("data", ["whole", "lost"])
@pytest.mark.parametrize("task", TASKS)
def test_an_evaluation_counts_each_usable_record_once(evaluations, tmp_path, task, data):
    expected = evaluate(tmp_path, task)[data]
    names = [name for name in expected if any(part in name for part in ("loss", "r@", "bleu", "cider"))]
    assert {"eval_loss", f"eval_{TASKS[task][1]}"} <= set(names)
    for rank in evaluations:
        assert_close([rank[task][data][name] for name in names], [expected[name] for name in names])


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_processes_share_the_records_of_an_evaluation(evaluations, task):
    expected = answer()[task]
    assert expected["num_skipped"] == 1
    for rank in evaluations:
        assert rank[task] == expected


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Trained models of two processes."""
    return run_on_ranks(train_all, tmp_path_factory.mktemp("trainings"))


@pytest.mark.parametrize("losses", WEIGHTS)
def test_losses_of_weight_0_do_not_train_their_parameters(trainings, losses):
    first, second = (rank[losses] for rank in trainings)
    assert first["num_steps"] == NUM_STEPS
    assert_close(first["end"], second["end"], rtol=0, atol=0)

    def is_still(name):
        if ".crossattention." in name:
            return losses == "itc"
        if name.startswith("itm_head."):
            return losses in ("no itm", "itc")
        own = (".attention.", ".cls.")
        return losses in ("no lm", "itc") and name.startswith("text_decoder.") and any(part in name for part in own)

    # Weight decay does not change them either.
    assert first["still"] == [name for name in first["end"] if is_still(name)]


def test_length_grouped_batches_continue_on_resume(tmp_path):
    ranks = run_on_ranks(collect_batches, tmp_path)
    for rank in ranks:
        epochs = rank["batches"][:3], rank["batches"][3:]
        assert epochs[0] != epochs[1]
        assert rank["resumed"] == epochs[1][1:]
    first_epoch = [image_id for rank in ranks for batch in rank["batches"][:3] for image_id in batch]
    assert sorted(first_epoch) == list(range(12))
