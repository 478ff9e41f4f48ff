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
class BlipPreTrainingOutput(ModelOutput):
    """Output of `BlipForPreTraining`.

    Args:
        loss (`torch.Tensor`):
            Sum of the three losses, each times its weight in the configuration.
        loss_itc (`torch.Tensor`):
            Image-text contrast, the mean of both directions.
        loss_itm (`torch.Tensor`, *optional*):
            Image-text matching. `None` where its weight is 0.
        loss_lm (`torch.Tensor`, *optional*):
            Language modelling. `None` where its weight is 0.
        itm_logits (`torch.Tensor` of shape `(3b, 2)`, *optional*):
            Scores of unmatched and matched; for each image its own text and a hard one in turn, then for each text a
            hard image. `None` for a batch of one.
        itm_labels (`torch.Tensor` of shape `(3b,)`, *optional*):
            1 for matched pairs, 0 for others, -100 for pairs that could not be made.
        lm_logits (`torch.Tensor` of shape `(b, t, v)`, *optional*):
            Scores of the next token.
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
    loss_lm: Tensor | None = None
    itm_logits: Tensor | None = None
    itm_labels: Tensor | None = None
    lm_logits: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    momentum_image_features: Tensor | None = None
    momentum_text_features: Tensor | None = None
    image_ids: Tensor | None = None


__all__ = ["BlipCaptioningOutput", "BlipMatchingOutput", "BlipPreTrainingOutput"]
