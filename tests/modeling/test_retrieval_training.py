# SPDX-License-Identifier: BSD-3-Clause
"""The model of retrieval fine-tuning: step, loading, saving."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForRetrievalTraining,
    BlipRetrievalTrainingConfig,
)
from blip_hf.modeling import contrastive
from blip_hf.objectives import matching_pairs, sample_hard_negatives
from tests.support.momentum import assert_momentum_encoder_is_new
from tests.support.tiny_models import (
    TEXT,
    VISION,
    seeded_generator,
    tiny_batch,
    tiny_config,
    tiny_pretraining_config,
    tiny_retrieval_config,
)


IMAGE_IDS = torch.tensor([4, 4, 5, 6])


@pytest.fixture
def model():
    return BlipForRetrievalTraining(tiny_retrieval_config()).train()


@pytest.fixture
def batch():
    return tiny_batch(lengths=(7, 5, 6, 4)) | {"image_ids": IMAGE_IDS}


def test_targets_share_the_positives_of_an_image_equally(model, batch):
    model.enqueue(model(**batch))
    output = model(**batch, alpha=0.25)
    ids = torch.cat([IMAGE_IDS, model.queue.image_ids])
    hard = (IMAGE_IDS[:, None] == ids).float()  # (4, 4 + 12)
    assert hard.sum(dim=1).tolist() == [4, 4, 2, 2]  # each image is in the batch and in the queue
    online, momentum, queue = (
        (source[f"{prefix}image_features"], source[f"{prefix}text_features"])
        for source, prefix in ((output, ""), (output, "momentum_"), (vars(model.queue)["_buffers"], ""))
    )
    losses = []
    for query, key in ((0, 1), (1, 0)):
        keys = torch.cat([momentum[key], queue[key]])
        soft = (momentum[query] @ keys.T / model.temp).softmax(dim=-1)
        targets = 0.25 * soft + 0.75 * hard / hard.sum(dim=1, keepdim=True)
        losses.append(cross_entropy(online[query] @ keys.T / model.temp, targets))
    assert_close(output.loss_itc, sum(losses) / 2)
    assert_close(output.loss, output.loss_itc + output.loss_itm)


def test_negatives_are_drawn_by_online_features_and_never_of_the_same_image(model, batch, monkeypatch):
    calls = []

    def record(logits, positives, generator):
        calls.append((logits, positives))
        return sample_hard_negatives(logits, positives, generator)

    monkeypatch.setattr(contrastive, "sample_hard_negatives", record)
    with torch.no_grad():
        for parameter in model.momentum_towers.parameters():
            parameter.normal_()
    output = model(**batch)
    logits = output.image_features @ output.text_features.T / model.temp
    for (actual, positives), expected in zip(calls, (logits, logits.T), strict=True):
        assert_close(actual, expected.detach())
        assert torch.equal(positives, IMAGE_IDS[:, None] == IMAGE_IDS)


def test_keys_of_a_later_rank_have_their_own_positives():
    pairs = matching_pairs(torch.tensor([-100, 7]), torch.tensor([7, -100, -100, 7]), first_key=2)
    assert pairs.int().tolist() == [[0, 0, 1, 0], [1, 0, 0, 1]]


def test_both_losses_share_one_image_pass_and_one_projection_per_layer(model, batch):
    visual_passes, key_projections, text_passes = [], [], []
    model.vision_model.register_forward_hook(lambda *_: visual_passes.append(1))
    model.text_encoder.embeddings.register_forward_hook(lambda *args: text_passes.append(len(args[2])))
    for layer in model.text_encoder.encoder.layer:
        layer.crossattention.self.key.register_forward_hook(lambda *args: key_projections.append(len(args[2])))
    model(**batch)
    assert visual_passes == [1]
    assert key_projections == [4, 4]
    assert text_passes == [4, 12]


def test_matching_equals_the_exported_matcher_on_each_pair(model, batch):
    output = model(**batch, generator=seeded_generator())
    matched = model.export_retriever()(
        batch["input_ids"], batch["pixel_values"], attention_mask=batch["attention_mask"]
    )
    assert_close(output.itm_logits[0:8:2], matched.itm_logits)
    assert_close(output.loss_itm, cross_entropy(output.itm_logits, output.itm_labels))


def test_batch_of_one_image_has_only_matched_pairs_in_the_matching_loss(model, batch):
    output = model(**batch | {"image_ids": torch.full((4,), 9)})
    assert output.itm_labels.tolist() == [1, -100] * 4 + [-100] * 4
    assert output.loss.isfinite()


def test_without_image_ids_each_pair_has_its_own_image(model, batch):
    own = model(**batch | {"image_ids": torch.arange(4)}, generator=seeded_generator())
    del batch["image_ids"]
    assert_close(model(**batch, generator=seeded_generator()).loss, own.loss)


def test_saved_model_loads_with_fresh_training_state(batch, tmp_path):
    model = BlipForRetrievalTraining(tiny_retrieval_config(negative_all_rank=False))
    with torch.no_grad():
        model.temp.fill_(0.123)
        for parameter in model.momentum_towers.parameters():
            parameter.add_(1.0)
    model.enqueue(model(**batch))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    loaded, info = BlipForRetrievalTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert (loaded.config.queue_size, loaded.config.negative_all_rank) == (12, False)
    assert_momentum_encoder_is_new(loaded)
    assert loaded.queue.num_enqueued == 0
    loaded.load_state_dict(model.training_state_dict(), strict=False)
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("package", ["transformers", "blip_hf"])
def test_a_matcher_starts_fine_tuning(package, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    if package == "transformers":
        config = transformers.BlipConfig(text_config=dict(TEXT), vision_config=dict(VISION), image_text_hidden_size=8)
        matcher = transformers.BlipForImageTextRetrieval(config)
    else:
        matcher = BlipForImageTextRetrieval(tiny_config())
    matcher.save_pretrained(tmp_path)
    caplog.clear()
    model = BlipForRetrievalTraining.from_pretrained(tmp_path, queue_size=6)
    assert caplog.text == ""
    state = model.state_dict()
    for name, value in matcher.state_dict().items():
        assert torch.equal(state[name], value), name
    assert model.temp.item() == pytest.approx(0.07)
    assert_close(model.queue.text_features.norm(dim=-1), torch.ones(6))
    assert model.config.model_type == "blip_retrieval_training"
    assert_momentum_encoder_is_new(model)


def test_a_pretraining_checkpoint_starts_fine_tuning_without_its_decoder(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    source = BlipForPreTraining(tiny_pretraining_config(queue_size=10, momentum=0.9, lm_weight=0.5))
    with torch.no_grad():
        source.temp.fill_(0.2)
    source.save_pretrained(tmp_path / "source")
    caplog.clear()
    model = BlipForRetrievalTraining.from_pretrained(tmp_path / "source", momentum=0.8)
    assert caplog.text == ""
    for name, value in source.export_retriever().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.temp.item() == pytest.approx(0.2)
    assert (model.config.queue_size, model.config.momentum) == (10, 0.8)
    assert "lm_weight" not in model.config.to_dict()
    assert_momentum_encoder_is_new(model)
    # Its own checkpoint also loads completely.
    model.save_pretrained(tmp_path / "own")
    _, info = BlipForRetrievalTraining.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not any(info.values()), info


def test_captioner_checkpoint_raises(tmp_path):
    BlipForConditionalGeneration(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for itm_head, .*vision_proj of BlipForRetrievalTraining"):
        BlipForRetrievalTraining.from_pretrained(tmp_path)


def test_the_exported_matcher_opens_in_transformers(model, batch, tmp_path):
    model.export_retriever().save_pretrained(tmp_path)
    theirs, info = transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    similarity = theirs(
        batch["input_ids"], batch["pixel_values"], use_itm_head=False, attention_mask=batch["attention_mask"]
    )
    output = model.eval()(**batch)
    assert_close(similarity.itm_score, output.image_features @ output.text_features.T)


def test_defaults_equal_the_papers():
    config = BlipRetrievalTrainingConfig()
    assert (config.queue_size, config.momentum, config.alpha, config.negative_all_rank) == (57600, 0.995, 0.4, False)
