# SPDX-License-Identifier: BSD-3-Clause
"""The models of `blip-hf caption`: in this process, or in the actors of a Ray cluster."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..caption_settings import CaptionSettings
from ..checkpoints import require_checkpoint
from .engine_options import cluster_of
from .image_sources import FoundImages


if TYPE_CHECKING:
    from ..captioner import BlipCaptioner, Caption
    from ..ray_captioner import RayCaptioner
    from .caption import CaptionOptions

_GENERATION_OPTIONS = (
    "num_beams",
    "max_length",
    "min_length",
    "max_new_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "top_p",
)
# They change the captions or the files, so a run is resumed with the same ones only.
_RUN_OPTIONS = (
    *_GENERATION_OPTIONS,
    "prompt",
    "num_captions",
    "sample",
    "seed",
    "dtype",
    "scores",
    "prefix",
    "suffix",
    "format",
    "extension",
    "append",
    "skip_existing",
)


class LocalEngine:
    """Captions images in this process."""

    def __init__(self, options: "CaptionOptions") -> None:
        self.options = options
        self.captioner = load_captioner(options)

    def settings(self) -> dict[str, Any]:
        """What the captions depend on."""
        return run_settings(self.captioner, self.options)

    def iter_captions(
        self, images: FoundImages, todo: Sequence[int], ranges: Iterable[tuple[int, int]]
    ) -> "Iterator[Caption]":
        """Captions of ranges of `todo`, the indices of images. The ranges are whole batches."""
        for start, stop in ranges:
            yield from self.captioner.iter_captions(
                (images[index] for index in todo[start:stop]), first_index=start, **_caption_arguments(self.options)
            )


class RayEngine:
    """Captions images in the actors of a Ray cluster, which read files themselves; records of data sets are sent."""

    def __init__(self, options: "CaptionOptions", captioner: "RayCaptioner") -> None:
        self.options = options
        self.captioner = captioner

    def settings(self) -> dict[str, Any]:
        """What the captions depend on."""
        return self.captioner.pool.call(run_settings, self.options, what="the model")

    def iter_captions(
        self, images: FoundImages, todo: Sequence[int], ranges: Iterable[tuple[int, int]]
    ) -> "Iterator[Caption]":
        """As that of [`LocalEngine`]. Shards come in order on stdout, else as they end, so that they are noted at once."""
        shards = (
            shard
            for start, stop in ranges
            for shard in self.captioner.cut((images[index] for index in todo[start:stop]), start)
        )
        return self.captioner.caption_shards(
            shards, in_order=self.options.writes_to_stdout, **_caption_arguments(self.options)
        )


@contextmanager
def open_engine(options: "CaptionOptions") -> Iterator[LocalEngine | RayEngine]:
    """The engine that the options choose, for the time of the block."""
    if options.engine == "local":
        yield LocalEngine(options)
        return

    from ..ray_captioner import RayCaptioner
    from ..ray_pool import RayPool

    with RayPool.open(partial(load_captioner, options), cluster_of(options), device=options.device) as pool:
        yield RayEngine(options, RayCaptioner(pool, batch_size=options.batch_size, shard_size=options.shard_size))


def _caption_arguments(options: "CaptionOptions") -> dict[str, Any]:
    return {"num_return_sequences": options.num_captions, "return_scores": options.scores, "on_error": "skip"}


def load_captioner(options: "CaptionOptions") -> "BlipCaptioner":
    """The models that the options name. Options that are `None` are left to the checkpoint."""
    for name in filter(None, (options.model, options.matcher)):
        require_checkpoint(name)

    from transformers.utils import logging

    from ..captioner import BlipCaptioner

    logging.disable_progress_bar()
    given = {name: getattr(options, name) for name in _GENERATION_OPTIONS if getattr(options, name) is not None}
    if options.sample:
        given["do_sample"] = True
    captioner = BlipCaptioner.from_pretrained(
        options.model,
        matcher=options.matcher,
        device=options.device,
        dtype=options.dtype,
        prompt=options.prompt,
        batch_size=options.batch_size,
        seed=options.seed,
        num_workers=options.workers,
        **given,
    )
    if options.max_new_tokens is None:
        lengths = {name: given[name] for name in ("max_length", "min_length") if name in given}
        lengths.setdefault("max_length", captioner.model.generation_config.max_length)
        CaptionSettings.resolve(
            captioner.caption_settings, prompt=captioner.prompt, **lengths
        )  # raises if they contradict
    return captioner


def run_settings(captioner: "BlipCaptioner", options: "CaptionOptions") -> dict[str, Any]:
    """What the captions of a run depend on: options, the settings of the checkpoint, and fingerprints of the weights."""
    from ..capfilt.engine import fingerprint

    settings = {name: getattr(options, name) for name in _RUN_OPTIONS}
    for name, value in captioner.caption_settings.to_dict().items():
        if settings[name] is None:
            settings[name] = value
    settings["model"] = fingerprint(captioner.model)
    settings["matcher"] = None if captioner.matcher is None else fingerprint(captioner.matcher)
    if options.sample:  # random numbers are drawn for a batch
        settings["batch_size"] = options.batch_size
    return settings


__all__ = ["LocalEngine", "RayEngine", "load_captioner", "open_engine", "run_settings"]
