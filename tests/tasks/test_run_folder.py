# SPDX-License-Identifier: BSD-3-Clause
"""The output folder of a training command: resumed by the same command, refused to others, overwritten on request."""

import json
import signal

import pytest

from blip_hf.cli import main
from blip_hf.training import BlipTrainer
from blip_hf.training.checkpoint_files import find_checkpoints
from tests.support.files import write_json
from tests.support.images import write_images


TINY = [
    "--num_scenes",
    "8",
    "--image_size",
    "32",
    "--patch_size",
    "16",
    "--vision_width",
    "16",
    "--vision_layers",
    "1",
]
TINY += ["--text_width", "16", "--text_layers", "1", "--head_width", "8", "--feature_width", "8", "--queue_size", "8"]
TINY += [
    "--per_device_train_batch_size",
    "4",
    "--max_steps",
    "4",
    "--save_steps",
    "1",
    "--use_cpu",
    "--warmup_steps",
    "0",
]


def pretrain(folder, *argv, data="scenes"):
    return main(["pretrain", "--data", data, *TINY, "--output_dir", str(folder), *argv])


def error_of(capfd, folder, *argv, **options):
    assert pretrain(folder, *argv, **options) == 2
    return capfd.readouterr().err.splitlines()[-1]


def interrupt_at(step, monkeypatch):
    """Sends SIGTERM during a step of the next training."""
    take_step = BlipTrainer.training_step

    def interrupted_step(self, *args, **kwargs):
        if self.state.global_step == step:
            signal.raise_signal(signal.SIGTERM)
        return take_step(self, *args, **kwargs)

    monkeypatch.setattr(BlipTrainer, "training_step", interrupted_step)


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run that SIGTERM stopped after its second step."""
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        with pytest.raises(SystemExit) as exit_:
            pretrain(tmp_path / "run")
    assert exit_.value.code == 143
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["checkpoint-1", "checkpoint-2"]
    return tmp_path / "run"


def test_the_same_command_resumes_and_says_so(interrupted, tmp_path, capfd, caplog, monkeypatch):
    assert pretrain(tmp_path / "whole") == 0
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    assert pretrain("run") == 0
    assert "Resuming the interrupted run in run from checkpoint-2" in caplog.text
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["train_loss"] > 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (interrupted, tmp_path / "whole")]
    assert weights[0] == weights[1]
    assert "holds the finished run" in error_of(capfd, "run")


def test_another_command_is_refused_by_name(interrupted, capfd, caplog):
    message = error_of(capfd, interrupted, "--queue_size", "4", "--learning_rate", "1e-3", data="scenes:6")
    assert "queue_size was 8, is 4; learning_rate was 0.0003, is 0.001" in message
    assert "data was ['scenes'], is ['scenes:6']" in message
    assert "--overwrite to start again" in message
    assert len(find_checkpoints(interrupted)) == 2
    assert pretrain(interrupted, "--learning_rate", "1e-3", "--resume_from_checkpoint", "True") == 0
    assert "resumes with other settings or data: learning_rate" in caplog.text


def make_pairs(folder):
    names = ["red", "lime", "blue", "cyan", "white", "black", "navy", "gold"]
    write_images(folder, *names, size=(32, 32))
    return write_json(folder / "web.json", [{"image": f"{name}.png", "caption": f"a {name} image"} for name in names])


@pytest.mark.parametrize("stream", [[], ["--data_weights", "1", "--buffer_size", "4"]])
def test_moved_data_are_the_same_and_changed_data_are_refused(stream, tmp_path, monkeypatch, capfd, caplog):
    data, folder = make_pairs(tmp_path / "web"), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        with pytest.raises(SystemExit):
            pretrain(folder, *stream, data=str(data))
    (tmp_path / "web").rename(tmp_path / "moved")
    data = tmp_path / "moved" / "web.json"
    content = data.read_text()
    data.write_text(content.replace("navy image", "blue image"))
    assert f"data was ['{tmp_path}/web/web.json'], is ['{data}']" in error_of(capfd, folder, *stream, data=str(data))
    data.write_text(content)
    monkeypatch.chdir(tmp_path)
    assert pretrain("run", *stream, data="moved/web.json") == 0
    assert "from checkpoint-2" in caplog.text


def test_overwrite_removes_the_checkpoints_of_the_run_before(interrupted, capfd):
    (interrupted / "checkpoint-2").rename(interrupted / "checkpoint-100")
    assert pretrain(interrupted, "--overwrite") == 0
    assert [path.name for path in find_checkpoints(interrupted)][-1] == "checkpoint-4"
    assert "Pass only one" in error_of(capfd, interrupted, "--overwrite", "--resume_from_checkpoint", "True")


def test_checkpoints_of_an_unknown_run_are_not_resumed(interrupted, capfd):
    (interrupted / "training_run.json").unlink()
    assert "is not empty" in error_of(capfd, interrupted)
    (interrupted / "training_run.json").write_text('{"half')
    assert "training_run.json is damaged" in error_of(capfd, interrupted)


def test_a_launcher_that_restarts_the_command_does_not_overwrite(interrupted, caplog, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert pretrain(interrupted, "--overwrite") == 0
    assert "from checkpoint-2" in caplog.text
