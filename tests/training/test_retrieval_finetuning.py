# SPDX-License-Identifier: BSD-3-Clause
"""The contrastive trainer fine-tunes for retrieval."""

import torch
from torch.testing import assert_close

from blip_hf import BlipForRetrievalTraining
from blip_hf.training import BlipContrastiveTrainer, BlipFinetuningArguments
from tests.support.tiny_models import tiny_retrieval_config
from tests.support.trainers import TensorPairs


def paired_captions(num_pairs):
    """Random pairs with two captions per image."""
    return TensorPairs(num_pairs, image_ids=[i // 2 for i in range(num_pairs)])


def make_trainer(folder, seed=0, **fields):
    torch.manual_seed(seed)
    config = tiny_retrieval_config(momentum=0.5)
    config.text_config.hidden_dropout_prob = 0.1
    defaults = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "logging_steps": 1}
    defaults |= {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3}
    return BlipContrastiveTrainer(
        BlipForRetrievalTraining(config),
        BlipFinetuningArguments(str(folder), **{**defaults, **fields}),
        train_dataset=paired_captions(12),
        eval_dataset=paired_captions(6),
    )


def logs_of(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def test_retrieval_training_updates_every_parameter_and_logs_both_losses(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=2, weight_decay=0.0)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])] == []
    logs = logs_of(trainer)
    assert_close(logs[1]["loss_itc"] + logs[1]["loss_itm"], logs[1]["loss"], rtol=1e-5, atol=1e-5)
    assert "loss_lm" not in logs[1]
    # Three steps per epoch: alpha rises over the first, and the learning rate is 1e-3, then (1 + cos(pi / 2)) / 2 of it.
    assert_close([log["alpha"] for log in logs], [0.4 * step / 3 for step in (1, 2, 3, 3, 3, 3)])
    assert_close([log["learning_rate"] for log in logs], [1e-3] * 3 + [5e-4] * 3)
    assert trainer.model.queue.num_enqueued == 24


def test_retrieval_evaluation_reports_both_losses_and_recalls(tmp_path):
    metrics = make_trainer(tmp_path).evaluate()
    assert_close(metrics["eval_loss_itc"] + metrics["eval_loss_itm"], metrics["eval_loss"], rtol=1e-5, atol=1e-5)
    # Six captions of three images: the top 5 always contain a match.
    assert metrics["eval_text_to_image_r@5"] == 1.0
    assert {"eval_itm_accuracy", "eval_image_to_text_r@1"} <= metrics.keys()
    assert "eval_loss_lm" not in metrics


def test_resumed_run_repeats_the_losses_exactly(tmp_path):
    fields = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(tmp_path, **fields)
    whole.train()
    resumed = make_trainer(tmp_path, seed=1, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    keys = ("step", "loss", "loss_itc", "loss_itm", "itm_accuracy", "learning_rate", "alpha", "queue_fill")
    curves = [[{key: log[key] for key in keys} for log in logs_of(trainer)[4:]] for trainer in (whole, resumed)]
    assert len(curves[0]) == 2
    assert curves[0] == curves[1]
    assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
