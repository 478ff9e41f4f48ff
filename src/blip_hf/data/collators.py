# SPDX-License-Identifier: BSD-3-Clause
"""Collators from pairs to model inputs, one for each role of the text transformer.

They take items of [`~blip_hf.data.pairs.PairDataset`], or raw records with an image in any form that
[`~blip_hf.image_utils.open_image`] takes. An unreadable image is skipped with a warning; a batch without a readable
image raises an error. Captions are not normalised, and rows are padded to the longest of the batch.

With transformers' `Trainer`, set `remove_unused_columns=False`, or it drops the columns before the collator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..caption_settings import CaptionSettings
from ..image_utils import UnreadableImageError, open_image
from ..processing_blip import BlipProcessor, Role
from .pairs import SkipReporter


Record = Mapping[str, Any]

NUM_NAMED_ERRORS = 3


class PairCollator:
    """Opens images, skips unreadable ones, and calls the processor."""

    role: Role
    text_field = "caption"

    def __init__(self, processor: BlipProcessor, max_length: int) -> None:
        self.processor = processor
        self.max_length = max_length
        self._skips = SkipReporter()

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Makes a batch; raises a ValueError if no image can be read."""
        raise NotImplementedError

    def _open_records(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        opened, errors = [], []
        for record in records:
            try:
                opened.append(self._open_record(record))
            except UnreadableImageError as error:
                errors.append(str(error))
                self._skips.report(str(error))
        if not opened:
            more = f"; and {len(errors) - NUM_NAMED_ERRORS} more" if len(errors) > NUM_NAMED_ERRORS else ""
            raise ValueError(
                f"None of the {len(records)} records of this batch can be used: {'; '.join(errors[:NUM_NAMED_ERRORS])}"
                f"{more}. Check that image paths start from the right folder (`image_root` of `load_pairs`)."
            )
        return opened

    def _open_record(self, record: Record) -> dict[str, Any]:
        return {**record, "image": open_image(record["image"])}

    def _encode(self, records: Sequence[Record], prompt: str | None = None) -> dict[str, torch.Tensor]:
        features = self.processor(
            [record["image"] for record in records],
            [record[self.text_field] for record in records],
            role=self.role,
            prompt=prompt,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return dict(features)


class BlipPretrainingCollator(PairCollator):
    """Converts pairs to the inputs of [`BlipForPreTraining`]. Rows start with `[CLS]`; the model sets `[ENC]` and `[DEC]`.

    Maps records `{"image", "caption", "image_id"}` to `pixel_values` of shape `(b, 3, size, size)`, `input_ids` and
    `attention_mask` of shape `(b, t)`, and `image_ids` of shape `(b,)`, int64.

    Args:
        max_length (`int`, *optional*, defaults to 30):
            Maximum number of tokens of a text, as in BLIP's pre-training.

    Example:
        >>> from PIL import Image
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "red", "square"]
        >>> tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        >>> processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=1)  # [DEC] is 10, [ENC] is 11
        >>> black, white = (Image.new("RGB", (1, 1), color) for color in ("black", "white"))
        >>> records = [
        ...     {"image": black, "caption": "a square", "image_id": 7},
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

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Makes a batch; raises a ValueError if no image can be read."""
        pairs = self._open_records(records)
        return {**self._encode(pairs), "image_ids": torch.tensor([pair["image_id"] for pair in pairs])}


class BlipMatchingCollator(PairCollator):
    """Converts pairs to the inputs of the ITM head of [`BlipForImageTextRetrieval`]. Rows start with `[ENC]`.

    Maps records `{"image", "caption"}`, all or none with a `label` (1 for a match, 0 for a mismatch),
    to `pixel_values` of shape `(b, 3, size, size)`, `input_ids` and `attention_mask` of shape `(b, t)`, and `labels` of
    shape `(b,)`, int64.

    Args:
        max_length (`int`, *optional*, defaults to 35):
            Maximum number of tokens of a text, as in BLIP's retrieval.
    """

    role = "matching"

    def __init__(self, processor: BlipProcessor, max_length: int = 35) -> None:
        super().__init__(processor, max_length)

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Makes a batch; raises a ValueError if no image can be read."""
        pairs = self._open_records(records)
        labels = [pair["label"] for pair in pairs if "label" in pair]
        given = {"labels": torch.tensor(labels)} if len(labels) == len(pairs) else {}
        return {**self._encode(pairs), **given}


class BlipCaptioningCollator(PairCollator):
    """Converts pairs to the inputs and labels of [`BlipForConditionalGeneration`]. Rows start with `[DEC]`.

    Maps records `{"image", "caption"}` to `pixel_values` of shape `(b, 3, size, size)`, and `input_ids`,
    `attention_mask` and `labels` of shape `(b, t)`. Labels of the prompt and of padding are -100. The
    model shifts the labels.

    Args:
        prompt (`str`, *optional*):
            Start of each caption, `""` for none. Defaults to the prompt of `processor.caption_settings`.
        max_length (`int`, *optional*, defaults to 40):
            Maximum number of tokens of prompt and caption, as in BLIP's captioning.

    Example:
        For the records of [`BlipPretrainingCollator`]:

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

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Makes a batch; raises a ValueError if no image can be read."""
        return self._encode(self._open_records(records), self.prompt)


__all__ = ["BlipCaptioningCollator", "BlipMatchingCollator", "BlipPretrainingCollator", "PairCollator"]
