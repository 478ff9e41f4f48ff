# SPDX-License-Identifier: BSD-3-Clause
"""What the weights of the three objectives do to a pre-training step."""

import torch
from torch.testing import assert_close

from blip_hf import BlipForPreTraining
from tests.support.twins import tiny_batch, tiny_pretraining_config


def test_an_objective_of_no_weight_is_left_out_and_costs_no_pass():
    model = BlipForPreTraining(tiny_pretraining_config(itm_weight=0.0, lm_weight=0.0)).train()
    calls = []
    model.text_encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.text_decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    output = model(**tiny_batch())
    assert calls == ["encoder"]
    assert output.loss_itm is output.loss_lm is None
    assert_close(output.loss, output.loss_itc)


def test_weights_scale_the_losses_in_their_sum():
    model = BlipForPreTraining(tiny_pretraining_config(itc_weight=2.0, itm_weight=0.5, lm_weight=3.0)).eval()
    output = model(**tiny_batch(), generator=torch.Generator().manual_seed(0))
    assert_close(output.loss, 2 * output.loss_itc + 0.5 * output.loss_itm + 3 * output.loss_lm)
