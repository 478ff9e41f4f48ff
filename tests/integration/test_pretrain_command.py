# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf pretrain` on tiny models: sources of data, starting checkpoints, frozen layers."""

import json
import shlex

import pytest
import torch
import transformers
from PIL import Image
from torch.testing import assert_close

from blip_hf import BlipForPreTraining, BlipPreTrainingConfig, BlipProcessor
from blip_hf.caption_settings import PRETRAINING_SETTINGS
from blip_hf.cli import main
from blip_hf.data.scenes import Scenes, scene_vocabulary_texts
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from blip_hf.tasks.pretrain import (
    PretrainOptions,
    image_size_of_run,
    make_model,
    make_processor,
    read_evaluation_set,
    read_training_set,
)
from tests.support.examples import run_example
from tests.support.files import write_json
from tests.support.images import write_images
from tests.support.transformers_checkpoints import captions_in_transformers


TINY = shlex.split(
    "--image_size 32 --patch_size 16 --vision_width 32 --vision_layers 1 --text_width 32 --text_layers 1"
    " --feature_width 8 --queue_size 8 --per_device_train_batch_size 4 --max_steps 2 --warmup_steps 0 --use_cpu"
    " --save_strategy no --disable_tqdm True --logging_steps 1"
)

SCENES = ["--data", "scenes", "--num_scenes", "8"]
EVAL_SCENES = ["--eval_data", "scenes", "--num_eval_scenes", "4"]
FROZEN_RATE = ["--learning_rate", "1e-12", "--lr_scheduler_type", "constant"]


def test_random_encoders_have_the_given_heads_and_initializer_range():
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
    argv = [*SCENES, *EVAL_SCENES, *TINY]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path)]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["eval_text_to_image_r@5"] == 1.0  # among four
    state = tmp_path / "trainer_state.json"
    run_example("plot_losses", state, state, tmp_path / "losses.png")  # the same run twice
    with Image.open(tmp_path / "losses.png") as image:
        assert image.size == (1320, 396)  # 12 x 3.6 inches at 110 dpi
    assert captions_in_transformers(tmp_path / "captioner")[0].startswith("a picture of")
    assert BlipProcessor.from_pretrained(tmp_path / "captioner").caption_settings == PRETRAINING_SETTINGS


def test_pretrain_command_on_a_json_list(tmp_path, capsys):
    colors = ("red", "green", "blue", "white")
    write_images(tmp_path, *colors)
    pairs = [
        {"image": f"{color}.png", "caption": [f"all {color}", f"nothing but {color}"], "image_id": index}
        for index, color in enumerate(colors)
    ]
    source = str(write_json(tmp_path / "pairs.json", pairs))
    argv = ["--data", source, "--eval_data", source, *TINY, "--output_dir", str(tmp_path / "out")]
    assert main(["pretrain", *argv]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["eval_text_to_image_r@5"] == 1.0  # among four images with two captions each
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
    argv = [*SCENES, "--vision", str(tmp_path / "vit"), "--text", str(tmp_path / "bert")]
    argv += ["--image_mean", "0.5", "0.4", "0.3"]
    # With this learning rate the weights do not change.
    assert main(["pretrain", *argv, *TINY, *FROZEN_RATE, "--output_dir", str(tmp_path / "out")]) == 0
    model = BlipForPreTraining.from_pretrained(tmp_path / "out")
    words = bert.embeddings.word_embeddings.weight
    assert_close(model.get_input_embeddings().weight[: len(words)], words, rtol=0, atol=1e-6)
    assert model.config.vision_config.image_size == 32
    assert list(BlipProcessor.from_pretrained(tmp_path / "out").image_processor.image_mean) == [0.5, 0.4, 0.3]
    assert_close(
        model.vision_model.embeddings.patch_embedding.weight, vit.embeddings.patch_embeddings.projection.weight
    )


def test_pretrain_command_continues_from_its_own_output(tmp_path, capsys):
    argv = [*SCENES, *TINY]
    assert (
        main(["pretrain", *argv, "--itm_weight", "0", "--lm_weight", "0", "--output_dir", str(tmp_path / "first")])
        == 0
    )
    log = json.loads((tmp_path / "first" / "trainer_state.json").read_text())["log_history"][0]
    assert "loss_itc" in log
    assert "loss_lm" not in log
    argv += ["--model", str(tmp_path / "first"), *FROZEN_RATE]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path / "second")]) == 0
    first, second = (BlipForPreTraining.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert (second.config.itm_weight, second.config.lm_weight) == (1.0, 1.0)
    for (name, before), after in zip(first.named_parameters(), second.parameters(), strict=True):
        assert_close(after, before, rtol=0, atol=1e-6, msg=name)


def test_pretrain_command_takes_the_sizes_of_its_checkpoint(tmp_path):
    argv = [*SCENES, *TINY]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path / "first")]) == 0
    sizes = argv.index("--image_size"), argv.index("--queue_size")
    argv = [*argv[: sizes[0]], *argv[sizes[1] :], *EVAL_SCENES]
    argv += ["--model", str(tmp_path / "first"), "--queue_size", "4"]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path / "second")]) == 0
    config = BlipPreTrainingConfig.from_pretrained(tmp_path / "second")
    assert (config.image_text_hidden_size, config.vision_config.image_size, config.queue_size) == (8, 32, 4)


def test_pretraining_continues_at_the_image_size_of_the_checkpoint_or_another(tmp_path):
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
        for encoder in (model.vision_model, model.momentum_towers.vision_model):
            assert encoder.embeddings.position_embedding.shape == (1, 1 + num_patches, 32)
    assert PretrainOptions(data=["scenes"]).image_size is None
    assert image_size_of_run(PretrainOptions(data=["scenes"])) == 224


def test_pretrain_command_does_not_change_frozen_layers(tmp_path):
    argv = [*SCENES, *TINY]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path / "first")]) == 0
    argv += ["--model", str(tmp_path / "first"), "--freeze_vision_layers", "1"]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path / "second")]) == 0
    first, second = (BlipForPreTraining.from_pretrained(tmp_path / name) for name in ("first", "second"))
    same = {
        name
        for (name, before), after in zip(first.named_parameters(), second.parameters(), strict=True)
        if name.startswith("vision_model.") and torch.equal(before, after)
    }
    lower = tuple(f"vision_model.{part}." for part in ("embeddings", "encoder.layers.0"))
    assert same == {name for name, _ in first.named_parameters() if name.startswith(lower)}
    with pytest.raises(ValueError, match="num_layers is 9"):
        second.vision_model.freeze_first_layers(9)
