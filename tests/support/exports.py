# SPDX-License-Identifier: BSD-3-Clause
"""Tiny models and their exports."""

from functools import cache
from pathlib import Path

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering, export_model
from tests.support.processors import make_processor, random_photo
from tests.support.tiny_models import tiny_model_for


HEADS = {
    "captioner": BlipForConditionalGeneration,
    "matcher": BlipForImageTextRetrieval,
    "vqa": BlipForQuestionAnswering,
}


@cache
def tiny_head(head):
    """A tiny model whose outputs differ from input to input."""
    return tiny_model_for(HEADS[head], make_processor(), seed=2, num_hidden_layers=2, initializer_range=0.2)


class Exports:
    """Exports of the tiny models, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        self.photos.mkdir()
        for seed in range(16):
            random_photo(seed).save(self.photos / f"{seed}.png")

    def path(self, head, format, precision="fp32"):
        path = self.folder / f"{head}-{format}-{precision}"
        if not path.exists():
            calibration = self.photos if precision == "int8" else None
            options = {"format": format, "precision": precision, "calibration": calibration}
            export_model(tiny_head(head), make_processor(), path, **options)
        return path

    @cache  # noqa: B019
    def model(self, head, format, precision="fp32"):
        return HEADS[head].from_pretrained(self.path(head, format, precision))
