# SPDX-License-Identifier: BSD-3-Clause
"""The momentum encoder of a new model."""

import torch

from blip_hf import BlipForPreTraining, BlipForRetrievalTraining


def assert_momentum_encoder_is_new(model: BlipForPreTraining | BlipForRetrievalTraining) -> None:
    """Asserts that the weights of the momentum encoder equal those of the model and are not trained."""
    online = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in model.momentum_towers.named_parameters():
        assert torch.equal(parameter, online[name]), name
        assert not parameter.requires_grad, name
