# SPDX-License-Identifier: BSD-3-Clause
"""Sources of image-text pairs as shards: tars, Parquet files, JSON lists, folders and drawn scenes."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..scenes import Scenes
from .lists import list_shards, scene_shards
from .pairs import METADATA_FILES
from .parquet import parquet_shards
from .samples import Sample, Shard
from .tar import tar_shards


PathLike = str | os.PathLike[str]
Source = PathLike | Sequence[PathLike] | Scenes

SCENES = re.compile(r"scenes:(?P<number>[1-9]\d*)(:(?P<noise>0(\.\d+)?|\.\d+))?")
ACCEPTED = (
    "WebDataset tars (.tar, .tar.gz, .tgz), Parquet files, JSON lists (.json, .jsonl), a folder of one of these or of"
    f" images with a {' or '.join(METADATA_FILES)}, or scenes:NUMBER[:NOISE] for drawn ones, as in scenes:4000:0.45"
)
_SUFFIXES = {".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".parquet": "parquet", ".json": "list", ".jsonl": "list"}


def find_shards(source: Source, *, image_root: PathLike | None = None, shard_size: int = 1000) -> list[Shard]:
    """Splits a source into shards, each of which streams its samples.

    | source                        | a sample                                          | a shard                  |
    |-------------------------------|---------------------------------------------------|--------------------------|
    | tar(s) of WebDataset          | `key.jpg` (or another image) with `key.txt`, or | a file                   |
    |                               | `key.json` with `caption`; may have `image_id`    |                          |
    | Parquet file(s)               | `image` (bytes, path, or both in a struct) and    | a file                   |
    |                               | `caption`, `captions` or `text`; may have `id`,   |                          |
    |                               | `image_id`                                        |                          |
    | JSON list(s), COCO, Karpathy  | as [`~blip_hf.data.readers.pairs.load_pairs`] reads it  | `shard_size` records     |
    | folder with `metadata.*`      | the same                                          | `shard_size` records     |
    | folder of such files          | of one kind, in the order of their names          | as these have it         |
    | `scenes:NUMBER[:NOISE]`       | a drawn scene, see [`~blip_hf.data.scenes.Scenes`] | `shard_size` scenes     |

    Neighbours of the same image and `image_id` are one sample with several texts. A sample is called
    `<file>/<key, id or number>`, so its id depends on its place in the source and not on `shard_size`. What is wrong
    with a file or a list as a whole is raised here or when it is read; what is wrong with a record is a fault.

    Args:
        source (`str`, `Path`, a list of them, or `Scenes`):
            Where the pairs come from.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of the file they stand in.
        shard_size (`int`, *optional*, defaults to 1000):
            Records of a shard, where files do not make it. Records of one image stay together.

    Returns:
        `list[Shard]`: in order, with different names.

    Raises:
        ValueError: If there is no such source.

    Example:
        >>> shards = find_shards("scenes:5", shard_size=3)
        >>> [shard.name for shard in shards]
        ['scenes-00000', 'scenes-00001']
        >>> next(shards[1].samples()).sample_id
        'scenes/00000003'
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size} leaves nothing in a shard; pass 1 or more.")
    if isinstance(source, Scenes):
        return scene_shards(source, shard_size)
    if isinstance(source, str) and source.startswith("scenes:"):
        return scene_shards(parse_scenes(source), shard_size)
    files = _find_files([source] if isinstance(source, (str, os.PathLike)) else source)
    readers: dict[str, Callable[[Path, str], list[Shard]]] = {
        "tar": tar_shards,
        "parquet": lambda path, name: parquet_shards(path, name, image_root),
        "list": lambda path, name: list_shards(path, name, image_root, shard_size),
    }
    shards = [
        shard for path, name in zip(files, _names(files), strict=True) for shard in readers[_kind(path)](path, name)
    ]
    _refuse_doubles([shard.name for shard in shards])  # web.jsonl has a part that is called as web-00000.parquet
    return shards


def parse_scenes(source: str) -> Scenes:
    """The scenes that `scenes:NUMBER[:NOISE]` stands for.

    Args:
        source (`str`):
            Number of scenes, and share of swapped captions.

    Returns:
        [`~blip_hf.data.scenes.Scenes`]: from the head of the series of seed 0.

    Raises:
        ValueError: If it is not of this form.

    Example:
        >>> parse_scenes("scenes:4000:0.45").noise_rate
        0.45
    """
    match = SCENES.fullmatch(source)
    if match is None:
        raise ValueError(f"source={source!r}, expected scenes:NUMBER[:NOISE] as in scenes:4000:0.45.")
    return Scenes(int(match["number"]), noise_rate=float(match["noise"] or 0))


def _find_files(sources: Sequence[PathLike]) -> list[Path]:
    files = []
    for source in map(Path, sources):
        if source.is_dir():
            files.extend(_files_of_folder(source))
        elif source.is_file() and _kind(source) is not None:
            files.append(source)
        else:
            state = "is no file of a known kind" if source.is_file() else "does not exist"
            raise ValueError(f"{source} {state}. Pass {ACCEPTED}.")
    if not files:
        raise ValueError(f"The list of sources is empty; pass {ACCEPTED}.")
    return files


def _files_of_folder(folder: Path) -> list[Path]:
    metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    files = metadata or sorted(path for path in folder.iterdir() if path.is_file() and _kind(path) is not None)
    kinds = sorted({_kind(path) for path in files})
    if len(metadata) > 1 or len(kinds) > 1:
        raise ValueError(f"{folder} holds {' and '.join(path.name for path in metadata) or kinds}. Pass one of them.")
    if not files:
        raise ValueError(f"The folder {folder} holds no source. Pass {ACCEPTED}.")
    return files


def _kind(path: Path) -> str | None:
    if path.name in METADATA_FILES:
        return "list"
    return next((kind for suffix, kind in _SUFFIXES.items() if path.name.endswith(suffix)), None)


def _names(files: Sequence[Path]) -> list[str]:
    """File names without suffix, or where these clash, with the folders that tell them apart."""
    names = [_without_suffix(path.name) for path in files]
    if len(set(names)) < len(names):
        common = os.path.commonpath([path.absolute().parent for path in files])
        names = [_without_suffix(os.path.relpath(path.absolute(), common)) for path in files]
    names = [re.sub(r"[^\w.-]", "_", name) for name in names]
    _refuse_doubles(names)
    return names


def _refuse_doubles(names: Sequence[str]) -> None:
    clashing = [name for name, count in Counter(names).items() if count > 1]
    if clashing:
        raise ValueError(f"Several sources are called {clashing[0]!r}. Pass each file once, and rename one of them.")


def _without_suffix(name: str) -> str:
    suffix = next(suffix for suffix in (*_SUFFIXES, ".csv") if name.endswith(suffix))
    return name.removesuffix(suffix)


__all__ = ["Sample", "Shard", "Source", "find_shards", "parse_scenes"]
