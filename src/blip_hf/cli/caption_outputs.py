# SPDX-License-Identifier: BSD-3-Clause
"""Where `blip-hf caption` writes and how it continues: one file, or a text file for each image."""

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import remove_partial
from .caption_formats import name_in_file, read_records, write_records
from .caption_journal import ImageKey, Journal, Outcome
from .caption_sidecars import checked_extension, sidecar_exists, sidecar_paths, write_sidecar
from .image_sources import FoundImages
from .output import open_output, refuse_existing
from .skipped import say


if TYPE_CHECKING:
    from .caption import CaptionOptions


class CaptionFile:
    """One file with all captions. It appears when it is complete; until then the captions are in the journal beside it.

    `kept` are the records of images that the file of an earlier run has, and `refused` is empty.
    """

    def __init__(self, options: "CaptionOptions", images: FoundImages) -> None:
        self.options = options
        self.images = images
        assert options.output is not None
        self.path = options.output
        self.journal_path = self.path.with_name(f"{self.path.name}.part")
        self.kept: dict[int, list[dict[str, Any]]] = {}
        self.refused: dict[int, Outcome] = {}
        if options.skip_existing and self.path.is_file():
            self.kept = self._existing()
        elif not (options.overwrite or self.journal_path.is_file()):
            refuse_existing(self.path, remedy="pass --overwrite or --skip_existing")

    def resume(self, keys: Sequence[ImageKey], journal: Journal) -> None:
        """Nothing to repair: the journal has all that the run wrote."""

    def write(self, index: int, outcome: Outcome, journal: Journal) -> None:
        """Notes the captions of an image."""
        journal.append(outcome)

    def finish(self, keys: Sequence[ImageKey], journal: Journal) -> None:
        """Writes the file."""
        remove_partial(self.path)  # of a process that was killed here
        with open_output(self.path) as stream:
            write_records(
                self._records(keys, journal),
                stream,
                columns=self.options.columns(),
                output_format=self.options.chosen_format,
            )

    def _records(self, keys: Sequence[ImageKey], journal: Journal) -> Iterable[dict[str, Any]]:
        for index, key in enumerate(keys):
            own = self.kept[index] if index in self.kept else journal[key].get("captions", [])
            yield from ({**record, "image": key[0]} for record in own)

    def _existing(self) -> dict[int, list[dict[str, Any]]]:
        """The records of the file by image. Each occurrence of an image takes as many as an image has captions."""
        by_name: dict[str, list[dict[str, Any]]] = {}
        output_format = self.options.chosen_format
        for record in read_records(self.path, columns=self.options.columns(), output_format=output_format):
            by_name.setdefault(record["image"], []).append(record)
        kept = {}
        for index, name in enumerate(self.images.names):
            own = by_name.get(name_in_file(name, output_format), [])
            if own:
                kept[index] = own[: self.options.num_captions]
                del own[: self.options.num_captions]
        return kept


class CaptionSidecars:
    """A text file for each image. One that is there is kept, unless the options say otherwise.

    `refused` are images that get none: their name is too long with the extension, or an earlier image has the same file.
    """

    def __init__(self, options: "CaptionOptions", images: FoundImages) -> None:
        self.options = options
        self.images = images
        self.paths = sidecar_paths(images, options.output_dir, checked_extension(options.extension))
        folder = options.output_dir or next(iter(images.folders))
        assert folder is not None  # captions beside the images of a data set are refused
        self.journal_path = folder / ".blip-hf-caption.part"
        self.kept: set[int] = set()
        self.refused: dict[int, Outcome] = {}
        self._index_of: dict[Path, int] = {}
        for index, path in enumerate(self.paths):
            self._check(index, path)

    def _check(self, index: int, path: Path) -> None:
        first = self._index_of.setdefault(path, index)
        if first != index:
            self._refuse(index, "same_sidecar", f"{path} is the file of {self.images.names[first]} already")
            return
        try:
            if sidecar_exists(path) and not (self.options.overwrite or self.options.append):
                self.kept.add(index)
            elif self.options.append and path.is_file():
                path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            self._refuse(index, "bad_sidecar", f"{path} is not UTF-8, so nothing can be appended")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self._refuse(index, "long_name", f"{path.name} is too long for the file system")

    def _refuse(self, index: int, kind: str, problem: str) -> None:
        name = self.images.names[index]
        self.refused[index] = {"image": name, "skipped": kind, "error": f"{name}: {problem}."}

    def resume(self, keys: Sequence[ImageKey], journal: Journal) -> None:
        """Tells the files of this run from older ones, and writes the last one again, which may be missing."""
        self.kept = {index for index in self.kept if keys[index] not in journal}
        last = journal.last()
        if last is not None and last["image"] in self.images.names:
            self._write(self.images.names.index(last["image"]), last)

    def write(self, index: int, outcome: Outcome, journal: Journal) -> None:
        """Notes the caption of an image, then writes its file."""
        journal.append(outcome)
        self._write(index, outcome)

    def finish(self, keys: Sequence[ImageKey], journal: Journal) -> None:
        """Says how many files were there before."""
        if self.kept:
            say("blip-hf caption", f"existing captions kept: {len(self.kept)}")

    def _write(self, index: int, outcome: Outcome) -> None:
        for caption in outcome.get("captions", []):
            write_sidecar(self.paths[index], caption["caption"], append=self.options.append)


__all__ = ["CaptionFile", "CaptionSidecars"]
