# SPDX-License-Identifier: BSD-3-Clause
"""Output classes: one meaning a field, `None` where it was not computed."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class BlipCaptioningOutput(ModelOutput):
    """Output of `BlipForConditionalGeneration`.

    Args:
        loss (`torch.Tensor`, *optional*):
            Language-modelling loss, label smoothing included, where labels were given.
        logits (`torch.Tensor` of shape `(b, t, v)`, *optional*):
            Scores of the next token.
        image_embeds (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            States of the image encoder.
        last_hidden_state (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            The same, under upstream's second name for them.
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
            Upstream's field with two meanings: `itm_logits` or `itc_similarity`, whichever was computed.
        loss (`torch.Tensor`, *optional*):
            Matching loss, where labels were given.
        itm_logits (`torch.Tensor` of shape `(b, 2)`, *optional*):
            Scores of unmatched and matched; their softmax's `[:, 1]` is the probability of a match.
        itc_similarity (`torch.Tensor` of shape `(n, m)`, *optional*):
            Cosines of every image and every text. Not a probability.
        last_hidden_state (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            States of the image encoder.
        question_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
            States of the text encoder, under upstream's name.
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
    """Output of `BlipForRetrievalTraining`, and the part of `BlipForPreTraining`'s that the queue and the logs read.

    Args:
        loss (`torch.Tensor`):
            Sum of the losses, each times its weight where the configuration has weights.
        loss_itc (`torch.Tensor`):
            Image-text contrast, the mean of both directions.
        loss_itm (`torch.Tensor`, *optional*):
            Image-text matching. `None` where its weight is 0.
        itm_logits (`torch.Tensor` of shape `(3b, 2)`, *optional*):
            Scores of unmatched and matched; for each image its own text and a hard one in turn, then for each text a
            hard image. `None` for a batch of one.
        itm_labels (`torch.Tensor` of shape `(3b,)`, *optional*):
            1 for matched pairs, 0 for others, -100 for pairs that could not be made.
        image_features (`torch.Tensor` of shape `(b, d)`):
            Projected and normalised.
        text_features (`torch.Tensor` of shape `(b, d)`):
            Projected and normalised.
        momentum_image_features (`torch.Tensor` of shape `(b, d)`):
            Of the momentum tower; `enqueue` takes them.
        momentum_text_features (`torch.Tensor` of shape `(b, d)`):
            Of the momentum tower; `enqueue` takes them.
        image_ids (`torch.Tensor` of shape `(b,)`, *optional*):
            Those given.
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
    """Output of `BlipForPreTraining`: the fields of `BlipContrastiveOutput`, and those of language modelling.

    Args:
        loss_lm (`torch.Tensor`, *optional*):
            Language modelling. `None` where its weight is 0.
        lm_logits (`torch.Tensor` of shape `(b, t - 1, v)`, *optional*):
            Scores of the next token; the last token predicts none.
    """

    loss_lm: Tensor | None = None
    lm_logits: Tensor | None = None


@dataclass
class BlipVisualReasoningOutput(ModelOutput):
    """Output of `BlipForVisualReasoning`.

    Args:
        loss (`torch.Tensor`, *optional*):
            Cross-entropy, where labels were given.
        logits (`torch.Tensor` of shape `(b, 2)`):
            Scores of false and true; their softmax's `[:, 1]` is the probability that the sentence is true.
        hidden_states (`tuple`, *optional*):
            States of each vision layer, both images of a pair next to each other.
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
            Language-modelling loss of the answers, label smoothing included, where labels were given.
        image_embeds (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            States of the image encoder.
        last_hidden_state (`torch.Tensor` of shape `(n, p, d)`, *optional*):
            The same, under upstream's second name for them.
        hidden_states (`tuple`, *optional*):
            States of each vision layer.
        attentions (`tuple`, *optional*):
            Self-attention probabilities of each vision layer.
        logits (`torch.Tensor` of shape `(m, t, v)`, *optional*):
            Scores of each answer's next token, in training with labels of shape `(m, t - 1, v)`: the last predicts none.
        answer_losses (`torch.Tensor` of shape `(m,)`, *optional*):
            Loss of each answer, the sum over its tokens, where labels were given.
        question_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
            States of the questions, which the answers read.
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
    """Answers of a list, ranked for `b` questions by `BlipForQuestionAnswering.rank_answers`.

    Args:
        best (`torch.Tensor` of shape `(b,)`):
            Position in the list of each question's best answer.
        candidates (`torch.Tensor` of shape `(b, k)`):
            Positions of the answers that were scored as a whole, the likeliest first token first.
        scores (`torch.Tensor` of shape `(b, k)`):
            Their log-likelihoods, label smoothing included.
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
