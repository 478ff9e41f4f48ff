# SPDX-License-Identifier: BSD-3-Clause
"""Claims about both contrastive models: pre-training and retrieval fine-tuning."""

import pytest
import torch

from blip_hf.modeling.outputs import BlipContrastiveOutput
from tests.support.batches import CONTRASTIVE_TASKS, make_model_and_batch


@pytest.fixture(params=CONTRASTIVE_TASKS)
def model_and_batch(request):
    return make_model_and_batch(request.param)


def test_forward_does_not_change_the_model_or_its_inputs(model_and_batch):
    model, batch = model_and_batch
    before = {name: value.clone() for name, value in (model.state_dict() | batch).items()}
    model(**batch).loss.backward()
    for name, value in (model.state_dict() | batch).items():
        assert torch.equal(value, before[name]), name


def test_gradients_reach_every_parameter_except_those_of_the_momentum_encoder(model_and_batch):
    model, batch = model_and_batch
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        is_momentum = name.startswith("momentum_towers.")
        assert parameter.requires_grad == (not is_momentum), name
        assert (parameter.grad is None) == is_momentum, name
        # The bias of keys adds a constant to all scores of a query, so its gradient is 0.
        if not is_momentum and not name.endswith("key.bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_return_loss_false_raises(model_and_batch):
    model, batch = model_and_batch
    with pytest.raises(ValueError, match=rf"{type(model).__name__} only computes losses. Call export_\w+\(\)"):
        model(**batch, return_loss=False)


def test_enqueue_refuses_an_output_without_momentum_features(model_and_batch):
    model, _ = model_and_batch
    with pytest.raises(ValueError, match="has no momentum features"):
        model.enqueue(BlipContrastiveOutput())
