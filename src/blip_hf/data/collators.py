# SPDX-License-Identifier: BSD-3-Clause
"""From a list of pairs to the inputs of a model: one collator for each role of the text transformer.

All of them take items of [`~blip_hf.data.pairs.PairDataset`], where `None` is left out, and raw records with an image
in any form that [`~blip_hf.image_utils.open_image`] takes, where one that cannot be read is left out with a warning. A
batch needs a usable record; in training [`~blip_hf.data.pairs.FilledBatches`] sees to that. Captions are taken as they
are, and rows are padded to the longest of the batch.

With transformers' `Trainer`, set `remove_unused_columns=False`: it would otherwise drop the columns of pairs, which no
model has as arguments, before a collator sees them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..caption_settings import CaptionSettings
from ..image_utils import UnreadableImageError, open_image
from ..processing_blip import BlipProcessor, Role
from .pairs import Pair, SkipReporter


Record = Mapping[str, Any]

NUM_NAMED_ERRORS = 3


class PairCollator:
    """What the collators share: which pairs are usable, and the call of the processor."""

    role: Role

    def __init__(self, processor: BlipProcessor, max_length: int) -> None:
        self.processor = processor
        self.max_length = max_length
        self._skips = SkipReporter()

    def _usable_pairs(self, records: Sequence[Record | None]) -> list[Pair]:
        pairs, errors = [], []
        for index, record in enumerate(records):
            if record is None:
                errors.append(f"item {index} was left out by its data set, whose warnings say why")
                continue
            try:
                pairs.append(self._opened(record))
            except UnreadableImageError as error:
                errors.append(str(error))
                self._skips.report(str(error))
        if not pairs:
            more = f"; and {len(errors) - NUM_NAMED_ERRORS} more" if len(errors) > NUM_NAMED_ERRORS else ""
            raise ValueError(
                f"None of the {len(records)} records of this batch can be used: {'; '.join(errors[:NUM_NAMED_ERRORS])}"
                f"{more}. Check that image paths start from the right folder (`image_root` of `load_pairs`)."
            )
        return pairs

    def _opened(self, record: Record) -> Record:
        """The record with its image read."""
        return {**record, "image": open_image(record["image"])}

    def _encode(self, pairs: list[Pair], prompt: str | None = None) -> dict[str, torch.Tensor]:
        features = self.processor(
            [pair["image"] for pair in pairs],
            [pair["caption"] for pair in pairs],
            role=self.role,
            prompt=prompt,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return dict(features)


class BlipPretrainingCollator(PairCollator):
    """Pairs to the inputs of [`BlipForPreTraining`], whose rows start with `[CLS]`: the model puts `[ENC]` and `[DEC]`.

    Args:
        processor ([`BlipProcessor`]):
            What makes tensors of images and text.
        max_length (`int`, *optional*, defaults to 30):
            Longest row in tokens, `[CLS]` and `[SEP]` included. BLIP pre-trains with 30.

    Example:
        >>> from PIL import Image
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "red", "square"]
        >>> tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        >>> processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=1)  # [DEC] is 10, [ENC] is 11
        >>> black, white = (Image.new("RGB", (1, 1), color) for color in ("black", "white"))
        >>> records = [
        ...     {"image": black, "caption": "a square", "image_id": 7},
        ...     None,
        ...     {"image": white, "caption": "a red square", "image_id": 9},
        ... ]
        >>> batch = BlipPretrainingCollator(processor)(records)
        >>> batch["input_ids"]
        tensor([[2, 5, 9, 3, 0],
                [2, 5, 8, 9, 3]])
        >>> batch["attention_mask"]
        tensor([[1, 1, 1, 1, 0],
                [1, 1, 1, 1, 1]])
        >>> batch["image_ids"]
        tensor([7, 9])
        >>> batch["pixel_values"].flatten(1)  # (b, 3, 1, 1) -> (b, 3)
        tensor([[-1.7923, -1.7521, -1.4802],
                [ 1.9303,  2.0749,  2.1459]])
    """

    role = "contrast"

    def __init__(self, processor: BlipProcessor, max_length: int = 30) -> None:
        super().__init__(processor, max_length)

    def __call__(self, records: Sequence[Record | None]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            records (`Sequence[dict]`):
                Records `{"image", "caption", "image_id"}`, or `None` for one that is left out.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` of shape `(b, 3, size, size)`, `input_ids` and `attention_mask` of
            shape `(b, t)`, and `image_ids` of shape `(b,)`, int64.

        Raises:
            ValueError: If no record can be used.
        """
        pairs = self._usable_pairs(records)
        return {**self._encode(pairs), "image_ids": torch.tensor([pair["image_id"] for pair in pairs])}


class BlipMatchingCollator(PairCollator):
    """Pairs to the inputs of the matching head of [`BlipForImageTextRetrieval`], whose rows start with `[ENC]`.

    Args:
        processor ([`BlipProcessor`]):
            What makes tensors of images and text.
        max_length (`int`, *optional*, defaults to 35):
            Longest row in tokens, `[ENC]` and `[SEP]` included. BLIP's retrieval has 35.

    Example:
        The records of [`BlipPretrainingCollator`], whose `image_id` is not needed here, give the same batch without
        `image_ids`, and

        ```text
        input_ids       [[11, 5, 9, 3, 0],
                         [11, 5, 8, 9, 3]]
        ```
    """

    role = "matching"

    def __init__(self, processor: BlipProcessor, max_length: int = 35) -> None:
        super().__init__(processor, max_length)

    def __call__(self, records: Sequence[Record | None]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            records (`Sequence[dict]`):
                Records `{"image", "caption"}`, or `None` for one that is left out. Each may have a `label`: 1 for a pair
                that matches, 0 for one that does not.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` of shape `(b, 3, size, size)`, `input_ids` and `attention_mask` of
            shape `(b, t)`, and, where each record has one, `labels` of shape `(b,)`, int64.

        Raises:
            ValueError: If no record can be used.
        """
        pairs = self._usable_pairs(records)
        labels = [pair["label"] for pair in pairs if "label" in pair]
        given = {"labels": torch.tensor(labels)} if len(labels) == len(pairs) else {}
        return {**self._encode(pairs), **given}


class BlipCaptioningCollator(PairCollator):
    """Pairs to the inputs and labels of [`BlipForConditionalGeneration`], whose rows start with `[DEC]`.

    The prompt stands before each caption and is no target ([BLIP](https://huggingface.co/papers/2201.12086) fine-tunes
    with "a picture of"). Labels are not shifted; the model does that. A stock transformers `Trainer` trains with it.

    Args:
        processor ([`BlipProcessor`]):
            What makes tensors of images and text.
        prompt (`str`, *optional*):
            Text that each caption starts with, `""` for none. Defaults to that of `processor.caption_settings`, or
            `"a picture of "` if there are no settings.
        max_length (`int`, *optional*, defaults to 40):
            Longest row in tokens, `[DEC]`, the prompt and `[SEP]` included. BLIP's captioning has 40.

    Example:
        The records of [`BlipPretrainingCollator`], whose `image_id` is not needed here, give the same `pixel_values` and

        ```text
        input_ids       [[  10,    5,    6,    7,    5,    9,    3,    0],
                         [  10,    5,    6,    7,    5,    8,    9,    3]]
        attention_mask  [[   1,    1,    1,    1,    1,    1,    1,    0],
                         [   1,    1,    1,    1,    1,    1,    1,    1]]
        labels          [[-100, -100, -100, -100,    5,    9,    3, -100],
                         [-100, -100, -100, -100,    5,    8,    9,    3]]
        ```
    """

    role = "captioning"

    def __init__(self, processor: BlipProcessor, prompt: str | None = None, max_length: int = 40) -> None:
        super().__init__(processor, max_length)
        self.prompt = CaptionSettings.resolve(processor.caption_settings).prompt if prompt is None else prompt

    def __call__(self, records: Sequence[Record | None]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            records (`Sequence[dict]`):
                Records `{"image", "caption"}`, or `None` for one that is left out.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` of shape `(b, 3, size, size)`, and `input_ids`, `attention_mask`
            and `labels` of shape `(b, t)`; labels are -100 where there is no target.

        Raises:
            ValueError: If no record can be used.
        """
        return self._encode(self._usable_pairs(records), self.prompt)


__all__ = ["BlipCaptioningCollator", "BlipMatchingCollator", "BlipPretrainingCollator", "PairCollator"]
