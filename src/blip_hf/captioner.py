# SPDX-License-Identifier: BSD-3-Clause
"""Images in, captions out: opening, batching, generation, and how sure the models are of what was written."""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from .image_utils import ImageSource, UnreadableImageError, open_image
from .modeling.attention import ImageMemory
from .modeling.caption import BlipForConditionalGeneration, score_sequences
from .modeling.retrieval import BlipForImageTextRetrieval
from .processing_blip import BlipProcessor


OnError = Literal["raise", "skip"]

# Beam search as in salesforce/BLIP, configs/caption_coco.yaml: 3 beams, 5 to 20 tokens. Those count the four tokens that
# [DEC] and the prompt "a picture of" make, so that the lower limit hardly ever acts; the 20 here are new tokens.
_NUM_BEAMS = 3
_MAX_NEW_TOKENS = 20
# Sampling as CapFilt does for its synthetic captions (BLIP, section 4).
_TOP_P = 0.9

_ONE_IMAGE = (str, bytes, os.PathLike, io.IOBase, Image.Image, np.ndarray, dict)
_OWN_SETTINGS = ("num_return_sequences", "return_dict_in_generate")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What was written about an image, and how sure the models are of it.

    Args:
        image_index (`int`):
            Position of the image among those given, from 0.
        text (`str`, *optional*):
            The caption without the prompt; `None` if the image could not be read.
        log_probability (`float`, *optional*):
            Natural logarithm of the probability of the caption given the image and the prompt: the sum over the
            generated tokens, `[SEP]` included where the caption has ended. It is the model's own, whatever search or
            sampling wrote the caption.
        num_tokens (`int`, *optional*):
            Number of tokens in that sum.
        itm_probability (`float`, *optional*):
            Probability, by the matching head, that image and `text` belong together.
        error (`str`, *optional*):
            Why the image could not be read.
    """

    image_index: int
    text: str | None = None
    log_probability: float | None = None
    num_tokens: int | None = None
    itm_probability: float | None = None
    error: str | None = None

    @property
    def mean_log_probability(self) -> float | None:
        """Log-probability a token, which does not favour short captions; `None` where it was not asked for."""
        return None if self.log_probability is None else self.log_probability / self.num_tokens


class BlipCaptioner:
    """Writes captions for images in any form, in batches and in order.

    Settings of generation are taken from the first that has them: `generation_settings`, the `generation_config` among
    them or else the model's, and the paper's recipe: 3 beams, or with `do_sample=True` nucleus sampling at `top_p=0.9`,
    and at most 20 new tokens. Beams are raised to the number of captions asked for, unless they were set.

    Args:
        model (`BlipForConditionalGeneration`):
            The model that writes. It is put in evaluation mode; its device and dtype are kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        matcher (`BlipForImageTextRetrieval`, *optional*):
            A model that judges each caption, for `itm_probability`.
        matcher_processor (`BlipProcessor`, *optional*, defaults to `processor`):
            The processor that `matcher` was trained with, where it has another image size or vocabulary.
        prompt (`str`, *optional*):
            What each caption is to start with; it is not part of the text returned. The paper's is `"a picture of "`.
        batch_size (`int`, *optional*, defaults to 8):
            Images a batch.
        seed (`int`, *optional*):
            Makes sampling repeatable for the same images and batch size, and leaves torch's generators as they were.
        **generation_settings:
            Settings of `generate`: `num_beams`, `do_sample`, `top_p`, `max_new_tokens`, `repetition_penalty`, ...

    Raises:
        ValueError: If `batch_size` is below 1, or a setting is given that belongs to the call.

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
        **generation_settings: Any,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is too small. Pass 1 or more.")
        refused = [name for name in _OWN_SETTINGS if name in generation_settings]
        if refused:
            raise ValueError(
                f"The captioner sets {' and '.join(refused)} itself. Leave it out, and pass num_return_sequences to"
                " `caption`."
            )
        self.model = model.eval()
        self.processor = processor
        self.matcher = None if matcher is None else matcher.eval()
        self.matcher_processor = processor if matcher_processor is None else matcher_processor
        self.prompt = prompt
        self.batch_size = batch_size
        self.seed = seed
        self.generation_settings = generation_settings

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        matcher: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        prompt: str | None = None,
        batch_size: int = 8,
        seed: int | None = None,
        **generation_settings: Any,
    ) -> "BlipCaptioner":
        """Loads the models and their processors.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder with a captioning model and its processor, saved here or by transformers, or a model id.
            matcher (`str` or `os.PathLike`, *optional*):
                The same of an image-text retrieval model, for `itm_probability`.
            device (`str` or `torch.device`, *optional*):
                Where the models run. Defaults to the GPU if there is one.
            dtype (`str` or `torch.dtype`, *optional*):
                Number format of the weights. Defaults to that of the checkpoint.
            prompt (`str`, *optional*):
                As of the class.
            batch_size (`int`, *optional*, defaults to 8):
                As of the class.
            seed (`int`, *optional*):
                As of the class.
            **generation_settings:
                As of the class.

        Returns:
            `BlipCaptioner`: ready to write.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if dtype is None else dtype
        model = BlipForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, dtype=dtype)
        matchers: dict[str, Any] = {}
        if matcher is not None:
            matchers = {
                "matcher": BlipForImageTextRetrieval.from_pretrained(matcher, dtype=dtype).to(device),
                "matcher_processor": BlipProcessor.from_pretrained(matcher),
            }
        return cls(
            model.to(device),
            BlipProcessor.from_pretrained(pretrained_model_name_or_path),
            **matchers,
            prompt=prompt,
            batch_size=batch_size,
            seed=seed,
            **generation_settings,
        )

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> list[str]:
        """Writes one caption an image.

        Args:
            images (`ImageSource` or `Iterable[ImageSource]`):
                Paths, PIL images, uint8 arrays or what else [`~blip_hf.image_utils.open_image`] reads; or one of them.

        Returns:
            `list[str]`: the captions, in order.

        Raises:
            UnreadableImageError: If an image cannot be read.
        """
        batches = self._batches(images, on_error="raise")
        return [text for batch in batches for text in self._write(batch, num_return_sequences=1)[0]]

    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        num_return_sequences: int = 1,
        return_scores: bool = False,
        on_error: OnError = "raise",
    ) -> list[Caption]:
        """Writes captions with what is known about them.

        Args:
            images (`ImageSource` or `Iterable[ImageSource]`):
                Images, or one of them.
            num_return_sequences (`int`, *optional*, defaults to 1):
                Captions an image; beam search gives the best first.
            return_scores (`bool`, *optional*, defaults to `False`):
                Whether to compute `log_probability`, by one more pass of the decoder. `itm_probability` is there whenever
                there is a matcher.
            on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
                What to do about an image that cannot be read: stop, or go on and give one `Caption` with its `error`.

        Returns:
            `list[Caption]`: in the order of the images, the captions of one image being neighbours.

        Raises:
            UnreadableImageError: If an image cannot be read and `on_error` is `"raise"`.
            ValueError: If `on_error` or a setting of generation is unknown.
        """
        return list(
            self.iter_captions(
                images, num_return_sequences=num_return_sequences, return_scores=return_scores, on_error=on_error
            )
        )

    def iter_captions(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        num_return_sequences: int = 1,
        return_scores: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[Caption]:
        """As `caption`, but hands out captions batch by batch, so that only one batch of images is in memory.

        Args:
            images (`ImageSource` or `Iterable[ImageSource]`):
                Images, or one of them.
            num_return_sequences (`int`, *optional*, defaults to 1):
                Captions an image.
            return_scores (`bool`, *optional*, defaults to `False`):
                Whether to compute `log_probability`.
            on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
                What to do about an image that cannot be read.

        Yields:
            `Caption`: in the order of the images.

        Raises:
            UnreadableImageError: If an image cannot be read and `on_error` is `"raise"`.
            ValueError: If `on_error` or a setting of generation is unknown.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is unknown. Pass 'raise' or 'skip'.")
        for batch in self._batches(images, on_error=on_error):
            captions = {number: [caption] for number, caption in batch.failures.items()}
            if batch.images:
                for caption in self._describe(batch, num_return_sequences, return_scores):
                    captions.setdefault(caption.image_index, []).append(caption)
            for number in sorted(captions):
                yield from captions[number]

    def _batches(self, images: ImageSource | Iterable[ImageSource], *, on_error: OnError) -> Iterator["_Batch"]:
        numbered = enumerate([images] if isinstance(images, _ONE_IMAGE) else images)
        while sources := list(islice(numbered, self.batch_size)):
            yield _open_batch(sources, on_error)

    def _describe(self, batch: "_Batch", num_return_sequences: int, return_scores: bool) -> list[Caption]:
        texts, sequences, memory = self._write(batch, num_return_sequences)
        numbers = [number for number in batch.images for _ in range(num_return_sequences)]
        known: dict[str, list[Any]] = {"image_index": numbers, "text": texts}
        if return_scores:
            known["log_probability"], known["num_tokens"] = self._score(memory, sequences)
        if self.matcher is not None:
            known["itm_probability"] = self._match(list(batch.images.values()), texts)
        return [Caption(**dict(zip(known, values, strict=True))) for values in zip(*known.values(), strict=True)]

    @torch.inference_mode()
    def _write(self, batch: "_Batch", num_return_sequences: int) -> tuple[list[str], Tensor, ImageMemory]:
        """Captions of a batch, their tokens of shape `(n * g, t)`, and the encoded images they were written about."""
        device = self.model.device
        pixel_values = self.processor(images=list(batch.images.values()), return_tensors="pt")["pixel_values"].to(
            device
        )
        prompts = {}
        if self.prompt is not None:
            prompts = self.processor(text=[self.prompt] * len(pixel_values), return_tensors="pt").to(device)
        given = self.generation_settings.get("generation_config") or self.model.generation_config
        settings = _with_recipe(self.generation_settings, given, num_return_sequences)
        # The first image's number makes the batches of one call differ, and a batch the same in each call.
        with _seeded(None if self.seed is None else self.seed + min(batch.images), device):
            memory = self.model.get_image_memory(pixel_values)
            sequences = self.model.generate(image_memory=memory, **prompts, **settings)  # (n * g, t)
        return self.processor.post_process_captions(sequences, prompt=self.prompt), sequences, memory

    @torch.inference_mode()
    def _score(self, memory: ImageMemory, sequences: Tensor) -> tuple[list[float], list[int]]:
        """Sum and count of the log-probabilities of what comes after the prompt, up to and with the first [SEP]."""
        # [CLS] prompt [SEP] was read as [DEC] prompt.
        num_context = 1 if self.prompt is None else len(self.processor(text=self.prompt)["input_ids"]) - 1
        sums, counts = score_sequences(self.model, memory, sequences, num_context)
        return sums.tolist(), counts.tolist()

    @torch.inference_mode()
    def _match(self, images: list[Image.Image], texts: list[str]) -> list[float]:
        """Probabilities that each of `n * g` texts belongs to its image."""
        # [CLS] first, as the matcher takes it: its configuration says what to put there.
        inputs = self.matcher_processor(images, texts, role="contrast", return_tensors="pt").to(self.matcher.device)
        memory = self.matcher.get_image_memory(inputs["pixel_values"])
        logits = self.matcher.get_itm_logits(memory, inputs["input_ids"], inputs["attention_mask"])
        return logits.float().softmax(dim=-1)[:, 1].tolist()


@dataclass(frozen=True)
class _Batch:
    """Images that were read and reports on those that were not, both by number."""

    images: dict[int, Image.Image]
    failures: dict[int, Caption]


def _open_batch(sources: list[tuple[int, ImageSource]], on_error: OnError) -> _Batch:
    batch = _Batch({}, {})
    for number, source in sources:
        try:
            batch.images[number] = open_image(source)
        except UnreadableImageError as error:
            if on_error == "raise":
                raise
            batch.failures[number] = Caption(image_index=number, error=str(error))
    return batch


def _with_recipe(
    settings: dict[str, Any], generation_config: GenerationConfig, num_return_sequences: int
) -> dict[str, Any]:
    """Settings with the paper's recipe where neither they nor the model's configuration say anything."""

    def is_free(*names: str) -> bool:
        return all(name not in settings and getattr(generation_config, name) is None for name in names)

    recipe: dict[str, Any] = {}
    is_sampling = settings.get("do_sample", generation_config.do_sample)
    if is_free("num_beams"):
        recipe["num_beams"] = 1 if is_sampling else max(_NUM_BEAMS, num_return_sequences)
    if is_sampling and is_free("top_p"):
        recipe["top_p"] = _TOP_P
    if is_free("max_new_tokens", "max_length"):
        recipe["max_new_tokens"] = _MAX_NEW_TOKENS
    elif "max_length" in settings:
        # Of the two, generate prefers the number of new tokens, even one that only the configuration has.
        recipe["max_new_tokens"] = None
    return {**recipe, **settings, "num_return_sequences": num_return_sequences, "return_dict_in_generate": False}


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


__all__ = ["BlipCaptioner", "Caption", "score_sequences"]
