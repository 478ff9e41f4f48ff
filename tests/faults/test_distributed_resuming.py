# SPDX-License-Identifier: BSD-3-Clause
"""Two processes save and stop together, though only one gets a signal."""

import os
import signal

import torch
from transformers import TrainerCallback

from blip_hf.training.checkpoint_files import find_checkpoints, find_problem, newest_whole
from tests.support.ranks import run_on_ranks
from tests.support.trainers import make_model, make_trainer


FIELDS = {"max_steps": 6, "num_train_epochs": 9, "save_strategy": "steps", "save_steps": 100}
FIELDS |= {"per_device_train_batch_size": 2}


class SignalOnSecondRank(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_and_resume(rank, folder):
    whole = make_trainer(folder / "whole", make_model(dropout=0.1), **FIELDS)
    whole.train()
    stopped = make_trainer(folder / "run", make_model(dropout=0.1), callbacks=[SignalOnSecondRank()], **FIELDS)
    try:
        stopped.train()
        status = 0
    except SystemExit as exit_:
        status = exit_.code
    resumed = make_trainer(folder / "run", make_model(seed=1, dropout=0.1), **FIELDS)
    resumed.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-3"))
    return {
        "status": status,
        "step": stopped.state.global_step,
        "whole": whole.model.state_dict(),
        "resumed": resumed.model.state_dict(),
    }


def test_all_processes_stop_after_the_same_step_and_resume_exactly(tmp_path):
    for rank in run_on_ranks(stop_and_resume, tmp_path):
        assert (rank["status"], rank["step"]) == (143, 3)
        torch.testing.assert_close(rank["resumed"], rank["whole"], rtol=0, atol=0)
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert find_problem(checkpoint) is None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    (checkpoint / "rng_state_1.pth").unlink()
    assert find_problem(checkpoint) == "rng_state_1.pth is missing"
    assert newest_whole(tmp_path / "run") == find_checkpoints(tmp_path / "run")[-1]
