# SPDX-License-Identifier: BSD-3-Clause
"""Base class for training with ITC and ITM: momentum encoder, feature queue, hard negatives.

Letters: `b` batch, `m` rows of all processes, `k` keys = `b` or `m` + queue, `d` width, `t` tokens, `p` image tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import initialization as init
from transformers.utils import logging

from ..configuration_blip import BlipConfig, BlipContrastiveConfig
from ..distributed import first_row, gather, gather_with_gradient, mean_over_ranks, pad_to_longest, world_size
from ..objectives import (
    contrastive_loss,
    contrastive_targets,
    matching_loss,
    matching_pairs,
    sample_hard_negatives,
)
from .attention import ImageMemory, image_argument
from .base import BlipPreTrainedModel
from .momentum import UNKNOWN_IMAGE, FeatureQueue, MomentumEncoder, ema_update_
from .outputs import BlipContrastiveOutput
from .projection import pool_and_project, with_first_token
from .retrieval import BlipForImageTextRetrieval
from .text import BlipTextModel
from .vision import BlipVisionModel


logger = logging.get_logger(__name__)

# Bounds of the temperature, salesforce/BLIP models/blip_pretrain.py.
_TEMPERATURE_RANGE = (0.001, 0.5)
_STATE_PREFIXES = ("momentum_towers.", "queue.")


class BlipContrastiveModel(BlipPreTrainedModel):
    """Base class of the models that train with ITC and ITM (paper, section 3.2).

    `forward` changes no state. Call `enqueue(output)` after each backward pass and `update_momentum()` after each
    optimiser step; `BlipContrastiveTrainer` does both. `save_pretrained` omits the momentum encoder and the queue;
    `training_state_dict` returns them. `from_pretrained` starts the momentum encoder from the loaded weights.
    """

    config: BlipContrastiveConfig
    main_input_name = "pixel_values"
    vision_model: BlipVisionModel
    text_encoder: BlipTextModel
    # Exponent of the temperature of hard negatives in training: 0 at the start of a warm-up, 1 after it.
    negative_ramp: float = 1.0
    _keys_to_ignore_on_load_missing = [r"^momentum_towers\.", r"^queue\."]

    def _add_contrastive_parts(self) -> None:
        """Adds heads, momentum encoder and queue; the last step of a constructor."""
        config = self.config
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, config.image_text_hidden_size)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature_init_value))
        self.momentum_towers = MomentumEncoder(config)
        self.queue = FeatureQueue(config.queue_size, config.image_text_hidden_size)
        self.post_init()
        self.reset_momentum()
        state = (name for name in self.state_dict() if name.startswith(_STATE_PREFIXES))
        self._keys_to_ignore_on_save = {*(self._keys_to_ignore_on_save or ()), *state}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureQueue):
            for features in (module.image_features, module.text_features):
                init.copy_(features, normalize(torch.randn_like(features), dim=-1))
            init.constant_(module.image_ids, UNKNOWN_IMAGE)
            init.zeros_(module.num_enqueued)
        elif module is self:
            init.constant_(module.temp, self.config.temperature_init_value)

    def _finish_loading(self) -> None:
        self.momentum_towers.requires_grad_(False)  # loading recreates missing parameters as trainable
        self.reset_momentum()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes the word embeddings, also those of the momentum encoder."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.momentum_towers.text_encoder.resize_token_embeddings(embeddings.num_embeddings)
        self.reset_momentum()
        return embeddings

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Resizes the position embeddings, also those of the momentum encoder, to a new image size in pixels."""
        super().resize_position_embeddings(new_num_position_embeddings)
        self.momentum_towers.vision_model.resize_position_embeddings(new_num_position_embeddings)

    def reset_momentum(self) -> None:
        """Copies the current weights into the momentum encoder."""
        momentum_parameters, parameters = self._momentum_pairs()
        ema_update_(momentum_parameters, parameters, momentum=0.0)

    @torch.no_grad()
    def update_momentum(self, momentum: float | None = None) -> None:
        """Updates the momentum encoder and clamps the temperature; call it once after each optimiser step.

        `momentum` replaces that of the configuration.
        """
        momentum_parameters, parameters = self._momentum_pairs()
        ema_update_(momentum_parameters, parameters, self.config.momentum if momentum is None else momentum)
        self.temp.clamp_(*_TEMPERATURE_RANGE)

    def enqueue(self, output: BlipContrastiveOutput) -> None:
        """Adds the momentum features of a batch to the queue; call it once after each backward pass."""
        image_features, text_features = output.momentum_image_features, output.momentum_text_features
        if image_features is None or text_features is None:
            raise ValueError("The output has no momentum features. Pass the output of `forward`.")
        self.queue.enqueue(image_features, text_features, output.image_ids)

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters without a gradient, such as the head of a loss with weight 0. Freeze them for data parallelism."""
        return []

    def training_state_dict(self) -> dict[str, Tensor]:
        """State dict of the momentum encoder and the queue, to resume a run."""
        return {name: value for name, value in self.state_dict().items() if name.startswith(_STATE_PREFIXES)}

    def export_retriever(self) -> BlipForImageTextRetrieval:
        """The retrieval model inside, which shares its weights with this model; plain transformers can load it."""
        parts = ("vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head")
        retriever = self._export(BlipForImageTextRetrieval, parts)
        retriever.config.itm_temperature = self.negative_temperature()
        return retriever

    def negative_temperature(self) -> float:
        """The temperature that hard negatives are drawn at: the configured one, or that of ITC."""
        if self.config.negative_temperature is not None:
            return self.config.negative_temperature
        return round(self._clamped_temperature().item(), 6)  # without the digits that float32 adds

    def _check_inputs(self, input_ids: Tensor, attention_mask: Tensor | None, return_loss: bool) -> Tensor:
        """The attention mask, derived from the padding tokens if it is not given."""
        if not return_loss:
            exports = " or ".join(f"{name}()" for name in dir(type(self)) if name.startswith("export_"))
            raise ValueError(f"{type(self).__name__} only computes losses. Call {exports} for a model for inference.")
        if attention_mask is None:
            return (input_ids != self.config.text_config.pad_token_id).long()
        return attention_mask

    def _embed_words(self, input_ids: Tensor, *first_tokens: int) -> tuple[Tensor, ...]:
        """Word embeddings `(b, t, d)` of the texts, and of copies with each of `first_tokens` at position 0.

        A single lookup creates one gradient of the size of the vocabulary instead of three.
        """
        texts = [input_ids, *(with_first_token(input_ids, token) for token in first_tokens)]
        return self.get_input_embeddings()(torch.stack(texts)).unbind()

    def _encode(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Image states, image and text features, and the features of the momentum encoder."""
        image_embeds = self.vision_model(pixel_values).last_hidden_state
        image_features = pool_and_project(image_embeds, self.vision_proj)
        text_embeds = self.text_encoder(
            inputs_embeds=words, attention_mask=attention_mask, cls_only=True
        ).last_hidden_state
        text_features = pool_and_project(text_embeds, self.text_proj)
        if self.config.momentum:
            keys = self.momentum_towers(pixel_values, input_ids, attention_mask)
        else:  # with momentum 0 the momentum encoder equals the model
            keys = image_features.detach(), text_features.detach()
        return image_embeds, (image_features, text_features), keys

    def _contrast(
        self,
        features: tuple[Tensor, Tensor],
        keys: tuple[Tensor, Tensor],
        alpha: float | Tensor | None,
        image_ids: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """ITC loss, in-batch logits (image to text, text to image), and a boolean mask of their positives."""
        alpha = self.config.alpha if alpha is None else alpha
        temperature = self._clamped_temperature()
        start, key_ids, all_keys = 0, image_ids, keys
        if self.config.gather_keys and self._spans_ranks():
            start, key_ids = first_row(image_ids), gather(image_ids)
            image_keys, text_keys = gather(torch.cat(keys, dim=1)).chunk(2, dim=1)  # (m, d) each
            all_keys = image_keys, text_keys
        own = slice(start, start + image_ids.shape[0])
        queued_images, queued_texts, queued_ids = self.queue.keys_and_ids()
        positives = matching_pairs(image_ids, torch.cat([key_ids, queued_ids]), first_key=start)  # (b, k)

        num_pairs = self._count_for_mean(torch.ones_like(image_ids).sum())
        losses, batch_logits = [], []
        queued = (queued_texts, queued_images)
        for queries, teachers, others, queue in zip(features, keys, all_keys[::-1], queued, strict=True):
            # Divide the queries: dividing the similarities would keep another (b, k) tensor for backward.
            logits = _similarities(queries / temperature, others, queue)
            with torch.no_grad():
                targets = contrastive_targets(_similarities(teachers / temperature, others, queue), positives, alpha)
            losses.append(contrastive_loss(logits, targets, num_items=num_pairs))
            batch_logits.append(logits[:, own])
        return (losses[0] + losses[1]) / 2, (batch_logits[0], batch_logits[1]), positives[:, own]

    def _spans_ranks(self) -> bool:
        """Whether losses may depend on other processes: in training only, since evaluation pads its last batches."""
        return self.training and world_size() > 1

    def _count_for_mean(self, count: Tensor) -> Tensor | None:
        """The mean count of all processes, which divides a summed loss; `None` if a loss is the mean of its own batch."""
        if not self._spans_ranks():
            return None
        return mean_over_ranks(count).clamp(min=1 / world_size())

    def _match(
        self,
        images: ImageMemory | Tensor,
        words: Tensor,
        attention_mask: Tensor,
        logits: tuple[Tensor, Tensor],
        positives: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """ITM of each image with its text and a hard text, and of each text with a hard image, in one pass of `3b` rows."""
        num_pairs = words.shape[0]
        (hard_texts, has_text), (hard_images, has_image) = self._draw_negatives(logits, positives, generator)

        rows = torch.arange(num_pairs, device=words.device)
        # Rows: for each image its text and a hard text, which read the images in order; then each text with a hard image.
        texts = torch.cat([torch.stack([rows, hard_texts], dim=1).flatten(), rows])  # (3b,)
        itm_logits = self._score_pairs(images, words[texts], attention_mask[texts], hard_images)
        if num_pairs == 1:
            logger.warning_once(
                "A batch of one pair has no negatives, so its loss does not include image-text matching."
            )
            self._count_for_mean(torch.zeros((), device=words.device))  # other processes wait for this count
            return itm_logits.sum() * 0, None, None  # keeps gradients, which data parallelism waits for
        return self._itm_loss_and_labels(itm_logits, has_text, has_image)

    def _match_all_ranks(
        self,
        image_embeds: Tensor,
        features: tuple[Tensor, Tensor],
        candidates: tuple[Tensor, Tensor],
        input_ids: Tensor,
        attention_mask: Tensor,
        image_ids: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """ITM as in `_match`, with negatives (and gradients for them) from all processes.

        The similarity of the image and text `features` to the `candidates`, each `(b, d)`, draws the negatives. Each process
        draws for all rows and takes its own: with the same generator state, these are the draws of one process.
        """
        input_ids = pad_to_longest(input_ids, self.config.text_config.pad_token_id)
        attention_mask = pad_to_longest(attention_mask, 0)
        own_start = first_row(input_ids)
        own = torch.arange(input_ids.shape[0], device=input_ids.device)
        rows = gather(torch.cat([image_ids[:, None], input_ids, attention_mask], dim=1))  # (m, 1 + 2t)
        all_input_ids, all_masks = rows[:, 1:].chunk(2, dim=1)
        image_rows, text_rows, image_keys, text_keys = gather(torch.cat([*features, *candidates], dim=1)).chunk(
            4, dim=1
        )
        logits = self._online_logits((image_rows, text_rows), (image_keys, text_keys))  # (m, m) each
        draws = self._draw_negatives(logits, matching_pairs(rows[:, 0], rows[:, 0]), generator)
        (hard_texts, has_text), (hard_images, has_image) = ([part[own_start + own] for part in draw] for draw in draws)

        hard_embeds = gather_with_gradient(image_embeds).index_select(0, hard_images)  # (b, p, d)
        # Project only the images in use. Each text reads its own image and then a hard one; hard texts read this
        # process's images.
        images = torch.cat([image_embeds, hard_embeds])
        texts = torch.cat([own + own_start, own + own_start, hard_texts])  # (3b,)
        (words,) = self._embed_words(all_input_ids[texts], self.config.text_config.enc_token_id)[1:]
        matched, with_hard_image, with_hard_text = self._score_pairs(images, words, all_masks[texts], own).chunk(3)
        itm_logits = torch.cat([torch.stack([matched, with_hard_text], dim=1).flatten(0, 1), with_hard_image])
        return self._itm_loss_and_labels(itm_logits, has_text, has_image)

    @torch.no_grad()
    def _online_logits(
        self, features: tuple[Tensor, Tensor], candidates: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Similarities divided by the temperature, image to text and text to image, each `(b, m)`."""
        temperature = self._clamped_temperature()
        with torch.autocast(temperature.device.type, enabled=False):
            return features[0] @ candidates[1].T / temperature, features[1] @ candidates[0].T / temperature

    def _itm_loss_and_labels(
        self, itm_logits: Tensor, has_text: Tensor, has_image: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ITM loss, logits `(3b, 2)` and labels `(3b,)` in the row order of `_match`; -100 for missing negatives."""
        always = torch.ones_like(has_text)
        valid = torch.cat([torch.stack([always, has_text], dim=1).flatten(), has_image])
        labels = torch.cat([torch.stack([always, ~always], dim=1).flatten(), ~always]).long()
        loss = matching_loss(itm_logits, labels, valid, num_items=self._count_for_mean(valid.sum()))
        return loss, itm_logits, labels.masked_fill(~valid, -100)

    def _draw_negatives(
        self, logits: tuple[Tensor, Tensor], positives: Tensor, generator: torch.Generator | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A hard text for each image and a hard image for each text, each with a mask of valid draws."""
        ramp = self.negative_ramp if self.training else 1.0
        if self.config.negative_temperature is not None or ramp < 1:
            temperature = self._clamped_temperature().detach()
            scale = temperature / (self.config.negative_temperature or temperature) ** ramp
            logits = (logits[0] * scale, logits[1] * scale)
        return (
            sample_hard_negatives(logits[0], positives, generator),
            sample_hard_negatives(logits[1], positives, generator),
        )

    def _score_pairs(
        self, images: ImageMemory | Tensor, words: Tensor, attention_mask: Tensor, image_index: Tensor
    ) -> Tensor:
        """ITM logits of embedded texts that start with [ENC]; `image_index` is as in `BlipTextModel`."""
        states = self.text_encoder(
            inputs_embeds=words,
            attention_mask=attention_mask,
            image_index=image_index,
            cls_only=True,
            **image_argument(images),
        ).last_hidden_state
        return self.itm_head(states[:, 0])

    def _clamped_temperature(self) -> Tensor:
        return self.temp.float().clamp(*_TEMPERATURE_RANGE)

    def _momentum_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of the momentum encoder and the model's parameters that they follow."""
        parameters = dict(self.named_parameters(remove_duplicate=False))
        momentum_parameters = dict(self.momentum_towers.named_parameters())
        return list(momentum_parameters.values()), [parameters[name] for name in momentum_parameters]

    def _export(self, head_class: type, parts: tuple[str, ...]) -> Any:
        fields = {
            name: value
            for name, value in self.config.to_dict().items()
            if name not in ("model_type", "architectures", "transformers_version")
            and name in BlipConfig.__dataclass_fields__
        }
        with torch.device("meta"):
            head = head_class(BlipConfig.from_dict(fields))
        # The exported parts share these configurations.
        head.config.text_config, head.config.vision_config = self.config.text_config, self.config.vision_config
        for part in parts:
            setattr(head, part, getattr(self, part))
        head.train(self.training)
        return head


def _similarities(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """Similarities of `(b, d)` to the batch and the queue, `(b, k)`; concatenating features first would copy the queue."""
    return torch.cat([queries @ keys.T, queries @ queue.to(queries.dtype).T], dim=1)


__all__ = ["BlipContrastiveModel"]
