# SPDX-License-Identifier: BSD-3-Clause
"""The contrastive trainer: updates, logs, checkpoints and evaluations."""

import logging

import pytest
import torch
import transformers
from safetensors import safe_open
from torch.testing import assert_close

from blip_hf.training import BlipContrastiveTrainer
from blip_hf.training.metrics import RunningMeans, recalls_in_set
from tests.support.trainers import TensorPairs, make_model, make_trainer


def parameters_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_training_updates_every_parameter(tmp_path):
    model = make_model(queue_size=4)
    before = parameters_of(model)
    # Weight decay alone would also change them.
    make_trainer(tmp_path, model, max_steps=4, weight_decay=0.0).train()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


def test_weight_decay_applies_to_every_parameter(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.create_optimizer()
    decayed = sum(len(group["params"]) for group in trainer.optimizer.param_groups if group["weight_decay"] == 0.05)
    assert decayed == sum(parameter.requires_grad for parameter in trainer.model.parameters())

    trainer = make_trainer(tmp_path, decay_all_parameters=False)
    trainer.create_optimizer()
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.05, 0.0}
    assert all(len(group["params"]) > 0 for group in trainer.optimizer.param_groups)


def test_momentum_encoder_is_updated_once_per_optimizer_step(tmp_path):
    model = make_model(momentum=0.75)
    before = parameters_of(model)
    trainer = make_trainer(tmp_path, model, max_steps=1, gradient_accumulation_steps=2)
    trainer.train()
    current = dict(model.named_parameters(remove_duplicate=False))
    for name, momentum_parameter in model.momentum_towers.named_parameters():
        start = before[f"momentum_towers.{name}"]
        assert_close(momentum_parameter, 0.75 * start + 0.25 * current[name], msg=name)


class Follow(transformers.TrainerCallback):
    """Notes after each step the weights, those of the momentum encoder, and whether the queue had keys."""

    def __init__(self):
        self.weights, self.momentum_weights, self.queue_counted, self.ramps = [], [], [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append(model.vision_proj.weight.detach().clone())
        self.momentum_weights.append(model.momentum_towers.vision_proj.weight.clone())
        self.queue_counted.append(model.queue.counts)
        self.ramps.append(model.negative_ramp)


def test_after_a_warmup_the_momentum_encoder_is_a_mean_of_weights_and_the_queue_counts_when_filled(tmp_path):
    follow = Follow()
    model = make_model(momentum=0.7, queue_size=8, contrastive_warmup_steps=2)
    trainer = make_trainer(tmp_path, model, max_steps=6, per_device_train_batch_size=4)
    trainer.add_callback(follow)
    trainer.train()
    for step in (0, 1):
        assert_close(follow.momentum_weights[step], follow.weights[step])
    for step in (2, 3):  # momentum 1/2 and 2/3
        assert_close(follow.momentum_weights[step], torch.stack(follow.weights[1 : step + 1]).mean(dim=0))
    assert_close(follow.momentum_weights[4], 0.7 * follow.momentum_weights[3] + 0.3 * follow.weights[4])
    assert follow.queue_counted == [False, False, False, False, True, True]
    assert follow.ramps == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_without_a_warmup_momentum_and_queue_are_those_of_the_paper(tmp_path):
    follow = Follow()
    trainer = make_trainer(tmp_path, make_model(momentum=0.7, queue_size=8), max_steps=2)
    start = trainer.model.momentum_towers.vision_proj.weight.clone()
    trainer.add_callback(follow)
    trainer.train()
    assert_close(follow.momentum_weights[0], 0.7 * start + 0.3 * follow.weights[0])
    assert follow.queue_counted == [True, True]
    assert follow.ramps == [1.0, 1.0]


def test_each_batch_enters_the_queue_once(tmp_path):
    model = make_model(queue_size=12)
    make_trainer(tmp_path, model, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2).train()
    assert model.queue.num_enqueued == 2 * 2 * 2
    # The pairs of an epoch, each once.
    assert model.queue.image_ids[:8].sort().values.tolist() == list(range(8))


def test_accumulating_equal_batches_gives_the_step_of_one(tmp_path):
    # Two pairs leave one choice of negatives. Plain SGD shows the scale of the gradient, which Adam hides.
    fields = {"max_steps": 1, "optim": "sgd", "per_device_train_batch_size": 2, "weight_decay": 0.0}
    fields |= {"learning_rate": 0.1, "train_sampling_strategy": "sequential"}
    models = []
    for num_batches in (1, 4):
        pairs = TensorPairs(2)
        pairs.columns = {
            name: column.repeat(num_batches, *[1] * (column.ndim - 1)) for name, column in pairs.columns.items()
        }
        model = make_model(queue_size=0)
        start = parameters_of(model)
        trainer = make_trainer(tmp_path, model, pairs, gradient_accumulation_steps=num_batches, **fields)
        trainer.train()
        models.append((parameters_of(model), trainer.state.log_history[0]["loss"]))
    assert_close(models[0], models[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(models[0][0]["itm_head.weight"], start["itm_head.weight"], atol=1e-4)


def test_alpha_rises_over_two_epochs(tmp_path):
    model, alphas = make_model(), []
    model.register_forward_pre_hook(lambda _, __, inputs: alphas.append(inputs["alpha"]), with_kwargs=True)
    # Two steps per epoch, so four steps of ramp; the two batches of a step share their alpha.
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    make_trainer(tmp_path, model, max_steps=6, **fields).train()
    assert_close(alphas, [alpha for alpha in (0.0, 0.1, 0.2, 0.3, 0.4, 0.4) for _ in range(2)])


def test_logs_hold_each_objective(tmp_path):
    trainer = make_trainer(tmp_path, make_model(queue_size=16), max_steps=2)
    trainer.train()
    first, second = (log for log in trainer.state.log_history if "loss" in log)
    parts = [second[name] for name in ("loss_itc", "loss_itm", "loss_lm")]
    assert_close(sum(parts), second["loss"], rtol=1e-5, atol=1e-5)
    assert 0 <= second["itm_accuracy"] <= 1
    assert abs(second["temperature"] - 0.07) < 0.01
    assert [first["queue_fill"], second["queue_fill"]] == [0.25, 0.5]


def test_logged_losses_are_means_over_all_steps_since_the_last_log(tmp_path):
    curves = []
    for logging_steps in (1, 2):
        trainer = make_trainer(tmp_path, logging_steps=logging_steps)
        trainer.train()
        curves.append([log["loss_lm"] for log in trainer.state.log_history if "loss" in log])
    assert_close([sum(curves[0]) / 2], curves[1], rtol=1e-6, atol=1e-6)


def test_running_means_are_weighted_and_reset():
    means = RunningMeans()
    means.add("x", torch.tensor(1.0), 1)
    means.add("x", torch.tensor(4.0), torch.tensor(2))
    assert means.pop() == {"x": 3.0}  # (1 * 1 + 2 * 4) / 3
    assert means.pop() == {}


def test_recall_counts_the_captions_of_one_image_together():
    images = torch.eye(3)[[0, 0, 1, 2]]
    texts = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [0.0, 0.0, 1.0]])
    recalls = recalls_in_set(images, texts, torch.tensor([5, 5, 3, -100]))
    # All three images rank a text of theirs first: either of two, 0.6 over 0, and 1 over 0.8. Three of the four texts
    # do; the third ranks the unknown image, at 0.8, before its own, at 0.6.
    assert_close([recalls["image_to_text_r@1"], recalls["text_to_image_r@1"]], [1.0, 3 / 4])


def test_evaluation_reports_the_losses_and_recalls(tmp_path):
    # Six pairs: a full batch and one of two, which counts half.
    metrics = make_trainer(tmp_path, eval_dataset=TensorPairs(6)).evaluate()
    parts = [metrics[f"eval_loss_{name}"] for name in ("itc", "itm", "lm")]
    assert_close(sum(parts), metrics["eval_loss"], rtol=1e-5, atol=1e-5)
    assert {"eval_itm_accuracy", "eval_image_to_text_r@1", "eval_text_to_image_r@1"} <= set(metrics)


def test_predict_reports_the_metrics_of_evaluate(tmp_path):
    output = make_trainer(tmp_path).predict(TensorPairs(6))
    assert {"test_loss_lm", "test_text_to_image_r@1"} <= set(output.metrics)


def test_evaluation_uses_all_pairs(tmp_path):
    metrics = make_trainer(tmp_path, eval_dataset=TensorPairs(3)).evaluate()
    assert metrics["eval_text_to_image_r@5"] == 1.0


@pytest.mark.parametrize("queue_size", [0, 12])
def test_evaluation_does_not_use_the_queue(tmp_path, queue_size):
    trainer = make_trainer(tmp_path, make_model(queue_size=queue_size))
    trainer.train()
    assert trainer.model.queue.image_ids.tolist()[:8].count(-100) == 0  # the queue has images 0 to 7
    ids = [0, 0, 3, -100]
    metrics = [trainer.evaluate(TensorPairs(4, [i if i < 0 else i + offset for i in ids])) for offset in (0, 5, 1000)]
    for name in ("eval_loss", "eval_loss_itc", "eval_text_to_image_r@1"):
        assert metrics[0][name] == metrics[1][name] == metrics[2][name]
    if queue_size:  # the captions of one image are still positives
        assert trainer.evaluate(TensorPairs(4, [0, 1, 3, -100]))["eval_loss_itc"] != metrics[0]["eval_loss_itc"]


def test_evaluation_does_not_change_state(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=TensorPairs(6))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = trainer.evaluate()
    assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.rand(1)  # as training would between two evaluations
    assert trainer.evaluate()["eval_loss"] == first["eval_loss"]


def test_evaluation_during_training_does_not_change_training(tmp_path):
    curves = []
    for fields in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make_trainer(tmp_path, make_model(dropout=0.1), eval_dataset=TensorPairs(4), max_steps=3, **fields)
        trainer.train()
        curves.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert curves[0] == curves[1]


def test_resumed_run_repeats_the_losses_exactly(tmp_path):
    # Step 4 is in the middle of the second epoch of three steps, and alpha is on its ramp.
    fields = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(tmp_path, make_model(dropout=0.1, momentum=0.5), TensorPairs(12), **fields)
    whole.train()
    pairs = TensorPairs(12)
    resumed = make_trainer(tmp_path, make_model(seed=1, dropout=0.1, momentum=0.5), pairs, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))

    keys = ("step", "loss", "loss_itc", "loss_itm", "loss_lm", "learning_rate", "alpha", "queue_fill")
    curves = [
        [{key: log[key] for key in keys} for log in trainer.state.log_history if "loss" in log and log["step"] > 4]
        for trainer in (whole, resumed)
    ]
    assert len(curves[0]) == 4
    assert curves[0] == curves[1]
    assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert set(pairs.epochs) == {1, 2}


def test_resuming_warns_only_without_momentum_state(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    fields = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, **fields).train()
    checkpoint = tmp_path / "checkpoint-1"
    caplog.clear()
    make_trainer(tmp_path, **fields).train(resume_from_checkpoint=str(checkpoint))
    assert "missing" not in caplog.text
    assert "momentum" not in caplog.text
    (checkpoint / "momentum_state.safetensors").unlink()
    with pytest.raises(ValueError, match=r"momentum_state\.safetensors is missing"):
        make_trainer(tmp_path, **fields).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "checkpoint_files.json").unlink()  # as a plain Trainer saves it
    make_trainer(tmp_path, **fields).train(resume_from_checkpoint=str(checkpoint))
    assert "has no momentum_state.safetensors" in caplog.text


def test_momentum_and_queue_are_in_checkpoints_only(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert [name for name in file.keys() if name.startswith(("momentum_towers.", "queue."))] == []  # noqa: SIM118
    assert not (tmp_path / "momentum_state.safetensors").exists()
    with safe_open(tmp_path / "checkpoint-1" / "momentum_state.safetensors", "pt") as file:
        assert set(file.keys()) == set(trainer.model.training_state_dict())


def test_plain_transformers_opens_the_exported_captioner(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.model.export_captioner().save_pretrained(tmp_path / "captioner")
    _, info = transformers.BlipForConditionalGeneration.from_pretrained(
        tmp_path / "captioner", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_bf16_keeps_float32_weights(tmp_path):
    trainer = make_trainer(tmp_path, bf16=True)
    trainer.train()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    losses = torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses.isfinite().all()
    exact = make_trainer(tmp_path)
    exact.train()
    assert losses[0] != exact.state.log_history[0]["loss"]  # otherwise bf16 did not reach the model
    assert_close(losses[0].item(), exact.state.log_history[0]["loss"], rtol=0.05, atol=0.1)


def test_half_precision_weights_raise(tmp_path):
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        make_trainer(tmp_path, make_model().half())


def test_a_queue_larger_than_the_data_warns(tmp_path, caplog):
    make_trainer(tmp_path, make_model(queue_size=9))
    assert "queue has 9 pairs and the training set 8" in caplog.text


def test_itm_loss_at_chance_warns_once(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    for loss_itm in [0.64] * 19 + [0.5] + [0.64] * 19:
        trainer._warn_about_chance(loss_itm)
    assert "constant guess" not in caplog.text
    for _ in range(30):
        trainer._warn_about_chance(0.64)
    assert caplog.text.count("constant guess") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_step_does_not_synchronize_with_the_device(tmp_path):
    trainer = make_trainer(tmp_path, use_cpu=False, bf16=True, max_steps=1)
    trainer.train()
    batch = trainer._prepare_inputs({name: column[:4] for name, column in TensorPairs().columns.items()})
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = trainer.training_step(trainer.model_wrapped, batch)
        trainer.model.update_momentum()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    create = BlipContrastiveTrainer.create_accelerator_and_postprocess

    def create_with_deepspeed(trainer):
        create(trainer)
        trainer.is_deepspeed_enabled = True

    monkeypatch.setattr(BlipContrastiveTrainer, "create_accelerator_and_postprocess", create_with_deepspeed)
    with pytest.raises(ValueError, match=r"temperature is a scalar.*FSDP2"):
        make_trainer(tmp_path)
