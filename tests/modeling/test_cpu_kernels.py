# SPDX-License-Identifier: BSD-3-Clause
"""Which products and attention kernels run on CPUs, and that the choice changes no result."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from blip_hf import BlipConfig, BlipForConditionalGeneration
from blip_hf.modeling import attention
from blip_hf.modeling.attention import attend, split_heads
from blip_hf.modeling.cpu_attention import matmul_attention, use_matmul_attention
from blip_hf.modeling.linear import Linear
from tests.support.twins import TEXT, VISION, tiny_config


ONEDNN = "mkldnn::_linear_pointwise"
needs_choice = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="torch has no MKL, or no oneDNN, to choose from",
)
needs_bf16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="oneDNN has no bf16 products on this processor",
)


class Operations(TorchDispatchMode):
    """Counts what is run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def run_operations(work):
    with Operations() as operations:
        work()
    return operations.counts


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear(64, 32)


INPUTS = {
    "one row": lambda: torch.randn(64),
    "four dimensions": lambda: torch.randn(2, 3, 5, 64),
    "a slice": lambda: torch.randn(3, 7, 64)[:, :1],
    "a transpose": lambda: torch.randn(64, 3).t(),
    "an expanded row": lambda: torch.randn(1, 64).expand(4, 64),
    "every second column": lambda: torch.randn(4, 128)[:, ::2],
    "nothing": lambda: torch.randn(0, 64),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_gives_what_torch_gives(make, has_bias):
    layer, states = Linear(64, 32, bias=has_bias), make()
    with torch.no_grad():
        result = layer(states)
    torch.testing.assert_close(result, nn.functional.linear(states, layer.weight, layer.bias))


@needs_choice
def test_fp32_products_without_gradient_are_those_of_onednn(layer):
    with torch.no_grad():
        assert run_operations(lambda: layer(torch.randn(3, 64)))[ONEDNN] == 1
    with torch.inference_mode():
        assert run_operations(lambda: layer(torch.randn(3, 64)))[ONEDNN] == 1


@needs_choice
def test_all_large_products_of_a_captioner_take_that_way():
    model = BlipForConditionalGeneration(tiny_config()).eval()
    pixels = torch.randn(2, 3, 32, 32)
    counts = run_operations(lambda: model.generate(pixels, max_new_tokens=2))
    assert counts[ONEDNN] > 0
    assert counts["aten::addmm"] == 0


def test_with_a_gradient_the_layer_is_torchs_own(layer):
    states = torch.randn(3, 64, requires_grad=True)
    assert run_operations(lambda: layer(states))[ONEDNN] == 0
    layer(states).square().sum().backward()
    assert states.grad.abs().sum() > 0


@needs_choice
@needs_bf16
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_bf16_products_are_those_of_onednn_too(has_bias):
    layer, states = Linear(64, 32, bias=has_bias).bfloat16(), torch.randn(3, 64).bfloat16()
    assert run_operations(lambda: layer(states))[ONEDNN] == 1
    exact = nn.functional.linear(
        states.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double()
    )
    torch.testing.assert_close(layer(states).double(), exact, atol=1e-2, rtol=1e-2)


@needs_choice
@needs_bf16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_autocast_casts_weights_without_gradient_for_onednn(layer, dtype):
    layer.requires_grad_(False)
    states = torch.randn(3, 64).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert run_operations(lambda: layer(states))[ONEDNN] == 1
        result, expected = layer(states), nn.functional.linear(states, layer.weight, layer.bias)
    assert result.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected)


@torch.no_grad()
def test_weights_that_autocast_keeps_cast_are_not_cast_for_each_step(layer):
    states = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(states).dtype == torch.bfloat16
        counts = run_operations(lambda: layer(states))
    assert counts["aten::_to_copy"] == 1  # of the states
    assert counts[ONEDNN] == 0


@torch.no_grad()
def test_autocast_to_another_dtype_is_respected(layer):
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.float16):
        assert layer(torch.randn(3, 64)).dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.double()(torch.randn(3, 64).double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@torch.no_grad()
def test_other_dtypes_and_a_switched_off_onednn_are_respected(layer):
    states = torch.randn(3, 64)
    with torch.backends.mkldnn.flags(enabled=False):
        assert run_operations(lambda: layer(states))[ONEDNN] == 0
    assert layer.to(torch.float64)(states.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="dtype"):
        layer(states.bfloat16())


@torch.no_grad()
def test_weights_of_another_tensor_class_keep_their_own_product(layer):
    class Quantised(torch.Tensor):
        """As torchao has them."""

    layer.weight = nn.Parameter(torch.randn(32, 64).as_subclass(Quantised))
    assert run_operations(lambda: layer(torch.randn(3, 64)))[ONEDNN] == 0


@torch.no_grad()
def test_a_wrong_width_gives_torchs_error(layer):
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer(torch.randn(3, 63))


# ---- Attention


class Attending(nn.Module):
    """What `attend` reads of a module."""

    def __init__(self, implementation="sdpa"):
        super().__init__()
        self.config = BlipConfig(attn_implementation=implementation)
        self.is_causal = False


def draw(rows, length, keys, dtype=torch.float32):
    """Queries, keys and values as projections leave them: heads side by side."""
    torch.manual_seed(0)
    return tuple(split_heads(torch.randn(rows, n, 48, dtype=dtype), 3) for n in (length, keys, keys))


def context(module, query, key, value, **changes):
    options = {"mask": None, "dropout": 0.0, "is_causal": False, "output_attentions": False} | changes
    return attend(module, query, key, value, **options)[0]


@pytest.fixture
def products(monkeypatch):
    """Counts calls of `matmul_attention`."""
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return matmul_attention(*arguments)

    monkeypatch.setattr(attention, "matmul_attention", count)
    return calls


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("length", [1, 3, 70])
@pytest.mark.parametrize("most_scores", [1, 1000, 2**21])
@torch.no_grad()
def test_products_give_what_sdpa_gives(rows, length, most_scores, monkeypatch):
    monkeypatch.setattr("blip_hf.modeling.cpu_attention._MOST_SCORES", most_scores)
    query, key, value = draw(rows, length, 80)
    expected = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    torch.testing.assert_close(matmul_attention(query, key, value, 0.25), expected)


@needs_bf16
@torch.no_grad()
def test_products_in_bf16_round_as_eager_attention_does(products):
    states = draw(2, 70, 80, torch.bfloat16)
    exact = context(Attending("eager").eval(), *(part.double() for part in states))
    eager = context(Attending("eager").eval(), *states)
    ours = context(Attending().eval(), *states)
    assert len(products) == 1
    assert (ours - exact).abs().max() < 1.1 * (eager - exact).abs().max()


@needs_bf16
@pytest.mark.parametrize("length", [1, 3, 70])
@torch.no_grad()
def test_bf16_takes_products_and_fp32_does_not(length, products):
    module = Attending().eval()
    states = draw(2, length, 80)
    exact = context(module, *states)
    assert not products
    result = context(module, *(part.bfloat16() for part in states))
    assert len(products) == 1
    torch.testing.assert_close(result.float(), exact, atol=0.03, rtol=0.03)


@needs_bf16
@torch.no_grad()
def test_masks_causality_dropout_and_other_backends_are_left_alone(products):
    query, key, value = draw(2, 1, 80, torch.bfloat16)
    mask = torch.ones(2, 1, 1, 80, dtype=torch.bool)
    mask[0, ..., 40:] = False
    masked = context(Attending().eval(), query, key, value, mask=mask)
    eager = context(Attending("eager"), query, key, value, mask=mask)
    torch.testing.assert_close(masked, eager, atol=0.03, rtol=0.03)
    context(Attending().eval(), query, key, value, is_causal=True)
    context(Attending().train(), query, key, value, dropout=0.5)
    context(Attending("eager").eval(), query, key, value)
    with torch.enable_grad():
        context(Attending().eval(), query, key, value)
    assert not products
    assert use_matmul_attention(query, key)
    assert not use_matmul_attention(query.to("meta"), key.to("meta"))
    assert not use_matmul_attention(query, key[:, :, :20])


@needs_bf16
@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_captions_in_bf16_are_written_through_products(num_beams, products):
    torch.manual_seed(0)
    config = BlipConfig(text_config=dict(TEXT), vision_config=VISION | {"patch_size": 4})  # 65 image tokens
    model = BlipForConditionalGeneration(config).eval().bfloat16()
    pixels = torch.randn(2, 3, 32, 32).bfloat16()
    written = model.generate(pixels, num_beams=num_beams, do_sample=False, max_new_tokens=6, min_new_tokens=6)
    assert products
    products.clear()
    logits = model(pixels, input_ids=written).logits
    assert products
    products.clear()
    model.set_attn_implementation("eager")
    eager = model(pixels, input_ids=written).logits
    assert not products
    exact = model.double()(pixels.double(), input_ids=written).logits
    assert (logits - exact).abs().mean() < 1.2 * (eager - exact).abs().mean()
