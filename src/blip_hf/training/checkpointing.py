# SPDX-License-Identifier: BSD-3-Clause
"""Trainer whose checkpoints are whole or absent, which resumes from whole ones only, and stops on signals and NaN."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.utils.data import IterableDataset
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from ..distributed import gather_objects
from ..files import DiskFullError, free_bytes, is_disk_full
from ..finite import NotFiniteError, first_not_finite
from .arguments import BlipTrainingArguments
from .checkpoint_files import (
    SAVING_FOLDER,
    STATE_NAME,
    DamagedCheckpointError,
    find_checkpoints,
    is_from_deepspeed,
    newest_whole,
    prepare_saving,
    publish,
    require_whole,
)
from .failed_saves import failing_together
from .interruption import StopOnSignal, TrainingInterrupted
from .loss_guard import RECORD_IDS, LossGuard, NamingCollator
from .pushing import PushingTrainer


logger = logging.get_logger(__name__)

# What torch, safetensors and pickle raise for a damaged file, and torch for weights of other shapes.
_LOADING_ERRORS = (SafetensorError, RuntimeError, pickle.UnpicklingError, ValueError, KeyError, EOFError, OSError)


class CheckpointingTrainer(PushingTrainer):
    """Extends `transformers.Trainer` by what keeps a run safe; [`BlipTrainer`] documents it."""

    args: BlipTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._saving_in: Path | None = None
        self._stop_on_signal = StopOnSignal()
        if self.args.save_on_signal:
            self.add_callback(self._stop_on_signal)
        self._loss_guard = LossGuard()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains, or resumes from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint, or `True` for the newest whole one in `output_dir`.

        Raises:
            DamagedCheckpointError: If the checkpoint is not whole, or does not fit the model.
            NotFiniteError: If the loss or a weight to save is NaN or infinite.
            DiskFullError: If a checkpoint does not fit on the disk. The checkpoints before it are kept.
            FailedSaveError: On all processes, if one of several cannot save a checkpoint.
            TrainingInterrupted: After SIGTERM and SIGINT, once a checkpoint is saved. Ends the process if it is not caught.
        """
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        try:
            with self._stop_on_signal.listening(is_enabled=self.args.save_on_signal):
                output = super().train(checkpoint, *args, **kwargs)
        except TrainingInterrupted as interruption:
            self._report_interruption(interruption)
            raise
        self._loss_guard.check()
        return output

    def _find_checkpoint(self, given: str | bool | None) -> str | None:
        if given is None or given is False:
            return None
        checkpoint = newest_whole(self.args.output_dir) if given is True else require_whole(given)
        if checkpoint is None:
            raise DamagedCheckpointError(
                f"{self.args.output_dir} has no whole checkpoint. Leave out `resume_from_checkpoint` to start from"
                " the beginning."
            )
        if is_from_deepspeed(checkpoint) != self.is_deepspeed_enabled:
            whose = "one without" if self.is_deepspeed_enabled else "one of"
            raise DamagedCheckpointError(
                f"Cannot resume from {checkpoint}: it is {whose} DeepSpeed, which saves the optimizer in its own form. Resume"
                " with the launcher configuration of the run, or pass the folder as the model of a new run to start from its"
                " weights."
            )
        return str(checkpoint)

    def _report_interruption(self, interruption: TrainingInterrupted) -> None:
        checkpoints = find_checkpoints(self.args.output_dir)
        goes_on = f"resume from {checkpoints[-1]}" if checkpoints else "start again: no checkpoint is saved yet"
        if self.is_world_process_zero():
            logger.warning(
                f"{interruption.signal.name} stopped the training after step {self.state.global_step}. Run the same command"
                f" again, or pass `resume_from_checkpoint=True`, to {goes_on}."
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # From the last checkpoint of a run, `Trainer` (5.23) would train one step too many.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # NaN

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        collator = super()._get_collator_with_removed_columns(data_collator, description)
        is_named = description == "Training" and not isinstance(self.train_dataset, IterableDataset)
        return NamingCollator(collator) if is_named else collator

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Remembers the loss for the check on NaN."""
        ids = inputs.pop(RECORD_IDS, ())
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.args.stop_on_nan:
            self._loss_guard.add(self.state.global_step + 1, loss, ids)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._loss_guard.check()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, unless a weight is NaN or infinite."""
        name = first_not_finite(self.model.named_parameters())
        if self._uses_fsdp2:  # a process looks at its shards only
            name = next(filter(None, gather_objects([name])), None)
        if name is not None:
            raise NotFiniteError(
                f"{name} holds NaN or infinity after step {self.state.global_step}, so the model is not saved. Lower"
                " `learning_rate` or set `max_grad_norm`, and resume from the last checkpoint."
            )
        super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        # `Trainer` writes a checkpoint where this says.
        return super()._get_output_dir(trial) if self._saving_in is None else str(self._saving_in)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint beside its place, and renames it when the files of all processes are on the disk."""
        run_dir = Path(self._get_output_dir(trial))
        checkpoint = run_dir / f"checkpoint-{self.state.global_step}"
        with self._saving(checkpoint):
            if self.args.should_save:
                prepare_saving(run_dir)
                self._require_space(checkpoint)
        self._saving_in = run_dir / SAVING_FOLDER
        try:
            with self._saving(checkpoint):
                # Before the collective operations of saving, so that no process waits there for one that cannot write.
                (self._saving_in / checkpoint.name).mkdir(parents=True, exist_ok=True)
            with self._saving(checkpoint):
                super()._save_checkpoint(model, trial)
                self._save_best_checkpoint(run_dir, checkpoint)
            with self._saving(checkpoint):
                if self.args.should_save or self.args.local_process_index == 0:
                    publish(self._saving_in / checkpoint.name, checkpoint)
        finally:
            self._saving_in = None
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _save_best_checkpoint(self, run_dir: Path, checkpoint: Path) -> None:
        """Writes the state with the final path of the best checkpoint, which `Trainer` looks for in the folder it saves in."""
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == checkpoint or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save and self._saving_in is not None:
            self.state.save_to_json(str(self._saving_in / checkpoint.name / STATE_NAME))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pass  # after the rename

    @contextmanager
    def _saving(self, checkpoint: Path) -> Iterator[None]:
        """Runs a part of saving on all processes; if it fails on one, removes what was written and raises on all."""
        try:
            with failing_together(checkpoint), self._describing_full_disk(checkpoint):
                yield
        except Exception:
            if self.args.should_save or self.args.local_process_index == 0:
                prepare_saving(checkpoint.parent)
            raise

    @contextmanager
    def _describing_full_disk(self, checkpoint: Path) -> Iterator[None]:
        try:
            yield
        except DiskFullError:
            raise
        except (Exception, CheckpointException) as error:
            # torch does not say why a write failed.
            if is_disk_full(error) or free_bytes(checkpoint) < self._num_bytes():
                raise self._disk_full(checkpoint) from error
            raise

    def _require_space(self, checkpoint: Path) -> None:
        if free_bytes(checkpoint) < self._num_bytes():
            raise self._disk_full(checkpoint)

    def _disk_full(self, checkpoint: Path) -> DiskFullError:
        last = next(reversed(find_checkpoints(checkpoint.parent)), None)
        advice = "" if last is None else f"The last checkpoint, {last.name}, is kept. "
        advice += "Free some space, or lower `save_total_limit`, and run the same command again to resume."
        return DiskFullError(checkpoint, f"about {self._num_bytes():,} bytes", advice)

    def _num_bytes(self) -> int:
        """Bytes of the weights, the buffers and the optimizer, which a checkpoint holds."""
        tensors = list(self.model.state_dict().values())
        if not self.args.save_only_model and self.optimizer is not None:
            tensors += [
                value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
            ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    # Resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _naming_checkpoint(resume_from_checkpoint, "weights or momentum encoder"):
            self._load_weights(resume_from_checkpoint, model)

    def _load_weights(self, checkpoint: str, model: nn.Module | None) -> None:
        super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _naming_checkpoint(checkpoint, "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _naming_checkpoint(checkpoint, "rng_state"):
            super()._load_rng_state(checkpoint)


@contextmanager
def _naming_checkpoint(checkpoint: str | os.PathLike[str] | None, part: str) -> Iterator[None]:
    """Names the checkpoint in an error of loading."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(
            f"Cannot resume from {checkpoint}: {part} holds Python objects that are not tensors (a pickle), or is damaged, and"
            " is not loaded. Resume from another checkpoint."
        ) from error
    except _LOADING_ERRORS as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise DamagedCheckpointError(
            f"Cannot resume from {checkpoint}: {part} is damaged, or belongs to another model: {reason}. Resume from another"
            " checkpoint, or with the model that saved it."
        ) from error


__all__ = ["CheckpointingTrainer"]
