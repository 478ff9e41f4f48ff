# SPDX-License-Identifier: BSD-3-Clause
"""Reads image-text data in every format: [`load_pairs`] for random access, [`find_shards`] for streams.

| source                               | a record                                                                     |
|--------------------------------------|------------------------------------------------------------------------------|
| JSON list or lines                   | `image` (path), `caption`: a text or a list of texts, optional `image_id`     |
| COCO, NoCaps, Karpathy annotations   | as published                                                                 |
| folder with `metadata.jsonl`, `.csv` | `file_name`, `caption` or `text`, optional `image_id`                         |
| folder of images                     | `1.jpg` with `1.txt` or `1.json`, also in subfolders                         |
| Parquet                              | `image` (bytes, path, or struct of both), `caption`, `captions` or `text`,   |
|                                      | optional `id`, `image_id`                                                    |
| WebDataset tar                       | `key.jpg` with `key.txt`, or `key.json` with `caption`, optional `image_id`  |
| img2dataset folder                   | tars, Parquet (`jpg`, `caption`), or folders of files                        |
| CapFilt folder                       | the pairs that were kept, in each format                                     |
| `datasets` object, name or folder    | as Parquet, with `image` as `datasets.Image()` too                           |
| `scenes:NUMBER[:NOISE]`, [`Scenes`]  | a drawn scene                                                                |
| tars or Parquet at an address        | as above; any address of fsspec, such as `s3://bucket/{00000..00099}.tar`    |

Several files are one source as a folder, a pattern (`data/*.tar`, `{00000..00099}.tar`) or a list.
"""

from collections.abc import Sequence

from datasets import Dataset

from .large_lists import are_large_lists, read_large_lists
from .nlvr2 import load_nlvr2
from .nocaps import load_nocaps
from .pairs import group_captions, read_images
from .records import PathLike
from .samples import Sample, Shard, Skipped
from .sources import Reader, Source, as_list, open_source, refuse_equal_names
from .vqa import load_vqa, most_common_answers


def load_pairs(
    source: Source, *, image_root: PathLike | None = None, allow_outside: bool = False, split: str = "train"
) -> Dataset:
    """Reads image-text pairs with random access, without opening an image.

    Captions of the same image have equal `image_id`s: the source's ids if these are non-negative integers, otherwise
    numbers from 0. Images without an id, and images of several sources, are distinguished by path or position.

    `source_id`s name the images in results: the source's id, else COCO's number in the file name, else the path, key
    or row. If these are not unique, full paths are used.

    Invalid records are skipped. One warning counts them by reason and names the first. If no record of a source is
    usable, the error of the first is raised.

    Args:
        source (`str`, `Path`, `Dataset`, `DatasetDict`, [`Scenes`], or a list of them):
            Any source in the table of [`~blip_hf.data.readers`].
        image_root (`str` or `Path`, *optional*):
            Folder of relative image paths. Defaults to the folder of the file.
        allow_outside (`bool`, *optional*, defaults to `False`):
            Whether to open images outside this folder, such as `/etc/a.png` or `../a.png`. Off, since a list from the
            web may name any file. Links inside the folder are followed.
        split (`str`, *optional*, defaults to `"train"`):
            Split to read, if the source has several: a `DatasetDict`, a data set on the Hub, a folder with one
            subfolder per split, or a Karpathy file, where `"train"` includes `restval`.

    Returns:
        `datasets.Dataset`: one row per caption, in the order of the source, with the columns `image` (a path, or an
        undecoded image), `caption`, `image_id` and `source_id`.

    Example:
        >>> source = Dataset.from_dict(
        ...     {"image": ["cat.jpg", "dog.jpg"], "caption": [["a cat", "an animal"], ["a dog"]]}
        ... )
        >>> load_pairs(source, image_root=".")[:]["caption"]
        ['a cat', 'an animal', 'a dog']
    """
    readers = open_source(source, image_root=image_root, allow_outside=allow_outside, split=split)
    is_joined = len(as_list(source)) > 1
    if are_large_lists(readers):
        return read_large_lists(readers, is_joined=is_joined)
    return read_images(readers, is_joined=is_joined).with_captions()


def load_images(
    source: Source, *, image_root: PathLike | None = None, allow_outside: bool = False, split: str = "train"
) -> Dataset:
    """Reads images with random access, also from sources without captions, without opening an image.

    Arguments as in [`load_pairs`]; also takes an image file or a folder of images alone. Returns one row per image,
    with the columns `image`, `image_id` and `source_id`.
    """
    readers = open_source(
        source, image_root=image_root, allow_outside=allow_outside, split=split, needs_captions=False
    )
    return read_images(readers, is_joined=len(as_list(source)) > 1).without_captions()


def find_shards(
    source: Source,
    *,
    image_root: PathLike | None = None,
    allow_outside: bool = False,
    shard_size: int = 1000,
    split: str = "train",
) -> list[Shard]:
    """Splits a source into shards, each of which streams its samples.

    Consecutive records with the same image and `image_id` are one sample with several texts. The id of a sample is
    `<file>/<key, id or number>`, so it does not depend on `shard_size`. An unreadable file raises an error, here or
    during reading. An invalid record is skipped and counted. `source`, `image_root`, `allow_outside` and `split` are as in
    [`load_pairs`].

    Args:
        shard_size (`int`, *optional*, defaults to 1000):
            Records per shard. Records of one image stay together. Each tar or Parquet file is one shard.

    Example:
        >>> shards = find_shards("scenes:5", shard_size=3)
        >>> [shard.name for shard in shards]
        ['scenes-00000', 'scenes-00001']
        >>> next(shards[1].samples()).sample_id
        'scenes/00000003'
    """
    readers = open_source(source, image_root=image_root, allow_outside=allow_outside, split=split)
    return cut_shards(readers, shard_size)


def cut_shards(readers: Sequence[Reader], shard_size: int) -> list[Shard]:
    """Same as [`find_shards`], for the readers of a source."""
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size} is too small; pass 1 or more.")
    shards = [shard for reader in readers for shard in reader.shards(shard_size)]
    refuse_equal_names([shard.name for shard in shards])  # web.jsonl has a part that is called as web-00000.parquet
    return shards


__all__ = [
    "Sample",
    "Shard",
    "Skipped",
    "Source",
    "cut_shards",
    "find_shards",
    "group_captions",
    "load_images",
    "load_nlvr2",
    "load_nocaps",
    "load_pairs",
    "load_vqa",
    "most_common_answers",
]
