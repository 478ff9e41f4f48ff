# SPDX-License-Identifier: BSD-3-Clause
"""The cards that commands write: figures of the run, and code that runs in the output folder."""

import io
import json
import re
from contextlib import redirect_stdout
from functools import cache

import pytest
from huggingface_hub import ModelCard

from blip_hf.cli import main
from blip_hf.tasks.run_card import read_facts
from tests.support.hub_server import serve_hub, use_hub
from tests.support.images import write_image
from tests.support.processes import run_code


TRAINING = [
    *("--data", "scenes", "--num_scenes", "8", "--eval_data", "scenes", "--num_eval_scenes", "4", "--max_steps", "1"),
    *("--per_device_train_batch_size", "4", "--use_cpu", "--report_to", "none", "--disable_tqdm", "True"),
    *("--save_strategy", "no", "--learning_rate", "2e-5"),
]
TASKS = {
    "caption": ("image-text-to-text", ["--metrics", "cider"]),
    "retrieval": ("zero-shot-image-classification", ["--queue_size", "8"]),
    "vqa": ("visual-question-answering", []),
    "nlvr2": ("visual-question-answering", []),
}


def snippet_of(folder):
    return re.search("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory):
    """A function from a task to the output folder and the metrics of its run. Each task is trained once."""

    @cache
    def tune(task):
        _, options = TASKS[task]
        folder, printed = tmp_path_factory.mktemp(task) / "tuned", io.StringIO()
        argv = ["finetune", task, "--model", str(pretrained), *TRAINING, *options, "--output_dir", str(folder)]
        with redirect_stdout(printed):
            assert main(argv) == 0
        return folder, json.loads(printed.getvalue().splitlines()[-1])

    return tune


@pytest.mark.parametrize("task", TASKS)
def test_fine_tuning_writes_the_card_of_its_run(task, tuned, pretrained):
    pipeline_tag, _ = TASKS[task]
    folder, metrics = tuned(task)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == pipeline_tag
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures
    assert figures == pytest.approx({name: metrics[f"eval_{name}"] for name in figures}, rel=1e-5)
    assert "| `learning_rate` | 2e-05 |" in card.text
    assert f"| base model | {pretrained.name} |" in card.text
    assert str(folder.parent) not in str(card)
    assert str(pretrained) not in str(card)


RUN_SNIPPETS = """
import contextlib, io, json, os, sys
sys.modules["blip_hf"] = None  # plain transformers
for folder, code in json.loads(sys.argv[1]).items():
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue(), folder
"""


def test_the_snippets_of_the_cards_run_in_plain_transformers(tuned, tmp_path):
    snippets = {}
    for task in TASKS:
        folder, _ = tuned(task)
        write_image(folder.parent / "photo.jpg", (80, 0, 0))
        snippets[str(folder.parent)] = snippet_of(folder)
    run_code(RUN_SNIPPETS, json.dumps(snippets), HF_HOME=str(tmp_path / "home"))


def test_pretraining_writes_a_card_beside_each_model(pretrained, tmp_path, capsys):
    folder = tmp_path / "blip"
    assert main(["pretrain", "--model", str(pretrained), *TRAINING, "--output_dir", str(folder)]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    tags = {name: ModelCard.load(folder / name / "README.md").data.pipeline_tag for name in ("captioner", "retriever")}
    assert tags == {"captioner": "image-text-to-text", "retriever": "zero-shot-image-classification"}
    facts = read_facts(folder)
    assert facts.metrics["loss_itc"] == pytest.approx(printed["eval_loss_itc"])
    assert facts.steps == 1
    assert "BlipForPreTraining" in (folder / "README.md").read_text()


def test_a_command_pushes_the_model_that_it_saves(pretrained, tmp_path):
    with serve_hub() as hub, use_hub(hub, tmp_path / "home"):
        argv = ["finetune", "retrieval", "--model", str(pretrained), *TRAINING, "--queue_size", "8"]
        argv += ["--output_dir", str(tmp_path / "tuned"), "--push_to_hub", "True", "--hub_model_id", "me/tuned"]
        assert main(argv) == 0
    files = hub.repos["me/tuned"]
    assert json.loads(files["config.json"])["architectures"] == ["BlipForImageTextRetrieval"]
    card = files["README.md"].decode()
    assert 'checkpoint = "me/tuned"' in card
    assert "type: r_mean" in card
    assert not any(str(tmp_path).encode() in content for content in files.values())
