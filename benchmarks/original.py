# SPDX-License-Identifier: BSD-3-Clause
"""The procedures of salesforce/BLIP, reimplemented on the layers of this package, as a baseline.

Keeps its inefficiencies: padding to a fixed length, keys and values projected for every text pass and copy of an image,
separate passes for positives and negatives, negatives sampled row by row, EMA updates one parameter at a time, and
vocabulary logits at padding. The original's unfused attention would be slower. Tests show equal losses and scores.

Letters: `b` batch, `q` queue, `d` width, `t` tokens, `p` image tokens, `k` candidates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize, softmax

from blip_hf import BlipForImageTextRetrieval, BlipForPreTraining, BlipForQuestionAnswering
from blip_hf.modeling import text_layers, vision


# Padded lengths of texts.
PRETRAINING_LENGTH = 30
RETRIEVAL_LENGTH = 35


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Disables recomputation in the backward pass, as in the original."""

    def call(module, function, *arguments):
        return function(*arguments)

    with patch.object(vision, "recompute_in_backward", call), patch.object(text_layers, "recompute_in_backward", call):
        yield


def pretraining_losses(
    model: BlipForPreTraining, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One pre-training forward, which also updates the momentum encoder and the queue."""
    with torch.no_grad():
        model.temp.clamp_(0.001, 0.5)
    image_embeds = model.vision_model(pixel_values).last_hidden_state  # (b, p, d)
    image_features = normalize(model.vision_proj(image_embeds[:, 0]).float(), dim=-1)
    text_embeds = model.text_encoder(input_ids, attention_mask).last_hidden_state
    text_features = normalize(model.text_proj(text_embeds[:, 0]).float(), dim=-1)
    with torch.no_grad():
        update_momentum_encoder(model)
        momentum_image, momentum_text = model.momentum_towers(pixel_values, input_ids, attention_mask)
    with torch.autocast(pixel_values.device.type, enabled=False):
        loss_itc, image_to_text, text_to_image = contrast(
            model, (image_features, text_features), (momentum_image, momentum_text), alpha
        )
    model.queue.enqueue(momentum_image, momentum_text)
    loss_itm = matching_loss(model, image_embeds, input_ids, attention_mask, image_to_text, text_to_image)
    loss_lm = captioning_loss(model, image_embeds, input_ids, attention_mask)
    return loss_itc, loss_itm, loss_lm


def update_momentum_encoder(model: BlipForPreTraining) -> None:
    """Updates the momentum encoder one parameter at a time, each with a new tensor."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    momentum = model.config.momentum
    for name, target in model.momentum_towers.named_parameters():
        target.data = target.data * momentum + parameters[name].data * (1.0 - momentum)


def contrast(
    model: BlipForPreTraining, features: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Contrastive loss, and in-batch logits of both directions."""
    temperature = model.temp.float()
    with torch.no_grad():
        all_images = torch.cat([keys[0].t(), model.queue.image_features.clone().detach().t()], dim=1)  # (d, b + q)
        all_texts = torch.cat([keys[1].t(), model.queue.text_features.clone().detach().t()], dim=1)
        own = torch.zeros(len(features[0]), all_texts.shape[1], device=all_texts.device)
        own.fill_diagonal_(1)
        image_targets = alpha * softmax(keys[0] @ all_texts / temperature, dim=1) + (1 - alpha) * own
        text_targets = alpha * softmax(keys[1] @ all_images / temperature, dim=1) + (1 - alpha) * own
    image_to_text = features[0] @ all_texts / temperature  # (b, b + q)
    text_to_image = features[1] @ all_images / temperature
    image_loss = -torch.sum(log_softmax(image_to_text, dim=1) * image_targets, dim=1).mean()
    text_loss = -torch.sum(log_softmax(text_to_image, dim=1) * text_targets, dim=1).mean()
    count = len(features[0])
    return (image_loss + text_loss) / 2, image_to_text[:, :count], text_to_image[:, :count]


def matching_loss(
    model: BlipForPreTraining,
    image_embeds: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    image_to_text: Tensor,
    text_to_image: Tensor,
) -> Tensor:
    """Matching loss: one pass of `b` positives, then one of `2b` negatives."""
    encoder_ids = _with_first(input_ids, model.config.text_config.enc_token_id)
    positives = _encode_pairs(model, encoder_ids, attention_mask, image_embeds)
    with torch.no_grad():
        image_weights = softmax(text_to_image, dim=1) + 1e-4
        image_weights.fill_diagonal_(0)
        text_weights = softmax(image_to_text, dim=1) + 1e-4
        text_weights.fill_diagonal_(0)
    hard_images = torch.stack([image_embeds[_draw(weights)] for weights in image_weights])
    drawn_texts = [_draw(weights) for weights in text_weights]
    hard_ids = torch.stack([encoder_ids[row] for row in drawn_texts])
    hard_mask = torch.stack([attention_mask[row] for row in drawn_texts])
    negatives = _encode_pairs(
        model,
        torch.cat([encoder_ids, hard_ids]),
        torch.cat([attention_mask, hard_mask]),
        torch.cat([hard_images, image_embeds]),
    )
    logits = model.itm_head(torch.cat([positives, negatives]))  # (3b, 2)
    labels = torch.cat([torch.ones(len(positives)), torch.zeros(len(negatives))]).long().to(logits.device)
    return cross_entropy(logits.float(), labels)


def captioning_loss(
    model: BlipForPreTraining, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Language-modelling loss, with vocabulary logits at every position."""
    decoder_ids = _with_first(input_ids, model.config.text_config.bos_token_id)
    logits = model.text_decoder(
        decoder_ids, attention_mask, encoder_hidden_states=image_embeds, use_cache=False
    ).logits  # (b, t, v)
    targets = decoder_ids.masked_fill(attention_mask == 0, -100)[:, 1:]
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        targets.flatten(),
        label_smoothing=model.config.text_config.label_smoothing,
    )


def match(model: BlipForImageTextRetrieval, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Matching logits of image-text pairs."""
    encoder_ids = _with_first(input_ids, model.config.text_config.enc_token_id)
    return model.itm_head(_encode_pairs(model, encoder_ids, attention_mask, image_embeds))


def rerank(
    model: BlipForImageTextRetrieval,
    image_embeds: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    similarity: Tensor,
    k: int,
    num_queries: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Re-ranks the candidates of the first images and texts, one query at a time; -100 for other pairs."""
    image_scores, text_scores = torch.full_like(similarity, -100), torch.full_like(similarity.T, -100)
    for query, row in enumerate(similarity[: num_queries[0]]):
        cosines, found = row.topk(k)
        logits = match(model, image_embeds[query].repeat(k, 1, 1), input_ids[found], attention_mask[found])
        image_scores[query, found] = logits[:, 1] + cosines
    for query, row in enumerate(similarity.T[: num_queries[1]]):
        cosines, found = row.topk(k)
        logits = match(model, image_embeds[found], input_ids[query].repeat(k, 1), attention_mask[query].repeat(k, 1))
        text_scores[query, found] = logits[:, 1] + cosines
    return image_scores, text_scores


def rank_answers(
    model: BlipForQuestionAnswering,
    question_states: Tensor,
    question_mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Ranks answers of encoded questions, with the states of each question repeated `k` times."""
    start = torch.full_like(question_mask[:, :1], model.config.text_config.bos_token_id)
    first = model.text_decoder(
        start, encoder_hidden_states=question_states, encoder_attention_mask=question_mask, use_cache=False
    ).logits[:, 0]
    chances = softmax(first, dim=1).index_select(1, answer_ids[:, 1])  # (b, m)
    candidates = chances.topk(k, dim=1).indices
    rows = candidates.flatten()
    ids, mask = answer_ids[rows], answer_mask[rows]
    logits = model.text_decoder(
        ids,
        mask,
        encoder_hidden_states=question_states.repeat_interleave(k, dim=0),
        encoder_attention_mask=question_mask.repeat_interleave(k, dim=0),
        use_cache=False,
    ).logits
    losses = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        ids.masked_fill(mask == 0, -100)[:, 1:].flatten(),
        label_smoothing=model.text_decoder.config.label_smoothing,
        reduction="none",
    )
    return candidates, -losses.unflatten(0, (len(ids), -1)).sum(dim=1).view_as(candidates)


def _with_first(input_ids: Tensor, token_id: int) -> Tensor:
    input_ids = input_ids.clone()
    input_ids[:, 0] = token_id
    return input_ids


def _encode_pairs(
    model: BlipForPreTraining | BlipForImageTextRetrieval,
    input_ids: Tensor,
    attention_mask: Tensor,
    image_embeds: Tensor,
) -> Tensor:
    """States of position 0, `(b, d)`."""
    states = model.text_encoder(input_ids, attention_mask, encoder_hidden_states=image_embeds).last_hidden_state
    return states[:, 0]


def _draw(weights: Tensor) -> int:
    return int(torch.multinomial(weights, 1).item())


__all__ = [
    "PRETRAINING_LENGTH",
    "RETRIEVAL_LENGTH",
    "captioning_loss",
    "contrast",
    "match",
    "matching_loss",
    "pretraining_losses",
    "rank_answers",
    "rerank",
    "update_momentum_encoder",
]
