# SPDX-License-Identifier: BSD-3-Clause
"""`optimize_for_cpu` changes kernels, not results; a model without it consists of plain modules."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
    optimize_for_cpu,
)
from blip_hf.modeling import cpu
from blip_hf.modeling.attention import attend, split_heads
from blip_hf.modeling.cpu import CPU_ATTENTION, CpuLinear, matmul_attention, use_matmul_attention
from tests.support.tiny_models import (
    DEC,
    TEXT,
    VISION,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
    tiny_pretraining_config,
    tiny_retrieval_config,
)


ONEDNN = "mkldnn::_linear_pointwise"
needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="torch is built without MKL or oneDNN",
)
needs_bf16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="oneDNN has no bf16 products on this processor",
)


class Operations(TorchDispatchMode):
    """Counts the operations that run."""

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


# ---- Whole models


def captioner(dtype=torch.float32):
    """A captioner with 65 image tokens, enough for matmul attention."""
    torch.manual_seed(0)
    config = BlipConfig(text_config=dict(TEXT), vision_config=VISION | {"patch_size": 4}, image_text_hidden_size=8)
    return BlipForConditionalGeneration(config).eval().to(dtype)


def labelled(batch):
    return batch | {"labels": batch["input_ids"]}


def paired(batch):
    pixels = torch.stack([batch["pixel_values"], batch["pixel_values"].flip(0)], dim=1)
    return batch | {"pixel_values": pixels, "labels": torch.tensor([1, 0, 1])}


def seeded(batch):
    return batch | {"generator": torch.Generator().manual_seed(0)}


HEADS = {
    "caption": (BlipForConditionalGeneration, tiny_config, labelled, "logits"),
    "retrieval": (
        BlipForImageTextRetrieval,
        tiny_config,
        lambda batch: batch | {"labels": torch.ones(3).long()},
        "itm_logits",
    ),
    "vqa": (BlipForQuestionAnswering, tiny_config, labelled, "logits"),
    "nlvr2": (BlipForVisualReasoning, tiny_nlvr2_config, paired, "logits"),
    "pretraining": (BlipForPreTraining, tiny_pretraining_config, seeded, "lm_logits"),
    "retrieval_training": (BlipForRetrievalTraining, tiny_retrieval_config, seeded, "itm_logits"),
}


@pytest.fixture(params=HEADS.values(), ids=HEADS)
def head(request):
    """A model, its optimised copy, a function that makes a training batch, and the name of its logits."""
    model_class, make_config, prepare, logits_name = request.param
    model = model_class(make_config()).eval()
    return model, optimize_for_cpu(copy.deepcopy(model)), lambda: prepare(tiny_batch()), logits_name


def test_a_model_has_plain_linear_layers_until_it_is_optimised(head):
    plain, optimised, _, _ = head
    assert {type(module) for module in plain.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert plain.config._attn_implementation == "sdpa"
    if cpu._HAS_ONEDNN_LINEAR:
        assert {type(module) for module in optimised.modules() if isinstance(module, nn.Linear)} == {CpuLinear}
    assert optimised.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_an_optimised_model_has_the_same_logits(head, dtype):
    plain, optimised, make_batch, logits_name = head
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0.06}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected, logits = plain(**make_batch())[logits_name], optimised(**make_batch())[logits_name]
    assert_close(logits, expected, **tolerance)


def test_an_optimised_model_has_the_same_gradients(head):
    plain, optimised, make_batch, _ = head
    gradients = []
    for model in (plain, optimised):
        model.train()(**make_batch()).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0]
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_a_second_call_changes_nothing_and_covers_new_layers():
    model = optimize_for_cpu(captioner())
    layers = dict(model.named_modules())
    assert optimize_for_cpu(model) is model
    assert dict(model.named_modules()) == layers
    model.resize_token_embeddings(50)
    optimize_for_cpu(model)
    assert type(model.get_output_embeddings()) is type(model.text_decoder.cls.predictions.transform.dense)


@needs_onednn
def test_copied_pickled_and_cast_models_stay_optimised():
    model = optimize_for_cpu(captioner())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.bfloat16)):
        assert type(other.get_output_embeddings()) is CpuLinear
        assert other.config.text_config._attn_implementation == model.config._attn_implementation


def test_a_saved_model_opens_as_a_plain_one(tmp_path):
    model = optimize_for_cpu(captioner())
    model.save_pretrained(tmp_path)
    loaded = BlipForConditionalGeneration.from_pretrained(tmp_path)
    assert type(loaded.get_output_embeddings()) is nn.Linear
    assert loaded.config._attn_implementation == "sdpa"
    batch = tiny_batch(first=DEC)
    with torch.no_grad():
        assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)


def test_eager_attention_is_kept():
    model = captioner()
    model.set_attn_implementation("eager")
    assert optimize_for_cpu(model).config._attn_implementation == "eager"


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_dynamic_quantisation_covers_all_linear_layers():
    model = captioner()
    num_layers = sum(type(module) is nn.Linear for module in model.modules())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    kinds = Counter(type(module) for module in quantised.modules())
    assert kinds[torch.ao.nn.quantized.dynamic.Linear] == num_layers > 0
    captions = quantised.generate(torch.randn(2, 3, 32, 32), max_new_tokens=4, min_new_tokens=4)
    assert captions.shape == (2, 5)


@needs_onednn
def test_all_linear_layers_of_an_optimised_captioner_run_in_onednn():
    pixels = torch.randn(2, 3, 32, 32)
    model = captioner()
    counts = run_operations(lambda: model.generate(pixels, max_new_tokens=2))
    assert counts[ONEDNN] == 0
    optimize_for_cpu(model)
    counts = run_operations(lambda: model.generate(pixels, max_new_tokens=2))
    assert counts[ONEDNN] > 0
    assert counts["aten::addmm"] == 0


# ---- Linear layers


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return CpuLinear(64, 32)


INPUTS = {
    "one row": lambda: torch.randn(64),
    "four dimensions": lambda: torch.randn(2, 3, 5, 64),
    "a slice": lambda: torch.randn(3, 7, 64)[:, :1],
    "a transpose": lambda: torch.randn(64, 3).t(),
    "an expanded row": lambda: torch.randn(1, 64).expand(4, 64),
    "every second column": lambda: torch.randn(4, 128)[:, ::2],
    "no rows": lambda: torch.randn(0, 64),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_equals_torchs(make, has_bias):
    layer, states = CpuLinear(64, 32, bias=has_bias), make()
    with torch.no_grad():
        assert_close(layer(states), nn.functional.linear(states, layer.weight, layer.bias))


@needs_onednn
def test_fp32_products_without_gradient_run_in_onednn(layer):
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert run_operations(lambda: layer(torch.randn(3, 64)))[ONEDNN] == 1


def test_products_with_gradient_run_in_torch(layer):
    states = torch.randn(3, 64, requires_grad=True)
    assert run_operations(lambda: layer(states))[ONEDNN] == 0
    layer(states).square().sum().backward()
    assert states.grad.abs().sum() > 0


@needs_onednn
@needs_bf16
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_bf16_products_run_in_onednn(has_bias):
    layer, states = CpuLinear(64, 32, bias=has_bias).bfloat16(), torch.randn(3, 64).bfloat16()
    assert run_operations(lambda: layer(states))[ONEDNN] == 1
    exact = nn.functional.linear(
        states.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double()
    )
    assert_close(layer(states).double(), exact, atol=1e-2, rtol=1e-2)


@needs_onednn
@needs_bf16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_autocast_casts_frozen_weights_for_onednn(layer, dtype):
    layer.requires_grad_(False)
    states = torch.randn(3, 64).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert run_operations(lambda: layer(states))[ONEDNN] == 1
        result, expected = layer(states), nn.functional.linear(states, layer.weight, layer.bias)
    assert result.dtype == expected.dtype == torch.bfloat16
    assert_close(result, expected)


@torch.no_grad()
def test_weights_in_the_cache_of_autocast_are_not_cast_again(layer):
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
def test_other_dtypes_and_disabled_onednn_use_torch(layer):
    states = torch.randn(3, 64)
    with torch.backends.mkldnn.flags(enabled=False):
        assert run_operations(lambda: layer(states))[ONEDNN] == 0
    assert layer.to(torch.float64)(states.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="dtype"):
        layer(states.bfloat16())


@torch.no_grad()
def test_tensor_subclass_weights_use_their_own_matmul(layer):
    class Quantised(torch.Tensor):
        """Stands in for quantised tensors of torchao."""

    layer.weight = nn.Parameter(torch.randn(32, 64).as_subclass(Quantised))
    assert run_operations(lambda: layer(torch.randn(3, 64)))[ONEDNN] == 0


@torch.no_grad()
def test_wrong_width_raises_the_error_of_torch(layer):
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer(torch.randn(3, 63))


# ---- Attention


class Attending(nn.Module):
    """The attributes of a module that `attend` reads."""

    def __init__(self, implementation=CPU_ATTENTION):
        super().__init__()
        self.config = BlipConfig()
        self.config._attn_implementation = implementation
        self.is_causal = False


def draw(rows, length, keys, dtype=torch.float32):
    """Queries, keys and values in the layout of projections: heads side by side."""
    torch.manual_seed(0)
    return tuple(split_heads(torch.randn(rows, n, 48, dtype=dtype), 3) for n in (length, keys, keys))


def context(module, query, key, value, **changes):
    options = {"mask": None, "dropout": 0.0, "is_causal": False, "output_attentions": False} | changes
    return attend(module, query, key, value, **options)[0]


@pytest.fixture
def products(monkeypatch):
    """Records the calls of `matmul_attention`."""
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return matmul_attention(*arguments)

    monkeypatch.setattr(cpu, "matmul_attention", count)
    return calls


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("length", [1, 3, 70])
@pytest.mark.parametrize("max_scores", [1, 1000, 2**21])
@torch.no_grad()
def test_matmul_attention_equals_sdpa(rows, length, max_scores, monkeypatch):
    monkeypatch.setattr(cpu, "_MAX_SCORES", max_scores)
    query, key, value = draw(rows, length, 80)
    expected = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    assert_close(matmul_attention(query, key, value, 0.25), expected)


@needs_bf16
@torch.no_grad()
def test_matmul_attention_in_bf16_rounds_as_eager_attention_does(products):
    states = draw(2, 70, 80, torch.bfloat16)
    exact = context(Attending("eager").eval(), *(part.double() for part in states))
    eager = context(Attending("eager").eval(), *states)
    ours = context(Attending().eval(), *states)
    assert len(products) == 1
    assert (ours - exact).abs().max() < 1.1 * (eager - exact).abs().max()


@needs_bf16
@pytest.mark.parametrize("length", [1, 3, 70])
@torch.no_grad()
def test_bf16_uses_matmul_attention_and_fp32_does_not(length, products):
    module = Attending().eval()
    states = draw(2, length, 80)
    exact = context(module, *states)
    assert not products
    result = context(module, *(part.bfloat16() for part in states))
    assert len(products) == 1
    assert_close(result.float(), exact, atol=0.03, rtol=0.03)


@needs_bf16
@torch.no_grad()
def test_masks_causality_dropout_gradients_and_other_backends_are_respected(products):
    query, key, value = draw(2, 1, 80, torch.bfloat16)
    mask = torch.ones(2, 1, 1, 80, dtype=torch.bool)
    mask[0, ..., 40:] = False
    masked = context(Attending().eval(), query, key, value, mask=mask)
    eager = context(Attending("eager"), query, key, value, mask=mask)
    assert_close(masked, eager, atol=0.03, rtol=0.03)
    context(Attending().eval(), query, key, value, is_causal=True)
    context(Attending().train(), query, key, value, dropout=0.5)
    for implementation in ("eager", "sdpa"):
        context(Attending(implementation).eval(), query, key, value)
    with torch.enable_grad():
        context(Attending().eval(), query, key, value)
    assert not products
    assert use_matmul_attention(query, key)
    assert not use_matmul_attention(query.to("meta"), key.to("meta"))
    assert not use_matmul_attention(query, key[:, :, :20])


@needs_bf16
@pytest.mark.parametrize("num_beams", [1, 3])
@torch.no_grad()
def test_bf16_captions_are_as_close_to_the_exact_ones_as_eager_ones(num_beams, products):
    model = optimize_for_cpu(captioner(torch.bfloat16))
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


@torch.no_grad()
def test_an_optimised_captioner_writes_with_a_static_cache():
    plain, pixels = captioner(), torch.randn(2, 3, 32, 32)
    settings = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    expected = plain.generate(pixels, **settings)
    assert torch.equal(optimize_for_cpu(plain).generate(pixels, **settings), expected)
