# SPDX-License-Identifier: BSD-3-Clause
"""Training that is killed, interrupted or runs out of disk, and files of checkpoints that are damaged."""

import errno
import os
import random
import shutil
import signal

import pytest
import torch
from transformers import TrainerCallback

from blip_hf.files import DiskFullError
from blip_hf.finite import NotFiniteError
from blip_hf.training.checkpoint_files import DamagedCheckpointError, find_checkpoints, find_problem, newest_whole
from tests.support.forks import kill_at_write, run_forked
from tests.support.trainers import TensorPairs, make_captioning_trainer, make_model, make_records, make_trainer


SAVING = {"max_steps": 5, "num_train_epochs": 9, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
# Operations on files while four checkpoints are saved, some 100 each.
NUM_OPERATIONS = 400


def pretraining(folder, **fields):
    return make_trainer(folder, make_model(dropout=0.1), **{**SAVING, **fields})


def captioning(folder, **fields):
    fields = {"per_device_train_batch_size": 2, **SAVING, **fields}
    return make_captioning_trainer(folder, [dict(record) for record in make_records(6)], **fields)


def best_of(folder, **fields):
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1}
    return make_trainer(folder, make_model(dropout=0.1), eval_dataset=TensorPairs(), **{**SAVING, **best, **fields})


KINDS = [pretraining, captioning, best_of]


def final_state(trainer):
    return {"model": trainer.model.state_dict(), "step": trainer.state.global_step, "best": trainer.state.best_metric}


def resume(kind, folder, **fields):
    """Ends a run from its newest whole checkpoint, or from the beginning."""
    trainer = kind(folder, **fields)
    trainer.train(resume_from_checkpoint=newest_whole(folder) is not None)
    return final_state(trainer)


def assert_equal_end(found, expected):
    assert (found["step"], found["best"]) == (expected["step"], expected["best"])
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)


def undisturbed(kind, folder):
    trainer = kind(folder)
    trainer.train()
    return final_state(trainer)


def kill_and_resume(kind, folder, expected, number):
    """Kills a run at its n-th operation on files, resumes it, and compares. Returns whether it was killed."""

    def train():
        kill_at_write(folder, number)
        kind(folder).train()

    status = run_forked(train)
    assert status in (0, -signal.SIGKILL)
    assert_equal_end(resume(kind, folder), expected)
    assert all(find_problem(checkpoint) is None for checkpoint in find_checkpoints(folder))
    return status != 0


@pytest.mark.parametrize("number", [3, 60, 130])
def test_a_run_that_is_killed_while_it_saves_ends_as_if_undisturbed(number, tmp_path):
    expected = undisturbed(pretraining, tmp_path / "undisturbed")
    assert kill_and_resume(pretraining, tmp_path / "killed", expected, number)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_are_killed_at_random_points_end_as_if_undisturbed(kind, tmp_path):
    expected = undisturbed(kind, tmp_path / "undisturbed")
    rng = random.Random(kind.__name__)
    num_killed = 0
    while num_killed < 11:
        folder = tmp_path / str(num_killed)
        num_killed += kill_and_resume(kind, folder, expected, rng.randrange(NUM_OPERATIONS))
        shutil.rmtree(folder)


def test_a_run_that_was_killed_after_its_last_checkpoint_trains_no_further(tmp_path):
    expected = undisturbed(pretraining, tmp_path)
    assert_equal_end(resume(pretraining, tmp_path), expected)


# Damaged files


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with the checkpoints 1 and 2. Copy it before you damage it."""
    folder = tmp_path_factory.mktemp("run")
    pretraining(folder, max_steps=2).train()
    return folder


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 255]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_checkpoint_skipped(damage, run_folder, tmp_path):
    names = sorted(path.name for path in (run_folder / "checkpoint-2").iterdir())
    assert {"model.safetensors", "momentum_state.safetensors", "optimizer.pt", "rng_state.pth"} <= set(names)
    for name in names:
        if (name, damage) == ("checkpoint_files.json", "missing"):
            continue  # as of a plain Trainer
        folder = tmp_path / name
        shutil.copytree(run_folder, folder)
        DAMAGES[damage](folder / "checkpoint-2" / name)
        trainer = pretraining(folder)
        with pytest.raises(DamagedCheckpointError, match=rf"{name}.*Resume from .*checkpoint-1"):
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        assert newest_whole(folder) == folder / "checkpoint-1"


def test_checkpoints_of_a_plain_trainer_are_checked_too(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "checkpoint_files.json").unlink()
    assert newest_whole(tmp_path) == checkpoint
    os.truncate(checkpoint / "model.safetensors", 5000)
    assert find_problem(checkpoint) == "model.safetensors is damaged"
    (checkpoint / "model.safetensors").unlink()
    assert find_problem(checkpoint) == "it has no weights of the model"
    (tmp_path / "checkpoint-1" / "trainer_state.json").unlink()
    assert newest_whole(tmp_path) is None
    with pytest.raises(DamagedCheckpointError, match="no whole checkpoint"):
        pretraining(tmp_path).train(resume_from_checkpoint=True)


def test_a_missing_optimizer_is_never_silent(tmp_path):
    pretraining(tmp_path, max_steps=1, save_only_model=True).train()
    with pytest.raises(DamagedCheckpointError, match=r"has no optimizer\.pt"):
        pretraining(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_of_deepspeed_is_refused_without_it(run_folder, tmp_path):
    shutil.copytree(run_folder / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "global_step2").mkdir()
    with pytest.raises(DamagedCheckpointError, match="it is one of DeepSpeed"):
        pretraining(tmp_path).train(resume_from_checkpoint=True)


def test_a_pickle_in_a_checkpoint_is_not_loaded(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "checkpoint_files.json").unlink()
    torch.save({"state": shutil.rmtree}, checkpoint / "optimizer.pt")
    with pytest.raises(DamagedCheckpointError, match=r"optimizer\.pt or scheduler\.pt holds Python objects"):
        pretraining(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_another_model_is_refused(run_folder):
    trainer = make_trainer(run_folder, make_model(queue_size=16))
    with pytest.raises(DamagedCheckpointError, match="belongs to another model: size mismatch"):
        trainer.train(resume_from_checkpoint=str(run_folder / "checkpoint-2"))


# Signals


class SignalAtStep(TrainerCallback):
    """Sends a signal to this process in a step."""

    def __init__(self, number, step):
        self.number = number
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


class GroupSignalAtStep(SignalAtStep):
    """Sends it to the loader's workers too."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.killpg(0, self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_exits(number, status, tmp_path):
    fields = {"save_steps": 100}
    expected = undisturbed(pretraining, tmp_path / "undisturbed")
    trainer = pretraining(tmp_path / "run", **fields)
    trainer.add_callback(SignalAtStep(number, 2))
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_:
        trainer.train()
    assert exit_.value.code == status
    assert signal.getsignal(number) == handler
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-3"]
    assert_equal_end(resume(pretraining, tmp_path / "run", **fields), expected)


def test_a_signal_at_the_end_of_an_epoch_waits_for_its_evaluation(tmp_path):
    fields = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 9}
    expected = undisturbed(lambda folder: best_of(folder, **fields), tmp_path / "undisturbed")
    trainer = best_of(tmp_path / "run", **fields)
    trainer.add_callback(SignalAtStep(signal.SIGTERM, 1))  # two steps are an epoch
    with pytest.raises(SystemExit):
        trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_loss" in log] == [2]
    assert_equal_end(resume(best_of, tmp_path / "run", **fields), expected)


def test_without_checkpoints_a_signal_exits_after_the_step(tmp_path):
    trainer = pretraining(tmp_path, save_strategy="no")
    trainer.add_callback(SignalAtStep(signal.SIGTERM, 1))
    with pytest.raises(SystemExit, match="143"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_run_exits_without_a_traceback(number, status, tmp_path, capfd):
    """As Ctrl-C or a scheduler sends it: the workers that read images get it too."""

    def train():
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        trainer = captioning(
            tmp_path, max_steps=10**6, num_train_epochs=10**6, save_steps=10**6, dataloader_num_workers=2
        )
        trainer.add_callback(GroupSignalAtStep(number, 3))
        trainer.train()

    assert run_forked(train) == status
    output = capfd.readouterr().err
    assert "Traceback" not in output
    checkpoints = find_checkpoints(tmp_path)
    assert [find_problem(checkpoint) for checkpoint in checkpoints] in ([], [None])


# NaN and a full disk


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    records = TensorPairs()
    records.columns["pixel_values"][:] = float("inf")
    trainer = pretraining(tmp_path)
    trainer.train()
    with pytest.raises(NotFiniteError, match=r"The training loss of step 6 is nan for the records \d, \d, \d, \d\."):
        make_trainer(tmp_path, train_dataset=records, **{**SAVING, "max_steps": 9}).train(resume_from_checkpoint=True)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-5"


def test_weights_with_nan_are_not_saved(tmp_path):
    trainer = pretraining(tmp_path, stop_on_nan=False, learning_rate=1e20)
    with pytest.raises(NotFiniteError, match="holds NaN or infinity after step 2"):
        trainer.train()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-1"]


def test_a_full_disk_is_one_message_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = pretraining(tmp_path, max_steps=2)
    save = torch.save

    def full(state, path):
        if trainer.state.global_step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        DiskFullError, match=r"checkpoint-2: it needs about .* bytes, and .* bytes are free.*checkpoint-1, is kept"
    ):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-1"


def test_a_disk_without_space_is_found_before_a_checkpoint_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("blip_hf.training.checkpointing.free_bytes", lambda path: 1000)
    with pytest.raises(DiskFullError, match="checkpoint-1"):
        pretraining(tmp_path).train()
    assert not list(tmp_path.iterdir())
