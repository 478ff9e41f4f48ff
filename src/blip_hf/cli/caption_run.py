# SPDX-License-Identifier: BSD-3-Clause
"""The course of `blip-hf caption`: captions what is missing, notes each image at once, and says how far it came."""

import sys
from collections.abc import Container, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any

from .caption_formats import write_records
from .caption_journal import ImageKey, Journal, Outcome, keys_of, open_journal
from .caption_outputs import CaptionFile, CaptionSidecars
from .image_sources import FoundImages
from .skipped import count_skipped, named_error, say
from .stop_signals import Stopped


if TYPE_CHECKING:
    from ..captioner import Caption
    from .caption import CaptionOptions
    from .caption_engines import LocalEngine, RayEngine

_PROG = "blip-hf caption"


def caption_to_stdout(engine: "LocalEngine | RayEngine", images: FoundImages, options: "CaptionOptions") -> int:
    """Captions all images, and writes each caption as it comes. Returns the exit status."""
    kinds: list[str | None] = []  # why each image was skipped, or None

    def records() -> Iterator[dict[str, Any]]:
        for _, outcome in _caption(engine, images, range(len(images)), set(), options):
            kinds.append(outcome.get("skipped"))
            yield from ({**caption, "image": outcome["image"]} for caption in outcome.get("captions", []))

    try:
        write_records(records(), sys.stdout, columns=options.columns(), output_format=options.chosen_format)
    except Stopped as stop:
        say(
            _PROG,
            f"interrupted after {len(kinds)} of {len(images)} images. With --output FILE a run can be resumed.",
        )
        return stop.status
    return count_skipped(_PROG, filter(None, kinds), len(images))


def caption_to_files(
    engine: "LocalEngine | RayEngine",
    images: FoundImages,
    output: CaptionFile | CaptionSidecars,
    options: "CaptionOptions",
) -> int:
    """Captions the images that have no caption yet. A run that is stopped at any moment can be resumed."""
    keys = keys_of(images.names)
    with open_journal(output.journal_path, engine.settings(), overwrite=options.overwrite) as journal:
        output.resume(keys, journal)
        todo = [index for index in range(len(images)) if index not in output.kept and index not in output.refused]
        is_done = {index for index in todo if keys[index] in journal}
        if is_done:
            say(_PROG, f"resuming after {len(is_done)} of {len(images)} images of {journal.path}")
        for outcome in output.refused.values():
            say(_PROG, f"skipped: {outcome['error']}")
        try:
            for index, outcome in _caption(engine, images, todo, is_done, options):
                _, occurrence = keys[index]
                output.write(index, {**outcome, "occurrence": occurrence} if occurrence else outcome, journal)
            output.finish(keys, journal)
        except BaseException as error:
            num_done = len(images) - sum(keys[index] not in journal for index in todo)
            say(
                _PROG,
                f"interrupted after {num_done} of {len(images)} images, noted in {journal.path}. The same command resumes.",
            )
            if isinstance(error, Stopped):
                return error.status
            raise
        status = count_skipped(_PROG, _kinds(output, keys, journal), len(images))
        journal.remove()
    return status


def _kinds(output: CaptionFile | CaptionSidecars, keys: Sequence[ImageKey], journal: Journal) -> Iterator[str]:
    """Why images were skipped, also in earlier parts of the run."""
    outcomes = (journal[key] for key in keys if key in journal)
    return (own["skipped"] for own in chain(output.refused.values(), outcomes) if "skipped" in own)


def _caption(
    engine: "LocalEngine | RayEngine",
    images: FoundImages,
    todo: Sequence[int],
    is_done: Container[int],
    options: "CaptionOptions",
) -> Iterator[tuple[int, Outcome]]:
    """Yields the outcomes of the images in `todo` that are not done, by index, in the order of the engine.

    Batches are the same whatever is done: in one that is done in part, all images are captioned again. So a resumed
    run gives the same captions as an undisturbed one.
    """
    from tqdm import tqdm

    # Captions that appear on the same terminal show the progress themselves.
    is_on_terminal = options.writes_to_stdout and sys.stdout.isatty()
    is_shown = len(images) > 1 and sys.stderr.isatty() and not is_on_terminal
    num_done = len(images) - sum(index not in is_done for index in todo)
    with tqdm(total=len(images), initial=num_done, unit="image", disable=not is_shown) as bar:
        ranges = _unfinished([index in is_done for index in todo], options.batch_size)
        captions = engine.iter_captions(images, todo, ranges)
        for first in captions:
            index = todo[first.image_index]
            own = [first] if first.error else [first, *islice(captions, options.num_captions - 1)]
            if index in is_done:
                continue
            outcome = _as_outcome(images.names[index], own, options)
            if first.error:
                say(_PROG, f"skipped: {outcome['error']}")
            yield index, outcome
            bar.update()


def _unfinished(is_done: Sequence[bool], batch_size: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole batches with an image that is not done. Neighbours are joined.

    Example:
        >>> list(_unfinished([True, True, True, False, True, True, False], batch_size=2))
        [(2, 4), (6, 7)]
    """
    starts = range(0, len(is_done), batch_size)
    for is_finished, own in groupby(starts, key=lambda start: all(is_done[start : start + batch_size])):
        first, *others = own
        if not is_finished:
            yield first, min((others[-1] if others else first) + batch_size, len(is_done))


def _as_outcome(name: str, captions: "list[Caption]", options: "CaptionOptions") -> Outcome:
    if (error := captions[0].error) is not None:
        return {"image": name, "skipped": captions[0].error_kind, "error": named_error(error, name)}
    values = [
        {
            "caption": f"{options.prefix}{caption.text}{options.suffix}",
            "log_probability": caption.log_probability,
            "num_tokens": caption.num_tokens,
            "itm_probability": caption.itm_probability,
        }
        for caption in captions
    ]
    columns = options.columns()
    return {"image": name, "captions": [{name: own[name] for name in own if name in columns} for own in values]}


__all__ = ["caption_to_files", "caption_to_stdout"]
