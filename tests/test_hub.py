# SPDX-License-Identifier: BSD-3-Clause
"""Pushes to a stand-in for the Hub: the files that go up, cards, code, errors, and opening what was pushed."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
from huggingface_hub import constants

from blip_hf import BlipForConditionalGeneration, BlipForVisualReasoning, BlipTrainer
from blip_hf.cli import main
from blip_hf.data.collators import BlipCaptioningCollator
from blip_hf.data.pairs import PairDataset
from blip_hf.hub import PushError, plan_upload
from tests.support.hub_server import TOKEN, serve_hub, use_hub
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_capfilt, tiny_nlvr2_config
from tests.support.trainers import make_arguments, make_records


def push_models(captioner_folder, folder):
    """Pushes models and trainers, and returns the loss that the last trainer measured."""
    BlipForVisualReasoning(tiny_nlvr2_config()).push_to_hub("me/nlvr2")
    captioner, processor, *_ = tiny_capfilt()
    processor.push_to_hub("me/captioner")  # writes the plain card of transformers
    captioner.push_to_hub("me/captioner")
    BlipForConditionalGeneration.from_pretrained(captioner_folder).push_to_hub("me/with-card")
    BlipForConditionalGeneration.from_pretrained(captioner_folder).save_pretrained(
        folder / "saved", push_to_hub=True, repo_id="me/saved"
    )

    def make_trainer(name, **options):
        output_dir = folder / name
        output_dir.mkdir()
        (output_dir / "training_run.json").write_text("{}")
        return BlipTrainer(
            captioner,
            make_arguments(output_dir, max_steps=1, hub_model_id=f"me/{name}", **options),
            train_dataset=PairDataset(make_records(2)),
            eval_dataset=PairDataset(make_records(2)),
            data_collator=BlipCaptioningCollator(processor, prompt=""),
            processing_class=processor,
        )

    saving = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint"}
    make_trainer("saving", **saving).train()
    trainer = make_trainer("trained")
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.push_to_hub(dataset="records", license="mit")
    return loss


OPEN = """
import sys
sys.modules["blip_hf"] = None  # as if it were not installed
import re
from huggingface_hub import hf_hub_download
from PIL import Image

Image.new("RGB", (80, 60)).save("photo.jpg")
for repo in sys.argv[1:]:
    card = open(hf_hub_download(repo, "README.md")).read()
    names = {}
    exec(re.search("```python\\n(.*?)```", card, re.DOTALL)[1], names)
    print(repo, type(names["model"]).__module__)
"""


@pytest.fixture(scope="module")
def folder(captioner_folder, tmp_path_factory):
    """A captioner with a card, and files that must not be pushed."""
    folder = tmp_path_factory.mktemp("runs") / "captioner"
    shutil.copytree(captioner_folder, folder)
    (folder / "README.md").write_text('---\ntags:\n- mine\n---\n```python\ncheckpoint = "captioner"\n```\n')
    (folder / "training_args.bin").write_bytes(b"secret")
    (folder / "training_run.json").write_text('{"data": "/home/someone"}')
    (folder / "checkpoint-3").mkdir()
    for name in ("optimizer.pt", "model.safetensors", "config.json"):
        (folder / "checkpoint-3" / name).write_bytes(b"state")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"adapter")
    return folder


@pytest.fixture(scope="module")
def hub():
    with serve_hub() as hub:
        yield hub


def run(hub, *words, cwd=ROOT, **variables):
    """Runs Python with the stand-in as the Hub."""
    environment = {**os.environ, **hub.environment(), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **variables}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory):
    """Makes `huggingface_hub` use the stand-in in this process."""
    with use_hub(hub, tmp_path_factory.mktemp("home")):
        yield


def push(*words):
    return main(["push", *map(str, words)])


@pytest.fixture(scope="module")
def pushed(hub, online, folder, tmp_path_factory):
    """The Hub after pushes of models, of a trainer, and of the command; with the loss that the trainer measured."""
    loss = push_models(folder, tmp_path_factory.mktemp("pushed"))
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert push(folder, "me/pushed", "--private") == 0
    assert printed.getvalue().startswith(f"{hub.address}/me/pushed/commit/")
    return hub, loss


def test_a_plan_has_the_model_and_leaves_the_run_here(folder):
    upload = plan_upload(folder, "me/captioner")
    assert set(upload.files) == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert {"training_args.bin", "training_run.json", "checkpoint-3/optimizer.pt"} < set(upload.left_out)
    assert upload.sizes()["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert b'checkpoint = "me/captioner"' in upload.files["README.md"]
    assert 'checkpoint = "captioner"' in (folder / "README.md").read_text()  # the folder is not changed


def test_further_files_are_pushed_if_asked_for(folder):
    assert "adapter/adapter_model.safetensors" in plan_upload(folder, "me/x", include=["adapter/*"]).files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"token: hf_{'a' * 34}", "config.json holds a token"),
        ("data of {folder}/pairs.json", r"config.json names the folder .*/ of this machine"),
    ],
)
def test_secrets_are_refused(text, message, captioner_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(captioner_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": text.format(folder=folder)}))
    with pytest.raises(PushError, match=message):
        plan_upload(folder, "me/x")


def test_a_folder_without_a_model_and_a_wrong_name_are_refused(folder, tmp_path):
    with pytest.raises(PushError, match=r"holds no config\.json"):
        plan_upload(tmp_path, "me/x")
    with pytest.raises(PushError, match="Pass owner/name"):
        plan_upload(folder, "not a name")


@pytest.mark.usefixtures("online")
def test_a_dry_run_lists_files_and_sends_nothing(hub, folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    before = len(hub.requests)
    assert push(folder, "me/dry", "--dry_run") == 0
    printed = capsys.readouterr().out
    assert f"{(folder / 'model.safetensors').stat().st_size:,}  model.safetensors" in printed
    assert "not pushed: adapter/adapter_model.safetensors, checkpoint-3/config.json" in printed
    assert "me/dry" not in hub.repos
    assert [path for _, path in hub.requests[before:] if "repos" in path or "models" in path] == []


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("me/x", "hf_wrong", "does not accept the token. Run `hf auth login`"),
        ("you/x", TOKEN, "The token may not write to you/x"),
        ("me/x", "", "Found no token of the Hub. Run `hf auth login`"),
    ],
)
@pytest.mark.usefixtures("online")
def test_errors_say_what_to_do(repo, token, message, folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    assert push(folder, repo) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("online")
def test_a_hub_that_does_not_answer_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(folder, "me/x") == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_the_command_pushes_the_model_alone(pushed):
    files = pushed[0].repos["me/pushed"]
    assert {"README.md", "model.safetensors"} < set(files)
    assert not any(b"/home/someone" in content or b"secret" in content for content in files.values())
    assert pushed[0].is_private["me/pushed"]


@pytest.mark.parametrize("repo", ["me/with-card", "me/saved"])
def test_a_loaded_model_is_pushed_with_the_card_of_its_folder(pushed, repo):
    card = pushed[0].repos[repo]["README.md"].decode()
    assert "- mine" in card
    assert f'checkpoint = "{repo}"' in card


def test_the_plain_card_of_transformers_is_replaced(pushed):
    card = pushed[0].repos["me/captioner"]["README.md"].decode()
    assert "pipeline_tag: image-text-to-text" in card
    assert "automatically generated" not in card


def test_the_trainer_pushes_its_card_and_no_record_of_the_run(pushed):
    hub, loss = pushed
    files = hub.repos["me/trained"]
    assert "model.safetensors" in files
    assert {"training_args.bin", "training_run.json"} & set(files) == set()
    card = files["README.md"].decode()
    assert f"value: {loss:.6g}" in card
    assert "| data | records |" in card
    assert "license: mit" in card


def test_saves_push_the_model_and_the_checkpoint_that_was_asked_for(pushed):
    files = pushed[0].repos["me/saving"]
    assert {"model.safetensors", "tokenizer.json", "last-checkpoint/optimizer.pt"} < set(files)
    assert not {"training_args.bin", "training_run.json"} & set(files)


def test_pushed_models_open_without_this_package_by_the_snippets_of_their_cards(pushed, tmp_path):
    hub, _ = pushed
    hub.repos["me/nlvr2"] |= {
        name: content for name, content in hub.repos["me/captioner"].items() if name.startswith(("tokenizer", "proc"))
    }
    done = run(hub, "-c", OPEN, "me/captioner", "me/nlvr2", "me/trained", cwd=tmp_path, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    modules = dict(line.split() for line in done.stdout.splitlines() if line.startswith("me/"))
    assert modules["me/captioner"] == modules["me/trained"] == "transformers.models.blip.modeling_blip"
    assert modules["me/nlvr2"].startswith("transformers_modules.me.nlvr2.")
