# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2 model: order of images, invariances, and initialisation from a retrieval model."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
    BlipRetrievalTrainingConfig,
)
from tests.support.tiny_models import (
    CLS,
    ENC,
    PAD,
    TEXT,
    VISION,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
    tiny_pretraining_config,
)


def nlvr2_batch(lengths=(7, 5, 6), first=CLS):
    batch = tiny_batch(lengths, first=first)
    second = torch.randn(batch["pixel_values"].shape, generator=torch.Generator().manual_seed(9))
    return batch | {"pixel_values": torch.stack([batch["pixel_values"], second], dim=1)}


@pytest.fixture
def model():
    return BlipForVisualReasoning(tiny_nlvr2_config()).eval()


@torch.no_grad()
def average_merge_layers(model):
    """Makes each merge layer compute the average."""
    for layer in model.text_encoder.encoder.layer:
        merge = layer.crossattention.output.merge_layer
        if merge is not None:
            half = torch.eye(merge.out_features) / 2
            merge.weight.copy_(torch.cat([half, half], dim=1))
            merge.bias.zero_()


def test_batched_equals_single(model):
    batch = nlvr2_batch()
    together = model(**batch).logits
    for row, length in enumerate((7, 5, 6)):
        alone = model(batch["pixel_values"][row : row + 1], batch["input_ids"][row : row + 1, :length]).logits
        assert_close(together[row : row + 1], alone)


def test_padding_does_not_change_the_logits(model):
    batch = nlvr2_batch()
    wider = torch.nn.functional.pad(batch["input_ids"], (0, 6), value=PAD)
    padded = model(batch["pixel_values"], wider, (wider != PAD).long()).logits
    assert_close(padded, model(**batch).logits)
    unmasked = model(batch["pixel_values"], wider).logits
    assert not torch.allclose(padded, unmasked, atol=1e-3)


def test_both_images_and_their_order_matter(model):
    batch = nlvr2_batch()
    logits = model(**batch).logits
    for other in (
        batch["pixel_values"].flip(1),
        torch.stack([batch["pixel_values"][:, 0], batch["pixel_values"].roll(1, 0)[:, 1]], dim=1),
        torch.stack([batch["pixel_values"].roll(1, 0)[:, 0], batch["pixel_values"][:, 1]], dim=1),
    ):
        assert not torch.allclose(model(**batch | {"pixel_values": other}).logits, logits, atol=1e-3)


def test_first_token_is_read_as_enc_without_changing_the_input(model):
    batch = nlvr2_batch(first=CLS)
    logits = model(**batch).logits
    assert (batch["input_ids"][:, 0] == CLS).all()
    assert_close(logits, model(**nlvr2_batch(first=ENC)).logits)


def test_several_sentences_share_one_image_pair(model):
    batch = nlvr2_batch(lengths=(7, 5, 6, 4))
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    grouped = model(batch["pixel_values"][:2], **text).logits
    repeated = model(batch["pixel_values"][:2].repeat_interleave(2, 0), **text).logits
    assert_close(grouped, repeated)


def test_both_images_are_encoded_in_one_pass_and_projected_once(model):
    calls = []
    attention = model.text_encoder.encoder.layer[0].crossattention
    for name, module in (("vision", model.vision_model), ("0", attention.self0.key), ("1", attention.self1.key)):
        module.register_forward_hook(lambda *hooked, name=name: calls.append((name, len(hooked[1][0]))))
    batch = nlvr2_batch(lengths=(7, 5, 6, 4))
    model(batch["pixel_values"][:2], batch["input_ids"], batch["attention_mask"])
    assert calls == [("vision", 4), ("0", 2), ("1", 2)]


@pytest.mark.parametrize("merge_from_layer", [0, 2])
def test_layers_merge_from_the_configured_one(merge_from_layer):
    model = BlipForVisualReasoning(tiny_nlvr2_config(merge_from_layer=merge_from_layer))
    merges = [layer.crossattention.output.merge_layer for layer in model.text_encoder.encoder.layer]
    assert [merge is not None for merge in merges] == [idx >= merge_from_layer for idx in range(2)]


def test_merge_layer_with_weights_of_one_half_equals_the_average():
    merging = BlipForVisualReasoning(tiny_nlvr2_config(merge_from_layer=0)).eval()
    averaging = BlipForVisualReasoning(tiny_nlvr2_config(merge_from_layer=2)).eval()
    averaging.load_state_dict({k: v for k, v in merging.state_dict().items() if ".merge_layer." not in k})
    batch = nlvr2_batch()
    assert not torch.allclose(merging(**batch).logits, averaging(**batch).logits, atol=1e-3)
    average_merge_layers(merging)
    assert_close(merging(**batch).logits, averaging(**batch).logits)


def test_eager_equals_sdpa_and_returns_attention_to_each_image(model):
    batch = nlvr2_batch()
    expected = model(**batch).logits
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    assert_close(output.logits, expected)
    assert [a.shape for a in output.cross_attentions] == [(3, 2, 2, 7, 5)] * 2
    assert_close(torch.stack(output.cross_attentions).sum(-1), torch.ones(2, 3, 2, 2, 7))
    assert [states.shape for states in output.hidden_states] == [(6, 5, 24)] * 3
    # The weights of both images differ, so swapped images do not swap their maps.
    flipped = model(**batch | {"pixel_values": batch["pixel_values"].flip(1)}, output_attentions=True)
    assert not torch.allclose(flipped.cross_attentions[0].flip(1), output.cross_attentions[0], atol=1e-3)
    model.set_attn_implementation("eager")
    assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, use_reentrant):
    batch = nlvr2_batch() | {"labels": torch.tensor([1, 0, 1])}
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train().zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, msg=name)


def test_labels_give_cross_entropy_with_true_as_one(model):
    batch, labels = nlvr2_batch(), torch.tensor([True, False, True])
    output = model(**batch, labels=labels)
    assert_close(output.loss, -output.logits.softmax(-1)[torch.arange(3), labels.long()].log().mean())


def test_mismatched_inputs_raise(model):
    batch = nlvr2_batch()
    with pytest.raises(ValueError, match=r"shape \(3, 3, 32, 32\), expected \(pairs, 2"):
        model(batch["pixel_values"][:, 0], batch["input_ids"])
    with pytest.raises(ValueError, match="3 texts do not divide among 2 pairs"):
        model(batch["pixel_values"][:2], batch["input_ids"])
    with pytest.raises(ValueError, match="33 tokens, the model takes at most 32"):
        model(batch["pixel_values"][:1], torch.full((1, 33), CLS))
    with pytest.raises(TypeError, match="token_type_id"):
        model(**batch, token_type_id=batch["input_ids"])
    with pytest.raises(StrictDataclassError, match="merge_from_layer is -1"):
        tiny_nlvr2_config(merge_from_layer=-1)


def test_a_saved_model_loads_with_the_same_logits(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = BlipForVisualReasoning.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.merge_from_layer == 1
    batch = nlvr2_batch()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def save_matcher(kind, folder):
    """Saves a checkpoint and returns its retrieval model."""
    if kind == "pretraining":
        model = BlipForPreTraining(tiny_pretraining_config()).eval()
        matcher = model.export_retriever()
    elif kind == "retrieval_training":
        fields = {"text_config": dict(TEXT), "vision_config": dict(VISION), "queue_size": 4}
        model = BlipForRetrievalTraining(BlipRetrievalTrainingConfig(**fields)).eval()
        matcher = model.export_retriever()
    else:
        model = matcher = BlipForImageTextRetrieval(tiny_config()).eval()
    model.save_pretrained(folder)
    return matcher


@pytest.mark.parametrize("kind", ["pretraining", "retrieval", "retrieval_training"])
def test_two_equal_images_initially_equal_one_image_of_the_matcher(kind, tmp_path):
    matcher = save_matcher(kind, tmp_path)
    model = BlipForVisualReasoning.from_matcher_pretrained(tmp_path, merge_from_layer=1)
    average_merge_layers(model)
    # With the same classifier, equal logits show equal states at position 0.
    head = torch.nn.Linear(16, 2)
    model.cls_head, matcher.itm_head = head, head
    batch = tiny_batch()
    expected = matcher(**batch).itm_logits
    doubled = batch | {"pixel_values": torch.stack([batch["pixel_values"]] * 2, dim=1)}
    assert_close(model(**doubled).logits, expected)


def test_merge_layers_and_classifier_are_newly_initialized(tmp_path):
    save_matcher("retrieval", tmp_path)
    torch.manual_seed(1)
    model = BlipForVisualReasoning.from_matcher_pretrained(
        tmp_path, merge_from_layer=0, image_size=48, vision_fields={"drop_path_rate": 0.1}
    )
    for layer in model.text_encoder.encoder.layer:
        attention = layer.crossattention
        assert torch.equal(attention.self0.key.weight, attention.self1.key.weight)
        assert attention.self0.key.weight is not attention.self1.key.weight
        assert attention.output.merge_layer.weight.std().item() == pytest.approx(0.3, rel=0.2)  # the initializer_range
        assert attention.output.merge_layer.bias.eq(0).all()
    assert model.config.vision_config.drop_path_rate == 0.1
    assert not model.training
    assert model(torch.zeros(1, 2, 3, 48, 48), torch.tensor([[CLS, 5, 6]])).logits.shape == (1, 2)


def test_checkpoint_of_another_class_raises(tmp_path):
    save_matcher("retrieval", tmp_path / "matcher")
    with pytest.raises(ValueError, match=r"cls_head.* of BlipForVisualReasoning.*from_matcher_pretrained"):
        BlipForVisualReasoning.from_pretrained(tmp_path / "matcher")
    BlipForConditionalGeneration(tiny_config()).save_pretrained(tmp_path / "captioner")
    with pytest.raises(ValueError, match="Load it with BlipForConditionalGeneration"):
        BlipForVisualReasoning.from_matcher_pretrained(tmp_path / "captioner")
