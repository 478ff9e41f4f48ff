# SPDX-License-Identifier: BSD-3-Clause
"""Drawn scenes: captions, questions and sentences are true of the pixels and reproducible."""

import random
import re

import numpy as np
import pytest

from blip_hf.data.scene_layout import COLOURS
from blip_hf.data.scenes import Scenes
from tests.support.processes import run_code


NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
RELATED = re.compile(r"a small (\w+) (\w+) (left of|right of|above|below) an? (\w+) (\w+)")
ALIKE = re.compile(r"(two|three|four|five) (\w+) (\w+)s")
ALONE = re.compile(r"a (small|large) (\w+) (\w+)(?: in the (top|bottom) (left|right))?")


def blobs(image):
    """Pixels (rows, columns) of each connected coloured region; backgrounds are near grey."""
    pixels = np.asarray(image, dtype=int)
    coloured = pixels.max(axis=2) - pixels.min(axis=2) > 60
    regions = []
    while coloured.any():
        stack = [tuple(np.argwhere(coloured)[0])]
        coloured[stack[0]] = False
        region = []
        while stack:
            row, column = stack.pop()
            region.append((row, column))
            for near in ((row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
                if min(near) >= 0 and max(near) < len(pixels) and coloured[near]:
                    coloured[near] = False
                    stack.append(near)
        regions.append(np.array(region))
    return regions


def colour_of(image, region):
    pixels = np.asarray(image, dtype=int)[region[:, 0], region[:, 1]]
    return min(COLOURS, key=lambda name: np.abs(np.median(pixels, axis=0) - COLOURS[name]).sum())


def extent(region):
    return (region.max(axis=0) - region.min(axis=0)).max() + 1


def records_matching(pattern, count=40):
    scenes = Scenes(4 * count, start=1_000)
    texts = scenes.captions()
    return [
        (pattern.fullmatch(text).groups(), scenes[i]["image"])
        for i, text in enumerate(texts)
        if pattern.fullmatch(text)
    ]


def test_each_caption_has_one_of_three_forms():
    for caption in Scenes(2_000).captions():
        assert sum(bool(pattern.fullmatch(caption)) for pattern in (RELATED, ALIKE, ALONE)) == 1, caption


def test_counts_and_colours_are_true_in_the_pixels():
    for (number, colour, _), image in records_matching(ALIKE):
        regions = blobs(image)
        assert len(regions) == NUMBERS[number]
        assert {colour_of(image, region) for region in regions} == {colour}


def test_relations_are_true_in_the_pixels():
    for (colour, _, relation, other_colour, _), image in records_matching(RELATED):
        small, large = sorted(blobs(image), key=extent)
        assert (colour_of(image, small), colour_of(image, large)) == (colour, other_colour)
        down, right = small.mean(axis=0) - large.mean(axis=0)
        distance = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
        assert distance > 2 * min(abs(down), abs(right)), (relation, down, right)


def test_size_and_place_are_true_in_the_pixels():
    for (size, colour, _, vertical, horizontal), image in records_matching(ALONE):
        (region,) = blobs(image)
        assert colour_of(image, region) == colour
        assert extent(region) > 21 if size == "large" else extent(region) < 21
        down, right = region.mean(axis=0) / 63 - 0.5
        if vertical is None:
            assert max(abs(down), abs(right)) < 0.12
        else:
            assert (down < -0.1, right < -0.1) == (vertical == "top", horizontal == "left")
            assert min(abs(down), abs(right)) > 0.1


def test_shapes_fill_their_box():
    filled = {}
    for (size, _, shape, *_), image in records_matching(ALONE, count=200):
        if size == "large":
            (region,) = blobs(image)
            filled.setdefault(shape, []).append(len(region) / np.prod(np.ptp(region, axis=0) + 1))
    # Areas over bounding boxes: pi / 4, 1, 1 / 2, 1 - (1 - 1 / 3) ** 2, pi / 4 * (1 - 0.58 ** 2).
    expected = {"circle": 0.785, "square": 1.0, "triangle": 0.5, "cross": 0.55, "ring": 0.52}
    for shape, fraction in expected.items():
        assert abs(np.mean(filled[shape]) - fraction) < 0.07, shape
    assert {"star", "heart"} < set(filled)


@pytest.mark.parametrize("image_size", [32, 64, 96])
def test_things_stay_inside_the_frame(image_size):
    for record in Scenes(150, image_size=image_size):
        assert record["image"].size == (image_size, image_size)
        pixels = np.asarray(record["image"], dtype=int)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border.max(axis=1) - border.min(axis=1)).max() < 25


def test_scene_depends_only_on_its_index():
    long, late = Scenes(50, noise_rate=0.4), Scenes(3, start=40, noise_rate=0.4)
    for record, same in zip(late, list(long)[40:43], strict=True):
        assert record["image"].tobytes() == same["image"].tobytes()
        assert {**record, "image": None} == {**same, "image": None}
    assert long.questions(41) == late.questions(1)
    assert long.nlvr2_record(41)["sentence"] == late.nlvr2_record(1)["sentence"]


def test_captions_repeat_in_another_process():
    program = "from blip_hf.data.scenes import Scenes; print('|'.join(Scenes(30, noise_rate=0.5).captions()))"
    assert run_code(program).strip().split("|") == Scenes(30, noise_rate=0.5).captions()


def test_another_seed_gives_other_scenes():
    same = sum(one == other for one, other in zip(Scenes(100).captions(), Scenes(100, seed=1).captions(), strict=True))
    assert same < 10


def test_scenes_have_thousands_of_captions():
    assert len(set(Scenes(5_000).captions())) > 2_000


def test_images_with_one_caption_differ():
    scenes = Scenes(600)
    groups = {}
    for i, caption in enumerate(scenes.captions()):
        groups.setdefault(caption, []).append(i)
    same_captions = [group for group in groups.values() if len(group) > 1]
    assert len(same_captions) > 20
    for first, second, *_ in same_captions:
        assert scenes[first]["image"].tobytes() != scenes[second]["image"].tobytes()


def test_captions_agree_with_records():
    scenes = Scenes(30, start=5, noise_rate=0.5)
    assert scenes.captions() == [record["caption"] for record in scenes]
    assert [record["image_id"] for record in scenes] == list(range(5, 35))


def test_noise_has_its_rate_and_is_recorded():
    scenes, clean = Scenes(2_000, noise_rate=0.3, image_size=32), Scenes(2_000)
    true_captions = clean.captions()
    assert [scenes.true_caption(i) for i in range(2_000)] == true_captions
    changed = [caption != truth for caption, truth in zip(scenes.captions(), true_captions, strict=True)]
    assert abs(np.mean(changed) - 0.3) < 0.04  # four standard errors
    assert [scenes[i]["is_swapped"] for i in range(300)] == changed[:300]
    assert not any(clean[i]["is_swapped"] for i in range(20))


def test_captions_swapped_at_a_low_rate_are_swapped_at_a_higher_rate():
    low, high, truth = (Scenes(500, noise_rate=rate).captions() for rate in (0.1, 0.5, 0.0))
    swapped = [i for i in range(500) if low[i] != truth[i]]
    assert swapped
    assert all(high[i] == low[i] for i in swapped)


def test_answers_agree_with_the_caption():
    scenes = Scenes(300)
    for i, caption in enumerate(scenes.captions()):
        for pair in scenes.questions(i):
            assert pair["answer"] == answer_from_caption(caption, pair["question"]), (caption, pair)


def answer_from_caption(caption, question):
    """Answers computed from the caption."""
    words = caption.replace("crosses", "cross").split()
    if words[0] in NUMBERS and words[-1] != "cross":
        words[-1] = words[-1].removesuffix("s")
    shape_at = {words[k + 1]: words[k] for k in range(len(words) - 1) if words[k] in COLOURS}
    first, *others = shape_at
    asked = re.sub(r"[?]", "", question).split()
    named = [word for word in asked if word in shape_at]
    if question.startswith("what colour"):
        return next(colour for shape, colour in shape_at.items() if asked[-1] in (shape, f"{shape}s", f"{shape}es"))
    if question.startswith("what shape"):
        return next(shape for shape, colour in shape_at.items() if colour == asked[-1])
    if question.startswith("what size"):
        return words[1] if named[0] == first else "large"
    if question.startswith("where"):
        return caption.partition(" in the ")[2] or "middle"
    if question.startswith("how many"):
        return words[0] if words[0] in NUMBERS else "one"
    if question.startswith("is there"):
        return "yes" if shape_at.get(asked[-1]) == asked[-2] else "no"
    if question.startswith("what is"):
        neighbour = others[0] if named[0] == first else first
        return f"{shape_at[neighbour]} {neighbour}"
    relation = RELATED.fullmatch(caption).group(3)
    return "yes" if f"{named[0]} {relation} the {named[1]}" in question and named[0] == first else "no"


def test_a_neighbour_is_asked_for_on_its_true_side():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    scenes = Scenes(200)
    for i, caption in enumerate(scenes.captions()):
        if match := RELATED.fullmatch(caption):
            _, small, relation, _, large = match.groups()
            questions = [pair["question"] for pair in scenes.questions(i)]
            assert f"what is {relation} the {large}?" in questions
            assert f"what is {opposite[relation]} the {small}?" in questions


def test_yes_and_no_answers_are_balanced():
    scenes = Scenes(100)
    for i in range(100):
        answers = [pair["answer"] for pair in scenes.questions(i)]
        assert answers.count("yes") == answers.count("no") > 0


def test_nlvr2_labels_are_true_in_the_pixels():
    scenes = Scenes(60)
    checked = set()
    for i in range(60):
        record = scenes.nlvr2_record(i)
        colour = record["sentence"].split()[-1]
        if colour in COLOURS:
            shown = [colour in {colour_of(image, region) for region in blobs(image)} for image in record["images"]]
            assert all(shown) == record["label"]
            assert any(shown)
            checked.add(record["label"])
    assert checked == {True, False}


def test_nlvr2_records_share_no_image(monkeypatch):
    scenes, looked_up = Scenes(20, start=100), []
    scene_at = Scenes._scene
    monkeypatch.setattr(Scenes, "_scene", lambda self, index: looked_up.append(index) or scene_at(self, index))
    records = [scenes.nlvr2_record(i) for i in range(20)]
    assert set(looked_up) == set(range(100, 120))
    assert len({image.tobytes() for record in records for image in record["images"]}) == 40


def test_scenes_are_a_sequence():
    scenes = Scenes(4)
    assert len(scenes) == len(list(scenes)) == 4
    assert scenes[-1]["image_id"] == 3
    with pytest.raises(IndexError):
        scenes[4]
    with pytest.raises(TypeError):
        scenes[:2]


def test_drawing_does_not_change_the_global_random_state():
    state = random.getstate()
    Scenes(1, noise_rate=0.5).nlvr2_record(0)
    assert random.getstate() == state


@pytest.mark.parametrize(
    "arguments",
    [{"num_scenes": 0}, {"start": -1}, {"image_size": 31}, {"noise_rate": 1.0}, {"noise_rate": -0.1}],
)
def test_arguments_out_of_range_raise(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Scenes(**{"num_scenes": 1, **arguments})
