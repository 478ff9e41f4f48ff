# SPDX-License-Identifier: BSD-3-Clause
"""Where image-text pairs come from: JSON lists, image folders and `datasets`, all read into one record form.

A source has one record a picture or one a caption. Pairs have one row a caption, with the columns `image` (not decoded),
`caption` and `image_id`. They are Arrow tables: a million pairs of paths take some 150 MB, pictures inside a data set
stay memory-mapped where they are, and a picture with five captions is stored once.
"""

import json
import operator
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import datasets
from datasets import Dataset, DatasetDict


PathLike = str | os.PathLike[str]
PairSource = PathLike | Sequence[PathLike] | Dataset | DatasetDict
Value = TypeVar("Value")

CAPTION_FIELDS = ("caption", "captions", "text")
LIST_SUFFIXES = (".json", ".jsonl")
METADATA_FILE = "metadata.jsonl"
SOURCES = (
    f"a JSON list (.json, .jsonl) or several, a folder of pictures with a {METADATA_FILE}, a data set saved with "
    "`save_to_disk`, a `Dataset` or `DatasetDict`, or the name of one on the Hub"
)


class CaptionGroup(TypedDict):
    """A picture with all of its captions."""

    image: Any
    captions: list[str]
    image_id: int


def load_pairs(source: PairSource, *, image_root: PathLike | None = None, split: str = "train") -> Dataset:
    """Reads image-text pairs from wherever they are, without opening a picture.

    | source                         | a record                                                                  |
    |--------------------------------|---------------------------------------------------------------------------|
    | JSON list(s), `.json`/`.jsonl` | `{"image": path, "caption": text or list of texts, "image_id": optional}` |
    | folder with `metadata.jsonl`   | `{"file_name": path, "caption" or "text": text or list of texts}`         |
    | `datasets` object, folder, name| column `image` of pictures or paths, and `caption`, `captions` or `text`  |

    Equal `image_id`s mark captions of the same picture. They are those of the source if these are numbers from 0 up, and
    otherwise numbered from 0 by the source's own ids; by picture path where a record lacks one, or where several files
    are joined, whose ids may clash; by record where pictures inside a data set have no id.

    Args:
        source (`str`, `Path`, a list of them, `Dataset` or `DatasetDict`):
            Files, a folder, a data set, or the name of one on the Hub.
        image_root (`str` or `Path`, *optional*):
            Folder that relative picture paths start from. Defaults to the folder of the JSON list.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a source that has several: a `DatasetDict`, a data set on the Hub, or a folder whose
            `metadata.jsonl` lie in one folder a split.

    Returns:
        `datasets.Dataset`: one row a caption, in the order of the source.

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
        raise ValueError(
            f"image_root={str(image_root)!r} is not a folder; pass the one that picture paths start from."
        )
    if isinstance(source, DatasetDict):
        return _pairs_of_dataset(_pick_split(source, split), image_root)
    if isinstance(source, Dataset):
        return _pairs_of_dataset(source, image_root)
    if isinstance(source, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in source):
        return _pairs_of_files([Path(item) for item in source], "image", image_root)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"source is a {type(source).__name__}, expected {SOURCES}. Records in memory need no loading: "
            "`PairDataset` takes them as they are."
        )
    path = Path(source)
    if path.is_dir():
        return _pairs_of_folder(path, image_root, split)
    if path.is_file() or path.suffix in LIST_SUFFIXES or path.is_absolute() or not isinstance(source, str):
        return _pairs_of_files([path], "image", image_root)
    return _pairs_of_dataset(_load_from_hub(source, split), image_root)


def group_captions(pairs: Dataset | Sequence[Mapping[str, Any]]) -> Sequence[CaptionGroup]:
    """One item a picture, for evaluation, in the order in which the pictures come first.

    Args:
        pairs (`datasets.Dataset` or sequence of records):
            Records `{"image", "caption", "image_id"}`. Their pictures are fetched only when an item is.

    Returns:
        `Sequence[CaptionGroup]`: items `{"image", "captions", "image_id"}`.

    Example:
        >>> pairs = [{"image": "a.jpg", "caption": text, "image_id": 7} for text in ("a cat", "an animal")]
        >>> list(group_captions(pairs))
        [{'image': 'a.jpg', 'captions': ['a cat', 'an animal'], 'image_id': 7}]
    """
    return _CaptionGroups(pairs)


class _CaptionGroups(Sequence):
    """View of pairs by picture, which holds their captions and not their pictures."""

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
        return {"image": record["image"], "captions": self.captions[image_id], "image_id": image_id}


def _ids_and_captions(pairs: Dataset | Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, str]]:
    if isinstance(pairs, Dataset):
        return zip(pairs["image_id"][:], pairs["caption"][:], strict=True)
    return ((record["image_id"], record["caption"]) for record in pairs)


# Sources


def _pairs_of_folder(folder: Path, image_root: PathLike | None, split: str) -> Dataset:
    for metadata in (folder / METADATA_FILE, folder / split / METADATA_FILE):
        if metadata.is_file():
            return _pairs_of_files([metadata], "file_name", image_root)
    if (folder / datasets.config.DATASETDICT_JSON_FILENAME).is_file():
        return _pairs_of_dataset(_pick_split(datasets.load_from_disk(folder), split), image_root)
    if (folder / datasets.config.DATASET_STATE_JSON_FILENAME).is_file():
        return _pairs_of_dataset(datasets.load_from_disk(folder), image_root)
    raise ValueError(
        f"The folder {folder} holds no {METADATA_FILE}, neither directly nor in {split}/, and no data set saved with "
        "`save_to_disk`. Add one, or pass a JSON list with this folder as `image_root`."
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


def _pairs_of_files(paths: list[Path], image_field: str, image_root: PathLike | None) -> Dataset:
    if not paths:
        raise ValueError(f"The list of files is empty; pass {SOURCES}.")
    images, captions, image_ids = [], [], []
    for path in paths:
        root = path.parent if image_root is None else image_root
        for number, record in enumerate(_read_list(path)):
            where = f"{path}, record {number}"
            if not isinstance(record, dict):
                raise ValueError(f"{where} is a {type(record).__name__}, expected an object with {image_field!r}.")
            images.append(os.path.join(root, _read_path(record, image_field, where)))
            captions.append(_read_captions(record, where))
            image_ids.append(_read_image_id(record, where))
    if len(paths) > 1 or None in image_ids:
        image_ids = images
    return _one_row_a_caption(Dataset.from_dict({"image": images}), captions, image_ids)


def _read_list(path: Path) -> list[Any]:
    if not path.is_file() or path.suffix not in LIST_SUFFIXES:
        state = "is not a JSON list" if path.is_file() else "does not exist"
        raise ValueError(f"{path} {state}. Pass {SOURCES}.")
    text = path.read_text(encoding="utf-8")
    try:
        records = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} cannot be parsed ({error}). Expected is a list of records in a .json file, and one record a line "
            "in a .jsonl file."
        ) from error
    if not isinstance(records, list) or not records:
        kind = "an empty list" if records == [] else f"a {type(records).__name__}"
        raise ValueError(f"{path} holds {kind}, expected a list of records with 'image' and 'caption'.")
    return records


def _pairs_of_dataset(dataset: Dataset, image_root: PathLike | None) -> Dataset:
    dataset = dataset.with_format(None)
    name = f"data set {dataset.info.dataset_name}" if dataset.info.dataset_name else "data set"
    feature = dataset.features.get("image")
    is_picture, is_path = isinstance(feature, datasets.Image), feature == datasets.Value("string")
    if not is_picture and not is_path:
        raise ValueError(
            f"The {name} has {'no column' if feature is None else f'{feature} in the column'} 'image' (columns: "
            f"{', '.join(dataset.column_names)}), expected `datasets.Image()` or paths. Use `rename_column` or "
            "`cast_column`."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} is empty; pass another split or data set.")
    text_columns = [column for column in (*CAPTION_FIELDS, "image_id") if column in dataset.column_names]
    records = dataset.select_columns(text_columns).to_list() if text_columns else [{}] * len(dataset)
    captions = _read_all(_read_captions, records, name)
    image_ids = _read_all(_read_image_id, records, name)
    if is_path:
        paths = _read_all(
            lambda record, where: _read_path(record, "image", where), dataset.select_columns("image"), name
        )
        paths = [os.path.join(image_root or "", path) for path in paths]
        pictures = Dataset.from_dict({"image": paths})
    else:
        pictures = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
        paths = _paths_of_pictures(pictures)
    return _one_row_a_caption(pictures, captions, paths if None in image_ids else image_ids)


def _paths_of_pictures(pictures: Dataset) -> Sequence[Hashable]:
    """What tells undecoded pictures apart: their paths, or row numbers where one has its bytes in the data set."""
    columns = pictures.flatten()
    # Beside bytes a path is no more than a name, and two pictures may share it.
    has_only_paths = columns.data["image.bytes"].null_count == len(columns.data)
    return columns["image.path"] if has_only_paths else range(len(pictures))


def _one_row_a_caption(pictures: Dataset, captions: list[list[str]], image_ids: Sequence[Hashable]) -> Dataset:
    """Pairs of records with any number of captions, without a copy of a picture.

    The table is stacked once for each rank of caption, so that all stacks share the column of pictures, and the rows are
    then picked in the order of the records.
    """
    pictures = pictures.add_column("image_id", _number(image_ids))
    depth = max(map(len, captions))
    stacks = [
        pictures.add_column("caption", [own[rank] if rank < len(own) else "" for own in captions])
        for rank in range(depth)
    ]
    pairs = datasets.concatenate_datasets(stacks).select_columns(["image", "caption", "image_id"])
    if depth == 1:
        return pairs
    return pairs.select(
        [rank * len(captions) + record for record, own in enumerate(captions) for rank in range(len(own))]
    )


def _number(image_ids: Iterable[Hashable]) -> list[int]:
    """The ids themselves if they are numbers from 0 up (below, they would clash with empty places of a queue)."""
    image_ids = list(image_ids)
    if all(isinstance(image_id, int) and image_id >= 0 for image_id in image_ids):
        return image_ids
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(image_id, len(numbers)) for image_id in image_ids]


# Fields of a record


def _read_all(
    read: Callable[[dict[str, Any], str], Value], records: Iterable[dict[str, Any]], name: str
) -> list[Value]:
    return [read(record, f"{name}, record {number}") for number, record in enumerate(records)]


def _read_path(record: dict[str, Any], field: str, where: str) -> str:
    path = record.get(field)
    if not isinstance(path, str) or not path:
        raise _misfit(record, field, where, "the path of a picture")
    return path


def _read_captions(record: dict[str, Any], where: str) -> list[str]:
    field = next((field for field in CAPTION_FIELDS if field in record), CAPTION_FIELDS[0])
    value = record.get(field)
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not captions or not all(isinstance(caption, str) for caption in captions):
        raise _misfit(record, field, where, "str or list of str")
    return captions


def _read_image_id(record: dict[str, Any], where: str) -> int | str | None:
    image_id = record.get("image_id")
    if image_id is not None and not isinstance(image_id, (int, str)):
        raise _misfit(record, "image_id", where, "int or str")
    return image_id


def _misfit(record: dict[str, Any], field: str, where: str, expected: str) -> ValueError:
    if field not in record:
        got = f"missing (there are: {', '.join(map(str, record)) or 'none'})"
    else:
        value = record[field]
        got = f"{value!r}" if value in ("", [], None) else type(value).__name__
        if isinstance(value, list) and value:
            got += " of " + ", ".join(sorted({type(item).__name__ for item in value}))
    return ValueError(f"{where}: field {field!r} is {got}, expected {expected}. Correct or leave out this record.")


__all__ = ["CaptionGroup", "PairSource", "group_captions", "load_pairs"]
