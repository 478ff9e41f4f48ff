# SPDX-License-Identifier: BSD-3-Clause
"""`examples/quickstart.ipynb`: all cells run offline with the models of a tiny demo; its outputs are those of a trained one."""

import nbformat
import pytest
from nbclient import NotebookClient

from blip_hf.demo.settings import DemoSettings
from blip_hf.tasks.pretrain import pretrain
from tests.support.paths import EXAMPLES, ROOT


PATH = EXAMPLES / "quickstart.ipynb"


@pytest.fixture
def book():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """Models that trained for one step."""
    folder = tmp_path_factory.mktemp("quickstart") / "demo"
    settings = DemoSettings(
        steps=1, num_scenes=16, num_held_out=2, batch_size=8, hidden_size=32, num_vision_layers=1, queue_size=8
    )
    pretrain(settings.pretrain_options(), settings.training_arguments(folder))
    return folder


def test_all_cells_run(book, demo_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (parameters,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = f"from pathlib import Path\nDEMO = Path({str(demo_folder)!r})\nSTEPS = 1"
    # Raises CellExecutionError if a cell raises.
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert "accuracy on 50 new scenes: " in book.cells[-1].outputs[-1].text


def test_outputs_are_committed_and_small(book):
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in shown} == {"stream", "execute_result", "display_data"}
    # No warning, and no output of a run with other parameters.
    assert [output for output in shown if output.get("name") == "stderr"] == []
    assert "300 steps" in "".join(output.text for output in shown if output.output_type == "stream")
    assert PATH.stat().st_size < 250_000


def test_outputs_name_no_folder_of_a_machine(book):
    assert [folder for folder in ("/tmp", "/home", "/root", "/work") if folder in PATH.read_text()] == []
