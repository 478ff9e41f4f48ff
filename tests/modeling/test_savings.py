# SPDX-License-Identifier: BSD-3-Clause
"""Each optimisation equals the full computation in value and gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipTextModel,
)
from blip_hf.modeling import text_layers, vision
from tests.support.tiny_models import (
    DEC,
    ENC,
    PAD,
    VOCAB_SIZE,
    seeded_generator,
    tiny_batch,
    tiny_config,
    tiny_pretraining_config,
)


def text_states(model, inputs, **options):
    """Position 0 of the last layer, and its gradients."""
    images = inputs["encoder_hidden_states"]
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if images is not None:
        images = images.clone().requires_grad_()
        leaves.append(images)
    states = model(**inputs | {"encoder_hidden_states": images}, **options).last_hidden_state[:, 0]
    weights = torch.randn(states.shape, generator=seeded_generator())
    return states, torch.autograd.grad((states * weights).sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [None, "padding", "square"])
@pytest.mark.parametrize("has_images", [False, True])
def test_cls_only_equals_position_0_of_all_positions_in_value_and_gradient(implementation, mask, has_images):
    model = BlipTextModel(tiny_config().text_config, add_pooling_layer=False).train()
    model.set_attn_implementation(implementation)
    batch = tiny_batch(lengths=(7, 5, 6, 4))
    masks = {
        None: None,
        "padding": batch["attention_mask"],
        "square": torch.ones(7, 7, dtype=torch.bool).tril(2).expand(4, 1, 7, 7),
    }
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": masks[mask],
        "encoder_hidden_states": torch.randn(2, 5, 24) if has_images else None,
    }
    states, gradients = text_states(model, inputs, cls_only=True)
    expected_states, expected_gradients = text_states(model, inputs)
    assert_close(states, expected_states, atol=1e-5, rtol=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_the_last_layer_computes_position_0_only_for_features_and_scores():
    matcher = BlipForImageTextRetrieval(tiny_config()).eval()
    lengths = []
    for layer in matcher.text_encoder.encoder.layer:
        layer.intermediate.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    batch = tiny_batch()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    memory = matcher.get_image_memory(batch["pixel_values"])
    matcher.get_text_features(**text, cls_only=True)
    matcher.get_itm_logits(memory, **text)
    assert lengths == [7, 1] * 2
    assert matcher.get_multimodal_embeds(memory, **text).shape == (3, 7, 16)
    assert matcher(**batch).question_embeds.shape == (3, 7, 16)


def test_last_layer_computes_only_position_0_except_for_language_modelling():
    model = BlipForPreTraining(tiny_pretraining_config()).train()
    shapes = []
    for encoder in (model.text_encoder, model.text_decoder.bert):
        encoder.encoder.layer[-1].register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    model(**tiny_batch())
    assert shapes == [(3, 1, 16), (9, 1, 16), (3, 6, 16)]  # contrastive, matching, language modelling


def test_decoder_with_cls_only_raises():
    model = BlipTextModel(tiny_config().text_config)
    with pytest.raises(ValueError, match="cls_only is not supported with is_decoder"):
        model(tiny_batch()["input_ids"], is_decoder=True, cls_only=True)


def test_the_loss_equals_that_of_shifted_logits_in_value_and_gradient():
    model = BlipForConditionalGeneration(tiny_config(label_smoothing=0.1)).train()
    batch = tiny_batch(first=DEC)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
    output = model(**batch, labels=batch["input_ids"])
    assert output.logits.shape == (3, 7, VOCAB_SIZE)
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), targets.flatten(), label_smoothing=0.1)
    assert_close(output.loss, expected)
    gradients = torch.autograd.grad(output.loss, list(model.parameters()), retain_graph=True)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        assert_close(gradient, reference, atol=1e-6, rtol=1e-4)


def test_lm_loss_without_the_last_token_equals_that_of_whole_captions():
    model = BlipForPreTraining(tiny_pretraining_config()).train()
    batch = tiny_batch()
    output = model(**batch, generator=seeded_generator())
    assert output.lm_logits.shape == (3, 6, VOCAB_SIZE)
    whole = model.export_captioner()(**batch, labels=batch["input_ids"])
    assert_close(output.lm_logits, whole.logits[:, :-1], atol=1e-5, rtol=1e-5)
    assert_close(output.loss_lm, whole.loss)
    leaves = [*model.text_decoder.parameters(), *model.vision_model.parameters()]
    gradients = torch.autograd.grad(output.loss_lm, leaves, allow_unused=True)
    for gradient, expected in zip(gradients, torch.autograd.grad(whole.loss, leaves, allow_unused=True), strict=True):
        assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_answers_without_their_last_tokens_equal_whole_ones_in_value_and_gradient():
    model = BlipForQuestionAnswering(tiny_config())
    inputs = tiny_batch() | {"labels": tiny_batch(lengths=(4, 3, 5), seed=1)["input_ids"]}
    inputs["decoder_attention_mask"] = (inputs["labels"] != PAD).long()
    short, whole = model.train()(**inputs), model.eval()(**inputs)
    assert short.logits.shape == (3, 4, VOCAB_SIZE)
    assert_close(short.logits, whole.logits[:, :-1], atol=1e-5, rtol=1e-5)
    assert_close(short.answer_losses, whole.answer_losses, atol=1e-5, rtol=1e-5)
    leaves = list(model.parameters())
    gradients = torch.autograd.grad(short.loss, leaves)
    for gradient, expected in zip(gradients, torch.autograd.grad(whole.loss, leaves), strict=True):
        assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_candidates_are_scored_without_padding_and_without_their_last_tokens():
    model = BlipForQuestionAnswering(tiny_config(label_smoothing=0.1)).eval()
    batch = tiny_batch(lengths=(7, 5))
    answer_ids = tiny_batch(lengths=(3, 3, 6, 4), seed=1)["input_ids"]
    shapes = []
    model.text_decoder.bert.embeddings.word_embeddings.register_forward_hook(
        lambda _, inputs, __: shapes.append(tuple(inputs[0].shape))
    )
    ranking = model.rank_answers(**batch, answer_ids=answer_ids)
    assert shapes == [(2, 1), (4, 2), (2, 3), (2, 5)]  # the first tokens, then candidates of 3, 4 and 6 tokens
    with torch.no_grad():
        labels = answer_ids[ranking.candidates.flatten()]
        whole = model(**batch, labels=labels).answer_losses
    assert_close(ranking.scores, -whole.view(2, 4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_pass_records_no_graph_and_uses_the_precision_of_the_step(dtype):
    model = BlipForPreTraining(tiny_pretraining_config()).train()
    saved, dtypes = [], set()

    def record(tensor):
        saved.append(tensor)
        return tensor

    for module in model.momentum_towers.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    recorder = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), recorder:
        keys = model.momentum_towers(**tiny_batch())
        assert saved == []
        model.get_input_embeddings()(tiny_batch()["input_ids"]) * model.temp  # the hook records tensors
    assert saved
    assert dtypes == {dtype}
    assert not any(key.requires_grad for key in keys)


def keep_all(monkeypatch):
    """Disables recomputation: layers keep all activations for backward."""
    for module in (text_layers, vision):
        monkeypatch.setattr(module, "recompute_in_backward", lambda _, function, *arguments: function(*arguments))


def kept_for_backward(model, batch):
    """Bytes by address of the storages, other than weights, that the graph of a training step holds."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # keeps the tensor, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch)
    return {address: size for address, (size, _) in kept.items()}


def pretraining_step(dropout=0.1, **fields):
    torch.manual_seed(0)
    config = tiny_pretraining_config(**fields)
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = dropout
    return BlipForPreTraining(config).train(), tiny_batch(lengths=(7, 5, 6, 4))


def losses_and_gradients(model, batch):
    torch.manual_seed(1)  # dropout, also in the recomputation
    output = model(**batch, generator=seeded_generator())
    output.loss.backward()
    return output.loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # true of the momentum encoder
@pytest.mark.parametrize("checkpointing", [None, False, True])  # off, and both kinds of checkpointing
def test_recomputing_changes_no_value_and_no_gradient(monkeypatch, checkpointing):
    results = []
    for keeps_all in (False, True):
        model, batch = pretraining_step()
        if checkpointing is not None:
            model.activation_checkpointing_enable({"use_reentrant": checkpointing})
        with monkeypatch.context() as patched:
            if keeps_all:
                keep_all(patched)
            results.append(losses_and_gradients(model, batch))
    (loss, gradients), (expected_loss, expected) = results
    assert torch.equal(loss, expected_loss)
    assert gradients["vision_model.encoder.layers.0.mlp.fc1.weight"].abs().sum() > 0
    assert_close(gradients, expected)


def test_activations_and_selected_images_are_not_kept_for_backward(monkeypatch):
    model, batch = pretraining_step(dropout=0.0)
    kept = kept_for_backward(model, batch)
    keep_all(monkeypatch)
    all_kept = kept_for_backward(model, batch)
    vision_config, text_config = model.config.vision_config, model.config.text_config
    rows, patches = len(batch["pixel_values"]), (vision_config.image_size // vision_config.patch_size) ** 2 + 1
    activations = vision_config.num_hidden_layers * vision_config.intermediate_size
    picked = text_config.num_hidden_layers * 2 * text_config.hidden_size
    least = 4 * rows * patches * (activations + picked)
    assert sum(all_kept.values()) - sum(kept.values()) >= least


def test_the_queue_is_not_copied():
    model, batch = pretraining_step(queue_size=4096)
    queued = model.queue.image_features.nbytes
    kept = kept_for_backward(model, batch)
    large = {address for address, size in kept.items() if size >= queued}
    assert large == {features.data_ptr() for features in (model.queue.image_features, model.queue.text_features)}
    output = model(**batch)
    model.enqueue(output)  # before backward, which must not change gradients
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.loss.backward()


def test_recomputing_layers_compile_in_training():
    model, batch = pretraining_step(dropout=0.0)
    found = []
    for encoder in (torch.compile(model.vision_model, fullgraph=True, backend="aot_eager"), model.vision_model):
        states = encoder(batch["pixel_values"]).last_hidden_state
        found.append(torch.autograd.grad(states.square().sum(), list(model.vision_model.parameters())))
    assert_close(*found, atol=1e-5, rtol=1e-4)


def test_text_roles_share_embeddings_and_matching_is_one_pass():
    model, batch = pretraining_step(dropout=0.0)
    looked_up, passes = [], []
    words = model.get_input_embeddings()
    words.register_forward_hook(lambda _, inputs, __: looked_up.append(inputs[0]))
    for text_model in (model.text_encoder, model.text_decoder.bert):
        text_model.embeddings.register_forward_hook(lambda _, inputs, __: passes.append(inputs[0]))
    model(**batch)
    (ids,) = looked_up  # so that there is only one gradient of vocabulary size
    unimodal, grounded, decoding = passes
    assert [len(states) for states in passes] == [4, 12, 4]
    assert torch.equal(ids[0], batch["input_ids"])
    for role, first in ((1, ENC), (2, DEC)):
        assert (ids[role, :, 0] == first).all()
        assert torch.equal(ids[role, :, 1:], batch["input_ids"][:, 1:])
    assert torch.equal(unimodal, words(ids[0]))
    own_texts = grounded[:8:2]  # rows alternate between the own text and a hard negative
    assert torch.equal(own_texts, words(ids[1]))
    assert torch.equal(decoding, words(ids[2])[:, :-1])  # the last token predicts nothing
