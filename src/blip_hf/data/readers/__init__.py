# SPDX-License-Identifier: BSD-3-Clause
"""Reads image-text data in every format: [`load_pairs`] for random access, [`find_shards`] for streams.

| source                               | a record                                                                     |
|--------------------------------------|------------------------------------------------------------------------------|
| JSON list or lines                   | `image` (path), `caption`: a text or a list of texts, optional `image_id`     |
| COCO, NoCaps, Karpathy annotations   | as published                                                                 |
| folder with `metadata.jsonl`, `.csv` | `file_name`, `caption` or `text`, optional `image_id`                         |
| folder of images                     | `1.jpg` with `1.txt` or `1.json` beside it, in subfolders too                |
| Parquet                              | `image` (bytes, path, or struct of both), `caption`, `captions` or `text`,   |
|                                      | optional `id`, `image_id`                                                    |
| WebDataset tar                       | `key.jpg` with `key.txt`, or `key.json` with `caption`, optional `image_id`  |
| img2dataset folder                   | tars, Parquet (`jpg`, `caption`), or folders of files                        |
| CapFilt folder                       | the pairs that were kept, in each format                                     |
| `datasets` object, name or folder    | as Parquet, with `image` as `datasets.Image()` too                           |
| `scenes:NUMBER[:NOISE]`, [`Scenes`]  | a drawn scene                                                                |

Several files are one source as a folder, a pattern (`data/*.tar`, `{00000..00099}.tar`) or a list.
"""

from datasets import Dataset

from .nlvr2 import load_nlvr2
from .nocaps import load_nocaps
from .pairs import group_captions, read_images
from .records import PathLike
from .samples import Sample, Shard, Skipped
from .sources import Source, as_list, open_source, refuse_equal_names
from .vqa import load_vqa, most_common_answers


def load_pairs(source: Source, *, image_root: PathLike | None = None, split: str = "train") -> Dataset:
    """Reads image-text pairs with random access, without opening an image.

    Equal `image_id`s mark captions of the same image. They are the source's ids if these are numbers from 0 up.
    Otherwise the images are numbered: by the source's ids; or by path or place if an image has no id, or if several
    sources are joined, whose ids may clash.

    `source_id`s name the images in results: the source's ids as written. An image without one is named by COCO's number
    in its file name, or else by its path, key or row. If two images would share a name, all are named by their full
    paths.

    A record that does not fit raises an error. In tars and folders of images, it is skipped with a warning instead.

    Args:
        source (`str`, `Path`, `Dataset`, `DatasetDict`, [`Scenes`], or a list of them):
            Any source in the table of [`~blip_hf.data.readers`].
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of the file.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a source that has several: a `DatasetDict`, a data set on the Hub, a folder with a subfolder for
            each split, or a file of Karpathy, whose `"train"` includes `restval`.

    Returns:
        `datasets.Dataset`: one row a caption, in the order of the source, with the columns `image` (a path, or an
        undecoded image), `caption`, `image_id` and `source_id`.

    Raises:
        ValueError: If the source does not exist or does not fit; the message names the record and the field.

    Example:
        >>> source = Dataset.from_dict(
        ...     {"image": ["cat.jpg", "dog.jpg"], "caption": [["a cat", "an animal"], ["a dog"]]}
        ... )
        >>> load_pairs(source, image_root=".")[:]["caption"]
        ['a cat', 'an animal', 'a dog']
    """
    readers = open_source(source, image_root=image_root, split=split)
    return read_images(readers, is_joined=len(as_list(source)) > 1).with_captions()


def load_images(source: Source, *, image_root: PathLike | None = None, split: str = "train") -> Dataset:
    """Reads images with random access, with or without captions in the source, without opening one.

    Args:
        source (`str`, `Path`, `Dataset`, `DatasetDict`, [`Scenes`], or a list of them):
            As in [`load_pairs`], also an image file or a folder of images alone.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of the file.
        split (`str`, *optional*, defaults to `"train"`):
            As in [`load_pairs`].

    Returns:
        `datasets.Dataset`: one row an image, in the order of the source, with the columns `image`, `image_id` and
        `source_id`.

    Raises:
        ValueError: If the source does not exist or does not fit.
    """
    readers = open_source(source, image_root=image_root, split=split, needs_captions=False)
    return read_images(readers, is_joined=len(as_list(source)) > 1).without_captions()


def find_shards(
    source: Source, *, image_root: PathLike | None = None, shard_size: int = 1000, split: str = "train"
) -> list[Shard]:
    """Splits a source into shards, each of which streams its samples.

    Neighbours with the same image and `image_id` are one sample with several texts. A sample is called
    `<file>/<key, id or number>`, so that its id does not depend on `shard_size`. An error in a file as a whole is raised
    here or when the file is read. A record that does not fit is skipped and counted.

    Args:
        source (`str`, `Path`, `Dataset`, `DatasetDict`, [`Scenes`], or a list of them):
            Any source in the table of [`~blip_hf.data.readers`].
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of the file.
        shard_size (`int`, *optional*, defaults to 1000):
            Records of a shard. Records of one image stay together. Tars and Parquet files are one shard each.
        split (`str`, *optional*, defaults to `"train"`):
            As in [`load_pairs`].

    Returns:
        `list[Shard]`: in order, with different names.

    Raises:
        ValueError: If the source does not exist or does not fit.

    Example:
        >>> shards = find_shards("scenes:5", shard_size=3)
        >>> [shard.name for shard in shards]
        ['scenes-00000', 'scenes-00001']
        >>> next(shards[1].samples()).sample_id
        'scenes/00000003'
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size} leaves nothing in a shard; pass 1 or more.")
    readers = open_source(source, image_root=image_root, split=split)
    shards = [shard for reader in readers for shard in reader.shards(shard_size)]
    refuse_equal_names([shard.name for shard in shards])  # web.jsonl has a part that is called as web-00000.parquet
    return shards


__all__ = [
    "Sample",
    "Shard",
    "Skipped",
    "Source",
    "find_shards",
    "group_captions",
    "load_images",
    "load_nlvr2",
    "load_nocaps",
    "load_pairs",
    "load_vqa",
    "most_common_answers",
]
