# SPDX-License-Identifier: BSD-3-Clause
"""A training that `torchrun` starts, whose second process gets a signal.

`-m tests.support.interrupted_training FOLDER ddp|fsdp2 [SIGNAL]`
"""

import os
import signal
import sys
import time
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tests.support.trainers import FSDP2, TensorPairs, make_model, make_trainer


NUM_STEPS, SAVE_STEPS, LAST_STEP = 6, 2, 3
TIMEOUT_SECONDS = 10
SIGNAL_TIME_NAME = "signal_time.txt"


class SignalAtStep(TrainerCallback):
    """Sends the second process a signal after a step, in the first attempt."""

    def __init__(self, name):
        self.name = name

    def on_step_end(self, args, state, control, **kwargs):
        is_first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if state.global_step == LAST_STEP and args.process_index == 1 and is_first_attempt:
            Path(args.output_dir, SIGNAL_TIME_NAME).write_text(str(time.time()))
            os.kill(os.getpid(), getattr(signal, self.name))


def main(folder, wrapper, *signal_names):
    Path(folder).mkdir(exist_ok=True)
    trainer = make_trainer(
        folder,
        make_model(dropout=0.1),
        TensorPairs(16),
        callbacks=[SignalAtStep(name) for name in signal_names],
        per_device_train_batch_size=2,
        max_steps=NUM_STEPS,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        ddp_timeout=TIMEOUT_SECONDS,
        **(FSDP2 if wrapper == "fsdp2" else {}),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
