# SPDX-License-Identifier: BSD-3-Clause
"""Preprocessing of one large JPEG: all pixels, and with reduced decoding."""

from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from transformers import BlipImageProcessorPil
from transformers.image_utils import OPENAI_CLIP_STD

from blip_hf import BlipImageProcessor

from .harness import OURS, Case, Options, run


# Longer side of the photo in pixels.
WIDTHS = {"base": 4000, "small": 2000, "tiny": 400}
REDUCING_GAP = 2.0
UPSTREAM = "transformers"


def cases(options: Options) -> Iterator[Case]:
    """Full decoding, bit-equal to transformers, and reduced decoding."""
    width = WIDTHS[options.size_name]
    photo = draw_photo(width, width * 2 // 3)
    side = options.size.image_size
    ours = BlipImageProcessor(size={"height": side, "width": side})
    theirs = BlipImageProcessorPil(size={"height": side, "width": side})
    for reducing_gap, check in ((None, equal_pixels), (REDUCING_GAP, close_pixels)):
        yield Case(
            f"one JPEG of {width} x {width * 2 // 3} to a tensor of {side} px, reducing_gap={reducing_gap}",
            {
                OURS: partial(to_pixels, ours, photo, reducing_gap=reducing_gap),
                UPSTREAM: lambda: to_pixels(theirs, Image.open(BytesIO(photo))),
            },
            targets={UPSTREAM: 1.5},
            check=check,
            has_tensors=False,
        )


def to_pixels(processor: BlipImageProcessorPil, photo: bytes | Image.Image, **settings: float | None) -> Tensor:
    """Pixels of shape `(1, 3, side, side)`."""
    return processor(photo, return_tensors="pt", **settings).pixel_values


def draw_photo(width: int, height: int) -> bytes:
    """A JPEG of smooth colours with noise."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((width, height))
    grain = rng.normal(0, 8, (height, width, 1))
    buffer = BytesIO()
    Image.fromarray((np.asarray(colours) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def equal_pixels(results: Mapping[str, Tensor]) -> None:
    """Asserts that pixels equal those of transformers bit by bit."""
    assert_close(results[OURS], results[UPSTREAM], atol=0, rtol=0)


def close_pixels(results: Mapping[str, Tensor]) -> None:
    """Asserts that the mean difference to transformers is below two levels of 255."""
    mean_error = (results[OURS] - results[UPSTREAM]).abs().mean()
    assert mean_error < 2 / 255 / min(OPENAI_CLIP_STD), f"reduced pixels differ by {mean_error:.4f} in the mean"


if __name__ == "__main__":
    run("processor", cases)
