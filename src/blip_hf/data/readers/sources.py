# SPDX-License-Identifier: BSD-3-Clause
"""Recognises the format of a source: paths, folders, patterns, names and objects."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import datasets
from datasets import Dataset, DatasetDict

from ...image_files import image_suffixes, is_visible, visible_files, warn_of_other_files
from ..scenes import Scenes
from .folder import ImageFolder
from .hub import HUB_PREFIX, Table, could_be_hub_name, is_hub_name, is_saved, load_from_hub, pick_split
from .image_root import ImageRoot
from .lists import METADATA_FILES, ListFile
from .parquet import ParquetFile
from .records import PathLike
from .remote import RemoteFile, check_exists, find_remote_files, is_remote
from .scenes import SceneSource, is_scenes, parse_scenes
from .tar import TarFile


OneSource: TypeAlias = PathLike | Dataset | DatasetDict | Scenes
Source: TypeAlias = OneSource | Sequence[OneSource]
Reader = ListFile | TarFile | ParquetFile | ImageFolder | Table | SceneSource

_OBJECTS = (Dataset, DatasetDict)

ACCEPTED = (
    "JSON lists (.json, .jsonl), annotation files of COCO or Karpathy, WebDataset tars (.tar, .tar.gz, .tgz), Parquet"
    f" files, a folder of one of these or of images (with {' or '.join(METADATA_FILES)}, or a .txt for each), a"
    " folder of img2dataset, `save_to_disk` or CapFilt, a pattern such as '{00000..00099}.tar', a `Dataset`, a data set on"
    " the Hub as hf://datasets/OWNER/NAME, tars or Parquet files at an address such as s3://bucket/{00000..00099}.tar, or"
    " scenes:NUMBER[:NOISE]"
)
_SUFFIXES = {".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".parquet": "parquet", ".json": "list", ".jsonl": "list"}
_REMOTE_SUFFIXES = tuple(suffix for suffix, kind in _SUFFIXES.items() if kind != "list")
_KIND_NAMES = {"tar": "tars", "parquet": "Parquet files", "list": "JSON lists", "image": "images"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_source(
    source: Source,
    *,
    image_root: PathLike | None = None,
    allow_outside: bool = False,
    split: str = "train",
    needs_captions: bool = True,
) -> list[Reader]:
    """The readers of a source, one per file, folder or data set, with unique names. Raises `ValueError` if there are none."""
    if image_root is not None and not Path(image_root).is_dir():
        raise ValueError(f"image_root={str(image_root)!r} is not a folder; pass the one that image paths start from.")
    found = [
        place
        for item in as_list(source)
        for place in _find(
            item,
            split=split,
            # Records of an object come from the caller, and those of a file may come from anyone.
            root=ImageRoot(image_root or "", allow_outside or (image_root is None and isinstance(item, _OBJECTS))),
            needs_captions=needs_captions,
        )
    ]
    if not found:
        raise ValueError(f"The list of sources is empty; pass {ACCEPTED}.")
    paths = [place for place in found if isinstance(place, (Path, RemoteFile))]
    names = iter(_names(paths))
    readers = [
        _reader(place, next(names), _root_of(place, image_root, allow_outside), split, needs_captions)
        if isinstance(place, (Path, RemoteFile))
        else place
        for place in found
    ]
    refuse_equal_names([reader.name for reader in readers])
    if first := next((reader for reader in readers if isinstance(reader, ParquetFile)), None):
        first.check()
    return readers


def as_list(source: Source) -> list[OneSource]:
    """The sources of a list, or the one source in a list."""
    return list(source) if isinstance(source, (list, tuple)) else [source]


def make_absolute(source: PathLike) -> str:
    """Makes a path absolute. Addresses, names on the Hub and drawn scenes do not change."""
    is_name = is_remote(source) or is_hub_name(source) or is_scenes(source)
    return str(source) if is_name else os.path.abspath(os.path.expanduser(source))


def refuse_equal_names(names: Sequence[str]) -> None:
    """Raises `ValueError` if two files or shards have the same name."""
    clashing = [name for name, count in Counter(names).items() if count > 1]
    if clashing:
        raise ValueError(f"Several sources are called {clashing[0]!r}. Pass each file once, and rename one of them.")


def _find(
    source: OneSource, *, split: str, root: ImageRoot, needs_captions: bool
) -> list[Path | RemoteFile | Table | SceneSource]:
    """Files, folders of images and opened data sets of one source."""

    def table(dataset: Dataset | DatasetDict, name: str) -> Table:
        dataset = pick_split(dataset, split)
        name = re.sub(r"[^\w.-]", "_", name or dataset.info.dataset_name or "dataset")
        return Table(dataset, name, root, needs_captions)

    if isinstance(source, Scenes):
        return [SceneSource(source)]
    if isinstance(source, _OBJECTS):
        return [table(source, "")]
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"source is a {type(source).__name__}, expected {ACCEPTED}. Records in memory need no loading: pass them to"
            " `PairDataset`."
        )
    if is_scenes(source):
        return [SceneSource(parse_scenes(source))]
    if is_hub_name(source):
        return [table(load_from_hub(source, split), source.removeprefix(HUB_PREFIX))]
    if is_remote(source):
        return [*_find_remote(source)]
    path = Path(source).expanduser()
    if path.exists():
        files = files_of_folder(path, split) if path.is_dir() else [path]
    elif matches := expand_pattern(path):
        files = [file for match in matches for file in (files_of_folder(match, split) if match.is_dir() else [match])]
    else:
        hint = f" If it is a data set on the Hub, pass {HUB_PREFIX}{source}." if could_be_hub_name(str(source)) else ""
        raise ValueError(f"{source} does not exist.{hint} Pass {ACCEPTED}.")
    for file in files:
        if not (file.is_file() or file.is_dir()):
            raise ValueError(f"{file} is a pipe, socket or device. Pass {ACCEPTED}.")
        if file.is_file() and kind_of(file) is None:
            raise ValueError(f"{file} has an unknown format. Pass {ACCEPTED}.")
    return [table(datasets.load_from_disk(file), file.name) if is_saved(file) else file for file in files]


def _find_remote(address: str) -> list[RemoteFile]:
    """The tars or Parquet files of an address. Of a long range only the first and the last are asked for here."""
    groups = [find_remote_files(each, _REMOTE_SUFFIXES) for each in _expand_braces(address)]
    files = [file for group in groups for file in group]
    by_kind: dict[str, list[RemoteFile]] = {}
    for file in files:
        by_kind.setdefault(str(kind_of(file)), []).append(file)
    tars = {_without_suffix(file.name) for file in by_kind.get("tar", ())}
    if len(by_kind) > 1 and all(_without_suffix(file.name) in tars for file in by_kind["parquet"]):
        files = by_kind["tar"]  # of img2dataset, whose Parquet has the URLs
    elif len(by_kind) > 1:
        raise ValueError(f"{address} contains {_described(by_kind)}. Pass one kind, such as a pattern in quotes.")
    if not files:
        raise ValueError(
            f"{address} has no file that ends in {', '.join(_REMOTE_SUFFIXES)}. Only WebDataset tars and Parquet files are read"
            " from addresses; copy other sources."
        )
    for file in dict.fromkeys((files[0], files[-1])):
        check_exists(file)
    return files


def _root_of(path: Path | RemoteFile, image_root: PathLike | None, allow_outside: bool) -> ImageRoot:
    if isinstance(path, RemoteFile):
        return ImageRoot(image_root, allow_outside)
    return ImageRoot(path.parent if image_root is None else image_root, allow_outside)


def _reader(path: Path | RemoteFile, name: str, root: ImageRoot, split: str, needs_captions: bool) -> Reader:
    if isinstance(path, Path) and (path.is_dir() or kind_of(path) == "image"):
        return ImageFolder(path, name, needs_captions)
    if isinstance(path, Path) and kind_of(path) == "list":
        return ListFile(path, name, root, split, needs_captions)
    if kind_of(path) == "tar":
        return TarFile(path, name, needs_captions)
    return ParquetFile(path, name, root, needs_captions)


# Folders and patterns


def files_of_folder(folder: Path, split: str) -> list[Path]:
    """The record files of a folder, or the folder itself if it contains images or was written by `save_to_disk`."""
    if (folder / "run.json").is_file() and (folder / "pairs").is_dir():  # a CapFilt run
        return files_of_folder(folder / "pairs", split)
    if is_saved(folder):
        return [folder]
    for place in (folder, folder / split):
        metadata = [place / name for name in METADATA_FILES if (place / name).is_file()]
        if len(metadata) > 1:
            raise ValueError(f"{place} has both {' and '.join(METADATA_FILES)}. Remove one.")
        if metadata:
            return metadata
    files, has_sidecars = _files_by_kind(folder)
    if len(files) > 1 and not has_sidecars and "tar" not in files:
        files.pop("image", None)  # a list or a table may lie among its images
    if len(files) > 1:
        raise ValueError(
            f"{folder} contains {_described(files)}. Pass one kind, such as {next(iter(files.values()))[0]} or a pattern"
            " in quotes."
        )
    if files:
        ((kind, paths),) = files.items()
        return [folder] if kind == "image" else paths
    if (folder / split).is_dir():
        return files_of_folder(folder / split, split)
    if any(path.suffix.lower() in image_suffixes() for path in visible_files(folder, recursive=True)):
        return [folder]
    raise ValueError(f"The folder {folder} has no known format ({_listed(folder)}). Pass {ACCEPTED}.")


def _files_by_kind(folder: Path) -> tuple[dict[str, list[Path]], bool]:
    """Visible record files by kind, and whether images have text files."""
    paths = sorted(visible_files(folder, recursive=False))
    stems = {_without_suffix(path.name) for path in paths if kind_of(path) in ("tar", "parquet")}
    image_stems = {path.stem for path in paths if kind_of(path) == "image"}
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    tars = {_without_suffix(path.name) for path in paths if kind_of(path) == "tar"}
    files: dict[str, list[Path]] = {}
    others: Counter[str] = Counter()
    has_sidecars = False
    for path in paths:
        kind = kind_of(path)
        if path.suffix in (".txt", ".json") and path.stem in image_stems:
            has_sidecars = True
        elif path.name.endswith("_stats.json") and path.name.removesuffix("_stats.json") in stems | folders:
            continue  # img2dataset's counts
        elif kind == "parquet" and path.stem in tars | folders:
            continue  # img2dataset's table of the URLs
        elif kind is None:
            others[path.suffix.lower()] += 1
        else:
            files.setdefault(kind, []).append(path)
    if files:
        warn_of_other_files(folder, others)
    return files, has_sidecars


def expand_pattern(path: Path) -> list[Path]:
    """The paths of a pattern with ranges or choices in braces (`{00..09}`, `{a,b}`) and `*`, `?` or `[...]`."""
    paths = [Path(text) for text in _expand_braces(str(path))]
    if paths == [path] and not re.search(r"[*?[]", str(path)):
        return []
    found: list[Path] = []
    for expanded in paths:
        if not re.search(r"[*?[]", str(expanded)):
            if not expanded.exists():
                raise ValueError(f"{expanded} of the pattern {path} does not exist. Pass a range of existing files.")
            found.append(expanded)
        else:
            found += sorted(Path(expanded.anchor or ".").glob(str(expanded.relative_to(expanded.anchor))))
    if not found:
        raise ValueError(f"No file matches the pattern {path}. Pass {ACCEPTED}.")
    return found


def _expand_braces(text: str) -> Iterator[str]:
    for match in _BRACES.finditer(text):
        if bounds := _RANGE.fullmatch(match[1]):
            first, last = map(int, bounds.groups())
            choices = [f"{number:0{len(bounds[1])}d}" for number in range(first, last + 1)]
        elif "," in match[1]:
            choices = match[1].split(",")
        else:
            continue
        for choice in choices:
            yield from _expand_braces(text[: match.start()] + choice + text[match.end() :])
        return
    yield text


def kind_of(path: Path | RemoteFile) -> str | None:
    """The format of a file by its name: `tar`, `parquet`, `list`, `image` or none."""
    if path.name in METADATA_FILES:
        return "list"
    kind = next((kind for suffix, kind in _SUFFIXES.items() if path.name.endswith(suffix)), None)
    return "image" if kind is None and path.suffix.lower() in image_suffixes() else kind


def _described(files: Mapping[str, Sequence[Path | RemoteFile]]) -> str:
    return " and ".join(
        f"{len(paths)} {_KIND_NAMES[kind]} ({paths[0].name}{', ...' if len(paths) > 1 else ''})"
        for kind, paths in files.items()
    )


def _listed(folder: Path) -> str:
    names = sorted(
        f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir() if is_visible(path.name)
    )
    return f"it contains {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"


# Names


def _names(files: Sequence[Path | RemoteFile]) -> list[str]:
    """File names without suffixes; if these are not unique, with their folders."""
    paths = [file.as_path() if isinstance(file, RemoteFile) else file.absolute() for file in files]
    names = [_without_suffix(path.name) for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath([path.parent for path in paths])
        names = [_without_suffix(os.path.relpath(path, common)) for path in paths]
    return [re.sub(r"[^\w.-]", "_", name) for name in names]


def _without_suffix(name: str) -> str:
    return name.removesuffix(next((suffix for suffix in (*_SUFFIXES, ".csv") if name.endswith(suffix)), ""))


__all__ = ["ACCEPTED", "Reader", "Source", "as_list", "kind_of", "make_absolute", "open_source", "refuse_equal_names"]
