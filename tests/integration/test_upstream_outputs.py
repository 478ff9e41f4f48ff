# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the model tests of transformers, restated for each model class of this package: outputs and gradients."""

import inspect

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import PreTrainedModel

import blip_hf
from tests.support.model_cases import CONTRASTIVE_CASES, MODEL_CASES, cases_except, for_cases, tensors_of
from tests.support.tiny_models import SUMMATION_TOLERANCE


WITH_LOSS = cases_except("vision", "text")
# Outputs that compare all pairs of a batch have no hidden states and no attentions.
WITH_STATES = cases_except(*CONTRASTIVE_CASES, "dual_encoder")


@pytest.fixture(params=MODEL_CASES)
def case(request):
    return MODEL_CASES[request.param]


@torch.no_grad()
def run(model, case, **options):
    return model(**case.make_batch(), **options)


def in_training(case):
    return case.build().train()


def gradients(model, case):
    model.zero_grad()
    model(**case.make_batch()).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


# ---- Outputs


def test_two_calls_are_equal_in_evaluation(case):
    model = case.build()
    first, second = tensors_of(run(model, case)), tensors_of(run(model, case))
    assert first
    assert_close(second, first, rtol=0, atol=0)


def test_a_tuple_has_the_fields_of_the_output_in_order(case):
    model = case.build()
    output = run(model, case)
    from_argument = run(model, case, return_dict=False)
    model.config.return_dict = False
    for actual in (from_argument, run(model, case)):
        assert isinstance(actual, tuple)
        assert_close(actual, output.to_tuple())


@for_cases(WITH_STATES)
def test_rows_of_a_batch_equal_each_row_alone_without_padding(case):
    model = case.build()
    together = tensors_of(run(model, case))
    for row in range(3):
        for name, value in tensors_of(model(**without_padding(case.make_batch(), row))).items():
            if value.dim():  # not the loss
                expected = together[name][row : row + 1][tuple(slice(size) for size in value.shape)]
                assert_close(value, expected, **SUMMATION_TOLERANCE, msg=name)


def without_padding(batch, row):
    """One row of a batch, its text cut to its length."""
    alone = {name: value[row : row + 1] for name, value in batch.items()}
    if "input_ids" not in batch:
        return alone
    length = batch["attention_mask"][row].sum()
    is_text = {name: value.shape == batch["input_ids"].shape for name, value in batch.items()}
    return {name: value[:, :length] if is_text[name] else value for name, value in alone.items()}


@for_cases(WITH_STATES)
@pytest.mark.parametrize("where", ["argument", "configuration"])
def test_hidden_states_and_attentions_are_returned_on_request(case, where):
    model = case.build()
    if where == "configuration":
        model.set_attn_implementation("eager")
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.config.output_hidden_states = part.config.output_attentions = True
        output = run(model, case)
    else:
        output = run(model, case, output_hidden_states=True, output_attentions=True)
    states = [name for name in output if name.endswith("hidden_states")]
    maps = [name for name in output if name.endswith("attentions")]
    assert states
    assert maps
    for name in states:
        assert len(output[name]) == 2 + 1, name
    for name in maps:
        assert len(output[name]) == 2, name
        for probabilities in output[name]:
            assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]), msg=name)
    plain = run(case.build(), case)
    assert not [name for name in plain if name.endswith("attentions") or name.endswith("hidden_states")] or (
        "last_hidden_state" in plain
    )
    assert_close(output[0], plain[0], **SUMMATION_TOLERANCE)


@for_cases(WITH_STATES)
def test_gradients_reach_hidden_states_and_attentions(case):
    model = in_training(case)
    output = model(**case.make_batch(), output_hidden_states=True, output_attentions=True)
    kept = [
        part
        for name, value in output.items()
        if name.endswith(("hidden_states", "attentions"))
        for part in value
        if part.requires_grad
    ]
    assert kept
    for part in kept:
        part.retain_grad()
    output[0].sum().backward()


def test_eager_and_sdpa_give_equal_outputs(case):
    model = case.build()
    assert model.config._attn_implementation == "sdpa"
    expected = tensors_of(run(model, case))
    model.set_attn_implementation("eager")
    assert_close(tensors_of(run(model, case)), expected, **SUMMATION_TOLERANCE)
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")


def test_attention_is_chosen_on_loading(case, tmp_path):
    case.build().save_pretrained(tmp_path)
    model = case.model_class.from_pretrained(tmp_path, attn_implementation="eager")
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    assert {part.config._attn_implementation for part in parts} == {"eager"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_keeps_its_dtype(case, dtype):
    model, batch = case.build().to(dtype), case.make_batch()
    if "encoder_hidden_states" in batch:
        batch["encoder_hidden_states"] = batch["encoder_hidden_states"].to(dtype)
    outputs = tensors_of(model(**batch))
    for name, value in outputs.items():
        assert value.isfinite().all(), name
        # Losses are fp32, and so are the features that the contrastive loss compares.
        assert value.dtype == (torch.float32 if "loss" in name or "features" in name else dtype), name


@pytest.mark.parametrize("name", ["text", "text_decoder"])
def test_word_embeddings_replace_token_ids(name):
    case = MODEL_CASES[name]
    model, batch = case.build(), case.make_batch()
    expected = tensors_of(model(**batch))
    embedded = model.get_input_embeddings()(batch.pop("input_ids"))
    assert_close(tensors_of(model(**batch, inputs_embeds=embedded)), expected)


# ---- Gradients


@for_cases(WITH_LOSS)
def test_every_parameter_that_trains_gets_a_gradient(case):
    model = in_training(case)
    found = gradients(model, case)
    expected = {name for name, value in model.named_parameters() if value.requires_grad}
    if case is MODEL_CASES["matching"]:  # the loss is that of the matching head
        expected -= {name for name in expected if name.startswith(("vision_proj.", "text_proj."))}
    if case is MODEL_CASES["dual_encoder"]:  # its texts read no images
        expected -= {name for name in expected if ".crossattention." in name}
    assert found.keys() == expected


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # true of the momentum encoder
@for_cases(WITH_LOSS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient_and_can_be_disabled(case, reentrant):
    model = in_training(case)
    expected = gradients(model, case)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if reentrant:
        model.enable_input_require_grads()
    assert_close(gradients(model, case), expected, **SUMMATION_TOLERANCE)
    model.activation_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


# ---- Drop-in


SHARED_CLASSES = [
    "BlipForConditionalGeneration",
    "BlipForImageTextRetrieval",
    "BlipForQuestionAnswering",
    "BlipModel",
    "BlipVisionModel",
    "BlipTextModel",
]


METHODS = [
    *((name, "forward") for name in SHARED_CLASSES),
    ("BlipForConditionalGeneration", "generate"),
    ("BlipForQuestionAnswering", "generate"),
]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_arguments_have_the_order_and_defaults_of_transformers(name, method):
    functions = (getattr(getattr(library, name), method) for library in (transformers, blip_hf))
    theirs, ours = (inspect.signature(function).parameters for function in functions)
    named = [parameter for parameter in theirs.values() if parameter.kind is not parameter.VAR_KEYWORD]
    for expected, actual in zip(named, ours.values(), strict=False):
        assert actual.name == expected.name
        if expected.default is not inspect.Parameter.empty:
            assert actual.default == expected.default, actual.name


@pytest.mark.parametrize("name", SHARED_CLASSES)
def test_class_attributes_are_those_of_transformers(name):
    ours, theirs = getattr(blip_hf, name), getattr(transformers, name)
    assert ours.main_input_name == theirs.main_input_name
    assert ours.can_generate() == theirs.can_generate()
    assert issubclass(ours.config_class, theirs.config_class)


@pytest.mark.parametrize("name", SHARED_CLASSES)
def test_attributes_of_a_model_of_transformers_exist(name):
    (case,) = (case for case in MODEL_CASES.values() if case.model_class is getattr(blip_hf, name))
    ours = case.build()
    theirs = getattr(transformers, name)(
        getattr(transformers, type(ours.config).__name__)(**shared_fields(ours.config))
    )
    # The matcher has no decoder.
    expected = {attribute for attribute in vars(theirs) if not attribute.startswith(("_", "decoder_"))}
    assert not {attribute for attribute in expected if not hasattr(ours, attribute)}


def shared_fields(config):
    """Fields that the configuration of transformers has too."""
    known = type(config).__mro__[1]().to_dict().keys()
    fields = {name: value for name, value in config.to_dict().items() if name in known}
    for name in config.sub_configs:
        fields[name] = shared_fields(getattr(config, name))
    return fields
