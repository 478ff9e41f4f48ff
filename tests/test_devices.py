# SPDX-License-Identifier: BSD-3-Clause
"""The choice of a device, without an accelerator: what torch says of the machine is patched."""

from unittest.mock import patch

import pytest
import torch

from blip_hf import BlipCaptioner, BlipForConditionalGeneration, BlipForImageTextRetrieval
from blip_hf.bootstrap.config import LoopSettings
from blip_hf.capfilt.engine import CapFilt
from blip_hf.cli.env import environment
from blip_hf.devices import pick_device, seeded
from blip_hf.tasks.base import EvaluateOptions, load_for_evaluation
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


@pytest.fixture
def machine(monkeypatch):
    """Pretends that torch finds accelerators of a kind, for this process of `torchrun`."""

    def pretend(kind, count=1, local_rank=None):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local_rank is not None:
            monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("kind", "count", "local_rank", "expected"),
    [
        (None, 0, None, "cpu"),
        (None, 0, 1, "cpu"),
        ("cuda", 2, None, "cuda"),
        ("cuda", 2, 1, "cuda:1"),
        ("xpu", 2, 1, "xpu:1"),
        ("mps", 1, None, "mps"),
        ("mps", 1, 1, "mps:0"),
    ],
)
def test_the_accelerator_of_the_process_is_the_default(machine, kind, count, local_rank, expected):
    machine(kind, count, local_rank)
    assert pick_device() == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_raises_with_the_usable_ones(machine):
    machine("mps")
    for device in ("gpu", "cuda:99", torch.device("xpu")):
        with pytest.raises(ValueError, match=f"device='{device}' cannot be used: .*pass 'cpu' or 'mps'"):
            pick_device(device)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, processor = tmp_path_factory.mktemp("models"), make_processor()
    for name, model_class in (("captioner", BlipForConditionalGeneration), ("matcher", BlipForImageTextRetrieval)):
        tiny_model_for(model_class, processor).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def load_captioner(folders):
    BlipCaptioner.from_pretrained(folders / "captioner", matcher=folders / "matcher")


def load_capfilt(folders):
    CapFilt.from_pretrained(folders / "captioner", folders / "matcher")


def load_task(folders):
    load_for_evaluation(BlipForConditionalGeneration, EvaluateOptions(model=str(folders / "captioner"), data=[]))


@pytest.mark.parametrize(("load", "num_models"), [(load_captioner, 2), (load_capfilt, 2), (load_task, 1)])
def test_all_tools_run_on_that_device(machine, folders, load, num_models):
    machine("mps")
    moves = []

    def to(self, *args, **kwargs):
        moves.append(args[0])
        return self

    with patch.object(torch.nn.Module, "to", to):
        load(folders)
    assert moves == [torch.device("mps")] * num_models


def test_the_loop_takes_the_accelerator_of_the_machine(machine):
    machine("xpu")
    LoopSettings.from_mapping({"device": "xpu"}).check()
    LoopSettings.from_mapping({}).check()
    with pytest.raises(ValueError, match="device='cuda' is not on this machine; pass 'cpu' or 'xpu'"):
        LoopSettings.from_mapping({"device": "cuda"}).check()


def test_the_environment_names_the_default_device(machine):
    machine("xpu")
    assert environment()["default device"] == "xpu"


def test_seeding_restores_the_random_state_of_mps():
    states = []
    with (
        patch("torch.mps.get_rng_state", lambda: "before"),
        patch("torch.mps.set_rng_state", states.append),
        seeded(3, torch.device("mps")),
    ):
        drawn = torch.rand(2)
    assert states == ["before"]
    with seeded(3, torch.device("cpu")):
        assert torch.equal(torch.rand(2), drawn)
