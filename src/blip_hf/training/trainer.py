# SPDX-License-Identifier: BSD-3-Clause
"""Trainer of the fine-tuning tasks: the paper's schedules and weight decay, and exact evaluation losses."""

import math
import warnings
from collections.abc import Callable, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..data.collators import PairCollator
from ..data.encoded import EncodedPairs
from ..data.pairs import PairDataset
from ..data.skips import MIN_RECORDS, SkipCounts
from ..distributed import gather_objects
from ..modeling.contrastive import BlipContrastiveModel
from ..processing_blip import BlipProcessor
from .arguments import BLIP_COSINE_SCHEDULE, BLIP_SCHEDULE, BlipTrainingArguments
from .best_metric import find_evaluation
from .checkpointing import CheckpointingTrainer
from .evaluation_set import IS_COUNTED, PaddingCollator, PadToWorldSize, usable_subset
from .loss_guard import RECORD_IDS, EvaluationLossGuard, NamingCollator
from .metrics import RunningMeans
from .sampling import CaptionLengthSampler, ShuffleSampler
from .schedules import blip_learning_rate, cosine_learning_rate
from .streaming import Stream, StreamBatches, make_stream_loader
from .task_metrics import TaskEvaluation, evaluation_of, records_of
from .trained_model import base_model, check_precision


logger = logging.get_logger(__name__)


class EpochCallback(TrainerCallback):
    """Passes the epoch to the data set and to the sampler, which the trainer sets here.

    accelerate (1.15) does this too, but not on several processes or in the epoch that a run resumes in.
    """

    def __init__(self) -> None:
        self.sampler: CaptionLengthSampler | ShuffleSampler | None = None

    def on_epoch_begin(  # type: ignore[override]  # an event has a loader
        self, args: TrainingArguments, state: TrainerState, *_: Any, train_dataloader: DataLoader, **kwargs: Any
    ) -> None:
        """Passes the epoch."""
        for part in (train_dataloader.dataset, self.sampler):
            if part is not None and hasattr(part, "set_epoch"):
                part.set_epoch(int(state.epoch))


class BlipTrainer(CheckpointingTrainer):
    """Trains a model for captioning, VQA or NLVR2 as [BLIP](https://huggingface.co/papers/2201.12086) does.

    A plain `transformers.Trainer` works too. This one adds:

    - the paper's learning-rate schedules and weight decay, and an error for half-precision weights;
    - batches of captions of similar length with `train_sampling_strategy="group_by_length"`;
    - streams ([`~blip_hf.data.streams.PairStream`], [`~blip_hf.data.mixtures.PairMixture`]) as `train_dataset`, with
      their position in each checkpoint;
    - `num_skipped` in the logs, and an evaluation that skips unusable records and counts each other record once;
    - the metrics of the task if `metric_for_best_model` names one, such as `"cider"`, `"accuracy"` or `"r_mean"`.

    Args:
        model (`PreTrainedModel` or `peft.PeftModel`):
            Model with float32 weights. Pass `bf16=True` in the arguments for mixed precision.
        task_evaluation ([`~blip_hf.training.task_metrics.TaskEvaluation`], *optional*):
            How the task is evaluated. Defaults to the evaluation of the model's class with its default settings.
        **kwargs:
            Arguments of `transformers.Trainer`.
    """

    args: BlipTrainingArguments

    def __new__(cls, model: PreTrainedModel | None = None, *args: Any, **kwargs: Any) -> "BlipTrainer":
        """Returns a [`BlipContrastiveTrainer`] for a contrastive model, as in version 0.1."""
        if model is None or not isinstance(base_model(model), BlipContrastiveModel):
            return super().__new__(cls)
        from .contrastive_trainer import BlipContrastiveTrainer

        if issubclass(cls, BlipContrastiveTrainer):
            return super().__new__(cls)
        if cls is not BlipTrainer:
            raise TypeError(
                f"{cls.__name__} derives from BlipTrainer, which has no momentum encoder and no queue for"
                f" {type(model).__name__}. Derive it from BlipContrastiveTrainer."
            )
        warnings.warn(
            f"BlipTrainer no longer trains {type(model).__name__}; use BlipContrastiveTrainer, which this call returns."
            " Version 0.3 will raise an error instead.",
            FutureWarning,
            stacklevel=2,
        )
        return super().__new__(BlipContrastiveTrainer)

    def __init__(
        self,
        model: PreTrainedModel,
        args: BlipTrainingArguments,
        *,
        task_evaluation: TaskEvaluation | None = None,
        **kwargs: Any,
    ) -> None:
        check_precision(model)
        super().__init__(model, args, **kwargs)
        self._task_evaluation = self._find_task_evaluation(task_evaluation)
        self._epoch_callback = EpochCallback()
        self.add_callback(self._epoch_callback)
        self._steps_per_epoch = 1
        self._stream_batches: StreamBatches | None = None
        self._usable_subsets: dict[PairDataset, Dataset] = {}

    def _find_task_evaluation(self, given: TaskEvaluation | None) -> TaskEvaluation | None:
        """The evaluation that computes `metric_for_best_model`, if the trainer does not compute it anyway."""
        metric = self.args.metric_for_best_model
        if metric is None or self.compute_metrics is not None:
            return None
        default = None if "loss" in metric else evaluation_of(base_model(self.model), self.data_collator, metric)
        evaluation = find_evaluation(self.args, self._metric_names(), given or default, self.eval_dataset)
        if evaluation is not None:
            self._check_can_generate(metric)
        return evaluation

    def _metric_names(self) -> tuple[str, ...]:
        """The metrics of each evaluation."""
        return ("loss",)

    def _check_can_generate(self, metric: str) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"metric_for_best_model={metric!r} needs the whole model on each process, which FSDP and DeepSpeed split."
                " Set it to 'loss', or evaluate the checkpoints with `blip-hf evaluate`."
            )
        if self._processor is None:
            raise ValueError(
                f"metric_for_best_model={metric!r} needs the processor of the model. Pass `processing_class=processor`."
            )

    @property
    def _processor(self) -> BlipProcessor | None:
        if isinstance(self.processing_class, BlipProcessor):
            return self.processing_class
        return self.data_collator.processor if isinstance(self.data_collator, PairCollator) else None

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple[Any, ...]:
        """Stores the number of steps per epoch for the schedules."""
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch = values[1]
        return values

    def get_train_dataloader(self) -> DataLoader:
        """Raises an error if the training set is smaller than one batch."""
        if isinstance(self.train_dataset, Stream):
            if self.args.train_sampling_strategy == "group_by_length":
                raise ValueError("train_sampling_strategy='group_by_length' needs all lengths, which a stream lacks.")
            loader = make_stream_loader(self.train_dataset, self.data_collator, self.args, self._train_batch_size)
            assert isinstance(loader.dataset, StreamBatches)
            self._stream_batches = loader.dataset
            return loader
        size = self._train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and isinstance(self.train_dataset, Sized) and len(self.train_dataset) < size:
            raise ValueError(
                f"The training set has {len(self.train_dataset)} records and a step takes {size} (a batch of"
                f" {self._train_batch_size} on each of {self.args.world_size} processes), so"
                " nothing would be trained. Lower `per_device_train_batch_size`, or set `dataloader_drop_last=False`."
            )
        return super().get_train_dataloader()

    def num_examples(self, dataloader: DataLoader) -> int:
        """Number of records of an epoch."""
        if isinstance(dataloader.dataset, StreamBatches):
            return len(dataloader.dataset) * self._train_batch_size * self.args.world_size
        return super().num_examples(dataloader)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *args: Any
    ) -> tuple[int, int]:
        """Loads the state of a stream, unless `ignore_data_skip` starts it again."""
        epochs, num_batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, *args
        )
        checkpoint = args[0]
        if self._stream_batches is not None and checkpoint is not None and not self.args.ignore_data_skip:
            self._stream_batches.load_state(Path(checkpoint))
            self._stream_batches.num_to_skip = num_batches
        return epochs, num_batches

    def _save_rng_state(self, output_dir: str) -> None:
        """Also saves the position in a stream, which each process has too."""
        super()._save_rng_state(output_dir)
        if self._stream_batches is not None:
            self._stream_batches.save_state(Path(output_dir))

    def skip_counts(self) -> SkipCounts | None:
        """Counts of skipped training records on all processes, or `None` for a data set that does not count them."""
        if self._stream_batches is not None:
            states = gather_objects([self._stream_batches.skips().state_dict()])
            return SkipCounts.sum(map(SkipCounts.from_state, states))
        if isinstance(self.train_dataset, PairDataset | EncodedPairs):
            return self.train_dataset.skip_counts(all_processes=True)
        return None

    def _own_skip_counts(self) -> SkipCounts | None:
        if self._stream_batches is not None:
            return self._stream_batches.skips()
        return self.train_dataset.skip_counts() if isinstance(self.train_dataset, PairDataset | EncodedPairs) else None

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "group_by_length") or not isinstance(dataset, PairDataset | EncodedPairs):
            return super()._get_train_sampler(train_dataset)
        if strategy == "random":
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            sampler: ShuffleSampler | CaptionLengthSampler = ShuffleSampler(len(dataset), seed)
        else:
            pairs_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
            sampler = CaptionLengthSampler(dataset.caption_lengths(), pairs_per_step, self.args.seed)
        self._epoch_callback.sampler = sampler
        return sampler

    def _get_dataloader(
        self,
        dataset: Dataset,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Dataset], Sampler] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        if is_training or isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        return self._make_evaluation_dataloader(dataset, description)

    def _make_evaluation_dataloader(self, dataset: Dataset, description: str) -> DataLoader:
        """All usable records in order. Trainer would also apply `dataloader_drop_last` and group by length."""
        collator: Any = self.data_collator
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description)
        else:
            collator = self._get_collator_with_removed_columns(collator, description)
        if isinstance(dataset, PairDataset):
            dataset = self._usable_subset(dataset)
        collator = NamingCollator(collator)
        if self.args.world_size > 1:
            collator = PaddingCollator(collator, dataset)
            dataset = PadToWorldSize(dataset, self.args.eval_batch_size * self.args.world_size)
        dataloader = DataLoader(
            dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return self.accelerator.prepare(dataloader)

    def _usable_subset(self, dataset: PairDataset) -> Dataset:
        """The usable records, found once in a run."""
        if dataset not in self._usable_subsets:
            num_workers = self.args.dataloader_num_workers
            self._usable_subsets[dataset] = usable_subset(dataset, num_workers=num_workers, device=self.args.device)
        return self._usable_subsets[dataset]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All parameters, or with `decay_all_parameters=False` those of transformers."""
        if self.args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Creates the learning-rate schedule `lr_scheduler_type`."""
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
                " learning rate. Lower `warmup_steps`; a value below 1 is a fraction of the run."
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
        """Adds `num_skipped` to the logs of the training loss.

        Raises:
            BrokenDataError: If more than `max_bad_share` of at least 1,000 records were skipped.
        """
        counts = self._own_skip_counts() if "loss" in logs else None
        if counts is not None:
            logs["num_skipped"] = counts.total
            counts.check(self.args.max_bad_share, min_records=MIN_RECORDS)
        super().log(logs, start_time)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """In evaluation, averages over the batch of this process; Trainer would divide by the tokens of all processes."""
        num_items = num_items_in_batch if model.training else None
        return super().compute_loss(model, inputs, return_outputs, num_items)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Adds the loss to the mean, weighted by the rows of the batch."""
        self._is_counted = inputs.pop(IS_COUNTED, True)
        ids = inputs.pop(RECORD_IDS, ())
        num_rows = find_batch_size(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:
            self._eval_means.add("loss", loss, num_rows * self._is_counted)
            self._eval_loss_guard.add(loss, ids)
        return loss, logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Reports the mean loss over records, and the metrics of the task; Trainer reports the mean over batches.

        Raises:
            NotFiniteError: If the mean loss is NaN or infinite, unless `stop_on_nan=False`.
        """
        self._eval_means, self._eval_loss_guard = RunningMeans(), EvaluationLossGuard()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = self._eval_means.pop()
        if self.args.stop_on_nan:
            self._eval_loss_guard.check(metrics.get("loss"), self.state.global_step)
        metrics |= self._evaluate_task(dataloader.dataset)
        assert output.metrics is not None  # `Trainer` fills it
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The base class expects either all or none of the keys that a model does not save.
        model = base_model(self.model)
        expected = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in expected]
        super()._issue_warnings_after_load(load_result)

    def _evaluate_task(self, dataset: Dataset) -> dict[str, float]:
        """The metrics of the task on at most `max_eval_samples` records, if they are asked for."""
        evaluation, records = self._task_evaluation, records_of(dataset)
        if evaluation is None or records is None:
            return {}
        if self.args.max_eval_samples is not None:
            records = evaluation.select(records, self.args.max_eval_samples)
        # The loaders of the evaluation draw a seed; the random state of training does not change.
        with torch.random.fork_rng(devices=[]), self.compute_loss_context_manager():
            assert self._processor is not None  # see `_check_can_generate`
            metrics = evaluation.evaluate(base_model(self.model), self._processor, records, self.args.eval_batch_size)
        return {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}  # for the loggers


__all__ = ["BlipTrainer", "EpochCallback", "base_model"]
