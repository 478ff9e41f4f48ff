# SPDX-License-Identifier: BSD-3-Clause
"""Conversion of original checkpoints in both directions, for each task."""

import argparse
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import blip_hf
from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForRetrievalTraining,
    BlipProcessor,
    convert_original_checkpoint,
    convert_original_state_dict,
    restore_original_checkpoint,
    restore_original_state_dict,
)
from blip_hf.caption_settings import PRETRAINING_SETTINGS
from blip_hf.conversion.kinds import find_kind, infer_config
from blip_hf.modeling.momentum import MOMENTUM_STATE_NAME
from tests.support import tiny_models
from tests.support.originals import (
    HEAD_WIDTH,
    IMAGE_SIZE,
    QUEUE_SIZE,
    TASKS,
    VOCAB_SIZE,
    original_state,
    save_bert_tokenizer,
)
from tests.support.paths import GOLDENS
from tests.support.tiny_models import tiny_batch, tiny_config
from tests.support.vocabularies import make_tokenizer


CLASSES = {
    "pretraining": "BlipForPreTraining",
    "captioning": "BlipForConditionalGeneration",
    "matching": "BlipForImageTextRetrieval",
    "retrieval": "BlipForImageTextRetrieval",
    "vqa": "BlipForQuestionAnswering",
    "nlvr2": "BlipForVisualReasoning",
}
TRAINING_STATE = (
    "visual_encoder_m.",
    "text_encoder_m.",
    "vision_proj_m.",
    "text_proj_m.",
    "image_queue",
    "text_queue",
)
TRAINING_STATE += ("queue_ptr", "ptr_queue", "idx_queue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT tokenizer and one `.pth` per task."""
    folder = tmp_path_factory.mktemp("originals")
    save_bert_tokenizer(folder / "bert")
    for task in TASKS:
        torch.save({"model": original_state(task), "epoch": 5, "config": {"vit": "base"}}, folder / f"{task}.pth")
    return folder


@pytest.fixture(scope="module")
def converted(folder):
    """The conversion result of each task, and its folder."""
    return {task: (convert(folder, task, folder / "ours" / task), folder / "ours" / task) for task in TASKS}


def convert(folder, task, out_dir, **options):
    options = {"head_width": HEAD_WIDTH, **options}
    return convert_original_checkpoint(folder / f"{task}.pth", out_dir, tokenizer=folder / "bert", **options)


def converted_path(path, out_dir, folder, **options):
    options = {"head_width": HEAD_WIDTH, **options}
    convert_original_checkpoint(path, out_dir, tokenizer=folder / "bert", **options)
    return out_dir


def assert_equal_states(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert_close(actual[name], value, atol=0, rtol=0, msg=name)


def restored(model_dir, path):
    restore_original_checkpoint(model_dir, path)
    contents = torch.load(path, weights_only=True)
    assert list(contents) == ["model", "blip_hf_config"]
    return contents["model"]


@pytest.mark.parametrize("task", TASKS)
def test_round_trip_is_bit_equal_without_training_state(task, converted, tmp_path):
    conversion, model_dir = converted[task]
    original = original_state(task)
    assert conversion.model_class == CLASSES[task]
    assert conversion.image_size == IMAGE_SIZE
    assert conversion.num_tensors == len(original) - len(conversion.dropped)
    expected = {name: value for name, value in original.items() if not name.startswith(TRAINING_STATE)}
    if task == "retrieval":
        expected.pop("temp")
    assert_equal_states(restored(model_dir, tmp_path / "back.pth"), expected)


@pytest.mark.parametrize("task", ["pretraining", "retrieval"])
def test_round_trip_is_bit_equal_with_training_state(task, folder, tmp_path):
    convert(folder, task, tmp_path / "ours", keep_training_state=True)
    expected = original_state(task)
    for name in expected:
        if name.startswith("text_encoder_m.") and ".crossattention." in name:  # unused, so the values are arbitrary
            expected[name] = expected[name.replace("text_encoder_m.", "text_encoder.")]
    assert_equal_states(restored(tmp_path / "ours", tmp_path / "back.pth"), expected)


@pytest.mark.parametrize("task", TASKS)
def test_from_pretrained_finds_every_tensor_and_the_processor(task, converted):
    _, model_dir = converted[task]
    model, info = getattr(blip_hf, CLASSES[task]).from_pretrained(model_dir, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if not name.startswith(("momentum_towers.", "queue."))]
    assert (missing, list(info["unexpected_keys"])) == ([], [])
    processor = BlipProcessor.from_pretrained(model_dir)
    ids = processor.config_token_ids()
    assert {name: getattr(model.config.text_config, name) for name in ids} == ids
    assert (processor.dec_token_id, processor.enc_token_id) == (VOCAB_SIZE - 2, VOCAB_SIZE - 1)
    assert processor.image_processor.size == {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    assert processor.image_processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])


@pytest.mark.parametrize(("task", "expected"), [("retrieval", 0.031), ("matching", 0.07)])
def test_a_matcher_keeps_the_temperature_of_its_file(converted, task, expected):
    assert BlipConfig.from_pretrained(converted[task][1]).itm_temperature == expected


@pytest.mark.parametrize("name", ["BlipForConditionalGeneration", "BlipForImageTextRetrieval"])
def test_folders_of_transformers_convert_to_the_original_format(name, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config={**sizes, "vocab_size": 20, "bos_token_id": 18},
        vision_config={**sizes, "image_size": 8, "patch_size": 4, "initializer_range": 0.1},
    )
    theirs = getattr(transformers, name)(config)
    theirs.save_pretrained(tmp_path / "theirs")
    state = restored(tmp_path / "theirs", tmp_path / "back.pth")
    assert_equal_states(convert_original_state_dict(state), theirs.state_dict())


def test_kept_training_state_equals_that_of_a_trainer_checkpoint(folder, tmp_path):
    convert(folder, "retrieval", tmp_path, keep_training_state=True)
    model = BlipForRetrievalTraining.from_pretrained(tmp_path)
    saved = load_file(tmp_path / MOMENTUM_STATE_NAME)
    assert sorted(saved) == sorted(model.training_state_dict())
    original = original_state("retrieval")
    model.load_state_dict(saved, strict=False)
    assert_close(model.queue.text_features.T, original["text_queue"], atol=0, rtol=0)
    assert_close(model.queue.image_ids, original["idx_queue"][0], atol=0, rtol=0)
    assert_close(model.momentum_towers.text_proj.bias, original["text_proj_m.bias"], atol=0, rtol=0)
    assert model.queue.pointer.item() == 4
    assert model.temp.item() == pytest.approx(0.031)
    assert model.config.queue_size == QUEUE_SIZE


def test_parts_of_pretraining_convert_to_its_submodels(folder, tmp_path):
    convert(folder, "pretraining", tmp_path, save_parts=True)
    whole = BlipForPreTraining.from_pretrained(tmp_path)
    for name, part in (("captioner", whole.export_captioner()), ("retriever", whole.export_retriever())):
        saved = type(part).from_pretrained(tmp_path / name)
        assert_equal_states(saved.state_dict(), part.state_dict())
        processor = BlipProcessor.from_pretrained(tmp_path / name)
        assert processor.enc_token_id == VOCAB_SIZE - 1
        assert processor.caption_settings == PRETRAINING_SETTINGS
    assert BlipProcessor.from_pretrained(tmp_path).caption_settings is None


@pytest.mark.parametrize(
    ("task", "pointer"), [("pretraining", "queue_ptr"), ("retrieval", "queue_ptr"), ("vqa", None), ("nlvr2", None)]
)
def test_lavis_checkpoints_convert_without_momentum_encoder(task, pointer, folder, tmp_path):
    state = {name: value for name, value in original_state(task).items() if not name.partition(".")[0].endswith("_m")}
    if pointer is not None:
        state[pointer] = state.pop("ptr_queue", torch.tensor([4]))
    torch.save({"model": state, "scaler": None}, tmp_path / "lavis.pth")
    keep = pointer is not None
    converted_path(tmp_path / "lavis.pth", tmp_path / "ours", folder, keep_training_state=keep)
    back = restored(tmp_path / "ours", tmp_path / "back.pth")
    if task == "retrieval":
        state["ptr_queue"] = state.pop("queue_ptr")
    assert_equal_states(back, state)


def test_bare_state_dicts_and_safetensors_are_read(folder, tmp_path):
    state = original_state("captioning")
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    # Without duplicate tensors, as safetensors saves them.
    save_file(
        {name: value for name, value in state.items() if "predictions.decoder." not in name},
        tmp_path / "tensors.safetensors",
    )
    for name in ("bare.pth", "old.pth", "tensors.safetensors"):
        converted_path(tmp_path / name, tmp_path / f"from {name}", folder)
        assert_equal_states(restored(tmp_path / f"from {name}", tmp_path / "back.pth"), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize(
    "entries", [(), ("model",), ("state_dict",), ("model_state_dict",), ("module",), ("model", "state_dict")]
)
def test_tensors_of_wrapped_models_are_read(prefix, entries, folder, tmp_path):
    state = original_state("captioning")
    contents = {f"{prefix}{name}": value for name, value in state.items()}
    for entry in reversed(entries):
        contents = {"epoch": 3, entry: contents}
    torch.save(contents, tmp_path / "wrapped.pth")
    converted_path(tmp_path / "wrapped.pth", tmp_path / "ours", folder)
    assert_equal_states(restored(tmp_path / "ours", tmp_path / "back.pth"), state)


def test_compiled_parts_of_a_model_are_read():
    state = convert_original_state_dict({"visual_encoder._orig_mod.norm.bias": torch.zeros(1)})
    assert list(state) == ["vision_model.post_layernorm.bias"]


def test_a_name_with_and_without_a_prefix_raises():
    state = {"visual_encoder.norm.bias": torch.zeros(1), "module.visual_encoder.norm.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"visual_encoder\.norm\.bias twice, once as module\.visual_encoder"):
        convert_original_state_dict(state)


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        (
            {"epoch": 3, "net": {"a": torch.zeros(1)}},
            r"the keys 'epoch' \(int\), 'net' \(dict\), not a dict of tensors",
        ),
        ({"model": {"width": 3}}, r"the keys 'width' \(int\), .* 'model', 'state_dict', 'model_state_dict', 'module'"),
        ({f"k{index}": index for index in range(12)}, r".*'k9' \(int\) and 2 more"),
        ([torch.zeros(1)], "an object of type list"),
        ({}, "an empty dict"),
    ],
)
def test_a_file_without_tensors_of_a_model_raises_with_its_keys(contents, found, folder, tmp_path):
    torch.save(contents, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth holds {found}"):
        converted_path(tmp_path / "other.pth", tmp_path / "ours", folder)


def test_a_broken_safetensors_file_raises(folder, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        converted_path(tmp_path / "broken.safetensors", tmp_path / "ours", folder)


def test_heads_epsilons_and_captions_survive_the_way_to_the_original_and_back(tmp_path):
    config = tiny_config()
    config.vision_config.layer_norm_eps, config.text_config.hidden_act = 1e-3, "relu"
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "ours")
    make_tokenizer([f"w{index}" for index in range(tiny_models.VOCAB_SIZE - 7)]).save_pretrained(tmp_path / "bert")
    restored(tmp_path / "ours", tmp_path / "original.pth")
    convert_original_checkpoint(tmp_path / "original.pth", tmp_path / "back", tokenizer=tmp_path / "bert")
    again = BlipForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    for part in ("vision_config", "text_config"):
        for name in ("num_attention_heads", "layer_norm_eps", "hidden_act"):
            assert getattr(getattr(again.config, part), name) == getattr(getattr(config, part), name)
    batch = tiny_batch()
    assert_close(again(**batch).logits, model(**batch).logits, atol=0, rtol=0)


def test_unknown_number_of_heads_raises_unless_given(folder, tmp_path):
    with pytest.raises(ValueError, match=r"vision transformer is unknown.*width 128 .*--head_width"):
        convert(folder, "captioning", tmp_path / "ours", head_width=None)
    assert not (tmp_path / "ours").exists()
    convert(folder, "captioning", tmp_path / "ours", head_width=32)
    config = blip_hf.BlipConfig.from_pretrained(tmp_path / "ours")
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (4, 2)


def configuration(vision_width, vision_layers, num_patches, task="captioning", vocab_size=30_524):
    """The configuration inferred from full-size tensors on the meta device."""
    with torch.device("meta"):
        vision = {
            "cls_token": torch.empty(1, 1, vision_width),
            "pos_embed": torch.empty(1, num_patches + 1, vision_width),
            "patch_embed.proj.weight": torch.empty(vision_width, 3, 16, 16),
        }
        for layer in range(vision_layers):
            vision[f"blocks.{layer}.mlp.fc1.weight"] = torch.empty(4 * vision_width, vision_width)
        text = {
            "embeddings.word_embeddings.weight": torch.empty(vocab_size, 768),
            "embeddings.position_embeddings.weight": torch.empty(512, 768),
        }
        for layer in range(12):
            text[f"encoder.layer.{layer}.intermediate.dense.weight"] = torch.empty(3072, 768)
        roots = {"captioning": ["text_decoder.bert"], "vqa": ["text_encoder", "text_decoder.bert"]}.get(task)
        state = {f"visual_encoder.{name}": value for name, value in vision.items()}
        for root in roots or ["text_encoder"]:
            state |= {f"{root}.{name}": value for name, value in text.items()}
        if task == "nlvr2":
            state["cls_head.0.weight"] = torch.empty(768, 768)
            for layer in range(6, 12):
                name = f"text_encoder.encoder.layer.{layer}.crossattention.output.merge_layer.weight"
                state[name] = torch.empty(768, 1536)
    state = convert_original_state_dict(state)
    kind = find_kind(state)
    token_ids = {"vocab_size": 30_524, "bos_token_id": 30_522, "enc_token_id": 30_523, "pad_token_id": 0}
    return infer_config(state, kind, kind.model_class.config_class, token_ids=token_ids)


@pytest.mark.parametrize(
    ("task", "width", "layers", "heads", "patches", "image_size", "drop_path_rate"),
    [
        ("captioning", 768, 12, 12, 24 * 24, 384, 0.0),
        ("captioning", 1024, 24, 16, 24 * 24, 384, 0.1),
        ("vqa", 768, 12, 12, 30 * 30, 480, 0.1),
        ("nlvr2", 768, 12, 12, 24 * 24, 384, 0.1),
    ],
)
def test_sizes_and_settings_are_those_of_the_original(task, width, layers, heads, patches, image_size, drop_path_rate):
    config = configuration(width, layers, patches, task)
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (width, layers, heads)
    assert (vision.image_size, vision.patch_size, vision.intermediate_size) == (image_size, 16, 4 * width)
    assert (vision.layer_norm_eps, vision.drop_path_rate, vision.attention_dropout) == (1e-6, drop_path_rate, 0.0)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
    assert (text.intermediate_size, text.max_position_embeddings, text.encoder_hidden_size) == (3072, 512, width)
    assert (text.layer_norm_eps, text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (1e-12, 0.1, 0.1)
    assert text.label_smoothing == 0.1
    if task == "nlvr2":
        assert config.merge_from_layer == 6


def test_eps_and_dropout_are_saved_for_transformers(converted):
    config = transformers.BlipConfig.from_pretrained(converted["captioning"][1])
    assert config.vision_config.layer_norm_eps == 1e-6
    assert config.text_config.layer_norm_eps == 1e-12
    assert config.text_config.num_attention_heads == 1  # 64 wide
    assert config.text_config.hidden_dropout_prob == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({"head.weight": torch.zeros(1)}), "1 tensors are unknown to BLIP: head"),
        (lambda state: state.pop("visual_encoder.norm.bias"), "lacks vision_model.post_layernorm.bias"),
        (lambda state: state.pop("visual_encoder.pos_embed"), "lacks vision_model.embeddings.position_embedding"),
        (lambda state: state.update({"itm_head.bias": torch.zeros(2)}), "fits no known kind"),
        (
            lambda state: state.update({"visual_encoder.norm.bias": torch.zeros(3)}),
            "has another shape for vision_model",
        ),
        (
            lambda state: state.update({"text_decoder.bert.pooler.bias": torch.zeros(3)}),
            "has no place for text_decoder.bert.pooler.bias",
        ),
        (
            lambda state: state.update({"text_decoder.cls.predictions.decoder.bias": torch.zeros(VOCAB_SIZE)}),
            "decoder.bias and text_decoder.cls.predictions.bias .* differ",
        ),
        (lambda state: state.update({"visual_encoder.pos_embed": torch.zeros(1, 9, 128)}), "of 8 patches"),
        (lambda state: state.update({"vision_model.x": torch.zeros(1)}), "need no conversion"),
    ],
)
def test_incomplete_checkpoint_raises_and_writes_nothing(change, message, folder, tmp_path):
    state = original_state("captioning")
    change(state)
    torch.save({"model": state}, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=message):
        converted_path(tmp_path / "broken.pth", tmp_path / "ours", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pth"]


def test_partial_momentum_encoder_raises(folder, tmp_path):
    state = original_state("retrieval")
    del state["visual_encoder_m.norm.bias"]
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"lacks momentum_towers\.vision_model\.post_layernorm\.bias"):
        converted_path(tmp_path / "broken.pth", tmp_path / "ours", folder, keep_training_state=True)


def test_pickled_code_is_not_run(folder, tmp_path):
    torch.save({"model": original_state("captioning"), "args": argparse.Namespace(vit="base")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        converted_path(tmp_path / "code.pth", tmp_path / "ours", folder)


def test_options_of_other_tasks_raise(folder, tmp_path):
    with pytest.raises(ValueError, match="captioning checkpoint, not a pre-training one"):
        convert(folder, "captioning", tmp_path / "ours", save_parts=True)
    for task in ("captioning", "matching"):
        with pytest.raises(ValueError, match="without training state"):
            convert(folder, task, tmp_path / "ours", keep_training_state=True)
    with pytest.raises(ValueError, match="not a multiple of the head width 48"):
        convert(folder, "captioning", tmp_path / "ours", head_width=48)


def test_tokenizer_of_another_vocabulary_raises(folder, tmp_path):
    make_tokenizer(()).save_pretrained(tmp_path / "few")
    with pytest.raises(ValueError, match=r"has 40 words, the tokenizer .* 7\. .*--tokenizer"):
        convert_original_checkpoint(
            folder / "vqa.pth", tmp_path / "ours", tokenizer=tmp_path / "few", head_width=HEAD_WIDTH
        )


def test_a_vocabulary_file_is_accepted_as_tokenizer(folder, converted, tmp_path):
    saved = BlipProcessor.from_pretrained(converted["captioning"][1]).tokenizer
    words = sorted(saved.get_vocab(), key=saved.get_vocab().get)[:-2]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    convert_original_checkpoint(
        folder / "captioning.pth", tmp_path / "ours", tokenizer=tmp_path, head_width=HEAD_WIDTH
    )
    tokenizer = BlipProcessor.from_pretrained(tmp_path / "ours").tokenizer
    assert tokenizer.get_vocab() == saved.get_vocab()
    assert tokenizer("W5 w7").input_ids == saved("w5 w7").input_ids


def test_non_empty_folder_raises(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        convert(folder, "captioning", tmp_path)


def test_class_without_original_checkpoint_raises(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip", "architectures": ["BlipModel"]}))
    with pytest.raises(ValueError, match="holds BlipModel, which has no original format"):
        restore_original_checkpoint(tmp_path, tmp_path / "back.pth")


def golden_state(name):
    path = GOLDENS / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not here; set BLIP_HF_GOLDENS to the folder of the reference tensors")
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith("state.")]  # noqa: SIM118
        return {name.removeprefix("state."): file.get_tensor(name) for name in names}


@pytest.mark.parametrize("name", ["pretrain", "caption", "matching", "retrieval", "retrieval_allrank", "vqa", "nlvr2"])
def test_original_names_round_trip(name):
    original = golden_state(name)
    expected = {
        key: value
        for key, value in original.items()
        if not (key.startswith("text_encoder_m.") and ".crossattention." in key)
    }
    back = restore_original_state_dict(convert_original_state_dict(original))
    assert sorted(back) == sorted(original)
    assert_equal_states({key: back[key] for key in expected}, expected)


def test_matching_of_a_converted_checkpoint_equals_the_reference(tmp_path):
    state = golden_state("matching")
    torch.save({"model": state}, tmp_path / "matching.pth")
    make_tokenizer([f"w{index}" for index in range(57)]).save_pretrained(tmp_path / "bert")
    convert_original_checkpoint(
        tmp_path / "matching.pth", tmp_path / "ours", tokenizer=tmp_path / "bert", head_width=16
    )
    config = blip_hf.BlipConfig.from_pretrained(tmp_path / "ours")
    config.vision_config.num_attention_heads = config.text_config.num_attention_heads = 4  # its heads differ in width
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path / "ours", config=config)
    with safe_open(GOLDENS / "matching.safetensors", "pt") as file:
        inputs = {key: file.get_tensor(key) for key in ("pixel_values", "input_ids", "attention_mask")}
        expected = file.get_tensor("itm_logits_enc_token")
    assert_close(model(**inputs).itm_logits, expected, atol=1e-5, rtol=1e-4)
