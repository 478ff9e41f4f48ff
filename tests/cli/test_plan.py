# SPDX-License-Identifier: BSD-3-Clause
import json

import pytest

from blip_hf import planning
from blip_hf.cli import main
from blip_hf.planning import Work


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    monkeypatch.setattr(planning, "count_work", lambda config: Work(2.5e11, 3.4e8, 250_000_000, 200_000_000))


def plan(capsys, *arguments):
    assert main(["plan", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_plan_prints_memory_time_and_data_rates(capsys):
    rows = plan(capsys, "--model", "base", "--gpus", "32", "--pairs", "129M", "--device", "h100")

    assert rows["num_steps"] == round(20 * 129e6 / (32 * 75))
    assert rows["storage_tb"] == 5.16
    assert rows["memory_gb_per_gpu"] == 30.3  # 4 + 0.8 GB of values, 75 pairs of 340 MB
    assert rows["fits"] is True
    assert rows["days"] == pytest.approx(rows["num_steps"] * rows["step_seconds"] / 86_400, rel=0.02)


def test_batch_that_does_not_fit_is_named(capsys):
    assert plan(capsys, "--batch_size", "1000", "--device", "l40s")["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "many"], "--pairs is 'many', expected a number above 0 such as"),
        (["--pairs", "0"], "--pairs is '0'"),
        (["--gpus", "0"], "--gpus is 0, expected more than 0"),
        (["--peak_share", "1.5"], "--peak_share is 1.5, expected a share"),
    ],
)
def test_wrong_values_are_named(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err
