# SPDX-License-Identifier: BSD-3-Clause
"""Arguments of pre-training and fine-tuning, with the paper's recipes as defaults."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from torch import distributed
from transformers import SchedulerType, TrainingArguments

from ..data.skips import MAX_BAD_SHARE


BLIP_SCHEDULE = "blip"
BLIP_COSINE_SCHEDULE = "blip_cosine"
_OWN_SCHEDULES = (BLIP_SCHEDULE, BLIP_COSINE_SCHEDULE)

# Paper, table 14, for ViT-B.
TASK_RECIPES: dict[str, dict[str, float]] = {
    "caption": {"learning_rate": 1e-5, "num_train_epochs": 5},
    "retrieval": {"learning_rate": 1e-5, "num_train_epochs": 6},
    "vqa": {"learning_rate": 2e-5, "num_train_epochs": 10},
    "nlvr2": {"learning_rate": 3e-5, "num_train_epochs": 15},
}

# Arguments that change the weights.
WEIGHT_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "alpha_ramp_epochs",
    "bf16",
    "data_seed",
    "dataloader_drop_last",
    "decay_all_parameters",
    "decay_rate",
    "fp16",
    "gradient_accumulation_steps",
    "learn_temperature",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "min_learning_rate",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "train_sampling_strategy",
    "warmup_learning_rate",
    "warmup_steps",
    "weight_decay",
)


@dataclass
class BlipTrainingArguments(TrainingArguments):
    """Arguments of pre-training with [`BlipContrastiveTrainer`].

    The help texts document the fields. Defaults that differ from `transformers.TrainingArguments`:

    - The paper's `learning_rate`, `weight_decay`, `num_train_epochs`, `warmup_steps` and `lr_scheduler_type`, and
      `max_grad_norm=0`, since the original does not clip.
    - `remove_unused_columns=False`: collators need all columns.
    - `dataloader_drop_last=True` (in training only): a last batch of one pair has no negatives.
    - `ddp_broadcast_buffers=False`: the queue is the same on each process.
    - `ddp_find_unused_parameters=False`: the trainer freezes unused parameters.
    - `logging_nan_inf_filter=False`: the filter synchronises with the device at each step.
    - `resume_from_checkpoint="True"` is the newest whole checkpoint in `output_dir`.
    - `greater_is_better=False` also for losses such as `"loss_itm"` and for median ranks.

    Example:
        >>> args = BlipTrainingArguments("runs/blip", per_device_train_batch_size=75)
        >>> args.learning_rate, args.lr_scheduler_type, args.warmup_steps
        (0.0003, 'blip', 3000)
    """

    if TYPE_CHECKING:
        output_dir: str = ""  # `TrainingArguments` replaces `None`

    # Rates, epochs and warm-up: salesforce/BLIP configs/pretrain.yaml.
    learning_rate: float = field(
        default=3e-4, metadata={"help": "Peak learning rate (paper, section 4.1: 3e-4 for ViT-B, 2e-4 for ViT-L)."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW (paper, section 4.1)."})
    decay_all_parameters: bool = field(
        default=True,
        metadata={"help": "Decay norms, biases, embeddings and the temperature too, as salesforce/BLIP does."},
    )
    num_train_epochs: float = field(default=20.0, metadata={"help": "Number of epochs (paper, section 4.1)."})
    lr_scheduler_type: str = field(
        default=BLIP_SCHEDULE,
        metadata={
            "help": "`blip`: linear warm-up and a decay factor per epoch, as the paper pre-trains; `blip_cosine`: half"
            " a cosine with one value per epoch, as it fine-tunes; or a schedule of transformers, such as `cosine`,"
            " which ignores `warmup_learning_rate`, `min_learning_rate` and `decay_rate`."
        },
    )
    warmup_steps: float = field(
        default=3000,
        metadata={"help": "Steps of linear warm-up (salesforce/BLIP), or a fraction of all steps if below 1."},
    )
    warmup_learning_rate: float = field(
        default=1e-6, metadata={"help": "Learning rate of the first step of a warm-up (salesforce/BLIP)."}
    )
    min_learning_rate: float = field(default=1e-6, metadata={"help": "Lower bound of the decay (salesforce/BLIP)."})
    decay_rate: float = field(
        default=0.9,
        metadata={
            "help": "Factor of the learning rate from one epoch to the next (salesforce/BLIP; the paper: 0.85)."
        },
    )
    alpha_ramp_epochs: float = field(
        default=2.0,
        metadata={
            "help": "Epochs over which `alpha`, the weight of the momentum encoder in the contrastive targets, rises"
            " from 0 to the configuration's value (salesforce/BLIP pretrain.py)."
        },
    )
    learn_temperature: bool = field(
        default=True,
        metadata={
            "help": "Train the temperature (paper). Keep it fixed in a short run at a high learning rate, where it would"
            " fall before the features are aligned."
        },
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Norm to clip gradients to; 0 disables clipping."})
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Drop columns that the model does not take. The collators of this package need them."},
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last incomplete batch of each training epoch."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False,
        metadata={"help": "Send all buffers, such as the queue, to all processes before each forward pass."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without gradient at each step."}
    )
    max_eval_samples: int | None = field(
        default=5000,
        metadata={
            "help": "Images, questions or image pairs for the metrics of the task in evaluations during training, at equal"
            " distances in the evaluation set. They are computed if `metric_for_best_model` names one of them."
        },
    )
    max_bad_share: float = field(
        default=MAX_BAD_SHARE,
        metadata={
            "help": "Share of skipped training records that stops the run: when the set is loaded, after 1,000 records or at the"
            " end; 1 accepts all."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Exclude NaN and infinity from the logged loss (slower)."}
    )

    stop_on_nan: bool = field(
        default=True,
        metadata={
            "help": "Stop with an error that names the batch if the loss of training or evaluation is NaN or infinite."
        },
    )
    save_on_signal: bool = field(
        default=True,
        metadata={
            "help": "On SIGTERM and SIGINT, save a checkpoint after the current step and exit with 143 or 130; a second"
            " signal exits at once."
        },
    )

    def __post_init__(self) -> None:
        # Fields that the command line does not give, so that `pretrain` may choose them by the length of the run.
        self.left_open: frozenset[str] = frozenset()
        # The command line has only strings.
        if str(self.resume_from_checkpoint).lower() in ("true", "false"):
            newest: Any = str(self.resume_from_checkpoint).lower() == "true" or None
            self.resume_from_checkpoint = newest
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers only knows names that end with "loss".
            self.greater_is_better = not any(name in self.metric_for_best_model for name in ("loss", "median_rank"))
        if self.max_eval_samples is not None and self.max_eval_samples < 1:
            raise ValueError(f"max_eval_samples is {self.max_eval_samples}, expected 1 or more, or None for all.")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}, expected a share from 0 to 1.")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}, but Trainer smooths unshifted labels, from"
                " which a captioner learns to copy its input. Set `config.text_config.label_smoothing` of the model"
                " instead."
            )
        own_schedule = self.lr_scheduler_type if self.lr_scheduler_type in _OWN_SCHEDULES else None
        if own_schedule is not None:
            self._check_learning_rates()
            # The base class only accepts its own names, such as this one.
            self.lr_scheduler_type = SchedulerType.CONSTANT_WITH_WARMUP
        if self.use_cpu:
            _join_process_group(self.ddp_backend, self.ddp_timeout)
        super().__post_init__()
        if own_schedule is not None:
            self.lr_scheduler_type = own_schedule

    def _check_learning_rates(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0.")
        for name in ("warmup_learning_rate", "min_learning_rate"):
            value = getattr(self, name)
            if not 0 <= value <= self.learning_rate:
                raise ValueError(
                    f"{name} is {value}, expected a value from 0 to the learning_rate, which is {self.learning_rate}."
                )
        if not 0 < self.decay_rate <= 1:
            raise ValueError(
                f"decay_rate is {self.decay_rate}, expected a value in (0, 1]; 1 keeps the rate constant."
            )


def _join_process_group(backend: str | None, timeout_seconds: int) -> None:
    """Joins the group of `torchrun` on CPUs with a timeout; transformers (5.23) ignores `ddp_timeout` there."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if not launched or not distributed.is_available() or distributed.is_initialized():
        return
    timeout = timedelta(seconds=timeout_seconds)
    store, rank, world_size = next(distributed.rendezvous("env://", timeout=timeout))
    # `torchrun --max_restarts` (torch 2.13) keeps the store, with the addresses of the processes before the restart.
    store = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    distributed.init_process_group(backend or "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)


@dataclass
class BlipFinetuningArguments(BlipTrainingArguments):
    """Arguments of fine-tuning with [`BlipTrainer`] or, for retrieval, [`BlipContrastiveTrainer`].

    Like [`BlipTrainingArguments`], with the defaults of retrieval (paper, table 14; salesforce/BLIP
    `configs/retrieval_coco.yaml` and `train_retrieval.py`). Use [`~BlipFinetuningArguments.for_task`] for other tasks.

    Example:
        >>> args = BlipFinetuningArguments.for_task("vqa", output_dir="runs/vqa", per_device_train_batch_size=16)
        >>> args.learning_rate, args.num_train_epochs, args.lr_scheduler_type
        (2e-05, 10, 'blip_cosine')
    """

    learning_rate: float = field(
        default=1e-5, metadata={"help": "Peak learning rate (paper, table 14: 1e-5 for ViT-B, 5e-6 for ViT-L)."}
    )
    num_train_epochs: float = field(default=6.0, metadata={"help": "Number of epochs (paper, table 14)."})
    lr_scheduler_type: str = field(
        default=BLIP_COSINE_SCHEDULE,
        metadata={"help": "As in pre-training; `blip_cosine` is half a cosine with one value per epoch."},
    )
    warmup_steps: float = field(
        default=0,
        metadata={"help": "Steps of linear warm-up (salesforce/BLIP: none), or a fraction of all steps if below 1."},
    )
    warmup_learning_rate: float = field(
        default=0.0, metadata={"help": "Learning rate of the first step of a warm-up."}
    )
    min_learning_rate: float = field(default=0.0, metadata={"help": "Lower bound of the cosine (salesforce/BLIP)."})
    alpha_ramp_epochs: float = field(
        default=1.0,
        metadata={"help": "Epochs over which `alpha` rises from 0 (salesforce/BLIP train_retrieval.py)."},
    )

    @classmethod
    def for_task(cls, task: str, **kwargs: Any) -> Self:
        """Arguments with the learning rate and epochs of table 14 (ViT-B) for `"caption"`, `"retrieval"`, `"vqa"` or `"nlvr2"`."""
        if task not in TASK_RECIPES:
            raise ValueError(f"task={task!r} is unknown; pass one of {', '.join(map(repr, TASK_RECIPES))}.")
        return cls(**{**TASK_RECIPES[task], **kwargs})


def weight_arguments(arguments: BlipTrainingArguments) -> dict[str, Any]:
    """Returns the arguments that the weights of a run depend on, with its steps or its epochs."""
    unused = "num_train_epochs" if arguments.max_steps > 0 else "max_steps"
    values = {name: getattr(arguments, name) for name in WEIGHT_ARGUMENTS if name != unused}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


__all__ = [
    "BLIP_COSINE_SCHEDULE",
    "BLIP_SCHEDULE",
    "TASK_RECIPES",
    "WEIGHT_ARGUMENTS",
    "BlipFinetuningArguments",
    "BlipTrainingArguments",
    "weight_arguments",
]
