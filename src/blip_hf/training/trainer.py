# SPDX-License-Identifier: BSD-3-Clause
"""Trainer of the contrastive models: what transformers' Trainer does not know about momentum, queue and several losses."""

import math
import os
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..modeling.contrast import BlipContrastiveModel
from ..modeling.outputs import BlipContrastiveOutput
from ..momentum import known_image_ids
from .arguments import BLIP_COSINE_SCHEDULE, BLIP_SCHEDULE, BlipTrainingArguments
from .metrics import RunningMeans, recalls_in_set
from .sampling import CaptionLengthSampler
from .schedules import blip_learning_rate, cosine_learning_rate, linear_ramp


logger = logging.get_logger(__name__)

MOMENTUM_STATE_NAME = "momentum_state.safetensors"

# Entropy of one match in three pairs: the loss of a matching head that ignores its input.
CHANCE_ITM_LOSS = 0.6365
NUM_CHANCE_LOGS = 20


class MomentumCallback(TrainerCallback):
    """Moves the averages once an optimiser step, and tells the data set the epoch."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader,
        **kwargs: Any,
    ) -> None:
        """Accelerate does this too, but not on several processes or in the epoch that a run is resumed in (1.15)."""
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch))

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: BlipContrastiveModel,
        **kwargs: Any,
    ) -> None:
        """Runs after the weights have moved."""
        model.update_momentum()


class BlipTrainer(Trainer):
    """Trains [`BlipForPreTraining`] or [`BlipForRetrievalTraining`] as [BLIP](https://huggingface.co/papers/2201.12086).

    The class of the arguments has the recipe: of pre-training (section 4.1) or of retrieval fine-tuning (table 14).

    On top of `transformers.Trainer`: the momentum towers take one step after each optimiser step, each training batch
    enters the queue, `alpha` is ramped up, and each log has the means since the last one of each loss and of the
    matching accuracy, with temperature, `alpha` and the share of the queue that is filled. Evaluation reports the same
    losses with the configuration's full `alpha`, and the recalls of the contrastive features within the set; it changes
    no state, random numbers included. Checkpoints hold the momentum towers and the queue in a file of their own, so that
    a resumed run continues the curve; `save_model` writes neither.

    Args:
        model ([`BlipForPreTraining`] or [`BlipForRetrievalTraining`]):
            The model, with float32 weights. Pass `bf16=True` in the arguments for mixed precision.
        args ([`BlipTrainingArguments`] or [`BlipRetrievalTrainingArguments`]):
            Arguments of the run.
        **kwargs:
            Further arguments of `transformers.Trainer`: `train_dataset`, `eval_dataset`, `data_collator` (a
            [`~blip_hf.data.collators.BlipPretrainingCollator`]), `processing_class`, `callbacks`, ...

    Raises:
        ValueError: If weights to be trained are not float32.
    """

    model: BlipContrastiveModel
    args: BlipTrainingArguments
    # Each loss is the mean over a micro-batch, so that Trainer has to divide by the number of accumulated ones.
    loss_is_scaled_for_ga = False

    def __init__(self, model: BlipContrastiveModel, args: BlipTrainingArguments, **kwargs: Any) -> None:
        _check_precision(model)
        model.temp.requires_grad_(args.learn_temperature)
        super().__init__(model, args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.add_callback(MomentumCallback())
        self._train_means = RunningMeans()
        self._steps_per_epoch = 1
        self._num_chance_logs = 0
        _warn_about_queue(model.config.queue_size, self.train_dataset)

    @property
    def alpha(self) -> float:
        """Share of the momentum towers in the contrastive targets at the current optimiser step."""
        ramp_steps = self.args.alpha_ramp_epochs * self._steps_per_epoch
        return self.model.config.alpha * linear_ramp(self.state.global_step, ramp_steps)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple[Any, ...]:
        """As `Trainer.set_initial_training_values`; keeps the length of an epoch, which both schedules need.

        Args:
            args ([`BlipTrainingArguments`]):
                Arguments of the run.
            dataloader (`DataLoader`):
                Of the training set.

        Returns:
            `tuple`: What the base class returns.
        """
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch = values[1]
        return values

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(dataset, "caption_lengths"):
            return super()._get_train_sampler(train_dataset)
        pairs_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return CaptionLengthSampler(dataset.caption_lengths(), pairs_a_step, self.args.seed)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay applies to.

        Args:
            model (`nn.Module`):
                The model.

        Returns:
            `list[str]`: All of them, or with `decay_all_parameters=False` those that transformers would choose.
        """
        if self.args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Makes the learning-rate schedule that `lr_scheduler_type` names.

        Args:
            num_training_steps (`int`):
                Length of the run in optimiser steps.
            optimizer (`torch.optim.Optimizer`, *optional*):
                Whose rates are set, the trainer's own by default.

        Returns:
            `LRScheduler`: The schedule.
        """
        args = self.args
        if self.lr_scheduler is not None or args.lr_scheduler_type not in (BLIP_SCHEDULE, BLIP_COSINE_SCHEDULE):
            return super().create_scheduler(num_training_steps, optimizer)
        rate = self._learning_rate(num_training_steps)
        self.lr_scheduler = LambdaLR(
            self.optimizer if optimizer is None else optimizer, lambda step: rate(step) / args.learning_rate
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _learning_rate(self, num_training_steps: int) -> Callable[[int], float]:
        """The learning rate as a function of the step."""
        args = self.args
        warmup_steps = args.get_warmup_steps(num_training_steps)
        if warmup_steps >= num_training_steps:
            logger.warning(
                f"The warm-up takes {warmup_steps} steps and the run {num_training_steps}, so it ends below its"
                " learning rate. Lower `warmup_steps`; a value below 1 is a share of the run."
            )
        recipe = {
            "steps_per_epoch": self._steps_per_epoch,
            "learning_rate": args.learning_rate,
            "min_learning_rate": args.min_learning_rate,
            "warmup_steps": warmup_steps,
            "warmup_learning_rate": args.warmup_learning_rate,
        }
        if args.lr_scheduler_type == BLIP_COSINE_SCHEDULE:
            num_epochs = math.ceil(num_training_steps / self._steps_per_epoch)
            return partial(cosine_learning_rate, num_epochs=num_epochs, **recipe)
        return partial(blip_learning_rate, decay_rate=args.decay_rate, **recipe)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, BlipContrastiveOutput]:
        """The sum of the losses of a micro-batch. In training, the batch then enters the queue.

        Args:
            model (`nn.Module`):
                The model, wrapped as the run needs it.
            inputs (`dict`):
                Arguments of the model's `forward`.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to return the output too.
            num_items_in_batch (`int`, *optional*):
                Not used: each loss is a mean of its own kind of items.

        Returns:
            `torch.Tensor` or `tuple`: The loss, with `return_outputs` and the output.
        """
        if model.training:
            output = model(**inputs, alpha=self.alpha)
            # The losses hold copies of the queue's features, so it may change before their backward pass.
            self.model.enqueue(output)
            self._train_means.add_output(output)
        else:
            output = model(**inputs, generator=self._eval_generator)
            self._eval_means.add_output(output)
            image_ids = known_image_ids(output.image_ids, output.image_features)
            features = (output.image_features.float(), output.text_features.float(), image_ids)
            self._eval_features.append(self.accelerator.gather_for_metrics(features))
        return (output.loss, output) if return_outputs else output.loss

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, with each loss, the matching accuracy and recalls among the metrics.

        Args:
            dataloader (`DataLoader`):
                Of the set.
            description (`str`):
                Its name in messages.
            prediction_loss_only (`bool`, *optional*):
                Not used: there are no labels, and no predictions come back.
            ignore_keys (`list[str]`, *optional*):
                As in the base class.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                What the names of the metrics start with.

        Returns:
            `EvalLoopOutput`: What the base class returns.
        """
        self._eval_means = RunningMeans()
        self._eval_features: list[tuple[Tensor, Tensor, Tensor]] = []
        # The same hard negatives at each evaluation, drawn without touching the random numbers of training; a data
        # loader draws one too.
        self._eval_generator = torch.Generator(self.args.device).manual_seed(self.args.seed)
        with torch.random.fork_rng(devices=[]):
            # Losses only: without labels there is nothing to hold the logits of a whole set against.
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        columns = [torch.cat(column) for column in zip(*self._eval_features, strict=True)]
        metrics = self._eval_means.pop() | recalls_in_set(*columns)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`; a log of the training loss also has what the class says.

        Args:
            logs (`dict[str, float]`):
                What to log.
            start_time (`float`, *optional*):
                Start of training.
        """
        if "loss" in logs:
            logs |= self._train_means.pop()
            logs |= {
                "temperature": self.model.temp.item(),
                "alpha": self.alpha,
                "queue_fill": self.model.queue.fill.item(),
            }
            # Data sets that leave out records they cannot read count them.
            if hasattr(self.train_dataset, "num_skipped"):
                logs["num_skipped"] = self.train_dataset.num_skipped
            self._warn_about_chance(logs.get("loss_itm"))
        super().log(logs, start_time)

    def _warn_about_chance(self, loss_itm: float | None) -> None:
        is_chance = loss_itm is not None and abs(loss_itm - CHANCE_ITM_LOSS) < 0.01
        self._num_chance_logs = self._num_chance_logs + 1 if is_chance else 0
        if self._num_chance_logs == NUM_CHANCE_LOGS:
            logger.warning(
                f"The matching loss has been {CHANCE_ITM_LOSS}, that of a constant guess, for {NUM_CHANCE_LOGS} logs."
                " If that goes on, start from trained image and text encoders, lower the learning rate or enlarge the"
                " batch."
            )

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        # Trainer would drop the last pairs of an evaluation too.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        dataloader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        self.args.dataloader_drop_last = drop_last
        return dataloader

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Trainer calls this for checkpoints that a run can be resumed from, and for no others.
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            path = Path(output_dir) / MOMENTUM_STATE_NAME
            unfinished = path.with_suffix(".tmp")
            save_file(self.model.training_state_dict(), unfinished, metadata={"format": "pt"})
            os.replace(unfinished, path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / MOMENTUM_STATE_NAME
        if path.is_file():
            self.model.load_state_dict(load_file(path), strict=False)
        else:
            self.model.reset_momentum()
            logger.warning(
                f"{resume_from_checkpoint} has no {MOMENTUM_STATE_NAME}: the momentum towers start at its weights and"
                " the queue from what it holds, so the curve will jump. Save without `save_only_model` to resume."
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The base class expects the keys that are not in a model's file to be all missing or all there.
        expected = {*self.model._keys_to_ignore_on_save, *self.model.all_tied_weights_keys}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in expected]
        super()._issue_warnings_after_load(load_result)


def _check_precision(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype}, expected torch.float32: optimiser steps and averages vanish in its"
                " rounding. Load the model with `dtype=torch.float32` and pass `bf16=True` in the arguments."
            )


def _warn_about_queue(queue_size: int, train_dataset: Dataset | None) -> None:
    if isinstance(train_dataset, Sized) and queue_size > len(train_dataset):
        logger.warning(
            f"The queue holds {queue_size} pairs and the training set {len(train_dataset)}, so that each pair is among"
            " its own negatives. Lower `config.queue_size`, or give the pairs `image_ids`."
        )


__all__ = ["MOMENTUM_STATE_NAME", "BlipTrainer", "MomentumCallback"]
