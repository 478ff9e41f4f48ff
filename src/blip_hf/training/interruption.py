# SPDX-License-Identifier: BSD-3-Clause
"""Stops a training on SIGTERM and SIGINT after it has saved a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..distributed import world_size


# The handlers of Python. Those that a program has set itself are kept.
_DEFAULT_HANDLERS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class TrainingInterrupted(SystemExit):
    """A training that SIGTERM or SIGINT stopped. Uncaught, it ends the process with 143 or 130, without a traceback."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint at the end of the step in which a signal arrives, and then stops. A second signal stops at once.

    With several processes, all stop after the same step. An evaluation is finished first, so that a resumed run repeats
    nothing and leaves out nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_stopping = False
        self._group: Any = None

    @contextmanager
    def listening(self, *, is_enabled: bool) -> Iterator[None]:
        """Handles the signals within the block; outside the main thread, where Python cannot, does nothing."""
        self.received, self._is_stopping = None, False
        handled = {}
        if is_enabled and threading.current_thread() is threading.main_thread():
            handled = {each: old for each, old in _DEFAULT_HANDLERS.items() if signal.getsignal(each) == old}
        for each in handled:
            signal.signal(each, self._receive)
        try:
            yield
        except Exception:
            # Such as that of a loader whose workers the signal has ended.
            if self.received is not None:
                raise TrainingInterrupted(self.received) from None
            raise
        finally:
            for each, old in handled.items():
                signal.signal(each, old)

    def _receive(self, number: int, frame: object) -> None:
        if self.received is not None:
            raise TrainingInterrupted(number)
        self.received = number

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a checkpoint, except where one follows the evaluation at the end of the epoch."""
        if not self._must_stop(args) or self.received is None:
            return
        if args.save_strategy == SaveStrategy.NO:
            raise TrainingInterrupted(self.received)
        is_epoch_done = float(state.epoch).is_integer()
        if not (is_epoch_done and IntervalStrategy.EPOCH in (args.eval_strategy, args.save_strategy)):
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a checkpoint after the evaluation."""
        control.should_save |= self._is_stopping

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a checkpoint right after an evaluation."""
        control.should_save |= self._must_stop(args) and args.save_strategy != SaveStrategy.NO

    def on_save(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Stops."""
        if self._is_stopping and self.received is not None:
            raise TrainingInterrupted(self.received)

    def _must_stop(self, args: TrainingArguments) -> bool:
        """Whether one of the processes has received a signal."""
        number = self.received or 0
        if world_size() > 1:
            if self._group is None:
                # On the CPU, so that the accelerator is not waited for.
                self._group = distributed.new_group(backend="gloo", timeout=args.ddp_timeout_delta)
            highest = torch.tensor(number)
            distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self._group)
            number = int(highest)
        if number:
            self.received, self._is_stopping = number, True
        return self._is_stopping


__all__ = ["StopOnSignal", "TrainingInterrupted"]
