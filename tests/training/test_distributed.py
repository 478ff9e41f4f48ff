# SPDX-License-Identifier: BSD-3-Clause
"""Two processes train and evaluate as one process, also with unreadable records or losses of weight 0."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf.data.pairs import PairDataset
from tests.support.ranks import run_on_ranks
from tests.support.trainers import make_captioning_trainer, make_contrastive_trainer, make_records


WEIGHTS = {
    "all": {},
    "no itm": {"itm_weight": 0.0},
    "no lm": {"lm_weight": 0.0},
    "itc": {"itm_weight": 0.0, "lm_weight": 0.0},
}


def evaluate(folder, make):
    # Five records in batches of one: the second process has no record in the last round. Two of five are unreadable.
    metrics = {}
    for name, broken in (("whole", ()), ("lost", (1, 2))):
        trainer = make(folder, evaluate=PairDataset(make_records(5, broken)), per_device_eval_batch_size=1)
        metrics[name] = trainer.evaluate()
    return metrics


def train(folder, weights):
    # One record is unreadable, so one process has a batch of one pair, which has no negatives.
    fields = {"per_device_train_batch_size": 2, "max_steps": 4}
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


def run_rank(rank, folder):
    results = {
        "contrastive": evaluate(folder, make_contrastive_trainer),
        "captioning": evaluate(folder, make_captioning_trainer),
    }
    results |= {name: train(folder, weights) for name, weights in WEIGHTS.items()}
    results["batches"] = batches_until(folder, 6)
    results["resumed"] = batches_until(folder, 6, f"{folder}/resumed/checkpoint-4")
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of two processes."""
    return run_on_ranks(run_rank, tmp_path_factory.mktemp("trainer_distributed"))


@pytest.mark.parametrize("data", ["whole", "lost"])
def test_an_evaluation_counts_each_usable_record_once(ranks, tmp_path, data):
    for task, make in (("contrastive", make_contrastive_trainer), ("captioning", make_captioning_trainer)):
        expected = evaluate(tmp_path, make)[data]
        names = [name for name in expected if "loss" in name or "r@" in name]
        assert "eval_loss" in names
        for rank in ranks:
            assert_close([rank[task][data][name] for name in names], [expected[name] for name in names])


@pytest.mark.parametrize("losses", WEIGHTS)
def test_losses_of_weight_0_do_not_train_their_parameters(ranks, losses):
    first, second = (rank[losses] for rank in ranks)
    assert first["num_steps"] == 4
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


def test_length_grouped_batches_continue_on_resume(ranks):
    for rank in ranks:
        epochs = rank["batches"][:3], rank["batches"][3:]
        assert epochs[0] != epochs[1]
        assert rank["resumed"] == epochs[1][1:]
    first_epoch = [image_id for rank in ranks for batch in rank["batches"][:3] for image_id in batch]
    assert sorted(first_epoch) == list(range(12))
