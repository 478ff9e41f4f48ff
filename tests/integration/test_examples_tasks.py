# SPDX-License-Identifier: BSD-3-Clause
"""The examples of single tasks: each runs from nothing, and again from its own result on files as a user has them."""

import json
import re
import runpy

import pytest
import transformers
from PIL import Image

from blip_hf import BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipForVisualReasoning, BlipProcessor
from tests.support.paths import EXAMPLES


EXAMPLE_FILES = sorted(EXAMPLES.glob("*.py"))
COLOURS = ("red", "green", "blue", "orange")
# One batch of an epoch: the examples drop what is left of one.
NUM_RECORDS = 32


def run_example(name, *argv):
    path = next(path for path in EXAMPLE_FILES if path.stem == name)
    runpy.run_path(str(path))["main"]([str(word) for word in argv])


def write_records(folder, name, record_of):
    """A list of records about four plain images, which lie beside it."""
    for colour in COLOURS:
        Image.new("RGB", (40, 32), colour).save(folder / f"{colour}.png")
    records = [record_of(i, COLOURS[i % 4], COLOURS[(i // 4) % 4]) for i in range(NUM_RECORDS)]
    (folder / name).write_text(json.dumps(records))
    return folder / name


def pair_of(i, colour, _):
    return {"image": f"{colour}.png", "caption": f"a {colour} square", "image_id": COLOURS.index(colour)}


def question_of(i, colour, _):
    return {"image": f"{colour}.png", "question": "What colour is it?", "question_id": i, "answer": [colour]}


def reasoning_of(i, colour, other):
    images = [f"{colour}.png", f"{other}.png"]
    return {"images": images, "sentence": f"both pictures show something {colour}", "label": str(colour == other)}


FINETUNING = {
    "finetune_retrieval": (pair_of, BlipForImageTextRetrieval, r"r_mean +\d\.\d{3} +\d\.\d{3}"),
    "finetune_vqa": (question_of, BlipForQuestionAnswering, r"written \d\.\d{3}, chosen from \d+ answers \d\.\d{3}"),
    "finetune_nlvr2": (
        reasoning_of,
        BlipForVisualReasoning,
        r"accuracy \d\.\d{3}, consistency \d\.\d{3} of \d+ pairs",
    ),
}


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    """A folder with the tiny matcher of the zero-shot example."""
    folder = tmp_path_factory.mktemp("matcher")
    path = next(path for path in EXAMPLE_FILES if path.stem == "zero_shot")
    for part in runpy.run_path(str(path))["make_tiny_matcher"]():
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FINETUNING)
def test_a_fine_tuning_example_runs_from_nothing_and_from_a_checkpoint_on_files(name, matcher, tmp_path, capsys):
    record_of, model_class, figures = FINETUNING[name]
    run_example(name, "--tiny", "--output_dir", tmp_path / "first")
    assert re.search(figures, capsys.readouterr().out)
    model_class.from_pretrained(tmp_path / "first")
    # Questions go on from what answers them, the others from a matcher.
    start = tmp_path / "first" if model_class is BlipForQuestionAnswering else matcher
    data = write_records(tmp_path, "data.json", record_of)
    argv = ["--model", start, "--data", data, "--eval_data", data, "--output_dir", tmp_path / "second"]
    run_example(name, *argv)
    assert re.search(figures, capsys.readouterr().out)
    model_class.from_pretrained(tmp_path / "second")
    BlipProcessor.from_pretrained(tmp_path / "second")
    theirs = getattr(transformers, model_class.__name__, None)
    if theirs is not None:
        _, info = theirs.from_pretrained(tmp_path / "second", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


def test_zero_shot_example(matcher, tmp_path, capsys):
    run_example("zero_shot", "--tiny")
    assert "multimodal features of each image" in capsys.readouterr().out
    Image.new("RGB", (40, 32), "red").save(tmp_path / "red.png")
    run_example("zero_shot", matcher, tmp_path / "red.png", "--labels", "red", "blue")
    first = capsys.readouterr().out.splitlines()[0]
    probabilities = re.fullmatch(r".*red\.png: (?:red|blue) (\d\.\d\d), (?:red|blue) (\d\.\d\d)", first).groups()
    assert sum(map(float, probabilities)) == pytest.approx(1, abs=0.011)  # of two rounded to hundredths


def test_video_retrieval_example(matcher, tmp_path, capsys):
    run_example("video_retrieval", "--tiny")
    assert "16 videos, 16 captions" in capsys.readouterr().out
    frames = [Image.new("RGB", (40, 32), colour) for colour in COLOURS]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for number, frame in enumerate(frames):
            frame.save(tmp_path / name / f"{number}.png")
    lines = [json.dumps({"clip_name": name, "caption": "a red square"}) for name in ("first", "second")]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    run_example("video_retrieval", matcher, tmp_path / "captions.jsonl", "--num_frames", "2")
    out = capsys.readouterr().out
    assert "2 videos, 2 captions" in out
    assert re.search(r"text_to_video_r@5 +1\.000", out)  # among two


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("finetune_retrieval", ["--output_dir", "x", "--data", "train.json"]),
        ("finetune_vqa", ["--output_dir", "x"]),
        ("finetune_nlvr2", ["--output_dir", "x", "--eval_data", "dev.json"]),
        ("zero_shot", ["model", "image.png"]),
        ("video_retrieval", ["model"]),
    ],
)
def test_an_example_says_what_it_cannot_do_without(name, argv, capsys):
    with pytest.raises(SystemExit) as end:
        run_example(name, *argv)
    assert end.value.code == 2
    assert re.search(r"or (pass )?--tiny$", capsys.readouterr().err.strip())


@pytest.mark.parametrize("path", EXAMPLE_FILES, ids=lambda path: path.stem)
def test_an_example_is_one_short_file_with_its_needs_and_its_commands_at_its_head(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 100
    assert re.search(r'^# /// script\n# requires-python = ">=3\.11"\n# dependencies = \["\w', text, re.MULTILINE)
    assert f"\npython examples/{path.name} " in text
    # None reads another: each can be taken as it is.
    names = "|".join(other.stem for other in EXAMPLE_FILES)
    assert not re.search(rf"^(?:from|import) (?:{names})\b", text, re.MULTILINE)
