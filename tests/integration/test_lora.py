# SPDX-License-Identifier: BSD-3-Clause
"""LoRA by peft on each head: only the adapter trains, it is saved without the base and merges into it."""

import copy

import pytest
import torch
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForVisualReasoning,
)
from tests.support.batches import caption_batch, nlvr2_batch, vqa_batch
from tests.support.examples import run_example
from tests.support.tiny_models import tiny_batch, tiny_config, tiny_nlvr2_config, tiny_pretraining_config


peft = pytest.importorskip("peft")
# peft 0.21 reads the older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ATTENTION = ["qkv", "query", "value"]
# In pre-training, encoder and decoder share cross-attention: two adapters cannot be merged into one weight.
# The momentum encoder gets an adapter too, which follows the online one.
UNSHARED_ATTENTION = r".*(\.qkv|\.attention\.self\.(query|value))"


class Head:
    """A model, the modules to adapt, its inputs and the names of its deterministic outputs."""

    def __init__(self, model, inputs, outputs, targets=ATTENTION, modules_to_save=None):
        self.model = model
        self.inputs = inputs
        self.outputs = outputs
        self.config = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=targets, modules_to_save=modules_to_save, lora_dropout=0.0
        )

    def loss(self, model):
        return model(**self.inputs).loss

    @torch.no_grad()
    def read(self, model):
        model.eval()
        output = model(**self.inputs)
        return {name: output[name] for name in self.outputs}

    def adapted(self):
        """A copy of the model with a new adapter."""
        return peft.get_peft_model(copy.deepcopy(self.model), self.config)


def captioning_head():
    return Head(BlipForConditionalGeneration(tiny_config()), caption_batch(), ["logits"])


def retrieval_head():
    inputs = tiny_batch() | {"labels": torch.tensor([1, 0, 1])}
    return Head(BlipForImageTextRetrieval(tiny_config()), inputs, ["itm_logits"], modules_to_save=["itm_head"])


def vqa_head():
    return Head(BlipForQuestionAnswering(tiny_config()), vqa_batch(), ["loss"])


def nlvr2_head():
    model = BlipForVisualReasoning(tiny_nlvr2_config())
    return Head(model, nlvr2_batch(), ["logits"], modules_to_save=["cls_head"])


def pretraining_head():
    outputs = ["image_features", "text_features", "momentum_image_features", "lm_logits"]
    return Head(BlipForPreTraining(tiny_pretraining_config()), tiny_batch(), outputs, targets=UNSHARED_ATTENTION)


@pytest.fixture(params=[captioning_head, retrieval_head, vqa_head, nlvr2_head, pretraining_head])
def head(request):
    return request.param()


def train(head, num_steps=4):
    """Returns an adapted model after a few steps, the losses, and the parameters before."""
    model = head.adapted().train()
    base = model.get_base_model()
    if isinstance(base, BlipForPreTraining):
        base.momentum_towers.requires_grad_(False)
        base.reset_momentum()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        losses.append(head.loss(model))
        losses[-1].backward()
        optimizer.step()
        if isinstance(base, BlipForPreTraining):
            base.update_momentum()
    return model, losses, before


def is_base(name):
    return "lora_" not in name and "modules_to_save" not in name


def test_only_the_adapter_is_trained(head):
    model, losses, before = train(head)
    after = dict(model.named_parameters())
    trained = {name for name, value in after.items() if value.requires_grad}
    assert trained
    assert not {name for name in trained if is_base(name)}
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert trained <= moved
    # The momentum encoder moves without gradients.
    assert {name for name in moved - trained if "momentum_towers" not in name or is_base(name)} == set()
    if not isinstance(head.model, BlipForPreTraining):  # it draws new negatives in each step
        assert losses[-1] < losses[0]


def test_a_new_adapter_does_not_change_outputs(head):
    for name, value in head.read(head.adapted()).items():
        assert_close(value, head.read(head.model)[name], msg=name)


def test_saved_adapter_gives_the_same_outputs(head, tmp_path):
    model, _, _ = train(head)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(head.model), tmp_path)
    fresh = head.read(head.model)
    expected = head.read(model)
    for name, value in head.read(loaded).items():
        assert_close(value, expected[name], msg=name)
        assert not torch.allclose(value, fresh[name], atol=1e-4), name


def test_merged_adapter_gives_the_same_outputs(head, tmp_path):
    model, _, _ = train(head)
    expected = head.read(model)
    merged = model.merge_and_unload()
    assert type(merged) is type(head.model)
    merged.save_pretrained(tmp_path)
    loaded, info = type(head.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    for name, value in head.read(loaded).items():
        if not name.startswith("momentum_"):  # a checkpoint does not hold the momentum encoder
            assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_an_adapted_captioner_generates():
    head = captioning_head()
    model, _, _ = train(head)
    images = head.inputs["pixel_values"]
    generated = model.eval().generate(pixel_values=images, max_new_tokens=4, num_beams=2, do_sample=False)
    merged = model.merge_and_unload()
    assert torch.equal(merged.generate(pixel_values=images, max_new_tokens=4, num_beams=2, do_sample=False), generated)


def test_lora_example(tmp_path, capsys):
    run_example("finetune_lora", "--tiny", "--output_dir", tmp_path)
    printed = capsys.readouterr().out
    assert "is captioned" in printed
    assert (tmp_path / "adapter_model.safetensors").exists()
    BlipForConditionalGeneration.from_pretrained(tmp_path / "merged")
