# SPDX-License-Identifier: BSD-3-Clause
"""Captions images: reads, batches, generates, and scores the captions."""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from .caption_settings import CaptionSettings
from .data.image_batches import ImageBatch, OnError, image_batches
from .devices import SeededSampling, pick_device
from .image_arrays import is_array
from .image_utils import ImageErrorKind, ImageSource
from .modeling.attention import ImageMemory
from .modeling.caption import BlipForConditionalGeneration, score_sequences
from .modeling.cpu import optimize_for_cpu
from .modeling.logits_check import LogitsCheck
from .modeling.retrieval import BlipForImageTextRetrieval
from .processing_blip import BlipProcessor


_ONE_IMAGE = (str, bytes, os.PathLike, io.IOBase, Image.Image, dict)
_OWN_SETTINGS = ("num_return_sequences", "return_dict_in_generate")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption of an image, with its scores."""

    image_index: int
    """Position of the image in the input, from 0."""
    text: str | None = None
    """The caption without the prompt; `None` if the image could not be read."""
    log_probability: float | None = None
    """Log-probability given the image and the prompt, summed over the generated tokens and the final `[SEP]`."""
    num_tokens: int | None = None
    """Number of tokens in that sum."""
    itm_probability: float | None = None
    """Probability that image and `text` match, from the ITM head of the matcher."""
    error: str | None = None
    """Why the image could not be read."""
    error_kind: ImageErrorKind | None = None
    """The kind of this error, to count errors by."""

    @property
    def mean_log_probability(self) -> float | None:
        """Log-probability per token, which does not favour short captions; `None` without `log_probability`."""
        if self.log_probability is None or self.num_tokens is None:
            return None
        return self.log_probability / self.num_tokens

    @property
    def picture(self) -> int:
        """Deprecated name of `image_index`."""
        warnings.warn(
            "`Caption.picture` is deprecated and will be removed in version 0.3. Use `Caption.image_index`.",
            FutureWarning,
            stacklevel=2,
        )
        return self.image_index


def _accept_pictures(method: Callable[..., Any]) -> Callable[..., Any]:
    """Accepts `pictures`, the deprecated name of the argument `images`."""

    @wraps(method)
    def renamed(self: "BlipCaptioner", *args: Any, **kwargs: Any) -> Any:
        if "pictures" in kwargs:
            warnings.warn(
                "The argument `pictures` is deprecated and will be removed in version 0.3. Use `images`.",
                FutureWarning,
                stacklevel=2,
            )
            kwargs["images"] = kwargs.pop("pictures")
        return method(self, *args, **kwargs)

    return renamed


class BlipCaptioner:
    """Captions images of any form, in batches and in order.

    Settings of `generate` have this order of precedence: `generation_settings`; its `generation_config`, or that of
    the model; `processor.caption_settings` of the checkpoint; the package defaults. The defaults are beam search with
    3 beams (or as many as captions are requested), `top_p=0.9` with `do_sample=True`, and `max_length=20` and
    `min_length=5`, which count `[DEC]` and the prompt. `max_new_tokens` replaces both lengths.

    Args:
        model (`BlipForConditionalGeneration`):
            The captioning model. It is put in evaluation mode.
        matcher (`BlipForImageTextRetrieval`, *optional*):
            Model that computes `itm_probability`.
        matcher_processor (`BlipProcessor`, *optional*, defaults to `processor`):
            Processor of `matcher`, if it has another image size or vocabulary.
        prompt (`str`, *optional*):
            Start of each caption, which is removed from the result. `""` for none. Defaults to the prompt of the
            checkpoint, else `"a picture of "`.
        seed (`int`, *optional*):
            Makes sampling reproducible for the same images and batch size, also from several threads. torch's random state
            does not change.
        num_workers (`int`, *optional*, defaults to 0):
            Threads that read and resize images ahead of the model, at most two batches. 0 reads each batch when it is
            needed.
        **generation_settings:
            Settings of `generate`: `num_beams`, `do_sample`, `top_p`, `max_length`, `max_new_tokens`, ...

    Example:
        >>> captioner = BlipCaptioner.from_pretrained("path/to/checkpoint")  # doctest: +SKIP
        >>> captioner(["dog.jpg", "boat.png"])  # doctest: +SKIP
        ['a dog on a beach', 'a red boat']
    """

    def __init__(
        self,
        model: BlipForConditionalGeneration,
        processor: BlipProcessor,
        *,
        matcher: BlipForImageTextRetrieval | None = None,
        matcher_processor: BlipProcessor | None = None,
        prompt: str | None = None,
        batch_size: int = 8,
        seed: int | None = None,
        num_workers: int = 0,
        **generation_settings: Any,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is too small. Pass 1 or more.")
        refused = [name for name in _OWN_SETTINGS if name in generation_settings]
        if refused:
            raise ValueError(
                f"The captioner sets {' and '.join(refused)} itself. Remove it, and pass num_return_sequences to"
                " `caption`."
            )
        self.model = model.eval()
        self.processor = processor
        self.matcher = None if matcher is None else matcher.eval()
        self.matcher_processor = processor if matcher_processor is None else matcher_processor
        self.caption_settings = CaptionSettings.resolve(processor.caption_settings)
        self.prompt = self.caption_settings.prompt if prompt is None else prompt
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.generation_settings = generation_settings

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        matcher: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **kwargs: Any,
    ) -> "BlipCaptioner":
        """Loads the models and their processors.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or model id of a captioning model and its processor, of this package or of transformers.
            matcher (`str` or `os.PathLike`, *optional*):
                Folder or model id of an image-text retrieval model, for `itm_probability`.
            device (`str` or `torch.device`, *optional*):
                Defaults to an accelerator (CUDA, XPU, MPS) if there is one. On CPUs, [`optimize_for_cpu`] is applied.
            **kwargs:
                `prompt`, `batch_size`, `seed`, `num_workers` and settings of `generate`.
        """
        device = pick_device(device)
        dtype = "auto" if dtype is None else dtype
        model = BlipForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, dtype=dtype).to(device)
        models = [model]
        if matcher is not None:
            kwargs["matcher"] = BlipForImageTextRetrieval.from_pretrained(matcher, dtype=dtype).to(device)
            kwargs["matcher_processor"] = BlipProcessor.from_pretrained(matcher)
            models.append(kwargs["matcher"])
        if device.type == "cpu":
            for each in models:
                optimize_for_cpu(each)
        return cls(model, BlipProcessor.from_pretrained(pretrained_model_name_or_path), **kwargs)

    @_accept_pictures
    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> list[str]:
        """Writes one caption per image, in order.

        Raises:
            UnreadableImageError: If an image cannot be read.
            NotFiniteError: If the weights, or the results for an image, are NaN or infinite.
        """
        batches = self._batches(images, on_error="raise")
        return [text for batch in batches for text in self._write(batch, num_return_sequences=1)[0]]

    @_accept_pictures
    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        num_return_sequences: int = 1,
        return_scores: bool = False,
        on_error: OnError = "raise",
    ) -> list[Caption]:
        """Writes captions with their scores, in the order of the images.

        Args:
            images (`ImageSource` or `Iterable[ImageSource]`):
                An image or several: paths, PIL images, arrays and tensors of one image or of a batch, or any other form
                that [`~blip_hf.image_utils.open_image`] reads.
            num_return_sequences (`int`, *optional*, defaults to 1):
                Captions per image.
            return_scores (`bool`, *optional*, defaults to `False`):
                Whether to compute `log_probability`, which takes one more pass of the decoder.
            on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
                Whether to raise an error for an unreadable image, or to return one `Caption` with its `error`.
        """
        return list(
            self.iter_captions(
                images, num_return_sequences=num_return_sequences, return_scores=return_scores, on_error=on_error
            )
        )

    @_accept_pictures
    def iter_captions(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        num_return_sequences: int = 1,
        return_scores: bool = False,
        on_error: OnError = "raise",
        first_index: int = 0,
    ) -> Iterator[Caption]:
        """Like `caption`, but yields the captions and keeps only a few batches of images in memory.

        `first_index` is the `image_index` of the first image. The random numbers of a batch depend on it.
        """
        for batch in self._batches(images, on_error=on_error, first_index=first_index):
            captions = batch.failures(Caption)
            if batch.images:
                for caption in self._describe(batch, num_return_sequences, return_scores):
                    captions.setdefault(caption.image_index, []).append(caption)
            for index in sorted(captions):
                yield from captions[index]

    def _batches(
        self, images: ImageSource | Iterable[ImageSource], *, on_error: OnError, first_index: int = 0
    ) -> Iterator[ImageBatch]:
        return image_batches(
            self.processor,
            single_images(images),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            on_error=on_error,
            first_index=first_index,
        )

    def _describe(self, batch: ImageBatch, num_return_sequences: int, return_scores: bool) -> list[Caption]:
        texts, sequences, memory = self._write(batch, num_return_sequences)
        indices = [index for index in batch.indices for _ in range(num_return_sequences)]
        columns: dict[str, list[Any]] = {"image_index": indices, "text": texts}
        if return_scores:
            columns["log_probability"], columns["num_tokens"] = self._score(memory, sequences)
        if self.matcher is not None:
            columns["itm_probability"] = self._match(self.matcher, batch.images, texts)
        return [Caption(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]

    @torch.inference_mode()
    def _write(self, batch: ImageBatch, num_return_sequences: int) -> tuple[list[str], Tensor, ImageMemory]:
        """Captions of `n` images, their tokens of shape `(n * g, t)`, and the image memory."""
        device = self.model.device
        inputs = self.processor(text=[self.prompt] * len(batch.images), return_tensors="pt").to(device)
        settings = _generation_settings(
            self.generation_settings,
            self.generation_settings.get("generation_config") or self.model.generation_config,
            self.caption_settings,
            num_return_sequences,
        )
        check = LogitsCheck(batch.indices, captioner=self.model)
        settings["logits_processor"] = [*(settings.get("logits_processor") or []), check]
        # The index of the first image gives each batch its own reproducible seed.
        seed = None if self.seed is None else self.seed + min(batch.indices)
        memory = self.model.get_image_memory(batch.pixel_values.to(device))
        with nullcontext() if seed is None else SeededSampling(seed, device):
            sequences = self.model.generate(image_memory=memory, **inputs, **settings)  # (n * g, t)
        return self.processor.post_process_captions(sequences, prompt=self.prompt), sequences, memory

    @torch.inference_mode()
    def _score(self, memory: ImageMemory, sequences: Tensor) -> tuple[list[float], list[int]]:
        """Sum and number of the log-probabilities after the prompt, up to and including the first [SEP]."""
        # [CLS] prompt [SEP], which `generate` reads as [DEC] prompt.
        num_context = len(self.processor(text=self.prompt)["input_ids"]) - 1
        sums, counts = score_sequences(self.model, memory, sequences, num_context)
        return sums.tolist(), counts.tolist()

    @torch.inference_mode()
    def _match(self, matcher: BlipForImageTextRetrieval, images: list[Image.Image], texts: list[str]) -> list[float]:
        """Probabilities that each of `n * g` texts matches its image."""
        # [CLS] first: the matcher replaces it by the token of its configuration.
        inputs = self.matcher_processor(images, texts, role="contrast", return_tensors="pt").to(matcher.device)
        memory = matcher.get_image_memory(inputs["pixel_values"])
        logits = matcher.get_itm_logits(memory, inputs["input_ids"], inputs["attention_mask"])
        return logits.float().softmax(dim=-1)[:, 1].tolist()


def single_images(images: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """Yields the images one by one; an array or a tensor of shape `(n, ...)` with four axes is several."""
    if isinstance(images, _ONE_IMAGE) or (is_array(images) and images.ndim != 4):
        yield images  # type: ignore[misc]  # an `io.IOBase` is the `BinaryIO` of annotations
        return
    for image in images:
        if is_array(image) and image.ndim == 4:
            yield from image
        else:
            yield image


def _generation_settings(
    given: dict[str, Any], config: GenerationConfig, defaults: CaptionSettings, num_return_sequences: int
) -> dict[str, Any]:
    """Adds defaults for settings that are neither given nor in the generation config."""

    def is_unset(*names: str) -> bool:
        return all(name not in given and getattr(config, name) is None for name in names)

    added: dict[str, Any] = {}
    is_sampling = given.get("do_sample", config.do_sample)
    if is_unset("num_beams"):
        added["num_beams"] = 1 if is_sampling else max(defaults.num_beams, num_return_sequences)
    if is_sampling and is_unset("top_p"):
        added["top_p"] = defaults.top_p
    if is_unset("repetition_penalty"):
        added["repetition_penalty"] = defaults.repetition_penalty
    if "max_length" in given:
        # `generate` prefers `max_new_tokens`, even if only the configuration has it.
        added["max_new_tokens"] = None
    elif is_unset("max_new_tokens", "max_length"):
        added["max_length"] = defaults.max_length
    if is_unset("min_new_tokens", "min_length", "max_new_tokens"):
        max_length = given.get("max_length") or config.max_length or defaults.max_length
        added["min_length"] = min(defaults.min_length, max_length)
    return {**added, **given, "num_return_sequences": num_return_sequences, "return_dict_in_generate": False}


__all__ = ["BlipCaptioner", "Caption", "single_images"]
