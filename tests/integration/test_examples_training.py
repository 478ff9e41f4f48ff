# SPDX-License-Identifier: BSD-3-Clause
"""The examples that train, and the pretrain command: each runs offline from nothing and leaves what it promises."""

import json
import runpy
import shlex

import pytest
import torch
import transformers
from PIL import Image
from torch.testing import assert_close

from blip_hf import BlipForConditionalGeneration, BlipForPreTraining, BlipPreTrainingConfig, BlipProcessor
from blip_hf.caption_settings import PRETRAINING_SETTINGS
from blip_hf.cli import pretrain
from blip_hf.data.scenes import Scenes, scene_vocabulary_texts
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from blip_hf.tasks.options import PretrainOptions
from blip_hf.tasks.pretrain import (
    image_size_of_run,
    make_model,
    make_processor,
    read_evaluation_set,
    read_training_set,
)
from tests.support.paths import ROOT


TINY = shlex.split(
    "--image_size 32 --patch_size 16 --vision_width 32 --vision_layers 1 --text_width 32 --text_layers 1"
    " --feature_width 8 --queue_size 8 --per_device_train_batch_size 4 --max_steps 2 --warmup_steps 0 --use_cpu"
    " --save_strategy no --disable_tqdm True --logging_steps 1"
)


def run_example(name, *argv):
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](list(argv))


def captions_in_transformers(folder):
    """What transformers' own classes say about a grey image, from all the weights and with none left over."""
    model, info = transformers.BlipForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = BlipProcessor.from_pretrained(folder)
    inputs = processor(Image.new("RGB", (40, 30), "grey"), "a picture of", return_tensors="pt")
    return processor.post_process_captions(model.generate(**inputs, max_new_tokens=3))


def test_pretrain_example(tmp_path, capsys):
    run_example("pretrain", "--tiny", "--output_dir", str(tmp_path))
    assert "eval_text_to_image_r@1" in capsys.readouterr().out
    BlipForPreTraining.from_pretrained(tmp_path)
    assert captions_in_transformers(tmp_path / "captioner")[0].startswith("a picture of")
    assert BlipProcessor.from_pretrained(tmp_path / "captioner").caption_settings == PRETRAINING_SETTINGS
    _, info = transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path / "retriever", output_loading_info=True)
    assert not info["missing_keys"]


def test_finetune_captioner_example(tmp_path, capsys):
    run_example("finetune_captioner", "--tiny", "--output_dir", str(tmp_path))
    assert "is captioned" in capsys.readouterr().out
    BlipForConditionalGeneration.from_pretrained(tmp_path)


def test_random_towers_have_the_heads_and_the_spread_that_were_asked_for():
    options = PretrainOptions(
        data=["scenes"], num_scenes=8, image_size=32, vision_width=64, vision_layers=1, text_width=64, text_layers=1,
        feature_width=8, queue_size=0, head_width=16, initializer_range=0.06,
    )  # fmt: skip
    model = make_model(options, make_processor(options, Scenes(8)))
    for config in (model.config.text_config, model.config.vision_config):
        assert config.num_attention_heads == 4
    for weight in (
        model.text_encoder.encoder.layer[0].intermediate.dense.weight,
        model.vision_model.encoder.layers[0].mlp.fc1.weight,
    ):
        assert weight.std().item() == pytest.approx(0.06, rel=0.05)


def test_pretrain_command_on_scenes(tmp_path, capsys):
    argv = ["--data", "scenes", "--eval_data", "scenes", "--num_scenes", "8", "--num_eval_scenes", "4", *TINY]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path)]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["eval_text_to_image_r@5"] == 1.0  # among four
    state = str(tmp_path / "trainer_state.json")
    run_example("plot_losses", state, state, str(tmp_path / "losses.png"))  # as if two runs
    with Image.open(tmp_path / "losses.png") as image:
        assert image.size == (1320, 396)  # 12 x 3.6 inches at 110 dots an inch
    assert captions_in_transformers(tmp_path / "captioner")[0].startswith("a picture of")
    assert BlipProcessor.from_pretrained(tmp_path / "captioner").caption_settings == PRETRAINING_SETTINGS


def test_pretrain_command_on_a_json_list(tmp_path, capsys):
    pairs = []
    for index, name in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (48, 40), name).save(tmp_path / f"{name}.png")
        pairs.append({"image": f"{name}.png", "caption": [f"all {name}", f"nothing but {name}"], "image_id": index})
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    source = str(tmp_path / "pairs.json")
    argv = ["--data", source, "--eval_data", source, *TINY, "--output_dir", str(tmp_path / "out")]
    assert pretrain.main(argv) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["eval_text_to_image_r@5"] == 1.0  # among four images, of two captions each
    processor = BlipProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.tokenize("nothing but green") == ["nothing", "but", "green"]


def test_pretrain_command_starts_from_a_vit_and_a_bert(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=48, patch_size=16), add_pooling_layer=False)
    tokenizer = train_wordpiece_tokenizer(scene_vocabulary_texts())
    bert_config = transformers.BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=64)
    bert = transformers.BertModel(bert_config, add_pooling_layer=False)
    for name, part in (("vit", vit), ("bert", bert), ("bert", tokenizer)):
        part.save_pretrained(tmp_path / name)
    argv = [
        "--data",
        "scenes",
        "--num_scenes",
        "8",
        "--vision",
        str(tmp_path / "vit"),
        "--text",
        str(tmp_path / "bert"),
        "--image_mean",
        *("0.5", "0.4", "0.3"),
    ]
    # At a learning rate of next to nothing the weights stay where they started.
    argv += [
        *TINY,
        "--learning_rate",
        "1e-12",
        "--lr_scheduler_type",
        "constant",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert pretrain.main(argv) == 0
    model = BlipForPreTraining.from_pretrained(tmp_path / "out")
    words = bert.embeddings.word_embeddings.weight
    assert_close(model.get_input_embeddings().weight[: len(words)], words, rtol=0, atol=1e-6)
    assert model.config.vision_config.image_size == 32
    assert list(BlipProcessor.from_pretrained(tmp_path / "out").image_processor.image_mean) == [0.5, 0.4, 0.3]
    assert_close(
        model.vision_model.embeddings.patch_embedding.weight, vit.embeddings.patch_embeddings.projection.weight
    )


def test_pretrain_command_goes_on_from_its_own_output(tmp_path, capsys):
    argv = ["--data", "scenes", "--num_scenes", "8", *TINY]
    assert (
        pretrain.main([*argv, "--itm_weight", "0", "--lm_weight", "0", "--output_dir", str(tmp_path / "first")]) == 0
    )
    log = json.loads((tmp_path / "first" / "trainer_state.json").read_text())["log_history"][0]
    assert "loss_itc" in log
    assert "loss_lm" not in log
    argv += ["--model", str(tmp_path / "first"), "--learning_rate", "1e-12", "--lr_scheduler_type", "constant"]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "second")]) == 0
    first, second = (BlipForPreTraining.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert (second.config.itm_weight, second.config.lm_weight) == (1.0, 1.0)
    for (name, before), after in zip(first.named_parameters(), second.parameters(), strict=True):
        assert_close(after, before, rtol=0, atol=1e-6, msg=name)


def test_pretrain_command_takes_the_sizes_of_its_checkpoint(tmp_path):
    argv = ["--data", "scenes", "--num_scenes", "8", *TINY]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "first")]) == 0
    sizes = argv.index("--image_size"), argv.index("--queue_size")
    argv = [*argv[: sizes[0]], *argv[sizes[1] :], "--eval_data", "scenes", "--num_eval_scenes", "4"]
    argv += ["--model", str(tmp_path / "first"), "--queue_size", "4"]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "second")]) == 0
    config = BlipPreTrainingConfig.from_pretrained(tmp_path / "second")
    assert (config.image_text_hidden_size, config.vision_config.image_size, config.queue_size) == (8, 32, 4)


def test_pretraining_goes_on_at_the_size_of_the_checkpoint_or_another(tmp_path):
    sizes = {"vision_width": 32, "vision_layers": 1, "text_width": 32, "text_layers": 1, "feature_width": 8}
    options = PretrainOptions(data=["scenes"], num_scenes=8, image_size=32, queue_size=0, **sizes)
    first = make_model(options, make_processor(options, Scenes(8)))
    first.save_pretrained(tmp_path)
    make_processor(options, Scenes(8)).save_pretrained(tmp_path)
    images = {"data": ["scenes"], "eval_data": ["scenes"], "num_scenes": 8, "model": str(tmp_path)}
    for image_size, num_patches in ((None, 4), (48, 9)):
        options = PretrainOptions(**images, image_size=image_size, queue_size=0)
        expected = image_size or 32
        scenes, training_set = read_training_set(options, seed=0)
        assert training_set[0]["image"].size == read_evaluation_set(options)[0]["image"].size == (expected, expected)
        processor = make_processor(options, scenes)
        assert processor.image_processor.size["height"] == expected
        model = make_model(options, processor)
        assert model.config.vision_config.image_size == expected
        for tower in (model.vision_model, model.momentum_towers.vision_model):
            assert tower.embeddings.position_embedding.shape == (1, 1 + num_patches, 32)
    assert PretrainOptions(data=["scenes"]).image_size is None
    assert image_size_of_run(PretrainOptions(data=["scenes"])) == 224


def test_pretrain_command_leaves_frozen_layers_as_they_were(tmp_path):
    argv = ["--data", "scenes", "--num_scenes", "8", *TINY]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "first")]) == 0
    argv += ["--model", str(tmp_path / "first"), "--freeze_vision_layers", "1"]
    assert pretrain.main([*argv, "--output_dir", str(tmp_path / "second")]) == 0
    first, second = (BlipForPreTraining.from_pretrained(tmp_path / name) for name in ("first", "second"))
    same = {
        name
        for (name, before), after in zip(first.named_parameters(), second.parameters(), strict=True)
        if name.startswith("vision_model.") and torch.equal(before, after)
    }
    lower = tuple(f"vision_model.{part}." for part in ("embeddings", "encoder.layers.0"))
    assert same == {name for name, _ in first.named_parameters() if name.startswith(lower)}
    with pytest.raises(ValueError, match="cannot freeze 9 layers"):
        second.vision_model.freeze_first_layers(9)
