# SPDX-License-Identifier: BSD-3-Clause
"""Where image-text pairs come from: JSON files, image folders and `datasets`, all read into one record form.

A source has one record an image or one a caption. Pairs have one row a caption, with the columns `image` (not decoded),
`caption`, `image_id` (a number, to tell images apart) and `source_id` (what the source calls the image). They are
Arrow tables: a million pairs of paths take some 200 MB, images inside a data set stay memory-mapped where they are, and
an image with five captions is stored once.
"""

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Dataset, DatasetDict

from .annotations import SHAPES, coco_image_id, read_metadata_csv, standard_records
from .records import (
    CAPTION_FIELDS,
    CaptionGroup,
    Record,
    check_record,
    read_captions,
    read_json,
    read_optional_id,
    read_path,
)


PathLike = str | os.PathLike[str]
PairSource = PathLike | Sequence[PathLike] | Dataset | DatasetDict
Value = TypeVar("Value")

LIST_SUFFIXES = (".json", ".jsonl")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
SOURCES = (
    "a JSON list (.json, .jsonl) or several, an annotation file of COCO or Karpathy, a folder of Parquet files or of images with a"
    f" {' or '.join(METADATA_FILES)}, a data set saved with `save_to_disk`, a `Dataset` or `DatasetDict`, or the name of"
    " one on the Hub"
)


def load_pairs(source: PairSource, *, image_root: PathLike | None = None, split: str = "train") -> Dataset:
    """Reads image-text pairs from wherever they are, without opening an image.

    | source                         | a record                                                                  |
    |--------------------------------|---------------------------------------------------------------------------|
    | JSON list(s), `.json`/`.jsonl` | `{"image": path, "caption": text or list of texts, "image_id": optional}` |
    | COCO captions, Karpathy splits | as published: see [`~blip_hf.data.readers.annotations.standard_records`]          |
    | folder with `metadata.jsonl`   | `{"file_name": path, "caption" or "text": text or list of texts}`         |
    | folder with `metadata.csv`     | the same in columns, one caption a row                                    |
    | folder of Parquet files        | as in a `datasets` object                                                 |
    | `datasets` object, folder, name| column `image` of images or paths, and `caption`, `captions` or `text`  |

    Equal `image_id`s mark captions of the same image. They are those of the source if these are numbers from 0 up, and
    otherwise numbered from 0 by the source's own ids; by image path where a record lacks one, or where several files
    are joined, whose ids may clash; by record where images inside a data set have no id.

    `source_id`s are what results are written under: the source's own ids, numbers or text as they are. An image without
    one goes by COCO's number where its file name holds it, as in BLIP's lists for evaluation, and otherwise by its path
    as the source has it; inside a data set by its row. Where two images would share an id, as of joined files, all go
    by their full paths.

    Args:
        source (`str`, `Path`, a list of them, `Dataset` or `DatasetDict`):
            Files, a folder, a data set, or the name of one on the Hub.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of the JSON file.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a source that has several: a `DatasetDict`, a data set on the Hub, a folder whose metadata lie in
            one folder a split, or a file of Karpathy, whose `"train"` includes `restval`.

    Returns:
        `datasets.Dataset`: one row a caption, in the order of the source, with the columns `image`, `caption`, `image_id`
        and `source_id`.

    Raises:
        ValueError: If there is no such source or it does not fit; the message names the record and the field.

    Example:
        >>> from PIL import Image
        >>> source = Dataset.from_dict(
        ...     {"image": ["cat.jpg", "dog.jpg"], "caption": [["a cat", "an animal"], ["a dog"]]}
        ... )
        >>> load_pairs(source, image_root=".")[:]["caption"]
        ['a cat', 'an animal', 'a dog']
    """
    if image_root is not None and not Path(image_root).is_dir():
        raise ValueError(f"image_root={str(image_root)!r} is not a folder; pass the one that image paths start from.")
    if isinstance(source, DatasetDict):
        return _pairs_of_dataset(_pick_split(source, split), image_root)
    if isinstance(source, Dataset):
        return _pairs_of_dataset(source, image_root)
    if isinstance(source, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in source):
        return _pairs_of_files([Path(item) for item in source], image_root, split)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"source is a {type(source).__name__}, expected {SOURCES}. Records in memory need no loading: "
            "`PairDataset` takes them as they are."
        )
    path = Path(source)
    if path.is_dir():
        return _pairs_of_folder(path, image_root, split)
    if path.is_file() or path.suffix in LIST_SUFFIXES or path.is_absolute() or not isinstance(source, str):
        return _pairs_of_files([path], image_root, split)
    return _pairs_of_dataset(_load_from_hub(source, split), image_root)


def group_captions(pairs: Dataset | Sequence[Mapping[str, Any]]) -> Sequence[CaptionGroup]:
    """One item an image, for evaluation, in the order in which the images come first.

    Args:
        pairs (`datasets.Dataset` or sequence of records):
            Records `{"image", "caption", "image_id"}`, optionally with `source_id`. Their images are fetched only when
            an item is.

    Returns:
        `Sequence[CaptionGroup]`: items `{"image", "captions", "image_id"}`, whose `image_id` is the `source_id` where
        pairs have one.

    Example:
        >>> pairs = [{"image": "a.jpg", "caption": text, "image_id": 7} for text in ("a cat", "an animal")]
        >>> list(group_captions(pairs))
        [{'image': 'a.jpg', 'captions': ['a cat', 'an animal'], 'image_id': 7}]
    """
    return _CaptionGroups(pairs)


class _CaptionGroups(Sequence):
    """View of pairs by image, which holds their captions and not their images."""

    def __init__(self, pairs: Dataset | Sequence[Mapping[str, Any]]) -> None:
        self.pairs = pairs
        self.captions: dict[int, list[str]] = {}
        self.first_rows: list[int] = []
        for row, (image_id, caption) in enumerate(_ids_and_captions(pairs)):
            if image_id not in self.captions:
                self.captions[image_id] = []
                self.first_rows.append(row)
            self.captions[image_id].append(caption)

    def __len__(self) -> int:
        return len(self.first_rows)

    def __getitem__(self, i: int) -> CaptionGroup:
        record = self.pairs[self.first_rows[operator.index(i)]]
        image_id = record["image_id"]
        own_id = record.get("source_id", image_id)
        return {"image": record["image"], "captions": self.captions[image_id], "image_id": own_id}


def _ids_and_captions(pairs: Dataset | Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, str]]:
    if isinstance(pairs, Dataset):
        return zip(pairs["image_id"][:], pairs["caption"][:], strict=True)
    return ((record["image_id"], record["caption"]) for record in pairs)


# Sources


def _pairs_of_folder(folder: Path, image_root: PathLike | None, split: str) -> Dataset:
    for place in (folder, folder / split):
        found = [place / name for name in METADATA_FILES if (place / name).is_file()]
        if len(found) > 1:
            raise ValueError(f"{place} holds both {' and '.join(METADATA_FILES)}. Remove one.")
        if found:
            return _pairs_of_metadata(found[0], image_root)
    if (folder / datasets.config.DATASETDICT_JSON_FILENAME).is_file():
        return _pairs_of_dataset(_pick_split(datasets.load_from_disk(folder), split), image_root)
    if (folder / datasets.config.DATASET_STATE_JSON_FILENAME).is_file():
        return _pairs_of_dataset(datasets.load_from_disk(folder), image_root)
    if files := [str(path) for path in sorted(folder.glob("*.parquet"))]:
        return _pairs_of_dataset(datasets.load_dataset("parquet", data_files=files, split="train"), image_root)
    raise ValueError(
        f"The folder {folder} holds no {' or '.join(METADATA_FILES)}, neither directly nor in {split}/, no data set saved"
        " with `save_to_disk`, and no Parquet files. Add one, or pass a JSON list with this folder as `image_root`."
    )


def _pick_split(splits: DatasetDict, split: str) -> Dataset:
    if split not in splits:
        raise ValueError(f"There is no split {split!r}; pass split= one of {', '.join(map(repr, splits))}.")
    return splits[split]


def _load_from_hub(name: str, split: str) -> Dataset:
    try:
        return datasets.load_dataset(name, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{name!r} is neither a file or folder here nor a data set within reach on the Hub ({error}). Pass {SOURCES}."
        ) from error


def _pairs_of_files(paths: list[Path], image_root: PathLike | None, split: str) -> Dataset:
    if not paths:
        raise ValueError(f"The list of files is empty; pass {SOURCES}.")
    images, captions, image_ids, names = [], [], [], []
    for path in paths:
        root = path.parent if image_root is None else image_root
        records = _read_file(path, split)
        # One of several may be empty, as a shard is of which nothing was kept.
        if records != [] or len(paths) == 1:
            records = _non_empty(records, path)
        rows = _read_records(records, str(path), "image", root)
        for column, values in zip((images, captions, image_ids, names), rows, strict=True):
            column.extend(values)
    if not images:
        raise ValueError(f"All of the {len(paths)} lists are empty; pass {SOURCES}.")
    if len(paths) > 1 or None in image_ids:
        image_ids = images
    return _one_row_a_caption(Dataset.from_dict({"image": images}), captions, image_ids, names)


def _pairs_of_metadata(path: Path, image_root: PathLike | None) -> Dataset:
    records = read_metadata_csv(path) if path.suffix == ".csv" else read_json(path)
    root = path.parent if image_root is None else image_root
    images, captions, image_ids, names = _read_records(_non_empty(records, path), str(path), "file_name", root)
    image_ids = images if None in image_ids else image_ids
    return _one_row_a_caption(Dataset.from_dict({"image": images}), captions, image_ids, names)


def _read_file(path: Path, split: str) -> Any:
    if not path.is_file() or path.suffix not in LIST_SUFFIXES:
        state = "is not a JSON file" if path.is_file() else "does not exist"
        raise ValueError(f"{path} {state}. Pass {SOURCES}.")
    content = read_json(path)
    return standard_records(content, str(path), split) if isinstance(content, dict) else content


def _non_empty(records: Any, path: Path) -> list[Any]:
    if not isinstance(records, list) or not records:
        kind = "an empty list" if records == [] else f"a {type(records).__name__}"
        raise ValueError(f"{path} holds {kind}, expected a list of records with 'image' and 'caption', or {SHAPES}.")
    return records


def _read_records(
    records: Iterable[Any], name: str, image_field: str, root: PathLike
) -> tuple[list[str], list[list[str]], list[int | str | None], list[int | str]]:
    """Paths, captions and ids of the images, and what to call them."""
    images, captions, image_ids, names = [], [], [], []
    for number, record in enumerate(records):
        where = f"{name}, record {number}"
        check_record(record, where, image_field)
        path = read_path(record, image_field, where)
        images.append(os.path.join(root, path))
        captions.append(read_captions(record, where))
        image_ids.append(read_optional_id(record, "image_id", where))
        names.append(_name(image_ids[-1], path))
    return images, captions, image_ids, names


def _name(image_id: int | str | None, path: str | int) -> int | str:
    """What to call a picture of an own id or none, that lies at a path or in a row."""
    if image_id is not None:
        return image_id
    coco_id = coco_image_id(path) if isinstance(path, str) else None
    return path if coco_id is None else coco_id


def _pairs_of_dataset(dataset: Dataset, image_root: PathLike | None) -> Dataset:
    dataset = dataset.with_format(None)
    name = f"data set {dataset.info.dataset_name}" if dataset.info.dataset_name else "data set"
    feature = dataset.features.get("image")
    is_image, is_path = isinstance(feature, datasets.Image), feature == datasets.Value("string")
    if not is_image and not is_path:
        raise ValueError(
            f"The {name} has {'no column' if feature is None else f'{feature} in the column'} 'image' (columns: "
            f"{', '.join(dataset.column_names)}), expected `datasets.Image()` or paths. Use `rename_column` or "
            "`cast_column`."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} is empty; pass another split or data set.")
    text_columns = [column for column in (*CAPTION_FIELDS, "image_id") if column in dataset.column_names]
    records = dataset.select_columns(text_columns).to_list() if text_columns else [{}] * len(dataset)
    captions = _read_all(read_captions, records, name)
    image_ids = _read_all(lambda record, where: read_optional_id(record, "image_id", where), records, name)
    if is_path:
        paths = _read_all(
            lambda record, where: read_path(record, "image", where), dataset.select_columns("image"), name
        )
        places = [os.path.join(image_root or "", path) for path in paths]
        images = Dataset.from_dict({"image": places})
    else:
        images = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
        places = paths = list(_paths_of_images(images))
    names = list(map(_name, image_ids, paths))
    return _one_row_a_caption(images, captions, places if None in image_ids else image_ids, names)


def _paths_of_images(images: Dataset) -> Sequence[int | str]:
    """What tells undecoded images apart: their paths, or row numbers where one has its bytes in the data set."""
    columns = images.flatten()
    # Beside bytes a path is no more than a name, and two images may share it.
    has_only_paths = columns.data["image.bytes"].null_count == len(columns.data)
    return columns["image.path"] if has_only_paths else range(len(images))


def _one_row_a_caption(
    images: Dataset, captions: list[list[str]], image_ids: Sequence[int | str], names: Sequence[int | str]
) -> Dataset:
    """Pairs of records with any number of captions, without a copy of an image.

    The table is stacked once for each rank of caption, so that all stacks share the column of images, and the rows are
    then picked in the order of the records.
    """
    images = images.add_column("image_id", _number(image_ids))
    images = images.add_column("source_id", _source_ids(image_ids, names))
    depth = max(map(len, captions))
    stacks = [
        images.add_column("caption", [own[rank] if rank < len(own) else "" for own in captions])
        for rank in range(depth)
    ]
    pairs = datasets.concatenate_datasets(stacks).select_columns(["image", "caption", "image_id", "source_id"])
    if depth == 1:
        return pairs
    return pairs.select(
        [rank * len(captions) + record for record, own in enumerate(captions) for rank in range(len(own))]
    )


def _number(image_ids: Sequence[int | str]) -> list[int]:
    """The ids themselves if they are numbers from 0 up (below, they would clash with empty places of a queue)."""
    if all(isinstance(image_id, int) and image_id >= 0 for image_id in image_ids):
        return list(image_ids)
    numbers: dict[int | str, int] = {}
    return [numbers.setdefault(image_id, len(numbers)) for image_id in image_ids]


def _source_ids(image_ids: Sequence[int | str], names: Sequence[int | str]) -> Sequence[int | str]:
    """Names by image, the first where an image has several; the ids themselves if two images share a name."""
    name_of: dict[int | str, int | str] = {}
    for image_id, name in zip(image_ids, _of_one_type(names), strict=True):
        name_of.setdefault(image_id, name)
    is_clear = len(set(name_of.values())) == len(name_of)
    return [name_of[image_id] for image_id in image_ids] if is_clear else _of_one_type(image_ids)


def _of_one_type(ids: Sequence[int | str]) -> Sequence[int | str]:
    """The ids as a column can hold them: as text, unless all are numbers."""
    return ids if all(isinstance(own, int) for own in ids) else list(map(str, ids))


def _read_all(read: Callable[[Record, str], Value], records: Iterable[Record], name: str) -> list[Value]:
    return [read(record, f"{name}, record {number}") for number, record in enumerate(records)]


__all__ = ["CaptionGroup", "PairSource", "group_captions", "load_pairs"]
