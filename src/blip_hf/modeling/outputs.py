# SPDX-License-Identifier: BSD-3-Clause
"""Output classes of the models. Fields that were not computed are `None`."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class BlipCaptioningOutput(ModelOutput):
    """Output of `BlipForConditionalGeneration`, for `n` images and `b` captions."""

    loss: Tensor | None = None  # language modelling with label smoothing, if labels are given
    logits: Tensor | None = None  # (b, t, v)
    image_embeds: Tensor | None = None  # (n, p, d)
    last_hidden_state: Tensor | None = None  # `image_embeds`, under the name of transformers
    hidden_states: tuple[Tensor, ...] | None = None  # of each vision layer
    attentions: tuple[Tensor, ...] | None = None  # of each vision layer
    decoder_hidden_states: tuple[Tensor, ...] | None = None  # of each text layer
    decoder_attentions: tuple[Tensor, ...] | None = None  # of each text layer
    cross_attentions: tuple[Tensor, ...] | None = None  # (b, h, t, p) of each text layer


@dataclass
class BlipMatchingOutput(ModelOutput):
    """Output of `BlipForImageTextRetrieval`, for `n` images and `m` texts.

    The fields of transformers come first, in its order. As a tuple, the output has `itm_score` once, without its other
    names, so that it has the elements of transformers.
    """

    itm_score: Tensor | None = None  # `itm_logits` or `itc_similarity`, under the name of transformers
    loss: Tensor | None = None  # matching loss, if labels are given
    image_embeds: Tensor | None = None  # always `None`, as in transformers
    last_hidden_state: Tensor | None = None  # (n, p, d) of the image encoder
    hidden_states: tuple[Tensor, ...] | None = None  # of each vision layer
    vision_pooler_output: Tensor | None = None  # always `None`, as in transformers
    attentions: tuple[Tensor, ...] | None = None  # of each vision layer
    question_embeds: Tensor | None = None  # (m, t, d) of the text encoder, under the name of transformers
    itm_logits: Tensor | None = None  # (m, 2): unmatched, matched
    itc_similarity: Tensor | None = None  # (n, m) cosines
    cross_attentions: tuple[Tensor, ...] | None = None  # (m, h, t, p) of each text layer

    def to_tuple(self) -> tuple[Any, ...]:
        """Fields that were computed, without the two other names of `itm_score`."""
        return tuple(value for name, value in self.items() if name not in ("itm_logits", "itc_similarity"))


@dataclass
class BlipOutput(ModelOutput):
    """Output of `BlipModel`, for `n` images and `m` texts; fields and order are those of transformers."""

    loss: Tensor | None = None  # contrastive loss, with `return_loss=True`
    logits_per_image: Tensor | None = None  # (n, m) cosines, multiplied by the exponential of `logit_scale`
    logits_per_text: Tensor | None = None  # (m, n)
    text_embeds: Tensor | None = None  # (m, d), projected and normalised
    image_embeds: Tensor | None = None  # (n, d), projected and normalised
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Fields that were computed; the outputs of both encoders are tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class BlipContrastiveOutput(ModelOutput):
    """Output of `BlipForRetrievalTraining`, for `b` pairs.

    ITM rows are: each image with its text and with a hard text in turn, then each text with a hard image.
    """

    loss: Tensor | None = None  # weighted sum of the losses
    loss_itc: Tensor | None = None  # mean of both directions
    loss_itm: Tensor | None = None  # `None` if its weight is 0
    itm_logits: Tensor | None = None  # (3b, 2): unmatched, matched; `None` for one pair
    itm_labels: Tensor | None = None  # (3b,), -100 for pairs without a negative
    image_features: Tensor | None = None  # (b, d), normalised
    text_features: Tensor | None = None  # (b, d), normalised
    momentum_image_features: Tensor | None = None  # (b, d), for `enqueue`
    momentum_text_features: Tensor | None = None  # (b, d), for `enqueue`
    image_ids: Tensor | None = None  # (b,), as given


@dataclass
class BlipPreTrainingOutput(BlipContrastiveOutput):
    """Output of `BlipForPreTraining`: adds language modelling to `BlipContrastiveOutput`."""

    loss_lm: Tensor | None = None  # `None` if its weight is 0
    lm_logits: Tensor | None = None  # (b, t - 1, v)


@dataclass
class BlipVisualReasoningOutput(ModelOutput):
    """Output of `BlipForVisualReasoning`, for `b` sentences about `n` pairs of images."""

    loss: Tensor | None = None  # cross-entropy, if labels are given
    logits: Tensor | None = None  # (b, 2): false, true
    hidden_states: tuple[Tensor, ...] | None = None  # (2n, p, d) of each vision layer
    attentions: tuple[Tensor, ...] | None = None  # (2n, h, p, p) of each vision layer
    cross_attentions: tuple[Tensor, ...] | None = None  # (b, 2, h, t, p) of each text layer


@dataclass
class BlipQuestionAnsweringOutput(ModelOutput):
    """Output of `BlipForQuestionAnswering`, for `n` images, `b` questions and `m` answers."""

    loss: Tensor | None = None  # language modelling of the answers with label smoothing, if labels are given
    image_embeds: Tensor | None = None  # (n, p, d)
    last_hidden_state: Tensor | None = None  # `image_embeds`, under the name of transformers
    hidden_states: tuple[Tensor, ...] | None = None  # of each vision layer
    attentions: tuple[Tensor, ...] | None = None  # of each vision layer
    logits: Tensor | None = None  # (m, t, v), or (m, t - 1, v) in training with labels
    answer_losses: Tensor | None = None  # (m,), summed over tokens
    question_embeds: Tensor | None = None  # (b, t, d)
    decoder_hidden_states: tuple[Tensor, ...] | None = None  # of each answer layer
    decoder_attentions: tuple[Tensor, ...] | None = None  # of each answer layer
    cross_attentions: tuple[Tensor, ...] | None = None  # (b, h, t, p) of each question layer


@dataclass
class BlipAnswerRankingOutput(ModelOutput):
    """Output of `BlipForQuestionAnswering.rank_answers`, for `b` questions and `k` candidates.

    All fields are computed. `ModelOutput` requires the defaults.
    """

    best: Tensor  # (b,) index of the best answer
    candidates: Tensor = None  # type: ignore[assignment]  # (b, k) indices, most likely first token first
    scores: Tensor = None  # type: ignore[assignment]  # (b, k) log-likelihoods with label smoothing


__all__ = [
    "BlipAnswerRankingOutput",
    "BlipCaptioningOutput",
    "BlipContrastiveOutput",
    "BlipMatchingOutput",
    "BlipOutput",
    "BlipPreTrainingOutput",
    "BlipQuestionAnsweringOutput",
    "BlipVisualReasoningOutput",
]
