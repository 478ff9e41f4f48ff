# SPDX-License-Identifier: BSD-3-Clause
"""CapFilt on images (paper, section 4): a captioner writes captions, and a filter scores all texts of each image.

Each model encodes an image once, however many texts there are: all of them read its image memory.

Letters: `n` images, `g` captions of each, `t` text tokens, `m` texts.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.modeling_utils import PreTrainedModel

from ..checkpoints import require_checkpoint
from ..data.read_ahead import read_ahead
from ..data.readers.samples import Sample, Shard, Skipped
from ..data.text import pre_caption
from ..devices import pick_device
from ..evaluation.features import TokenizedTexts, encode_texts, evaluating
from ..finite import require_finite_results
from ..image_utils import UnreadableImageError
from ..modeling.attention import ImageMemory
from ..modeling.caption import BlipForConditionalGeneration, score_sequences
from ..modeling.cpu import optimize_for_cpu
from ..modeling.projection import pool_and_project
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .sampling import SeededNucleus, caption_seed
from .scores import SCHEMA
from .settings import CapFiltSettings


MAX_ROWS = 1024
"""Maximum number of texts per batch of the filter."""


@dataclass(frozen=True)
class Scored:
    """Scores of the samples of one batch, with the skipped ones and the number of images that were encoded."""

    table: pa.Table
    skipped: list[Skipped]
    num_images: int


class CapFilt:
    """Captions the images of a shard, and scores their web texts and synthetic captions.

    A caption depends on the seed, the id of its sample and its index; scores depend on image and text. Batch size and
    number of processes change at most the last digits of a score.

    Args:
        captioner (`BlipForConditionalGeneration`):
            The captioner. Device and dtype are kept.
        captioner_processor (`BlipProcessor`):
            Processor of the captioner.
        matcher (`BlipForImageTextRetrieval`):
            The filter.
        matcher_processor (`BlipProcessor`):
            Processor of the filter. If its image options equal the captioner's, pixels are computed once.
        settings (`CapFiltSettings`, *optional*):
            Settings of captioning and batching. Those that are `None` are replaced by the captioner's own.
    """

    def __init__(
        self,
        captioner: BlipForConditionalGeneration,
        captioner_processor: BlipProcessor,
        matcher: BlipForImageTextRetrieval,
        matcher_processor: BlipProcessor,
        settings: CapFiltSettings | None = None,
    ) -> None:
        self.captioner = captioner.eval()
        self.captioner_processor = captioner_processor
        self.matcher = matcher.eval()
        self.matcher_processor = matcher_processor
        self.settings = (settings or CapFiltSettings()).resolve(captioner_processor.caption_settings)
        own, other = (processor.image_processor.to_dict() for processor in (captioner_processor, matcher_processor))
        self._has_shared_pixels = own == other
        # [CLS] prompt [SEP], which `generate` reads as [DEC] prompt
        self._prompt_ids = torch.tensor(captioner_processor(text=self.settings.prompt)["input_ids"])  # (t,)
        self._generation = _generation_config(self.settings)

    @classmethod
    def from_pretrained(
        cls,
        captioner: str | os.PathLike[str],
        matcher: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        settings: CapFiltSettings | None = None,
    ) -> "CapFilt":
        """Loads both models and their processors.

        Args:
            captioner (`str` or `os.PathLike`):
                Folder or model id of a captioning model with its processor.
            matcher (`str` or `os.PathLike`):
                Folder or model id of an image-text retrieval model with its processor: the filter.
            device (`str` or `torch.device`, *optional*):
                Device of the models. Defaults to an accelerator (CUDA, XPU, MPS) if there is one, of several to the one of
                this process.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"float32"`):
                Data type of the weights.
            settings (`CapFiltSettings`, *optional*):
                Settings of captioning and batching.

        Returns:
            `CapFilt`: both models in evaluation mode.
        """
        for source in (captioner, matcher):
            require_checkpoint(str(source))
        device = pick_device(device)
        captioner_processor = BlipProcessor.from_pretrained(captioner)
        # Wrong settings fail before the models are loaded.
        settings = (settings or CapFiltSettings()).resolve(captioner_processor.caption_settings)
        models = (
            BlipForConditionalGeneration.from_pretrained(captioner, dtype=dtype).to(device),
            BlipForImageTextRetrieval.from_pretrained(matcher, dtype=dtype).to(device),
        )
        if device.type == "cpu":
            # The heads keep torch's kernels, so that scores equal those of earlier versions bit by bit.
            for part in (part for model in models for part in model.children()):
                if isinstance(part, PreTrainedModel):
                    optimize_for_cpu(part)
        return cls(models[0], captioner_processor, models[1], BlipProcessor.from_pretrained(matcher), settings)

    def score_shard(self, shard: Shard) -> tuple[pa.Table, list[Skipped]]:
        """Captions and scores a shard.

        Args:
            shard (`Shard`):
                The shard.

        Returns:
            `tuple`: the score table, with one row per text, and the skipped records and texts.
        """
        batches = list(self.score_batches(shard.samples()))
        return join_tables([batch.table for batch in batches]), [item for batch in batches for item in batch.skipped]

    def score_batches(self, samples: Iterable[Sample | Skipped]) -> Iterator[Scored]:
        """Captions and scores samples in batches of `batch_size`; only a few batches of images are in memory."""
        depth = 2 * self.settings.batch_size
        read = read_ahead(samples, self._read, num_workers=self.settings.num_workers, depth=depth)
        while batch := list(islice(read, self.settings.batch_size)):
            skipped = [item for item in batch if isinstance(item, Skipped)]
            items = [item for item in batch if not isinstance(item, Skipped)]
            rows: list[dict[str, Any]] = []
            if items:
                with evaluating(self.captioner), evaluating(self.matcher):
                    rows, empty = self._score(items)
                skipped += empty
            yield Scored(pa.Table.from_pylist(rows, schema=SCHEMA), skipped, len(items))

    def identities(self) -> dict[str, dict[str, str]]:
        """Returns the `"name"`, `"dtype"` and digests of weights and processor of the `"captioner"` and the `"filter"`."""
        parts = {
            "captioner": (self.captioner, self.captioner_processor),
            "filter": (self.matcher, self.matcher_processor),
        }
        return {
            role: {
                "name": model.name_or_path,
                "fingerprint": fingerprint(model),
                "processor": processor_fingerprint(processor),
                "dtype": str(model.dtype),
            }
            for role, (model, processor) in parts.items()
        }

    def _read(self, sample: Sample | Skipped) -> "_Prepared | Skipped":
        if isinstance(sample, Skipped):
            return sample
        try:
            image = sample.open_image()
        except UnreadableImageError as error:
            return Skipped(sample.sample_id, "unreadable_image", str(error))
        pixels = _pixels(self.captioner_processor, image)
        return _Prepared(sample, pixels, pixels if self._has_shared_pixels else _pixels(self.matcher_processor, image))

    def _score(self, items: list["_Prepared"]) -> tuple[list[dict[str, Any]], list[Skipped]]:
        """Returns the rows of all texts of images, and the synthetic captions that have no words."""
        rows = [_web_rows(item.sample) for item in items]
        skipped: list[Skipped] = []
        if self.settings.num_captions:
            for own, item, captions in zip(rows, items, self._write(items), strict=True):
                with_words = [row for row in captions if pre_caption(row["text"])]
                own += with_words
                if len(with_words) < len(captions):
                    skipped.append(Skipped(item.sample.sample_id, "empty_text", "the captioner wrote no word"))
        self._judge(torch.stack([item.matcher_pixels for item in items]), rows)
        are_finite = [all(math.isfinite(row[score]) for row in own for score in ("itm", "itc")) for own in rows]
        require_finite_results(are_finite, [item.sample.sample_id for item in items], filter=self.matcher)
        return [row for own in rows for row in own], skipped

    def _write(self, items: list["_Prepared"]) -> list[list[dict[str, Any]]]:
        """Returns the rows of `g` synthetic captions of each image, without duplicates."""
        pixels = torch.stack([item.captioner_pixels for item in items])
        memory = self.captioner.get_image_memory(pixels.to(self.captioner.device, self.captioner.dtype))
        sequences = self._generate(memory, [item.sample for item in items])  # (n * g, t)
        sums, _ = score_sequences(self.captioner, memory, sequences, len(self._prompt_ids) - 1)
        texts = self.captioner_processor.post_process_captions(sequences, prompt=self.settings.prompt)
        log_probs = sums.tolist()
        firsts = range(0, len(log_probs), self.settings.num_captions)
        are_finite = [all(map(math.isfinite, log_probs[i : i + self.settings.num_captions])) for i in firsts]
        require_finite_results(are_finite, [item.sample.sample_id for item in items], captioner=self.captioner)
        captions = iter(zip(texts, log_probs, strict=True))
        return [_synthetic_rows(item.sample, list(islice(captions, self.settings.num_captions))) for item in items]

    def _generate(self, memory: ImageMemory, samples: list[Sample]) -> Tensor:
        """Returns the tokens of `g` captions of each image with the prompt, shape `(n * g, t)`."""
        settings, num_rows = self.settings, len(samples)
        processors = LogitsProcessorList()
        if settings.strategy == "nucleus":
            seeds = [
                caption_seed(settings.seed, sample.sample_id, index)
                for sample in samples
                for index in range(settings.num_captions)
            ]
            num_rows = len(seeds)
            processors.append(SeededNucleus(torch.tensor(seeds, device=self.captioner.device), settings.top_p or 1.0))
        prompts = self._prompt_ids.to(self.captioner.device).expand(num_rows, -1)
        return self.captioner.generate(
            image_memory=memory,
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=self._generation,
            logits_processor=processors,
        )

    def _judge(self, pixel_values: Tensor, rows: list[list[dict[str, Any]]]) -> None:
        """Sets `itm` and `itc` in the rows of each of `n` images."""
        matcher = self.matcher
        states = matcher.vision_model(pixel_values.to(matcher.device, matcher.dtype)).last_hidden_state
        image_features = pool_and_project(states, matcher.vision_proj)  # (n, d)
        memory = matcher.text_encoder.build_image_memory(states)
        for index, group in _passes(rows):
            texts = TokenizedTexts.from_texts(
                self.matcher_processor, [pre_caption(row["text"]) for row in group], matcher.device
            )
            everything = torch.arange(len(group))
            images = torch.tensor(index, device=matcher.device)
            own_memory = memory if len(index) == len(rows) else memory.select(images)
            logits = matcher.get_itm_logits(own_memory, *texts.batch(everything))  # (m, 2)
            text_features = encode_texts(matcher, texts, everything, len(group))  # (m, d)
            cosines = (image_features[images].repeat_interleave(len(group) // len(index), dim=0) * text_features).sum(
                dim=1
            )
            matched = logits.float().softmax(dim=1)[:, 1]
            for row, itm, itc in zip(group, matched.tolist(), cosines.tolist(), strict=True):
                row.update(itm=itm, itc=itc)


def _passes(rows: list[list[dict[str, Any]]]) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Groups images with the same number of texts, of at most `MAX_ROWS` texts, so that texts fold into images."""
    for count in sorted({len(own) for own in rows} - {0}):
        index = [i for i, own in enumerate(rows) if len(own) == count]
        num_images = max(1, MAX_ROWS // count)
        for first in range(0, len(index), num_images):
            some = index[first : first + num_images]
            for start in range(0, count, MAX_ROWS):
                yield some, [row for i in some for row in rows[i][start : start + MAX_ROWS]]


@dataclass(frozen=True)
class _Prepared:
    """A sample with the pixels `(3, height, width)` for each model."""

    sample: Sample
    captioner_pixels: Tensor
    matcher_pixels: Tensor


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenates the score tables of batches; the result does not depend on the batch size."""
    return pa.concat_tables([SCHEMA.empty_table(), *tables]).combine_chunks()


def fingerprint(model: PreTrainedModel) -> str:
    """Hashes the names and values of a model's weights to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def processor_fingerprint(processor: BlipProcessor) -> str:
    """Hashes the image options and the vocabulary of a processor to 16 hexadecimal digits."""
    content = [processor.image_processor.to_dict(), sorted(processor.tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _generation_config(settings: CapFiltSettings) -> GenerationConfig:
    is_beam = settings.strategy == "beam"
    return GenerationConfig(
        # Nucleus sampling is greedy search over scores with Gumbel noise.
        do_sample=False,
        num_beams=max(settings.num_beams or 1, settings.num_captions) if is_beam else 1,
        num_return_sequences=settings.num_captions if is_beam else 1,
        max_length=settings.max_length,
        min_length=settings.min_length,
        repetition_penalty=settings.repetition_penalty,
    )


def _pixels(processor: BlipProcessor, image: Any) -> Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


def _web_rows(sample: Sample) -> list[dict[str, Any]]:
    return [_row(sample, "web", index, text) for index, text in enumerate(sample.texts)]


def _synthetic_rows(sample: Sample, captions: list[tuple[str, float]]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for index, (text, log_prob) in enumerate(captions):
        rows.setdefault(text, _row(sample, "synthetic", index, text, log_prob))
    return list(rows.values())


def _row(sample: Sample, source: str, index: int, text: str, log_prob: float | None = None) -> dict[str, Any]:
    """Returns a row of the score table without the scores of the filter."""
    return {
        "sample_id": sample.sample_id,
        "image_id": sample.image_id,
        "image": sample.image if isinstance(sample.image, str) else "",
        "text_index": index,
        "text": text,
        "source": source,
        "log_prob": log_prob,
    }


__all__ = ["CapFilt", "CapFiltSettings", "Scored", "fingerprint", "join_tables", "processor_fingerprint"]
