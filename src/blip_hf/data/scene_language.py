# SPDX-License-Identifier: BSD-3-Clause
"""Text about scenes: captions, questions with answers, and sentences about two images.

A caption is a function of the scene, so a model can reach an exact match. It omits the place of an object in the
middle, and names the smaller of two objects first.
"""

import random
import re

from .scene_layout import COLOURS, OPPOSITES, PLACES, RELATIONS, SHAPES, Scene, Thing


NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}

_CAPTIONS = {
    "one": "a {size} {thing}",
    "placed": "a {size} {thing} in the {place}",
    "alike": "{number} {colour} {shapes}",
    "related": "a small {thing} {relation} {other}",
}
_QUESTIONS = {
    "colour": "what colour is the {shape}?",
    "colours": "what colour are the {shapes}?",
    "shape": "what shape is {colour}?",
    "size": "what size is the {shape}?",
    "place": "where is the {shape}?",
    "number": "how many {shapes} are there?",
    "presence": "is there {thing}?",
    "relation": "is the {shape} {relation} the {other}?",
    "neighbour": "what is {relation} the {shape}?",
}
_SENTENCES = {"shape": "both pictures show {shape}", "colour": "both pictures show something {colour}"}


def caption_of(scene: Scene) -> str:
    """The caption of a scene, such as `"a small blue square left of a yellow star"`."""
    first = scene.things[0]
    if scene.relation is not None:
        other = _with_article(_name(scene.things[1]))
        return _CAPTIONS["related"].format(thing=_name(first), relation=scene.relation, other=other)
    if scene.place is None:
        number = NUMBERS[len(scene.things)]
        return _CAPTIONS["alike"].format(number=number, colour=first.colour, shapes=PLURALS[first.shape])
    template = _CAPTIONS["one" if scene.place == "middle" else "placed"]
    return template.format(size=first.size, thing=_name(first), place=scene.place)


def questions_about(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """Items `{"question", "answer"}` with exact answers; yes and no are equally frequent."""
    pairs = _presence_questions(scene, rng)
    if scene.place is None and scene.relation is None:
        pairs += _number_questions(scene.things)
    else:
        for thing in scene.things:
            pairs += _attribute_questions(thing)
    if scene.place is not None:
        pairs.append((_ask("place", shape=scene.things[0].shape), scene.place))
    if scene.relation is not None:
        pairs += _relation_questions(scene, scene.relation)
    return [{"question": question, "answer": answer} for question, answer in pairs]


def shared_property_sentence(scene: Scene, other: Scene, rng: random.Random) -> tuple[str, bool]:
    """A sentence that both images show a shape or colour (sampled from the first), and whether it is true."""
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        sentence = _SENTENCES["shape"].format(shape=_with_article(thing.shape))
        return sentence, any(thing.shape == candidate.shape for candidate in other.things)
    sentence = _SENTENCES["colour"].format(colour=thing.colour)
    return sentence, any(thing.colour == candidate.colour for candidate in other.things)


def scene_vocabulary_texts() -> list[str]:
    """All words of captions, questions, answers, sentences and the prompt, to train a tokenizer."""
    templates = (*_CAPTIONS.values(), *_QUESTIONS.values(), *_SENTENCES.values())
    return [
        "a picture of an",
        "yes no",
        "small large",
        *COLOURS,
        *SHAPES,
        *PLURALS.values(),
        *NUMBERS.values(),
        *PLACES,
        *RELATIONS,
        *(re.sub(r"{\w+}", "", template) for template in templates),
    ]


def _presence_questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Asks about a present object, and about an absent one of the same shape or colour."""
    present = {(thing.colour, thing.shape) for thing in scene.things}
    thing = rng.choice(scene.things)
    near_misses = [(colour, thing.shape) for colour in COLOURS] + [(thing.colour, shape) for shape in SHAPES]
    absent = rng.choice([pair for pair in near_misses if pair not in present])
    return [
        (_ask("presence", thing=_with_article(_name(thing))), "yes"),
        (_ask("presence", thing=_with_article(" ".join(absent))), "no"),
    ]


def _number_questions(things: tuple[Thing, ...]) -> list[tuple[str, str]]:
    shapes = PLURALS[things[0].shape]
    return [
        (_ask("number", shapes=shapes), NUMBERS[len(things)]),
        (_ask("colours", shapes=shapes), things[0].colour),
    ]


def _attribute_questions(thing: Thing) -> list[tuple[str, str]]:
    return [
        (_ask("colour", shape=thing.shape), thing.colour),
        (_ask("shape", colour=thing.colour), thing.shape),
        (_ask("size", shape=thing.shape), thing.size),
        (_ask("number", shapes=PLURALS[thing.shape]), NUMBERS[1]),
    ]


def _relation_questions(scene: Scene, relation: str) -> list[tuple[str, str]]:
    small, large = scene.things
    opposite = OPPOSITES[relation]
    return [
        (_ask("neighbour", relation=relation, shape=large.shape), _name(small)),
        (_ask("neighbour", relation=opposite, shape=small.shape), _name(large)),
        (_ask("relation", shape=small.shape, relation=relation, other=large.shape), "yes"),
        (_ask("relation", shape=small.shape, relation=opposite, other=large.shape), "no"),
    ]


def _ask(kind: str, **words: str) -> str:
    return _QUESTIONS[kind].format(**words)


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


__all__ = ["caption_of", "questions_about", "scene_vocabulary_texts", "shared_property_sentence"]
