# SPDX-License-Identifier: BSD-3-Clause
"""Opens and resizes the images of requests in threads, so that the thread of the model only runs the model."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from ..image_utils import UnreadableImageError, open_image
from ..processing_blip import BlipProcessor
from .errors import RequestError
from .settings import ServerSettings
from .urls import FetchError, UrlFetcher


_FETCH_THREADS = 4
_FETCH_SECONDS = 10.0


class ImageReader:
    """Turns what clients send into images.

    Strings are base64 or URLs, never paths: a client must not read files of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._workers = ThreadPoolExecutor(settings.workers, thread_name_prefix="image")
        self._fetcher = UrlFetcher(settings.allow_urls, max_bytes=settings.max_body_bytes, timeout=_FETCH_SECONDS)
        # Apart from the others, which slow hosts would occupy.
        self._fetch_workers = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")

    async def read(self, sources: Sequence[bytes | str], processor: BlipProcessor | None) -> list[Image.Image]:
        """Images as 8-bit RGB, in order, resized as the processor does; without a processor at their own size.

        Raises:
            RequestError: With the index of the first image that cannot be used.
        """
        tasks = [asyncio.ensure_future(self._read(index, source, processor)) for index, source in enumerate(sources)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _read(self, index: int, source: bytes | str, processor: BlipProcessor | None) -> Image.Image:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
                source = await loop.run_in_executor(self._fetch_workers, self._fetcher.fetch, source)
            return await loop.run_in_executor(self._workers, _open, source, index, processor)
        except UnreadableImageError as error:
            status = 413 if error.kind == "too_large" else 422
            raise RequestError(status, str(error), image_index=index) from error
        except (FetchError, binascii.Error) as error:
            raise RequestError(
                422, f"Cannot read the image {index} of the request: {error}", image_index=index
            ) from error

    def stop(self) -> None:
        """Ends the threads when their images are read."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._fetch_workers.shutdown(wait=False, cancel_futures=True)


def _open(source: bytes | str, index: int, processor: BlipProcessor | None) -> Image.Image:
    content = decode_text(source) if isinstance(source, str) else source
    image = open_image(content, name=f"{index} of the request")
    return image if processor is None else resize(image, processor)


def decode_text(source: str) -> bytes:
    """Decodes base64 or a `data:` URL.

    Example:
        >>> decode_text("data:image/gif;base64,R0lG"), decode_text("R0 lG")
        (b'GIF', b'GIF')
        >>> decode_text("dog.jpg")
        Traceback (most recent call last):
        ...
        binascii.Error: it is neither base64 nor a data: URL with base64.
    """
    content = source.partition(",")[2] if source.startswith("data:") else source
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except ValueError as error:
        raise binascii.Error("it is neither base64 nor a data: URL with base64.") from error


def resize(image: Image.Image, processor: BlipProcessor) -> Image.Image:
    """The image at the size of the model, as its processor resizes it, which then leaves it as it is."""
    resized = processor.image_processor(images=image, do_rescale=False, do_normalize=False, return_tensors="np")
    return Image.fromarray(resized["pixel_values"][0].transpose(1, 2, 0))


__all__ = ["ImageReader", "decode_text", "resize"]
