# SPDX-License-Identifier: BSD-3-Clause
"""Visual question answering: the data set of questions and its collator."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..processing_blip import BlipProcessor
from .collators import PairCollator, Record
from .pairs import PairDataset, PairTransform
from .readers.vqa import VqaRecord
from .text import pre_question


# BLIP does not truncate answers; BERT has 512 positions.
MAX_ANSWER_LENGTH = 512


class VqaDataset(PairDataset[VqaRecord]):
    """Map-style data set over [`~blip_hf.data.readers.vqa.VqaRecord`] records; skips unusable ones as [`PairDataset`] does.

    Arguments are as in [`PairDataset`]; BLIP keeps 50 words of a question. The text that the transform receives is the
    question and its answers, one per line, so a flip swaps left and right in all of them.

    Example:
        >>> record = {"image": Image.new("L", (8, 8)), "question": "What is it?", "question_id": 5}
        >>> questions = VqaDataset([{**record, "answers": ["grey"], "weights": [1.0]}])
        >>> questions[0]["question"], questions[0]["image"].mode, questions[0]["answers"]
        ('what is it?', 'RGB', ['grey'])
    """

    text_field = "question"
    _normalize = staticmethod(pre_question)

    def __init__(
        self,
        questions: Sequence[Mapping[str, Any]],
        transform: PairTransform | None = None,
        seed: int = 0,
        max_words: int = 50,
        normalize_questions: bool = True,
    ) -> None:
        super().__init__(questions, transform, seed, max_words, normalize_questions)

    def _make_item(
        self, record: Mapping[str, Any], image: Image.Image, question: str, rng: random.Random
    ) -> VqaRecord:
        answers = record["answers"]
        if self.transform is not None:
            lines = [" ".join(line.split()) for line in (question, *answers)]
            image, text = self.transform(image, "\n".join(lines), rng)
            question, *answers = text.split("\n")
        item: Any = {**record, "image": image, "question": question, "answers": answers}
        return item


class BlipVqaCollator(PairCollator):
    """Converts questions to the inputs and labels of [`BlipForQuestionAnswering`]. Rows start with `[CLS]`.

    Maps [`~blip_hf.data.readers.vqa.VqaRecord`] records to `pixel_values` of shape `(b, 3, size, size)`, `input_ids`
    and `attention_mask` of shape `(b, t)`, and for all `m` answers `labels` of shape `(m, t)`, `answer_weights` of
    shape `(m,)` and `answers_per_question` of shape `(b,)`. Equal answers to a question are merged and their weights
    summed. A batch without answers has no labels.

    Args:
        max_length (`int`, *optional*, defaults to 35):
            Maximum number of tokens of a question, as in BLIP.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "a", "red", "square"]
        >>> tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        >>> processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=1)
        >>> record = {"image": Image.new("RGB", (1, 1)), "question": "what is it", "question_id": 0}
        >>> batch = BlipVqaCollator(processor)(
        ...     [
        ...         {**record, "answers": ["red", "a red square", "red", "red"], "weights": [0.25] * 4},
        ...         {**record, "answers": ["a square"], "weights": [0.5]},
        ...     ]
        ... )
        >>> batch["input_ids"]
        tensor([[2, 5, 6, 7, 3],
                [2, 5, 6, 7, 3]])
        >>> batch["labels"]
        tensor([[-100,    9,    3, -100, -100],
                [-100,    8,    9,   10,    3],
                [-100,    8,   10,    3, -100]])
        >>> batch["answer_weights"], batch["answers_per_question"]
        (tensor([0.7500, 0.2500, 0.5000]), tensor([2, 1]))
    """

    role = "contrast"  # [CLS]; the model sets [ENC]
    text_field = "question"

    def __init__(self, processor: BlipProcessor, max_length: int = 35) -> None:
        super().__init__(processor, max_length)

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Makes a batch; raises a ValueError if no image can be read."""
        questions = self._open_records(records)
        features = self._encode(questions)
        weights = [_weight_by_answer(question) for question in questions]
        answers = [answer for by_answer in weights for answer in by_answer]
        if not answers:
            return features
        rows = self.processor(text=answers, role="lm", max_length=MAX_ANSWER_LENGTH, return_tensors="pt")
        return {
            **features,
            "labels": rows["labels"],
            "answer_weights": torch.tensor([weight for by_answer in weights for weight in by_answer.values()]),
            "answers_per_question": torch.tensor([len(by_answer) for by_answer in weights]),
        }


def _weight_by_answer(question: Record) -> dict[str, float]:
    """Summed weight of each distinct answer, in order of first occurrence."""
    weights: dict[str, float] = {}
    for answer, weight in zip(question["answers"], question["weights"], strict=True):
        weights[answer] = weights.get(answer, 0.0) + weight
    return weights


__all__ = ["MAX_ANSWER_LENGTH", "BlipVqaCollator", "VqaDataset"]
