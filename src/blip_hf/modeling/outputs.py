# SPDX-License-Identifier: BSD-3-Clause
"""Output classes of the models. Fields that were not computed are `None`."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class BlipCaptioningOutput(ModelOutput):
    """Output of `BlipForConditionalGeneration`.

    Args:
        loss (`torch.Tensor`, *optional*):
            Language-modelling loss with label smoothing, if labels are given.
        logits (`torch.Tensor` of shape `(b, t, v)`, *optional*):
            Logits of the next token.
        image_embeds (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            States of the image encoder.
        last_hidden_state (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            Equal to `image_embeds`; upstream's second name.
        hidden_states (`tuple`, *optional*):
            States of each vision layer.
        attentions (`tuple`, *optional*):
            Self-attention probabilities of each vision layer.
        decoder_hidden_states (`tuple`, *optional*):
            States of each text layer.
        decoder_attentions (`tuple`, *optional*):
            Self-attention probabilities of each text layer.
        cross_attentions (`tuple` of `torch.Tensor` of shape `(b, h, t, p)`, *optional*):
            Probabilities of each text layer's attention to the image.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class BlipMatchingOutput(ModelOutput):
    """Output of `BlipForImageTextRetrieval`.

    Args:
        itm_score (`torch.Tensor`):
            `itm_logits` or `itc_similarity`, whichever was computed; upstream's name.
        loss (`torch.Tensor`, *optional*):
            Matching loss, if labels are given.
        itm_logits (`torch.Tensor` of shape `(b, 2)`, *optional*):
            Logits of unmatched and matched; the softmax's `[:, 1]` is the probability of a match.
        itc_similarity (`torch.Tensor` of shape `(n, m)`, *optional*):
            Cosine of every image and every text, not a probability.
        last_hidden_state (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            States of the image encoder.
        question_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
            States of the text encoder; upstream's name.
        hidden_states (`tuple`, *optional*):
            States of each vision layer.
        attentions (`tuple`, *optional*):
            Self-attention probabilities of each vision layer.
        cross_attentions (`tuple` of `torch.Tensor` of shape `(b, h, t, p)`, *optional*):
            Probabilities of each text layer's attention to the image.
    """

    itm_score: Tensor | None = None
    loss: Tensor | None = None
    itm_logits: Tensor | None = None
    itc_similarity: Tensor | None = None
    last_hidden_state: Tensor | None = None
    question_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class BlipContrastiveOutput(ModelOutput):
    """Output of `BlipForRetrievalTraining`, and base of the output of `BlipForPreTraining`.

    Args:
        loss (`torch.Tensor`):
            Sum of the losses, weighted if the configuration has weights.
        loss_itc (`torch.Tensor`):
            Image-text contrastive loss, the mean of both directions.
        loss_itm (`torch.Tensor`, *optional*):
            Image-text matching loss. `None` if its weight is 0.
        itm_logits (`torch.Tensor` of shape `(3b, 2)`, *optional*):
            Logits of unmatched and matched: for each image its own text and a hard text in turn, then for each text a
            hard image. `None` for a batch of one pair.
        itm_labels (`torch.Tensor` of shape `(3b,)`, *optional*):
            1 for matched pairs, 0 for others, -100 for pairs without a negative.
        image_features (`torch.Tensor` of shape `(b, d)`):
            Projected and normalised image features.
        text_features (`torch.Tensor` of shape `(b, d)`):
            Projected and normalised text features.
        momentum_image_features (`torch.Tensor` of shape `(b, d)`):
            Image features of the momentum encoder, for `enqueue`.
        momentum_text_features (`torch.Tensor` of shape `(b, d)`):
            Text features of the momentum encoder, for `enqueue`.
        image_ids (`torch.Tensor` of shape `(b,)`, *optional*):
            The given image ids.
    """

    loss: Tensor | None = None
    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    itm_logits: Tensor | None = None
    itm_labels: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    momentum_image_features: Tensor | None = None
    momentum_text_features: Tensor | None = None
    image_ids: Tensor | None = None


@dataclass
class BlipPreTrainingOutput(BlipContrastiveOutput):
    """Output of `BlipForPreTraining`: fields of `BlipContrastiveOutput`, and of language modelling.

    Args:
        loss_lm (`torch.Tensor`, *optional*):
            Language-modelling loss. `None` if its weight is 0.
        lm_logits (`torch.Tensor` of shape `(b, t - 1, v)`, *optional*):
            Logits of the next token; the last token predicts none.
    """

    loss_lm: Tensor | None = None
    lm_logits: Tensor | None = None


@dataclass
class BlipVisualReasoningOutput(ModelOutput):
    """Output of `BlipForVisualReasoning`.

    Args:
        loss (`torch.Tensor`, *optional*):
            Cross-entropy, if labels are given.
        logits (`torch.Tensor` of shape `(b, 2)`):
            Logits of false and true; the softmax's `[:, 1]` is the probability that the sentence is true.
        hidden_states (`tuple`, *optional*):
            States of each vision layer; the images of a pair are consecutive.
        attentions (`tuple`, *optional*):
            Self-attention probabilities of each vision layer.
        cross_attentions (`tuple` of `torch.Tensor` of shape `(b, 2, h, t, p)`, *optional*):
            Probabilities of each text layer's attention to the first and the second image.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class BlipQuestionAnsweringOutput(ModelOutput):
    """Output of `BlipForQuestionAnswering`, for `b` questions, `n` images and `m` answers.

    Args:
        loss (`torch.Tensor`, *optional*):
            Language-modelling loss of the answers with label smoothing, if labels are given.
        image_embeds (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            States of the image encoder.
        last_hidden_state (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            Equal to `image_embeds`; upstream's second name.
        hidden_states (`tuple`, *optional*):
            States of each vision layer.
        attentions (`tuple`, *optional*):
            Self-attention probabilities of each vision layer.
        logits (`torch.Tensor` of shape `(m, t, v)`, *optional*):
            Logits of each answer's next token; of shape `(m, t - 1, v)` in training with labels.
        answer_losses (`torch.Tensor` of shape `(m,)`, *optional*):
            Loss of each answer, summed over its tokens, if labels are given.
        question_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
            States of the questions.
        decoder_hidden_states (`tuple`, *optional*):
            States of each answer layer.
        decoder_attentions (`tuple`, *optional*):
            Self-attention probabilities of each answer layer.
        cross_attentions (`tuple` of `torch.Tensor` of shape `(b, h, t, p)`, *optional*):
            Probabilities of each question layer's attention to the image.
    """

    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None
    answer_losses: Tensor | None = None
    question_embeds: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class BlipAnswerRankingOutput(ModelOutput):
    """Output of `BlipForQuestionAnswering.rank_answers` for `b` questions.

    Args:
        best (`torch.Tensor` of shape `(b,)`):
            Index in the list of each question's best answer.
        candidates (`torch.Tensor` of shape `(b, k)`):
            Indices of the candidates, most likely first token first.
        scores (`torch.Tensor` of shape `(b, k)`):
            Log-likelihoods of the candidates, with label smoothing.
    """

    best: Tensor | None = None
    candidates: Tensor | None = None
    scores: Tensor | None = None


__all__ = [
    "BlipAnswerRankingOutput",
    "BlipCaptioningOutput",
    "BlipContrastiveOutput",
    "BlipMatchingOutput",
    "BlipPreTrainingOutput",
    "BlipQuestionAnsweringOutput",
    "BlipVisualReasoningOutput",
]
