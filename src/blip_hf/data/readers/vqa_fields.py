# SPDX-License-Identifier: BSD-3-Clause
"""The VQA record, and what its readers share: folders of images, lists of answers, and fields that are not read."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypedDict

from transformers.utils import logging

from ...image_files import image_suffixes
from .image_root import ImageRoot, OutsideFolderError
from .json_files import JsonArray, JsonLines
from .records import PathLike, Record, field_error, read_text


logger = logging.get_logger(__name__)

AnswerLists = Literal["votes", "set"]


class VqaRecord(TypedDict):
    """A question about an image. `answers` is empty if the source has none, as in test sets."""

    image: Any
    question: str
    question_id: int | str
    answers: list[str]
    weights: list[float]


class ImageRoots:
    """The image folders of a file: one, or one for each data set."""

    def __init__(
        self, path: Path, image_root: PathLike | Mapping[str, PathLike] | None, allow_outside: bool = False
    ) -> None:
        self.default = path.parent if image_root is None else image_root
        self.allow_outside = allow_outside

    def state(self) -> str:
        """The folders and the names of their images, which the paths of a file depend on."""
        folders = self.default if isinstance(self.default, Mapping) else {None: self.default}
        states = [(name, os.fspath(folder), _images_state(folder)) for name, folder in folders.items()]
        return f"{os.getcwd()} {states} {self.allow_outside}"

    def check(self, image: str, where: str) -> None:
        """Raises `OutsideFolderError` for the full path of an image outside all folders."""
        folders = list(self.default.values()) if isinstance(self.default, Mapping) else [self.default]
        for number, folder in enumerate(folders, 1):
            try:
                ImageRoot(folder, self.allow_outside).join(os.path.abspath(image), where)
                return
            except OutsideFolderError:
                if number == len(folders):
                    raise

    def of(self, dataset: str | None, where: str) -> PathLike:
        """The folder of a data set."""
        if not isinstance(self.default, Mapping):
            return self.default
        if dataset not in self.default:
            raise ValueError(
                f"{where}: its data set is {dataset!r}, and image_root has {', '.join(map(repr, self.default))}. Add its"
                " folder."
            )
        return self.default[dataset]


class UnreadFields:
    """Fields of a file that its reader does not use; `warn` names them once."""

    def __init__(self, path: Path, known: Iterable[str]) -> None:
        self.path = path
        self.known = frozenset(known)
        self.found: dict[str, None] = {}

    def note(self, record: Record, prefix: str = "") -> None:
        """Adds the unknown fields of a record; `prefix` is the field that the record is in."""
        self.found |= {name: None for field in record if (name := f"{prefix}{field}") not in self.known}

    def warn(self) -> None:
        """Warns about the fields found so far."""
        if self.found:
            known = ", ".join(sorted(name for name in self.known if "." not in name))
            logger.warning(f"{self.path}: not read: {', '.join(self.found)}. Known fields: {known}.")


def read_answers(record: Record, field: str, where: str, unread: UnreadFields) -> list[str]:
    """The answers in a field: a text, a list of texts, or a list of `{"answer": str}`."""
    value = record.get(field)
    answers = [value] if isinstance(value, str) else value
    if isinstance(answers, list) and answers and all(isinstance(answer, Mapping) for answer in answers):
        for answer in answers:
            unread.note(answer, f"{field}.")
        return [read_text(answer, "answer", f"{where}, answer {i}") for i, answer in enumerate(answers)]
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise field_error(record, field, where, "str or list of str")
    return answers


def equal_weights(answers: Sequence[str], total: float = 1.0) -> list[float]:
    """Equal weights that sum to `total`."""
    return [total / len(answers) for _ in answers]


def kind_of(content: Any) -> str:
    """What a file contains, for messages."""
    if isinstance(content, (JsonArray, JsonLines)):
        return "a list"
    if isinstance(content, Mapping):
        return f"an object with {', '.join(map(str, content)) or 'nothing'}"
    return "an empty list" if content == [] else f"a {type(content).__name__}"


def _images_state(root: PathLike) -> int:
    """A hash of the names of the images in a folder and in those of Visual Genome, in any order."""
    state = 0
    for folder in (Path(root), *visual_genome_folders(root)):
        for entry in os.scandir(folder) if folder.is_dir() else ():
            if os.path.splitext(entry.name)[1].lower() in image_suffixes():
                state ^= int.from_bytes(blake2b(os.fsencode(entry.path), digest_size=8).digest())
    return state


def visual_genome_folders(root: PathLike) -> list[Path]:
    """The two folders of the download of Visual Genome."""
    return sorted(Path(root).glob("VG_100K*"))


def image_finder(root: PathLike) -> Callable[[str], str]:
    """Finds images by name, with or without suffix; without one, a name that the folder does not have gets `.jpg`."""
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    name_of = {Path(name).stem: name for name in names}

    def find(image_id: str) -> str:
        is_name = Path(image_id).suffix.lower() in image_suffixes()
        return os.path.join(root, image_id if is_name else name_of.get(image_id, f"{image_id}.jpg"))

    return find


__all__ = [
    "AnswerLists",
    "ImageRoots",
    "UnreadFields",
    "VqaRecord",
    "equal_weights",
    "image_finder",
    "kind_of",
    "read_answers",
    "visual_genome_folders",
]
