# SPDX-License-Identifier: BSD-3-Clause
"""Trainer of the heads of single tasks: what the paper's recipes have and transformers' Trainer has not."""

import math
from collections.abc import Callable, Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..data.pairs import FilledBatches, PairDataset
from .arguments import BLIP_COSINE_SCHEDULE, BLIP_SCHEDULE, BlipTrainingArguments
from .evaluation_set import IS_COUNTED, MarkingCollator, PadToWorldSize
from .metrics import RunningMeans
from .sampling import CaptionLengthSampler
from .schedules import blip_learning_rate, cosine_learning_rate


logger = logging.get_logger(__name__)


class EpochCallback(TrainerCallback):
    """Tells the data set the epoch, and the sampler that the trainer leaves here."""

    def __init__(self) -> None:
        self.sampler: CaptionLengthSampler | None = None

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader,
        **kwargs: Any,
    ) -> None:
        """Accelerate does this too, but not on several processes or in the epoch that a run is resumed in (1.15)."""
        for part in (train_dataloader.dataset, self.sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(int(state.epoch))


class BlipTrainer(Trainer):
    """Trains a model with a loss of its own: a captioner, one that answers questions, one that judges images.

    On top of `transformers.Trainer`: the paper's learning-rate schedules and weight decay, batches of captions of about
    one length on request, a data set that knows its epoch and whose left-out records are counted in each log, no batch
    that is empty for their sake, losses of evaluation to which each record adds once, and a refusal to train
    half-precision weights. The models train with a stock `Trainer` too.

    Args:
        model (`PreTrainedModel`):
            The model, with float32 weights. Pass `bf16=True` in the arguments for mixed precision.
        args ([`BlipTrainingArguments`] or [`BlipFinetuningArguments`]):
            Arguments of the run.
        **kwargs:
            Further arguments of `transformers.Trainer`: `train_dataset`, `data_collator`, `processing_class`, ...

    Raises:
        ValueError: If weights to be trained are not float32.
    """

    args: BlipTrainingArguments

    def __init__(self, model: PreTrainedModel, args: BlipTrainingArguments, **kwargs: Any) -> None:
        _check_precision(model)
        super().__init__(model, args, **kwargs)
        self._epoch_callback = EpochCallback()
        self.add_callback(self._epoch_callback)
        self._steps_per_epoch = 1

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple[Any, ...]:
        """As `Trainer.set_initial_training_values`; keeps the length of an epoch, which the paper's schedules need.

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

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer.get_train_dataloader`, for a training set that makes at least one batch.

        Returns:
            `DataLoader`: Of the training set.

        Raises:
            ValueError: If the set is smaller than a batch of all processes, and incomplete batches are dropped.
        """
        size = self._train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and isinstance(self.train_dataset, Sized) and len(self.train_dataset) < size:
            raise ValueError(
                f"The training set has {len(self.train_dataset)} records and a step takes {size} (a batch of"
                f" {self._train_batch_size} on each of {self.args.world_size} processes), so that nothing would be"
                " trained. Lower `per_device_train_batch_size`, or set `dataloader_drop_last=False`."
            )
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(dataset, "caption_lengths"):
            return super()._get_train_sampler(train_dataset)
        pairs_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self._epoch_callback.sampler = CaptionLengthSampler(dataset.caption_lengths(), pairs_a_step, self.args.seed)
        return self._epoch_callback.sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # With batches by length the base class would look for lengths in the items of an evaluation too.
        strategy, self.args.train_sampling_strategy = self.args.train_sampling_strategy, "sequential"
        try:
            return super()._get_eval_sampler(eval_dataset)
        finally:
            self.args.train_sampling_strategy = strategy

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`; a log of the training loss also has the records that the data set has left out so far.

        Args:
            logs (`dict[str, float]`):
                What to log.
            start_time (`float`, *optional*):
                Start of training.
        """
        if "loss" in logs and hasattr(self.train_dataset, "num_skipped"):
            logs["num_skipped"] = self.train_dataset.num_skipped
        super().log(logs, start_time)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """As `Trainer.compute_loss`; in evaluation a process's loss is that of its own batch.

        Args:
            model (`nn.Module`):
                The model, wrapped as the run needs it.
            inputs (`dict`):
                Arguments of the model's `forward`.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to return the output too.
            num_items_in_batch (`int`, *optional*):
                Labelled tokens of all processes' batches, by which Trainer would weigh in evaluation too.

        Returns:
            `torch.Tensor` or `tuple`: The loss, with `return_outputs` and the output.
        """
        num_items = num_items_in_batch if model.training else None
        return super().compute_loss(model, inputs, return_outputs, num_items)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As `Trainer.prediction_step`; keeps the loss, weighted by the rows of the batch.

        Args:
            model (`nn.Module`):
                The model, wrapped as the run needs it.
            inputs (`dict`):
                A batch.
            prediction_loss_only (`bool`):
                As in the base class.
            ignore_keys (`list[str]`, *optional*):
                As in the base class.

        Returns:
            `tuple`: Loss, logits and labels.
        """
        self._is_counted = inputs.pop(IS_COUNTED, True)
        num_rows = find_batch_size(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:
            self._eval_means.add("loss", loss, num_rows * self._is_counted)
        return loss, logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, with the loss as the mean over the records that are not left out.

        Args:
            dataloader (`DataLoader`):
                Of the set.
            description (`str`):
                Its name in messages.
            prediction_loss_only (`bool`, *optional*):
                As in the base class.
            ignore_keys (`list[str]`, *optional*):
                As in the base class.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                What the names of the metrics start with.

        Returns:
            `EvalLoopOutput`: What the base class returns.
        """
        self._eval_means = RunningMeans()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        output.metrics.update({f"{metric_key_prefix}_{name}": mean for name, mean in self._eval_means.pop().items()})
        return output

    def _get_dataloader(self, dataset: Dataset, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        if is_training:
            if isinstance(dataset, PairDataset):
                dataset = FilledBatches(dataset)
            return super()._get_dataloader(dataset, *args, is_training=True, **kwargs)
        drop_last, collator = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last = False  # Trainer would drop the last pairs of an evaluation too
        if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset):
            self.data_collator = MarkingCollator(collator, dataset)
            if self.args.world_size > 1:
                dataset = PadToWorldSize(dataset, self.args.eval_batch_size * self.args.world_size)
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.args.dataloader_drop_last, self.data_collator = drop_last, collator


def _check_precision(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype}, expected torch.float32: optimiser steps and averages vanish in its"
                " rounding. Load the model with `dtype=torch.float32` and pass `bf16=True` in the arguments."
            )


__all__ = ["BlipTrainer", "EpochCallback"]
