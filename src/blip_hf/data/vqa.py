# SPDX-License-Identifier: BSD-3-Clause
"""Questions as a torch data set, and from a list of them to the inputs of a model that answers them."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..processing_blip import BlipProcessor
from .collators import PairCollator
from .pairs import PairDataset
from .readers.records import Record
from .readers.vqa import VqaRecord
from .text import pre_question


# BLIP cuts no answer: as many tokens as BERT has positions.
MAX_ANSWER_LENGTH = 512

QuestionTransform = Callable[[Image.Image, str, random.Random], tuple[Image.Image, str]]


class VqaDataset(PairDataset):
    """Map-style data set over [`~blip_hf.data.readers.vqa.VqaRecord`] records, as robust as [`PairDataset`] is.

    A record of which the image cannot be read, or whose question is empty once normalised, gives `None`, is named in a
    warning and counted in `num_skipped`. Without a transform, as in evaluation, nothing is random.

    Args:
        questions (sequence of records):
            What [`~blip_hf.data.readers.load_vqa`] returns, or a list.
        transform (`Callable`, *optional*):
            Maps image, text and a `random.Random` to an image and a text, as
            [`~blip_hf.data.transforms.TrainTransform`] does. The text is the question and its answers, one a line: where
            a mirrored image exchanges left and right, it does so in all of them.
        seed (`int`, *optional*, defaults to 0):
            Seed of the transform.
        max_words (`int`, *optional*, defaults to 50):
            How many words of a question to keep. BLIP keeps 50.
        normalize_questions (`bool`, *optional*, defaults to `True`):
            Whether questions go through [`~blip_hf.data.text.pre_question`]. Without it `max_words` has no effect.

    Raises:
        ValueError: If there are no questions.

    Example:
        >>> record = {"image": Image.new("L", (8, 8)), "question": "What is it?", "question_id": 5}
        >>> questions = VqaDataset([{**record, "answers": ["grey"], "weights": [1.0]}])
        >>> questions[0]["question"], questions[0]["image"].mode, questions[0]["answers"]
        ('what is it?', 'RGB', ['grey'])
    """

    transform: QuestionTransform | None
    text_field = "question"
    _normalize = staticmethod(pre_question)

    def __init__(
        self,
        questions: Sequence[Mapping[str, Any]],
        transform: QuestionTransform | None = None,
        seed: int = 0,
        max_words: int = 50,
        normalize_questions: bool = True,
    ) -> None:
        super().__init__(questions, transform, seed, max_words, normalize_questions)

    def caption_lengths(self) -> list[int]:
        """Words of each question as it is written, by which batches can be grouped."""
        return [len(record["question"].split()) for record in self.pairs]

    def _make_item(
        self, record: Mapping[str, Any], image: Image.Image, question: str, rng: random.Random
    ) -> VqaRecord:
        answers = record["answers"]
        if self.transform is not None:
            lines = [" ".join(line.split()) for line in (question, *answers)]
            image, text = self.transform(image, "\n".join(lines), rng)
            question, *answers = text.split("\n")
        return {**record, "image": image, "question": question, "answers": answers}


class BlipVqaCollator(PairCollator):
    """Questions to the inputs and labels of [`BlipForQuestionAnswering`], whose rows start with `[CLS]`.

    The answers of all questions stand one below the other. Equal answers of a question are one row, with the sum of their
    weights. A batch of questions without answers has no labels.

    Args:
        processor ([`BlipProcessor`]):
            What makes tensors of images and text.
        max_length (`int`, *optional*, defaults to 35):
            Longest question in tokens, `[CLS]` and `[SEP]` included. BLIP has 35.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "a", "red", "square"]
        >>> tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        >>> processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=1)
        >>> record = {"image": Image.new("RGB", (1, 1)), "question": "what is it", "question_id": 0}
        >>> batch = BlipVqaCollator(processor)(
        ...     [
        ...         {**record, "answers": ["red", "a red square", "red", "red"], "weights": [0.25] * 4},
        ...         None,
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

    role = "contrast"  # [CLS]; the model puts [ENC]

    def __init__(self, processor: BlipProcessor, max_length: int = 35) -> None:
        super().__init__(processor, max_length)

    def __call__(self, records: Sequence[Record | None]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            records (`Sequence[dict]`):
                [`~blip_hf.data.readers.vqa.VqaRecord`] records, or `None` for one that is left out.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` of shape `(b, 3, size, size)`, `input_ids` and `attention_mask` of
            shape `(b, t)`; and for the `m` answers `labels` of shape `(m, t)`, -100 where there is no target,
            `answer_weights` of shape `(m,)` and `answers_per_question` of shape `(b,)`.

        Raises:
            ValueError: If no record can be used.
        """
        questions = self._usable_pairs(records)
        features = self.processor(
            [question["image"] for question in questions],
            [question["question"] for question in questions],
            role=self.role,
            max_length=self.max_length,
            return_tensors="pt",
        )
        weighted = [_weight_of_each(question) for question in questions]
        answers = [answer for weights in weighted for answer in weights]
        if not answers:
            return dict(features)
        rows = self.processor(text=answers, role="lm", max_length=MAX_ANSWER_LENGTH, return_tensors="pt")
        return {
            **features,
            "labels": rows["labels"],
            "answer_weights": torch.tensor([weight for weights in weighted for weight in weights.values()]),
            "answers_per_question": torch.tensor([len(weights) for weights in weighted]),
        }


def _weight_of_each(question: VqaRecord) -> dict[str, float]:
    """Summed weight of each different answer, in the order in which they come first."""
    weights: dict[str, float] = {}
    for answer, weight in zip(question["answers"], question["weights"], strict=True):
        weights[answer] = weights.get(answer, 0.0) + weight
    return weights


__all__ = ["MAX_ANSWER_LENGTH", "BlipVqaCollator", "QuestionTransform", "VqaDataset"]
