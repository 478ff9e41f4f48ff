# SPDX-License-Identifier: BSD-3-Clause
"""The pre-training step: losses, shared computation, and unchanged state."""

import logging

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from blip_hf import BlipForPreTraining, BlipPreTrainingConfig
from blip_hf.modeling import contrastive
from blip_hf.modeling.projection import with_first_token
from blip_hf.objectives import sample_hard_negatives
from tests.support.optimization import gradients_of
from tests.support.tiny_models import ENC, PAD, seeded_generator, tiny_batch, tiny_pretraining_config


LOSSES = ("loss_itc", "loss_itm", "loss_lm")


@pytest.fixture
def model():
    return BlipForPreTraining(tiny_pretraining_config()).train()


@pytest.fixture
def batch():
    return tiny_batch(lengths=(7, 5, 6, 4))


class HostReads(TorchDispatchMode):
    """Records operations that would make the host wait for an accelerator."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        waits = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
        if function._schema.name in waits or by_mask:
            self.found.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def test_loss_is_the_sum_of_the_three_objectives(model, batch):
    output = model(**batch)
    assert_close(output.loss, sum(output[name] for name in LOSSES))
    assert all(output[name] > 0 for name in LOSSES)


def test_objective_with_weight_0_is_not_computed():
    model = BlipForPreTraining(tiny_pretraining_config(itm_weight=0.0, lm_weight=0.0)).train()
    calls = []
    model.text_encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.text_decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    output = model(**tiny_batch())
    assert calls == ["encoder"]
    assert output.loss_itm is output.loss_lm is None
    assert_close(output.loss, output.loss_itc)


def test_the_loss_is_the_weighted_sum_of_the_objectives():
    model = BlipForPreTraining(tiny_pretraining_config(itc_weight=2.0, itm_weight=0.5, lm_weight=3.0)).eval()
    output = model(**tiny_batch(), generator=torch.Generator().manual_seed(0))
    assert_close(output.loss, 2 * output.loss_itc + 0.5 * output.loss_itm + 3 * output.loss_lm)


def test_three_losses_share_one_image_pass_and_one_projection_per_layer(model, batch):
    visual_passes, key_projections = [], []
    model.vision_model.register_forward_hook(lambda *_: visual_passes.append(1))
    for text_model in (model.text_encoder, model.text_decoder.bert):
        for layer in text_model.encoder.layer:
            layer.crossattention.self.key.register_forward_hook(
                lambda _, inputs, __: key_projections.append(inputs[0])
            )
    model(**batch)
    assert len(visual_passes) == 1
    assert [len(images) for images in key_projections] == [4] * model.config.text_config.num_hidden_layers


def test_matching_equals_separate_passes_in_value_and_gradient(model, batch):
    """Reference: each pair in a separate pass of the text encoder."""
    output = model(**batch, generator=seeded_generator())
    gradients = gradients_of(model, output.loss_itm)

    image_embeds = model.vision_model(batch["pixel_values"]).last_hidden_state
    keys = output.momentum_text_features, output.momentum_image_features
    positives, generator = torch.eye(4, dtype=torch.bool), seeded_generator()
    texts, images = (
        sample_hard_negatives(features @ key.T / model.temp, positives, generator)[0]
        for features, key in zip((output.image_features, output.text_features), keys, strict=True)
    )
    input_ids = with_first_token(batch["input_ids"], ENC)

    def score(text, image):
        length = batch["attention_mask"][text].sum()  # without padding
        states = model.text_encoder(
            input_ids[text : text + 1, :length], encoder_hidden_states=image_embeds[image][None]
        )
        return model.itm_head(states.last_hidden_state[0, 0])

    matched = [score(row, row) for row in range(4)]
    unmatched = [score(texts[row], row) for row in range(4)] + [score(row, images[row]) for row in range(4)]
    reference = cross_entropy(torch.stack(matched + unmatched), torch.tensor([1] * 4 + [0] * 8))
    assert_close(output.loss_itm, reference)
    assert output.itm_labels.tolist() == [1, 0] * 4 + [0] * 4
    expected = gradients_of(model, reference)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_contrastive_loss_equals_plain_arithmetic(model, batch):
    output = model(**batch, alpha=0.25)
    losses = []
    for queries, teachers, own_keys, queue in (
        (
            output.image_features,
            output.momentum_image_features,
            output.momentum_text_features,
            model.queue.text_features,
        ),
        (
            output.text_features,
            output.momentum_text_features,
            output.momentum_image_features,
            model.queue.image_features,
        ),
    ):
        keys = torch.cat([own_keys, queue])
        targets = 0.25 * (teachers @ keys.T / model.temp).softmax(-1) + 0.75 * torch.eye(4, 16)
        losses.append(cross_entropy(queries @ keys.T / model.temp, targets))
    assert_close(output.loss_itc, sum(losses) / 2)


def test_negatives_are_drawn_with_their_own_temperature(batch, monkeypatch):
    drawn_by = {}

    def keep(name):
        def draw(logits, *arguments):
            drawn_by.setdefault(name, []).append(logits.detach())
            return sample_hard_negatives(logits, *arguments)

        return draw

    paper = BlipForPreTraining(tiny_pretraining_config()).eval()
    easier = BlipForPreTraining(tiny_pretraining_config(negative_temperature=0.7)).eval()
    easier.load_state_dict(paper.state_dict())
    for name, model in (("paper", paper), ("easier", easier)):
        monkeypatch.setattr(contrastive, "sample_hard_negatives", keep(name))
        model(**batch)
    for by_the_paper, by_its_own in zip(drawn_by["paper"], drawn_by["easier"], strict=True):
        assert_close(by_its_own, by_the_paper / 10)  # 0.07 / 0.7
    with pytest.raises(StrictDataclassClassValidationError, match="negative_temperature is 0"):
        tiny_pretraining_config(negative_temperature=0.0)


@pytest.mark.parametrize(("is_training", "ratio"), [(True, 0.7), (False, 1.0)])
def test_negatives_of_a_warmup_are_drawn_at_temperature_1_in_training_only(batch, monkeypatch, is_training, ratio):
    drawn_by = []

    def draw(logits, *arguments):
        drawn_by.append(logits.detach())
        return sample_hard_negatives(logits, *arguments)

    monkeypatch.setattr(contrastive, "sample_hard_negatives", draw)
    model = BlipForPreTraining(tiny_pretraining_config(negative_temperature=0.7)).train(is_training)
    for model.negative_ramp in (1.0, 0.0):
        torch.manual_seed(0)
        model(**batch)
    assert_close(torch.stack(drawn_by[2:]), torch.stack(drawn_by[:2]) * ratio)


def test_update_momentum_follows_the_formula_and_clamps_the_temperature(model):
    online = dict(model.named_parameters(remove_duplicate=False))
    momentum_parameters = dict(model.momentum_towers.named_parameters())
    with torch.no_grad():
        for parameter in momentum_parameters.values():
            parameter.normal_()
        model.temp.fill_(0.9)
    before = {name: value.clone() for name, value in momentum_parameters.items()}
    pointer = model.temp.data_ptr()
    model.update_momentum()
    for name, value in momentum_parameters.items():
        assert_close(value, 0.995 * before[name] + 0.005 * online[name])
    assert model.temp.item() == pytest.approx(0.5)
    model.temp.data.fill_(-1.0)
    model.update_momentum()
    assert model.temp.item() == pytest.approx(0.001)
    assert model.temp.data_ptr() == pointer


def test_with_momentum_0_the_features_are_the_keys_and_the_momentum_encoder_is_not_run(batch):
    remembering = BlipForPreTraining(tiny_pretraining_config(momentum=0.5)).eval()
    forgetful = BlipForPreTraining(tiny_pretraining_config(momentum=0.0)).eval()
    forgetful.load_state_dict(remembering.state_dict())
    expected = remembering(**batch, generator=seeded_generator())
    forgetful.momentum_towers.register_forward_hook(lambda *_: pytest.fail("the momentum encoder was run"))
    output = forgetful(**batch, generator=seeded_generator())
    assert not output.momentum_image_features.requires_grad
    for name in (*LOSSES, "momentum_image_features", "momentum_text_features"):
        assert_close(output[name], expected[name], msg=name)


def test_enqueue_stores_the_momentum_features_of_the_batch(model, batch):
    image_ids = torch.tensor([4, 4, 5, 6])
    output = model(**batch, image_ids=image_ids)
    model.enqueue(output)
    assert_close(model.queue.image_features[:4], output.momentum_image_features)
    assert_close(model.queue.text_features[:4], output.momentum_text_features)
    assert torch.equal(model.queue.image_ids[:4], image_ids)
    assert model.queue.num_enqueued == 4


def test_image_ids_make_captions_of_one_image_positives(model, batch):
    image_ids = torch.tensor([4, 4, 5, 6])
    plain = model(**batch, alpha=0.0, generator=seeded_generator())
    model.enqueue(model(**batch, image_ids=image_ids))
    queued = model(**batch, alpha=0.0, generator=seeded_generator())
    known = model(**batch, alpha=0.0, generator=seeded_generator(), image_ids=image_ids)
    assert not torch.isclose(plain.loss_itc, known.loss_itc)
    # The queue holds the batch, so ids also turn negatives of the queue into positives.
    assert known.loss_itc < queued.loss_itc


def test_negatives_exclude_the_querys_image(model, batch, monkeypatch):
    drawn = []

    def record(*args):
        drawn.append(sample_hard_negatives(*args))
        return drawn[-1]

    monkeypatch.setattr(contrastive, "sample_hard_negatives", record)
    for _ in range(20):
        model(**batch, image_ids=torch.tensor([4, 4, 5, 5]))
    assert all((negatives // 2 != torch.tensor([0, 0, 1, 1])).all() for negatives, _ in drawn)


def test_pairs_without_negatives_are_excluded_from_the_matching_loss(model, batch):
    output = model(**batch, image_ids=torch.full((4,), 9))
    assert output.itm_labels.tolist() == [1, -100] * 4 + [-100] * 4
    assert_close(output.loss_itm, cross_entropy(output.itm_logits[0:8:2], torch.ones(4, dtype=torch.long)))


def test_batch_of_one_warns_and_skips_matching(model, caplog):
    contrastive.logger.warning_once.cache_clear()
    contrastive.logger.addHandler(caplog.handler)
    try:
        output = model(**tiny_batch(lengths=(6,)))
    finally:
        contrastive.logger.removeHandler(caplog.handler)
    assert "no negatives" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert output.loss_itm == 0
    assert output.itm_logits is None
    assert torch.isfinite(output.loss)
    output.loss.backward()


def test_padding_does_not_change_the_losses(model, batch):
    padded = dict(batch)
    for name, value in (("input_ids", PAD), ("attention_mask", 0)):
        padded[name] = torch.nn.functional.pad(batch[name], (0, 5), value=value)
    short, long = model(**batch, generator=seeded_generator()), model(**padded, generator=seeded_generator())
    for name in LOSSES:
        assert_close(long[name], short[name])
    del padded["attention_mask"]  # inferred from the padding tokens
    assert_close(model(**padded, generator=seeded_generator()).loss, short.loss)


def test_captioning_ignores_padding_and_the_first_token(model, batch):
    output = model(**batch)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
    smoothing = model.config.text_config.label_smoothing
    expected = cross_entropy(output.lm_logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
    assert smoothing == 0.1
    assert_close(output.loss_lm, expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # true of the momentum encoder
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_does_not_change_outputs_or_gradients(model, batch, reentrant):
    plain = model(**batch, generator=seeded_generator()).loss
    expected = gradients_of(model, plain)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_activation_checkpointing
    checkpointed = model(**batch, generator=seeded_generator()).loss
    assert_close(checkpointed, plain)
    gradients = gradients_of(model, checkpointed)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], msg=name)


def test_bf16_autocast_stays_finite_and_near_fp32(model, batch):
    expected = model(**batch, generator=seeded_generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch, generator=seeded_generator())
    output.loss.backward()
    assert output.image_features.dtype == output.momentum_text_features.dtype == torch.float32
    for name in (
        "loss_itc",
        "loss_lm",
    ):  # bf16 has 8 bits of mantissa, and the temperature of 0.07 multiplies the error
        assert_close(output[name].float(), expected[name], rtol=0.05, atol=0.05)
    assert all(torch.isfinite(output[name]) for name in LOSSES)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_resizing_the_vocabulary_resizes_text_and_momentum_encoders(model):
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(47)
    embeddings = model.text_decoder.bert.embeddings.word_embeddings
    assert embeddings.weight.shape == (47, 16)
    assert_close(embeddings.weight[:40], old)
    assert model.text_encoder.embeddings.word_embeddings.weight is embeddings.weight
    assert model.text_decoder.cls.predictions.decoder.weight is embeddings.weight
    assert model.text_decoder.cls.predictions.bias.shape == (47,)
    assert_close(model.momentum_towers.text_encoder.get_input_embeddings().weight, embeddings.weight)
    assert model.config.text_config.vocab_size == 47
    batch = tiny_batch()
    batch["input_ids"][0, 1] = 46
    model(**batch).loss.backward()
    model.update_momentum()


def test_images_of_another_size_require_resized_encoders(model):
    model.resize_position_embeddings(64)
    batch = tiny_batch() | {"pixel_values": torch.randn(3, 3, 64, 64)}
    assert torch.isfinite(model(**batch).loss)
    model.update_momentum()


def test_training_step_is_reproducible_by_its_seed(model, batch):
    same = [model(**batch, generator=seeded_generator(1)).itm_logits for _ in range(2)]
    assert torch.equal(*same)
    others = [model(**batch, generator=seeded_generator(seed)).itm_logits for seed in range(2, 8)]
    assert not all(torch.equal(same[0], other) for other in others)


def test_training_step_does_not_synchronize_with_the_device(model, batch):
    with HostReads() as reads:
        output = model(**batch, image_ids=torch.tensor([1, 1, 2, 3]))
        output.loss.backward()
        model.update_momentum()
        model.enqueue(output)
    assert reads.found == []
    with reads:
        output.loss.item()
        batch["input_ids"][batch["input_ids"] == PAD]
    assert reads.found == ["aten::_local_scalar_dense", "aten::index"]


def test_base_model_has_the_papers_252_million_parameters():
    with torch.device("meta"):
        model = BlipForPreTraining(BlipPreTrainingConfig())
    model.tie_weights()
    encoders = (model.vision_model, model.text_encoder, model.text_decoder)
    parameters = {id(parameter): parameter for encoder in encoders for parameter in encoder.parameters()}
    assert sum(parameter.numel() for parameter in parameters.values()) == 252_338_492
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == (
        252_338_492 + 2 * (768 * 256 + 256) + (768 * 2 + 2) + 1  # projections, matching head, temperature
    )


def test_initial_weights_have_the_papers_standard_deviation():
    fields = {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 1}
    model = BlipForPreTraining(
        BlipPreTrainingConfig(text_config=dict(fields), vision_config=dict(fields), queue_size=0)
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and parameter.numel() > 5_000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
    assert model.temp.item() == pytest.approx(0.07)
    assert model.vision_model.embeddings.class_embedding.std().item() == pytest.approx(0.02, rel=0.3)
