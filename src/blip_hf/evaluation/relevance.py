# SPDX-License-Identifier: BSD-3-Clause
"""Which texts are right for which images: those of the same id, or also those that are equal to them.

Letters: `n` images, `m` texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .recall import relevance_matrix


Relevance = Literal["equal", "own"]
"""`"equal"`: texts and images that equal a right one are right too. `"own"`: only those of the same image id."""


def check_relevance(relevance: Relevance) -> None:
    """Raises a ValueError for an unknown rule."""
    if relevance not in get_args(Relevance):
        raise ValueError(
            f"relevance={relevance!r} is unknown; pass one of {', '.join(map(repr, get_args(Relevance)))}."
        )


@dataclass(frozen=True)
class Equality:
    """Equal images and equal texts of a set.

    Args:
        text_to_image (`torch.Tensor` of shape `(m,)`):
            Number of the image of each text.
        image_classes (`torch.Tensor` of shape `(n,)`):
            Integers from 0, equal for equal images.
        text_classes (`torch.Tensor` of shape `(m,)`):
            Integers from 0, equal for equal texts.
    """

    text_to_image: Tensor
    image_classes: Tensor
    text_classes: Tensor

    @classmethod
    def of(cls, text_to_image: Tensor, image_content: Tensor, texts: Sequence[str]) -> "Equality":
        """Compares hashes of images, `(n,)`, and texts."""
        number_of: dict[str, int] = {}
        text_classes = [number_of.setdefault(text, len(number_of)) for text in texts]
        return cls(text_to_image, image_content.unique(return_inverse=True)[1], torch.tensor(text_classes))

    @property
    def num_equal_images(self) -> int:
        """Number of images that equal another one."""
        return int((self.image_classes.bincount()[self.image_classes] > 1).sum())

    @property
    def num_equal_texts(self) -> int:
        """Number of texts that equal a text of another image."""
        owners = torch.stack([self.text_classes, self.text_to_image]).unique(dim=1)  # (2, distinct pairs)
        return int((owners[0].bincount()[self.text_classes] > 1).sum())

    def relevance(self, rule: Relevance) -> Tensor:
        """Returns a boolean matrix `(n, m)` of right pairs.

        With `"equal"`, a text is right for an image if the set assigns an equal text to an equal image.

        Example:
            >>> texts = ["a dog", "a dog", "a cat"]
            >>> Equality.of(torch.tensor([0, 1, 2]), torch.tensor([7, 8, 9]), texts).relevance("equal").int()
            tensor([[1, 1, 0],
                    [1, 1, 0],
                    [0, 0, 1]], dtype=torch.int32)
        """
        if rule == "own":
            return relevance_matrix(self.text_to_image, len(self.image_classes))
        num_classes = int(self.image_classes.max()) + 1, int(self.text_classes.max()) + 1
        is_assigned = torch.zeros(num_classes, dtype=torch.bool)
        is_assigned[self.image_classes[self.text_to_image], self.text_classes] = True
        return is_assigned[self.image_classes][:, self.text_classes]


__all__ = ["Equality", "Relevance", "check_relevance"]
