# SPDX-License-Identifier: BSD-3-Clause
"""Trainer of models with a momentum encoder, a queue and several losses."""

from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..configuration_blip import BlipPreTrainingConfig
from ..data.encoded import EncodedPairs
from ..data.pairs import PairDataset
from ..distributed import gather
from ..files import atomic_write
from ..modeling.contrastive import BlipContrastiveModel
from ..modeling.momentum import MOMENTUM_STATE_NAME, image_ids_or_unknown
from ..modeling.outputs import BlipContrastiveOutput
from .arguments import BlipTrainingArguments
from .metrics import RECALL_NAMES, RunningMeans, recalls_in_set
from .resharding import is_sharded, load_whole_weights
from .schedules import linear_ramp, momentum_at
from .streaming import Stream
from .trainer import BlipTrainer, base_model


logger = logging.get_logger(__name__)

# Entropy of one match in three pairs: the loss of an ITM head that ignores its input.
CHANCE_ITM_LOSS = 0.6365
NUM_CHANCE_LOGS = 20


class MomentumCallback(TrainerCallback):
    """Updates the momentum encoder once per optimiser step."""

    def on_optimizer_step(  # type: ignore[override]  # an event has the model
        self, args: Any, state: TrainerState, *_: Any, model: BlipContrastiveModel, **kwargs: Any
    ) -> None:
        """Updates the momentum encoder."""
        step = state.global_step + 1  # Trainer counts the step after this event
        model.update_momentum(momentum_at(step, model.config.momentum, model.config.contrastive_warmup_steps))


class BlipContrastiveTrainer(BlipTrainer):
    """Trains [`BlipForPreTraining`] or [`BlipForRetrievalTraining`] as [BLIP](https://huggingface.co/papers/2201.12086) does.

    Extends [`BlipTrainer`]: updates the momentum encoder after each optimiser step, adds each training batch to the
    queue, and ramps up `alpha`. Logs the means of each loss and of the ITM accuracy since the last log, the
    temperature, `alpha` and the fill of the queue. Evaluation uses the configuration's full `alpha`, adds the recalls
    of the contrastive features within the set, and changes no state. If `metric_for_best_model` names a recall, that of
    retrieval fine-tuning comes from two-stage ranking, as in the paper. Checkpoints include the momentum encoder and the
    queue; `save_model` does not save them.

    Args:
        model ([`BlipForPreTraining`] or [`BlipForRetrievalTraining`]):
            Model with float32 weights. Pass `bf16=True` in the arguments for mixed precision.
        **kwargs:
            Arguments of `transformers.Trainer`. `data_collator` is a
            [`~blip_hf.data.collators.BlipPretrainingCollator`].
    """

    model: BlipContrastiveModel
    # Each loss is a mean over a micro-batch, so Trainer has to divide by the number of micro-batches.
    loss_is_scaled_for_ga = False

    def __init__(self, model: BlipContrastiveModel, args: BlipTrainingArguments, **kwargs: Any) -> None:
        model.temp.requires_grad_(args.learn_temperature)
        for parameter in model.unused_parameters():
            parameter.requires_grad_(False)
        super().__init__(model, args, **kwargs)
        if self.is_deepspeed_enabled:
            raise ValueError(
                f"DeepSpeed got {type(model).__name__}, whose temperature is a scalar, which DeepSpeed (0.19) cannot broadcast."
                " Use FSDP2 (examples/accelerate/fsdp2.yaml) or DDP."
            )
        self.model_accepts_loss_kwargs = False
        self.add_callback(MomentumCallback())
        self._train_means = RunningMeans()
        self._trained_output: BlipContrastiveOutput | None = None
        self._num_chance_logs = 0
        _warn_about_queue(model.config.queue_size, self.train_dataset)

    @property
    def alpha(self) -> float:
        """Weight of the momentum encoder in the contrastive targets at the current optimiser step."""
        ramp_steps = self.args.alpha_ramp_epochs * self._steps_per_epoch
        return self.model.config.alpha * linear_ramp(self.state.global_step, ramp_steps)

    def _set_warmup_stage(self) -> None:
        """Tells the model how far its contrastive warm-up is."""
        model: Any = base_model(self.model)
        step = self.state.global_step
        warmup_steps = model.config.contrastive_warmup_steps
        num_rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        # Features that were queued in the warm-up are of weights that changed fast.
        model.queue.counts = not warmup_steps or (step - warmup_steps) * num_rows >= model.queue.size
        model.negative_ramp = linear_ramp(step, warmup_steps)

    def _metric_names(self) -> tuple[str, ...]:
        names = ["loss", "loss_itc"]
        if not isinstance(self.model.config, BlipPreTrainingConfig) or self.model.config.itm_weight:
            names += ["loss_itm", "itm_accuracy"]
        if isinstance(self.model.config, BlipPreTrainingConfig) and self.model.config.lm_weight:
            names.append("loss_lm")
        return (*names, *RECALL_NAMES)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Adds the batch to the queue after the backward pass."""
        self._set_warmup_stage()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._trained_output is not None:
            self.model.enqueue(self._trained_output)
        self._trained_output = None
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, BlipContrastiveOutput]:
        """The sum of the losses of a micro-batch."""
        if model.training:
            output = model(**inputs, alpha=self.alpha)
            self._train_means.add_output(output, weight=1)  # each process computes an equal part of the mean
            self._trained_output = output
        else:
            if inputs.get("image_ids") is not None:
                inputs = {**inputs, "image_ids": _ids_of_other_images(inputs["image_ids"], self.model.queue.image_ids)}
            output = model(**inputs, generator=self._eval_generator)
            self._eval_means.add_output(output, weight=self._is_counted * len(output.image_features))
            image_ids = image_ids_or_unknown(output.image_ids, output.image_features)
            features = (output.image_features.float(), output.text_features.float(), image_ids)
            num_rows = len(image_ids) if self._is_counted else 0
            self._eval_features.append([column[:num_rows] for column in features])
        return (output.loss, output) if return_outputs else output.loss

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds each loss, the ITM accuracy and the recalls to the metrics."""
        self._eval_features: list[list[Tensor]] = []
        # Samples the same hard negatives at each evaluation. Evaluation, including its data loader, does not change the
        # random state of training.
        self._eval_generator = torch.Generator(self.args.device).manual_seed(self.args.seed)
        with torch.random.fork_rng(devices=[]):
            # `prediction_loss_only=True`: there are no labels to compare logits with.
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        columns = [gather(torch.cat(column)) for column in zip(*self._eval_features, strict=True)]
        recalls = recalls_in_set(*columns)
        assert output.metrics is not None  # `Trainer` fills it
        for name, value in recalls.items():
            # Those of the task, re-ranked by the ITM head, have the same names.
            output.metrics.setdefault(f"{metric_key_prefix}_{name}", value)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds means, temperature, `alpha` and fill of the queue to the logs of the training loss."""
        if "loss" in logs:
            logs |= self._train_means.pop()
            logs |= {
                "temperature": self.model.temp.item(),
                "alpha": self.alpha,
                "queue_fill": self.model.queue.fill.item(),
            }
            self._warn_about_chance(logs.get("loss_itm"))
        super().log(logs, start_time)

    def _warn_about_chance(self, loss_itm: float | None) -> None:
        is_chance = loss_itm is not None and abs(loss_itm - CHANCE_ITM_LOSS) < 0.01
        self._num_chance_logs = self._num_chance_logs + 1 if is_chance else 0
        if self._num_chance_logs == NUM_CHANCE_LOGS:
            logger.warning(
                f"The ITM loss has been {CHANCE_ITM_LOSS}, that of a constant guess, for {NUM_CHANCE_LOGS} logs. If it"
                " does not fall, start from trained image and text encoders, lower the learning rate or enlarge the batch."
            )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Trainer only calls this for checkpoints to resume from.
        super()._save_optimizer_and_scheduler(output_dir)
        # A checkpoint of FSDP2 includes all state.
        if self.args.should_save and not self.is_fsdp_enabled:
            state = self.model.training_state_dict()
            if base_model(self.model) is not self.model:
                state["temp"] = self.model.temp  # trained beside the adapters, and not saved with them
            with atomic_write(Path(output_dir) / MOMENTUM_STATE_NAME) as path:
                save_file(state, path, metadata={"format": "pt"})

    def _load_weights(self, checkpoint: str, model: nn.Module | None) -> None:
        super()._load_weights(checkpoint, model)
        if is_sharded(checkpoint):
            return  # it includes all state
        path = Path(checkpoint) / MOMENTUM_STATE_NAME
        if path.is_file():
            load_whole_weights(base_model(self.model), path)
        else:
            self.model.reset_momentum()
            logger.warning(
                f"{checkpoint} has no {MOMENTUM_STATE_NAME}: the momentum encoder starts from its weights"
                " and the queue keeps its content, so the curve will jump. Resume from a checkpoint of this trainer."
            )


def _ids_of_other_images(image_ids: Tensor, queue_ids: Tensor) -> Tensor:
    """Shifts the ids of an evaluation set past those in the queue, because both start at 0."""
    if not len(queue_ids):
        return image_ids
    return torch.where(image_ids < 0, image_ids, image_ids + queue_ids.max().clamp(min=-1) + 1)


def _warn_about_queue(queue_size: int, train_dataset: Dataset | None) -> None:
    # With `image_ids`, a repeated pair is not a negative of itself.
    has_image_ids = isinstance(train_dataset, PairDataset | Stream) or (
        isinstance(train_dataset, EncodedPairs) and "image_ids" in train_dataset.columns
    )
    if not has_image_ids and isinstance(train_dataset, Sized) and queue_size > len(train_dataset):
        logger.warning(
            f"The queue has {queue_size} pairs and the training set {len(train_dataset)}, so each pair is one of its own"
            " negatives. Lower `config.queue_size`, or add `image_ids` to the pairs."
        )


__all__ = ["BlipContrastiveTrainer", "MomentumCallback"]
