# SPDX-License-Identifier: BSD-3-Clause
"""The course of `blip-hf caption`: captions what is missing, notes each image at once, and says how far it came."""

import sys
from collections.abc import Container, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from .caption_formats import write_records
from .caption_journal import ImageKey, Journal, Outcome, keys_of, open_journal
from .caption_outputs import CaptionFile, CaptionSidecars
from .image_sources import FoundImages
from .skipped import count_skipped, say
from .stop_signals import Stopped


if TYPE_CHECKING:
    from ..captioner import BlipCaptioner, Caption
    from .caption import CaptionOptions

_PROG = "blip-hf caption"


def caption_to_stdout(captioner: "BlipCaptioner", images: FoundImages, options: "CaptionOptions") -> int:
    """Captions all images, and writes each caption as it comes. Returns the exit status."""
    outcomes: list[Outcome] = []

    def records() -> Iterator[dict[str, Any]]:
        for _, outcome in _caption(captioner, images, range(len(images)), set(), options):
            outcomes.append({key: value for key, value in outcome.items() if key != "captions"})
            yield from ({**caption, "image": outcome["image"]} for caption in outcome.get("captions", []))

    try:
        write_records(records(), sys.stdout, columns=options.columns(), output_format=options.format)
    except Stopped as stop:
        say(
            _PROG,
            f"interrupted after {len(outcomes)} of {len(images)} images. With --output FILE a run can be resumed.",
        )
        return stop.status
    return count_skipped(_PROG, (own["skipped"] for own in outcomes if "skipped" in own), len(images))


def caption_to_files(
    captioner: "BlipCaptioner",
    images: FoundImages,
    output: CaptionFile | CaptionSidecars,
    options: "CaptionOptions",
    settings: dict[str, Any],
) -> int:
    """Captions the images that have no caption yet. A run that is stopped at any moment can be resumed."""
    keys = keys_of(images.names)
    with open_journal(output.journal_path, settings, overwrite=options.overwrite) as journal:
        output.resume(keys, journal)
        todo = [index for index in range(len(images)) if index not in output.kept and index not in output.refused]
        is_done = {index for index in todo if keys[index] in journal}
        if is_done:
            say(_PROG, f"resuming after {len(is_done)} of {len(images)} images of {journal.path}")
        for outcome in output.refused.values():
            say(_PROG, f"skipped: {outcome['error']}")
        try:
            for index, outcome in _caption(captioner, images, todo, is_done, options):
                output.write(index, outcome, journal)
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
        outcomes = [output.refused.get(index) or _outcome(journal, keys[index]) for index in range(len(images))]
        journal.remove()
    return count_skipped(_PROG, (own["skipped"] for own in outcomes if "skipped" in own), len(images))


def _outcome(journal: Journal, key: ImageKey) -> Outcome:
    return journal[key] if key in journal else {"image": key[0]}


def _caption(
    captioner: "BlipCaptioner",
    images: FoundImages,
    todo: Sequence[int],
    is_done: Container[int],
    options: "CaptionOptions",
) -> Iterator[tuple[int, Outcome]]:
    """Yields the outcomes of the images in `todo` that are not done, by index.

    Batches are the same whatever is done: in one that is done in part, all images are captioned again. So a resumed
    run gives the same captions as an undisturbed one.
    """
    from tqdm import tqdm

    # Captions that appear on the same terminal show the progress themselves.
    is_on_terminal = options.output is None and options.format != "sidecar" and sys.stdout.isatty()
    is_shown = len(images) > 1 and sys.stderr.isatty() and not is_on_terminal
    num_done = len(images) - sum(index not in is_done for index in todo)
    with tqdm(total=len(images), initial=num_done, unit="image", disable=not is_shown) as bar:
        for start, stop in _unfinished([index in is_done for index in todo], captioner.batch_size):
            captions = captioner.iter_captions(
                (images[index] for index in todo[start:stop]),
                num_return_sequences=options.num_captions,
                return_scores=options.scores,
                on_error="skip",
                first_index=start,
            )
            for first in captions:
                index = todo[first.image_index]
                own = [first] if first.error else [first, *islice(captions, options.num_captions - 1)]
                if index in is_done:
                    continue
                if first.error:
                    say(_PROG, f"skipped: {first.error}")
                yield index, _as_outcome(images.names[index], own, options)
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
    if captions[0].error is not None:
        return {"image": name, "skipped": captions[0].error_kind, "error": captions[0].error}
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
