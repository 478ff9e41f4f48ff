# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the model tests of transformers, restated for each model class of this package: files, weights, embeddings."""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from tests.support.model_cases import CONTRASTIVE_CASES, MODEL_CASES, cases_except, for_cases, tensors_of
from tests.support.tiny_models import VOCAB_SIZE


# The image encoder has no words.
WITH_WORDS = cases_except("vision")


@pytest.fixture(params=MODEL_CASES)
def case(request):
    return MODEL_CASES[request.param]


@torch.no_grad()
def read(model, case, **options):
    return tensors_of(model(**case.make_batch(), **options))


def assert_same_outputs(model, expected, case, **tolerance):
    assert expected
    assert_close(read(model, case), expected, **tolerance)


def load(case, folder, **options):
    return case.model_class.from_pretrained(folder, output_loading_info=True, **options)


def text_config_of(config):
    return config.get_text_config()


# ---- Files


def test_a_saved_model_loads_without_a_report_and_with_equal_outputs(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").exists() == model.can_generate()
    loaded, info = load(case, tmp_path)
    assert not any(info.values()), info
    assert not loaded.training
    assert_same_outputs(loaded, read(model, case), case)

    # Loading adds fields to the configuration, which must load in turn.
    loaded.save_pretrained(tmp_path / "again")
    again, info = load(case, tmp_path / "again")
    assert not any(info.values()), info
    assert again.config.to_dict().keys() == loaded.config.to_dict().keys()


@for_cases(["captioning", "pretraining"])
def test_shards_load_as_one_file(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, info = load(case, tmp_path)
    assert not any(info.values()), info
    assert_same_outputs(loaded, read(model, case), case)


def test_tied_weights_are_saved_once_and_tied_after_loading(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    loaded, _ = load(case, tmp_path)
    for alias, source in loaded.all_tied_weights_keys.items():
        assert alias not in saved
        assert loaded.get_parameter(alias) is loaded.get_parameter(source)
    storages = [value.data_ptr() for value in dict(loaded.named_parameters()).values()]
    assert len(storages) == len(set(storages))


@for_cases(["captioning", "pretraining", "text_decoder", "vqa"])
def test_untied_embeddings_are_saved_and_loaded_apart(case, tmp_path):
    config = case.make_config()
    config.tie_word_embeddings = text_config_of(config).tie_word_embeddings = False
    model = case.model_class(config).eval()
    decoder = model.get_output_embeddings() or model.text_decoder.get_output_embeddings()
    assert decoder.weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded, info = load(case, tmp_path)
    assert not any(info.values()), info
    assert_same_outputs(loaded, read(model, case), case)


def test_weights_load_in_the_saved_dtype_or_the_given_one(case, tmp_path):
    case.build().to(torch.bfloat16).save_pretrained(tmp_path)
    for options, expected in [({}, torch.bfloat16), ({"dtype": "float32"}, torch.float32)]:
        model, info = load(case, tmp_path, **options)
        assert {value.dtype for value in model.parameters()} == {expected}
        assert model.dtype == expected
        assert not any(info.values()), info


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_and_unexpected_weights_are_reported(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
    name = next(name for name, _ in model.named_parameters() if name.endswith("bias") and name not in tied)
    rewrite(tmp_path, lambda tensors: tensors.update(surplus=tensors.pop(name)))
    loaded, info = load(case, tmp_path, allow_new_heads=True)
    assert info["missing_keys"] == {name}
    assert info["unexpected_keys"] == {"surplus"}
    assert loaded.get_parameter(name).abs().max() < 10


def test_weights_of_another_shape_raise_or_start_anew(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    name, value = next(item for item in model.named_parameters() if item[0].endswith(".bias"))
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.zeros(len(value) + 1)}))
    with pytest.raises(ValueError, match=rf"{name}.*ignore_mismatched_sizes=True"):
        load(case, tmp_path)
    loaded, info = load(case, tmp_path, ignore_mismatched_sizes=True)
    assert info["mismatched_keys"] == {(name, (len(value) + 1,), (len(value),))}
    assert loaded.get_parameter(name).shape == value.shape


def test_old_bin_files_load(case, tmp_path):
    model = case.build()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded, info = load(case, tmp_path)
    assert not info["missing_keys"]
    assert_same_outputs(loaded, read(model, case), case)


def test_a_state_dict_goes_to_another_model(case):
    model, other = case.build(), case.build(seed=1)
    assert not model.load_state_dict(other.state_dict()).missing_keys
    assert_same_outputs(model, read(other, case), case)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_equal_outputs_and_its_own_tied_weights(case, copied):
    model = case.build()
    other = copied(model)
    assert_same_outputs(other, read(model, case), case)
    for alias, source in other.all_tied_weights_keys.items():
        assert other.get_parameter(alias) is other.get_parameter(source)
        assert other.get_parameter(alias) is not model.get_parameter(source)


# ---- New weights


def test_a_model_is_built_on_the_meta_device(case):
    with torch.device("meta"):
        model = case.model_class(case.make_config())
    assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"meta"}


def test_every_weight_that_a_checkpoint_lacks_is_initialized_as_in_a_new_model(case):
    config = case.make_config()
    new = case.model_class(copy.deepcopy(config))
    loaded = case.model_class.from_pretrained(None, config=config, state_dict={}, allow_new_heads=True)
    expected = dict(new.named_parameters()) | dict(new.named_buffers())
    actual = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].device.type == "cpu"
        assert actual[name].shape == value.shape
        spread = value.float().std(correction=0) if value.numel() else 0
        if spread == 0:
            assert_close(actual[name], value, msg=name)
        else:
            assert spread / 3 < actual[name].float().std(correction=0) < spread * 3, name
        assert actual[name].requires_grad == value.requires_grad, name


def test_device_context_managers_place_the_weights(case, tmp_path):
    case.build().save_pretrained(tmp_path)
    with torch.device("cpu"):
        loaded, info = load(case, tmp_path)
    assert not any(info.values())
    assert {value.device.type for value in loaded.parameters()} == {"cpu"}


# ---- Embeddings


@for_cases(WITH_WORDS)
def test_input_embeddings_are_the_words_and_can_be_replaced(case):
    model = case.build()
    words = model.get_input_embeddings()
    assert words.weight.shape == (VOCAB_SIZE, 16)
    before = read(model, case)
    model.set_input_embeddings(nn.Embedding(*words.weight.shape))
    assert model.get_input_embeddings() is not words
    after = read(model, case)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@for_cases(WITH_WORDS)
@pytest.mark.parametrize("size", [VOCAB_SIZE + 10, VOCAB_SIZE - 1])
def test_resized_vocabulary_reaches_all_parts_and_is_saved(case, tmp_path, size):
    model = case.build()
    config = text_config_of(model.config)
    config.enc_token_id = size - 1
    old = model.get_input_embeddings().weight.detach().clone()
    resized = model.resize_token_embeddings(size)
    assert resized is model.get_input_embeddings()
    kept = min(size, VOCAB_SIZE)
    assert_close(resized.weight[:kept], old[:kept])
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not resized]
    assert {table.num_embeddings for table in tables} <= {size, config.max_position_embeddings}
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values()
    sizes = {part.vocab_size for part in configs if hasattr(part, "vocab_size")}
    assert sizes == {size}

    model.save_pretrained(tmp_path)
    loaded, info = load(case, tmp_path)
    assert not any(info.values()), info
    batch = case.make_batch()
    batch["input_ids"] = batch["input_ids"].clamp(max=size - 1)
    batch["input_ids"][:, 1] = size - 1
    with torch.no_grad():
        expected = tensors_of(model(**batch))
        if "generator" in batch:
            batch["generator"].manual_seed(0)
            model.reset_momentum()
            expected = tensors_of(model(**batch))
            batch["generator"].manual_seed(0)
        assert_close(tensors_of(loaded(**batch)), expected)


@for_cases(WITH_WORDS)
def test_vocabulary_is_padded_to_a_multiple(case):
    model = case.build()
    model.resize_token_embeddings(VOCAB_SIZE + 1, pad_to_multiple_of=16)
    assert model.get_input_embeddings().num_embeddings == 48
    assert text_config_of(model.config).vocab_size == 48
    assert read(model, case).keys() == read(case.build(), case).keys()


# ---- Placement


def test_a_device_map_places_the_model(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    loaded, info = load(case, tmp_path, device_map={"": "cpu"})
    assert not any(info.values()), info
    assert_same_outputs(loaded, read(model, case), case)


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
@for_cases(cases_except(*CONTRASTIVE_CASES))
def test_offloaded_weights_give_equal_outputs(case, tmp_path, offload):
    model = case.build()
    expected = read(model, case)
    options = {"offload_dir": str(tmp_path)} if offload is disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **options)
    assert_same_outputs(model, expected, case)


def test_module_names_that_must_not_be_split_exist(case):
    model = case.build()
    classes = {type(module).__name__ for module in model.modules()}
    expected = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or []}
    own_layers = {name for name in classes if name.endswith("Layer")}
    assert own_layers <= expected
