# SPDX-License-Identifier: BSD-3-Clause
"""Tiny models behind the server, their requests, and a way to hold and count their forward passes."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from PIL import Image

from blip_hf import BlipCaptioner, BlipForQuestionAnswering
from blip_hf.serving import ServedModels
from blip_hf.serving.models import LoadedModel
from tests.support.images import encode_image, noise_images
from tests.support.tiny_models import tiny_capfilt, tiny_model_for


TIMEOUT_SECONDS = 30


def tiny_served_models() -> ServedModels:
    captioner, processor, matcher, _ = tiny_capfilt()
    vqa = tiny_model_for(BlipForQuestionAnswering, processor, seed=5, initializer_range=0.5)
    return ServedModels(
        captioner=BlipCaptioner(captioner, processor),
        matcher=LoadedModel(matcher, processor),
        vqa=LoadedModel(vqa, processor),
    )


def photos(number: int) -> list[Image.Image]:
    """Images that are larger than the tiny models'."""
    return noise_images(number, (90, 70))


def as_base64(*images: Image.Image | bytes) -> list[str]:
    encoded = [image if isinstance(image, bytes) else encode_image(image) for image in images]
    return [base64.b64encode(content).decode() for content in encoded]


def as_files(*images: Image.Image | bytes) -> list[tuple[str, bytes]]:
    return [("images", image if isinstance(image, bytes) else encode_image(image)) for image in images]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)


class HeldModel:
    """Holds the forward passes of an image encoder until `release`, and notes the size of each batch."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []
        self._is_released = threading.Event()

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.batch_sizes.append(len(inputs[0]))
        assert self._is_released.wait(TIMEOUT_SECONDS)

    def release(self) -> None:
        self._is_released.set()


@contextmanager
def held(model: torch.nn.Module) -> Iterator[HeldModel]:
    holder = HeldModel()
    handle = model.vision_model.register_forward_pre_hook(holder)
    try:
        yield holder
    finally:
        holder.release()
        handle.remove()
