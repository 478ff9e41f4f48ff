# SPDX-License-Identifier: BSD-3-Clause
"""Sets of pairs of the loop: the initial ones, and the training set of each variant.

Sets for training and evaluation are saved with `save_to_disk`; the web set is a folder of Parquet files for CapFilt.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..capfilt.filters import Rule, keep_mask
from ..capfilt.scores import RunFolder
from ..data.readers import load_pairs
from ..data.readers.records import read_json
from ..data.scenes import SceneRecord, Scenes
from ..demo.evaluate import word_accuracy
from .config import FileData, SceneData
from .stages import Metrics


WEB, CHECK, HUMAN, EVAL, TRUTH = "web", "check", "human", "eval", "truth.parquet"

_SHARD_ROWS = 1000
# Drawn images are bytes; image files stay paths, which are not copied.
_IMAGE = {True: datasets.Image(), False: datasets.Value("string")}
_PAIR = {"caption": datasets.Value("string"), "image_id": datasets.Value("int64")}
_TRUTH_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("text", pa.string()), ("is_right", pa.bool_()), ("caption", pa.string())]
)

Record = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """Labels of the web set, empty if it has none.

    `labels` has whether a web text is correct, by image id and text; `captions` the only correct caption, by image id.

    Example:
        >>> truth = Truth({("7", "a ring"): False}, {"7": "a star"})
        >>> truth.is_right("web", "7", "a ring"), truth.is_right("synthetic", "7", "a star")
        (False, True)
    """

    labels: Mapping[tuple[str, str], bool] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)

    def is_right(self, source: str, image_id: str, text: str) -> bool | None:
        """Returns whether a text is correct for its image, `None` if unknown."""
        if source == "web":
            return self.labels.get((image_id, text.strip()))
        caption = self.captions.get(image_id)
        return None if caption is None else text == caption


def write_scene_sets(data: SceneData, seed: int, folder: Path) -> Metrics:
    """Draws all sets to `web/`, `check/`, `human/`, `eval/` and `truth.parquet`."""
    series = {"seed": seed, "image_size": data.image_size}
    web = Scenes(data.num_web, noise_rate=data.noise_rate, **series)
    human = Scenes(data.num_human, start=len(web), **series)
    check = Scenes(data.num_check, start=len(web) + len(human), noise_rate=data.noise_rate, **series)
    rest = Scenes(20 * data.num_eval, start=check.start + len(check), **series)
    write_web(map(_encoded, web), folder / WEB, is_drawn=True)
    write_web(map(_encoded, check), folder / CHECK, is_drawn=True)
    save_pairs(_by_caption([_encoded(scene) for scene in human]), folder / HUMAN, is_drawn=True)
    distinct = [rest[i] for i in _first_of_each_caption(rest, data.num_eval)]
    save_pairs(list(map(_encoded, distinct)), folder / EVAL, is_drawn=True)
    truth = [
        {
            "image_id": str(scenes.start + i),
            "text": caption,
            "is_right": caption == scenes.true_caption(i),
            "caption": scenes.true_caption(i),
        }
        for scenes in (web, check)
        for i, caption in enumerate(scenes.captions())
    ]
    pq.write_table(pa.Table.from_pylist(truth, schema=_TRUTH_SCHEMA), folder / TRUTH)
    return {"num_web": len(web), "num_human": len(human), "num_eval": data.num_eval, "num_check": len(check)}


def write_file_sets(data: FileData, seed: int, folder: Path) -> Metrics:
    """Reads all sets, and removes the images of a partial human set from the web set."""
    roots: dict[str, Any] = {"image_root": data.image_root, "allow_outside": data.allow_outside}
    web, human = (list(load_pairs(source, **roots)) for source in (data.web, data.human))
    labels = None if data.web_labels is None else read_json(Path(data.web_labels))
    if labels is not None and len(labels) != len(web):
        raise ValueError(
            f"{data.web_labels} holds {len(labels)} labels, expected {len(web)}, one per record of {data.web}."
        )
    # Different paths can lead to the same image.
    web, human = (
        [{**record, "image_path": os.path.realpath(record["image"])} for record in own] for own in (web, human)
    )
    web = [{**record, "id": str(number)} for number, record in enumerate(web)]
    if data.human_share < 1:
        images = list(dict.fromkeys(record["image_path"] for record in human))
        order = np.random.default_rng(seed).permutation(len(images))
        chosen = {images[i] for i in order[: max(1, round(data.human_share * len(images)))]}
        human = [record for record in human if record["image_path"] in chosen]
        web = [record for record in web if record["image_path"] not in chosen]
    if not web:
        raise ValueError(f"human_share={data.human_share} leaves no web pairs. Pass a smaller share.")
    evaluation = load_pairs(data.eval, split=data.eval_split, **roots)
    # Image ids are common to both sets.
    numbers = {path: number for number, path in enumerate(dict.fromkeys(r["image_path"] for r in [*web, *human]))}
    web, human = ([{**record, "image_id": numbers[record["image_path"]]} for record in own] for own in (web, human))
    write_web(map(_with_full_path, web), folder / WEB, is_drawn=False)
    save_pairs(list(map(_with_full_path, human)), folder / HUMAN, is_drawn=False)
    save_pairs(list(map(_with_full_path, evaluation)), folder / EVAL, is_drawn=False)
    if labels is not None:
        truth = [
            {
                "image_id": str(record["image_id"]),
                "text": record["caption"].strip(),
                "is_right": bool(labels[int(record["id"])]),
            }
            for record in web
        ]
        pq.write_table(pa.Table.from_pylist(truth, schema=_TRUTH_SCHEMA), folder / TRUTH)
    return {"num_web": len(web), "num_human": len(human), "num_eval": len(evaluation), "num_check": 0}


def write_variant(
    variant: str, sets: Path, run: Path | None, folder: Path, *, rule: Rule, with_human: bool, is_drawn: bool
) -> Metrics:
    """Writes the training set of a variant. Pairs of one caption (scenes) or of one image (files) share an id."""
    web, human = read_web(sets / WEB), datasets.load_from_disk(sets / HUMAN)
    texts = web.select(["id", "caption"]).append_column("source", pa.array(["web"] * len(web)))
    if variant in ("filtered", "captioned", "bootstrapped"):
        assert run is not None
        texts = _scored_texts(run, variant, rule)
    elif variant == "repeated":
        assert run is not None
        num_wanted = len(_scored_texts(run, "bootstrapped", rule))
        texts = texts.take(pa.array(np.arange(max(num_wanted, len(texts))) % len(texts)))
    rows = pc.index_in(texts["id"], web["id"])
    pairs = pa.table(
        {
            "image": web["image"].take(rows),
            "caption": texts["caption"],
            "image_id": web["image_id"].take(rows),
        }
    )
    metrics = _count(texts, pairs["image_id"].cast(pa.string()).to_pylist(), read_truth(sets))
    schema = human.features.arrow_schema
    both = pairs.select(schema.names).cast(schema)
    if with_human:
        both = pa.concat_tables([both, human.data.table.cast(schema)])
    if not len(both):
        raise ValueError(
            f"The filter keeps no text for {variant!r}, and there are no human pairs. Lower the threshold."
        )
    if is_drawn:
        captions = both["caption"].combine_chunks().dictionary_encode()
        place = schema.get_field_index("image_id")
        both = both.set_column(place, schema.field(place), captions.indices.cast(pa.int64()))
    datasets.Dataset(both, info=datasets.DatasetInfo(features=human.features)).save_to_disk(folder)
    return {"train_pairs": len(both), **metrics}


def read_truth(sets: Path) -> Truth:
    """Reads the labels of the web set. The first of equal texts of an image counts."""
    path = sets / TRUTH
    if not path.is_file():
        return Truth()
    rows = pq.read_table(path).to_pylist()[::-1]
    return Truth(
        {(row["image_id"], row["text"]): row["is_right"] for row in rows},
        {row["image_id"]: row["caption"] for row in rows if row["caption"] is not None},
    )


def read_scores(run: Path) -> pa.Table:
    """Reads all scores of a CapFilt run, with the `id` of each sample in the web set."""
    table = pa.concat_tables(RunFolder(run).tables())
    # Sample ids are <file>/<id>.
    return table.append_column("id", pa.array([name.rpartition("/")[2] for name in table["sample_id"].to_pylist()]))


def read_web(folder: Path) -> pa.Table:
    """Reads `image`, `caption`, `image_id` and `id` of the web set."""
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("*.parquet"))))


def write_web(records: Iterable[Record], folder: Path, *, is_drawn: bool) -> None:
    """Writes a web set, 1,000 records per file."""
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": _IMAGE[is_drawn], **_PAIR, "id": datasets.Value("string")})
    records = iter(records)
    number = 0
    while chunk := list(islice(records, _SHARD_ROWS)):
        pq.write_table(pa.Table.from_pylist(chunk, schema=features.arrow_schema), folder / f"web-{number:05d}.parquet")
        number += 1


def save_pairs(records: Sequence[Record], folder: Path, *, is_drawn: bool) -> None:
    """Saves the `image`, `caption` and `image_id` of a set for training or evaluation."""
    features = datasets.Features({"image": _IMAGE[is_drawn], **_PAIR})
    table = pa.Table.from_pylist(list(records), schema=features.arrow_schema)
    datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).save_to_disk(folder)


def _encoded(scene: SceneRecord) -> Record:
    image = datasets.Image().encode_example(scene["image"])
    return {
        "image": image,
        "caption": scene["caption"],
        "image_id": scene["image_id"],
        "id": str(scene["image_id"]),
    }


def _with_full_path(record: Record) -> Record:
    return {**record, "image": str(Path(record["image"]).absolute())}


def _by_caption(records: list[Record]) -> list[Record]:
    """Gives equal captions a common `image_id`."""
    ids = {caption: i for i, caption in enumerate(dict.fromkeys(record["caption"] for record in records))}
    return [{**record, "image_id": ids[record["caption"]]} for record in records]


def _first_of_each_caption(scenes: Scenes, number: int) -> list[int]:
    first: dict[str, int] = {}
    for i, caption in enumerate(scenes.captions()):
        first.setdefault(caption, i)
    if len(first) < number:
        raise ValueError(f"{len(scenes)} scenes have fewer than {number} different captions. Lower num_eval.")
    return list(first.values())[:number]


def _scored_texts(run: Path, variant: str, rule: Rule) -> pa.Table:
    """Returns `id`, `caption` and `source` of the texts that a variant takes from the scores."""
    table = read_scores(run)
    if variant != "captioned":
        sources = ("web",) if variant == "filtered" else ("web", "synthetic")
        own = Rule(**{**vars(rule), "sources": sources})
        table = table.filter(pa.array(keep_mask(table, own)))
    texts = table.select(["id", "text", "source"]).rename_columns(["id", "caption", "source"])
    # A synthetic caption that equals the web text is one pair.
    first: dict[tuple[str, str], int] = {}
    for row, pair in enumerate(zip(texts["id"].to_pylist(), texts["caption"].to_pylist(), strict=True)):
        first.setdefault(pair, row)
    return texts.take(pa.array(list(first.values()), type=pa.int64()))


def _count(texts: pa.Table, image_ids: Sequence[str], truth: Truth) -> Metrics:
    captions, sources = texts["caption"].to_pylist(), texts["source"].to_pylist()
    metrics: Metrics = {f"train_{source}": sources.count(source) for source in ("web", "synthetic")}
    if not sources:
        return metrics
    verdicts = [truth.is_right(*row) for row in zip(sources, image_ids, captions, strict=True)]
    if None not in verdicts:
        metrics["share_right"] = sum(map(bool, verdicts)) / len(verdicts)
    if truth.captions.keys() >= set(image_ids):
        words = [word_accuracy(text, truth.captions[id_]) for text, id_ in zip(captions, image_ids, strict=True)]
        metrics["words_right"] = sum(words) / len(words)
    return metrics


__all__ = [
    "CHECK",
    "EVAL",
    "HUMAN",
    "WEB",
    "Truth",
    "read_scores",
    "read_truth",
    "read_web",
    "save_pairs",
    "write_file_sets",
    "write_scene_sets",
    "write_variant",
    "write_web",
]
