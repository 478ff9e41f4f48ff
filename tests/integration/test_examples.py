# SPDX-License-Identifier: BSD-3-Clause
"""Each example runs offline with `--tiny`; fine-tuning examples also run with a checkpoint and files."""

import ast
import re

import pytest
import transformers

import blip_hf
from blip_hf import (
    BlipCaptioner,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForVisualReasoning,
    BlipProcessor,
)
from blip_hf.caption_settings import PRETRAINING_SETTINGS
from blip_hf.training.arguments import TASK_RECIPES
from tests.support.examples import EXAMPLE_FILES, run_example
from tests.support.files import write_json, write_json_lines
from tests.support.images import write_image, write_images
from tests.support.transformers_checkpoints import captions_in_transformers, load_in_transformers


COLORS = ("red", "green", "blue", "orange")
# One batch: the examples drop the incomplete last batch of an epoch.
NUM_RECORDS = 32


def write_records(path, record_of):
    """Writes four plain images and a JSON list about them."""
    write_images(path.parent, *COLORS)
    return write_json(path, [record_of(i, COLORS[i % 4], COLORS[(i // 4) % 4]) for i in range(NUM_RECORDS)])


def pair_of(i, color, _):
    return {"image": f"{color}.png", "caption": f"a {color} square", "image_id": COLORS.index(color)}


def vqa_of(i, color, _):
    return {"image": f"{color}.png", "question": "What colour is it?", "question_id": i, "answer": [color]}


def nlvr2_of(i, color, other):
    images = [f"{color}.png", f"{other}.png"]
    return {"images": images, "sentence": f"both images show something {color}", "label": str(color == other)}


FINETUNING = {
    "finetune_retrieval": (pair_of, BlipForImageTextRetrieval, r"r_mean +\d\.\d{3} +\d\.\d{3}"),
    "finetune_vqa": (vqa_of, BlipForQuestionAnswering, r"generated \d\.\d{3}, ranked from \d+ answers \d\.\d{3}"),
    "finetune_nlvr2": (
        nlvr2_of,
        BlipForVisualReasoning,
        r"accuracy \d\.\d{3}, consistency \d\.\d{3} of \d+ pairs",
    ),
}


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLE_FILES if path.stem.startswith("finetune_")], ids=lambda p: p.stem
)
def test_all_that_a_fine_tuning_needs_is_exported(path):
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    # The names of drawn scenes and their vocabulary are for `--tiny` alone.
    of_tiny = ("blip_hf.data.scenes", "blip_hf.data.vocabulary")
    modules = [node for node in imports if node.module.startswith("blip_hf") and node.module not in of_tiny]
    assert {alias.name for node in modules for alias in node.names} <= set(blip_hf.__all__)


def test_pretrain_example(tmp_path, capsys):
    run_example("pretrain", "--tiny", "--output_dir", tmp_path)
    assert "eval_text_to_image_r@1" in capsys.readouterr().out
    BlipForPreTraining.from_pretrained(tmp_path)
    assert captions_in_transformers(tmp_path / "captioner")[0].startswith("a picture of")
    assert BlipProcessor.from_pretrained(tmp_path / "captioner").caption_settings == PRETRAINING_SETTINGS
    load_in_transformers("BlipForImageTextRetrieval", tmp_path / "retriever")


def test_finetune_caption_example(tmp_path, capsys):
    run_example("finetune_caption", "--tiny", "--output_dir", tmp_path)
    assert "is captioned" in capsys.readouterr().out
    BlipForConditionalGeneration.from_pretrained(tmp_path)


def test_caption_example(captioner_folder, tmp_path, capsys):
    run_example("caption_images", "--tiny", "--num_captions", "2")
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [f"scene {number}" for number in range(4) for _ in range(2)]
    image = write_image(tmp_path / "image.png")
    (tmp_path / "broken.jpg").write_bytes(b"")
    run_example("caption_images", captioner_folder, image, tmp_path / "broken.jpg")
    first, second = capsys.readouterr().out.splitlines()
    (caption,) = BlipCaptioner.from_pretrained(captioner_folder)(image)
    assert first.startswith(f"{image}: {caption} (")
    assert second.startswith(f"{tmp_path / 'broken.jpg'}: ")
    assert "it is empty or not an image" in second


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuning_example_runs_from_random_weights_and_from_a_checkpoint(
    name, matcher_folder, tmp_path, capsys, monkeypatch
):
    for recipe in TASK_RECIPES.values():
        monkeypatch.setitem(recipe, "num_train_epochs", 1)  # instead of the 6 to 15 of the paper
    record_of, model_class, metric = FINETUNING[name]
    run_example(name, "--tiny", "--output_dir", tmp_path / "first")
    assert re.search(metric, capsys.readouterr().out)
    model_class.from_pretrained(tmp_path / "first")
    # VQA starts from a VQA model, the others from a matcher.
    start = tmp_path / "first" if model_class is BlipForQuestionAnswering else matcher_folder
    data = write_records(tmp_path / "data.json", record_of)
    argv = ["--model", start, "--data", data, "--eval_data", data, "--output_dir", tmp_path / "second"]
    run_example(name, *argv)
    assert re.search(metric, capsys.readouterr().out)
    model_class.from_pretrained(tmp_path / "second")
    BlipProcessor.from_pretrained(tmp_path / "second")
    if hasattr(transformers, model_class.__name__):
        load_in_transformers(model_class.__name__, tmp_path / "second")


def test_zero_shot_example(matcher_folder, tmp_path, capsys):
    run_example("zero_shot", "--tiny")
    assert "multimodal features of each image" in capsys.readouterr().out
    run_example("zero_shot", matcher_folder, write_image(tmp_path / "red.png"), "--labels", "red", "blue")
    first = capsys.readouterr().out.splitlines()[0]
    probabilities = re.fullmatch(r".*red\.png: (?:red|blue) (\d\.\d\d), (?:red|blue) (\d\.\d\d)", first).groups()
    assert sum(map(float, probabilities)) == pytest.approx(1, abs=0.011)  # two values rounded to hundredths


def test_video_retrieval_example(matcher_folder, tmp_path, capsys):
    run_example("video_retrieval", "--tiny")
    assert "16 videos, 16 captions" in capsys.readouterr().out
    for name in ("first", "second"):
        write_images(tmp_path / name, *COLORS)
    records = [{"clip_name": name, "caption": "a red square"} for name in ("first", "second")]
    write_json_lines(tmp_path / "captions.jsonl", records)
    run_example("video_retrieval", matcher_folder, tmp_path / "captions.jsonl", "--num_frames", "2")
    out = capsys.readouterr().out
    assert "2 videos, 2 captions" in out
    assert re.search(r"text_to_video_r@5 +1\.000", out)  # among two


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("finetune_retrieval", ["--output_dir", "x", "--data", "train.json"]),
        ("finetune_vqa", ["--output_dir", "x"]),
        ("finetune_nlvr2", ["--output_dir", "x", "--eval_data", "dev.json"]),
        ("caption_images", ["model"]),
        ("zero_shot", ["model", "image.png"]),
        ("video_retrieval", ["model"]),
    ],
)
def test_example_reports_missing_arguments(name, argv, capsys):
    with pytest.raises(SystemExit) as end:
        run_example(name, *argv)
    assert end.value.code == 2
    assert re.search(r"or (pass )?--tiny$", capsys.readouterr().err.strip())


@pytest.mark.parametrize("path", EXAMPLE_FILES, ids=lambda path: path.stem)
def test_example_is_one_short_file_with_its_dependencies_and_commands(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 100
    assert re.search(r'^# /// script\n# requires-python = ">=3\.11"\n# dependencies = \["\w', text, re.MULTILINE)
    assert f"\npython examples/{path.name} " in text
    # No example imports another, so that each can be copied alone.
    names = "|".join(other.stem for other in EXAMPLE_FILES)
    assert not re.search(rf"^(?:from|import) (?:{names})\b", text, re.MULTILINE)
