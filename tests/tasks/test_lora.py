# SPDX-License-Identifier: BSD-3-Clause
"""`finetune --lora`: only adapters train, and the adapter and the merged model give the same outputs."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from blip_hf import (
    BlipFinetuningArguments,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForVisualReasoning,
    BlipProcessor,
)
from blip_hf.cli import main
from blip_hf.tasks import caption, nlvr2, retrieval, vqa
from blip_hf.tasks.lora import LoraOptions, add_adapters, save_adapter
from tests.support.tiny_models import tiny_nlvr2_config


peft = pytest.importorskip("peft")
# peft 0.21 reads the older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TASKS = {
    "caption": (caption, BlipForConditionalGeneration),
    "retrieval": (retrieval, BlipForImageTextRetrieval),
    "vqa": (vqa, BlipForQuestionAnswering),
    "nlvr2": (nlvr2, BlipForVisualReasoning),
}
MAIN_METRICS = {"caption": "cider", "retrieval": "r_mean", "vqa": "accuracy", "nlvr2": "accuracy"}
# Parts that are trained as a whole.
HEADS = {"caption": (), "vqa": (), "retrieval": ("itm_head.",), "nlvr2": ("cls_head.",)}


def finetune(task, folder, pretrained, **fields):
    module, _ = TASKS[task]
    options = {"caption": {"metrics": ["bleu", "cider"]}, "retrieval": {"queue_size": 8}}.get(task, {})
    arguments = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_strategy": "no"}
    arguments |= {
        name: fields.pop(name) for name in list(fields) if name in BlipFinetuningArguments.__dataclass_fields__
    }
    return module.finetune(
        module.FinetuneOptions(
            model=str(pretrained), data=["scenes:8"], eval_data=["scenes:4"], lora=True, lora_r=4, **options, **fields
        ),
        BlipFinetuningArguments.for_task(
            task, output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **arguments
        ),
    )


def base_of(task, pretrained):
    """The model that an adapter of the task is for, from the pre-training checkpoint."""
    whole = BlipForPreTraining.from_pretrained(pretrained)
    if task == "caption":
        return whole.export_captioner()
    if task == "vqa":
        return BlipForQuestionAnswering.from_pretraining(whole)
    return (
        whole.export_retriever() if task == "retrieval" else BlipForVisualReasoning.from_matcher_pretrained(pretrained)
    )


@pytest.mark.parametrize("task", TASKS)
def test_adapter_and_merged_model_have_the_same_weights(task, pretrained, tmp_path):
    metrics = finetune(task, tmp_path, pretrained)
    assert f"eval_{MAIN_METRICS[task]}" in metrics
    merged, info = TASKS[task][1].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert BlipProcessor.from_pretrained(tmp_path).tokenizer
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (4, str(pretrained))

    base = base_of(task, pretrained)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    after = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    changed = set()
    for name, value in merged.state_dict().items():
        assert_close(value, after[name], msg=name)
        if not torch.equal(value, before[name]):
            changed.add(name)
    adapted = ("qkv.weight", "query.weight", "value.weight")
    assert changed
    assert {
        name for name in changed if not name.endswith(adapted) and not any(head in name for head in HEADS[task])
    } == set()
    assert all(any(head in name for name in changed) for head in HEADS[task])


def test_merge_layers_of_nlvr2_are_trained_and_saved(tmp_path):
    model = BlipForVisualReasoning(tiny_nlvr2_config(merge_from_layer=1))
    model.save_pretrained(tmp_path / "base")
    adapted = add_adapters(model, LoraOptions(lora=True), base=str(tmp_path / "base"), modules_to_save=nlvr2.HEADS)
    save_adapter(adapted, tmp_path)
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert any(name.endswith("1.crossattention.output.merge_layer.weight") for name in names)
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert any("merge_layer" in name for name in trained)


def test_adapters_of_chosen_modules(pretrained, tmp_path):
    finetune("caption", tmp_path, pretrained, lora_target_modules=["fc1"])
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert names
    assert all(".fc1." in name for name in names)
    with pytest.raises(ValueError, match=r"no linear layer 'queri'\. Pass ends of names such as .*query"):
        finetune("caption", tmp_path, pretrained, lora_target_modules=["qkv", "queri"])


def test_adapters_of_frozen_layers_are_not_trained(pretrained, tmp_path):
    settings = {"lora_target_modules": ["qkv"], "activation_checkpointing": True}
    finetune("caption", tmp_path, pretrained, freeze_vision_layers=1, **settings)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    is_zero = {name: not value.any() for name, value in adapter.items() if "lora_B" in name}
    assert [frozen for name, frozen in sorted(is_zero.items())] == [True, False]


@pytest.mark.parametrize("task", ["caption", "retrieval"])
def test_a_run_with_adapters_resumes_and_keeps_the_best(task, pretrained, tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    fields |= {"load_best_model_at_end": True, "metric_for_best_model": MAIN_METRICS[task]}
    finetune(task, tmp_path, pretrained, max_steps=2, lr_scheduler_type="constant", **fields)
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()
    resumed = str(tmp_path / "checkpoint-2")
    finetune(task, tmp_path, pretrained, lr_scheduler_type="constant", resume_from_checkpoint=resumed, **fields)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 3


def test_a_missing_package_is_named_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    argv = [
        "finetune",
        "caption",
        "--model",
        "lost",
        "--data",
        "scenes",
        "--output_dir",
        str(tmp_path / "out"),
        "--lora",
    ]
    assert main([*argv, "--use_cpu"]) == 2
    assert "LoRA needs peft, which is not installed: pip install 'blip_hf[lora]'" in capsys.readouterr().err


def test_a_learning_rate_for_all_weights_warns(pretrained, tmp_path, caplog):
    finetune("nlvr2", tmp_path, pretrained, learning_rate=1e-5, max_steps=1)
    assert "Adapters start from zero and usually need 1e-4 or more" in caplog.text
