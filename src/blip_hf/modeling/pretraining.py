# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training model: one image encoder, one text transformer in three roles, three objectives (paper, section 3.2)."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import initialization as init
from transformers.utils import can_return_tuple, logging

from ..configuration_blip import BlipConfig, BlipPreTrainingConfig
from ..momentum import UNKNOWN_IMAGE, FeatureQueue, ema_update_
from ..objectives import (
    captioning_loss,
    contrastive_loss,
    contrastive_targets,
    matching_loss,
    matching_pairs,
    sample_hard_negatives,
)
from .attention import ImageMemory
from .base import BlipPreTrainedModel
from .captioning import BlipForConditionalGeneration
from .language_modeling import BlipTextLMHeadModel
from .momentum_towers import MomentumTowers
from .outputs import BlipPreTrainingOutput
from .retrieval import BlipForImageTextRetrieval, project_first, with_first_token
from .text import BlipTextModel
from .vision import BlipVisionModel
from .warm_start import copy_into, read_text_tower, read_vision_tower


logger = logging.get_logger(__name__)

# Bounds of the temperature, salesforce/BLIP models/blip_pretrain.py.
TEMPERATURE_RANGE = (0.001, 0.5)
# Of encoder and decoder everything is one parameter but self-attention (paper, section 3.1 and table 3).
_SHARED_TEXT_PARTS = (
    "embeddings",
    r"encoder.layer.\d+.crossattention",
    r"encoder.layer.\d+.intermediate",
    r"encoder.layer.\d+.output",
)
_STATE_PREFIXES = ("momentum_towers.", "queue.")


class BlipForPreTraining(BlipPreTrainedModel):
    """BLIP with its three objectives, momentum towers and feature queue.

    `forward` changes nothing. After each optimiser step call `update_momentum()`, after each batch `enqueue(output)`;
    `BlipTrainer` does both. The momentum towers and the queue belong to the training run: `save_pretrained` leaves them
    out, and `from_pretrained` starts the averages at the loaded weights. `training_state_dict` has them.

    Args:
        config (`BlipPreTrainingConfig`):
            Configuration of both towers and of the contrastive state.
    """

    config: BlipPreTrainingConfig
    main_input_name = "pixel_values"
    _keys_to_ignore_on_load_missing = [r"^momentum_towers\.", r"^queue\."]
    _tied_weights_keys = {
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        **{f"text_encoder.{part}": f"text_decoder.bert.{part}" for part in _SHARED_TEXT_PARTS},
    }

    def __init__(self, config: BlipPreTrainingConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, config.image_text_hidden_size)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.temp = nn.Parameter(torch.tensor(config.temperature_init_value))
        self.momentum_towers = MomentumTowers(config)
        self.queue = FeatureQueue(config.queue_size, config.image_text_hidden_size)
        self.post_init()
        self.reset_momentum()
        self._keys_to_ignore_on_save |= {name for name in self.state_dict() if name.startswith(_STATE_PREFIXES)}

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
        self.momentum_towers.requires_grad_(False)  # loading makes new parameters of what a file leaves out
        self.reset_momentum()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike | None = None,
        text: str | os.PathLike | None = None,
        *,
        image_size: int | None = None,
        vision_fields: dict[str, Any] | None = None,
        text_fields: dict[str, Any] | None = None,
        **config_fields: Any,
    ) -> "BlipForPreTraining":
        """Starts from a pre-trained image encoder and a BERT, as the paper does (section 4.1); all weights in fp32.

        Args:
            vision (`str` or `os.PathLike`, *optional*):
                Directory or Hub name of a ViT, DeiT or `BlipVisionModel` checkpoint. Random weights without it.
            text (`str` or `os.PathLike`, *optional*):
                Directory or Hub name of a BERT checkpoint. Random weights without it.
            image_size (`int`, *optional*, defaults to the vision checkpoint's):
                Pixels a side; position embeddings are interpolated.
            vision_fields (`dict`, *optional*):
                `BlipVisionConfig` fields to set; sizes too, without `vision`.
            text_fields (`dict`, *optional*):
                `BlipTextConfig` fields to set: token ids as `BlipProcessor.config_token_ids()` gives them, dropout; sizes
                too, without `text`.
            **config_fields:
                Fields of `BlipPreTrainingConfig`.

        Returns:
            `BlipForPreTraining`: With fresh cross-attention, heads and projections, in training mode.
        """
        vision_config, vision_state = dict(vision_fields or {}), {}
        if vision is not None:
            vision_config, vision_state = read_vision_tower(vision, **vision_config)
        text_config, text_state = dict(text_fields or {}), {}
        if text is not None:
            text_config, text_state = read_text_tower(text, **text_config)
        model = cls(BlipPreTrainingConfig(text_config=text_config, vision_config=vision_config, **config_fields))
        copy_into(model.vision_model, vision_state)
        copy_into(model.text_encoder, text_state)
        self_attention = {name: value for name, value in text_state.items() if ".attention." in name}
        copy_into(model.text_decoder.bert, self_attention)  # the rest is shared
        if image_size is not None:
            model.resize_position_embeddings(image_size)
        model.reset_momentum()
        return model.train()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings, which encoder and decoder share."""
        return self.text_decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings of encoder and decoder."""
        self.text_decoder.set_input_embeddings(value)
        self.text_encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection."""
        return self.text_decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the vocabulary projection and its bias."""
        self.text_decoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resizes the word embeddings of the towers and of the momentum tower.

        Args:
            *args:
                As `PreTrainedModel.resize_token_embeddings`.
            **kwargs:
                As `PreTrainedModel.resize_token_embeddings`.

        Returns:
            `nn.Embedding`: The resized word embeddings.
        """
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.momentum_towers.text_encoder.resize_token_embeddings(embeddings.num_embeddings)
        self.reset_momentum()
        return embeddings

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Resizes the position embeddings of the image encoder and of its momentum tower.

        Args:
            new_num_position_embeddings (`int`):
                The new image size in pixels, a multiple of the patch size.
        """
        for vision_model in (self.vision_model, self.momentum_towers.vision_model):
            vision_model.resize_position_embeddings(new_num_position_embeddings)

    def reset_momentum(self) -> None:
        """Sets the momentum towers to the current weights."""
        averages, currents = self._averaged_pairs()
        ema_update_(averages, currents, momentum=0.0)

    @torch.no_grad()
    def update_momentum(self) -> None:
        """One step of the averages, and the temperature back within its bounds; once after each optimiser step."""
        averages, currents = self._averaged_pairs()
        ema_update_(averages, currents, self.config.momentum)
        self.temp.clamp_(*TEMPERATURE_RANGE)

    def enqueue(self, output: BlipPreTrainingOutput) -> None:
        """Puts the momentum features of a batch into the queue; once after each training batch.

        Args:
            output (`BlipPreTrainingOutput`):
                What `forward` returned for the batch.
        """
        self.queue.enqueue(output.momentum_image_features, output.momentum_text_features, output.image_ids)

    def training_state_dict(self) -> dict[str, Tensor]:
        """Momentum towers and queue by name: what `save_pretrained` leaves out and a resumed run needs."""
        return {name: value for name, value in self.state_dict().items() if name.startswith(_STATE_PREFIXES)}

    def export_captioner(self) -> BlipForConditionalGeneration:
        """The captioner inside, sharing its weights with this model.

        Returns:
            `BlipForConditionalGeneration`: Save it to have a checkpoint that plain transformers opens.
        """
        return self._export(BlipForConditionalGeneration, ("vision_model", "text_decoder"))

    def export_retriever(self) -> BlipForImageTextRetrieval:
        """The matcher inside, sharing its weights with this model.

        Returns:
            `BlipForImageTextRetrieval`: Save it to have a checkpoint that plain transformers opens.
        """
        parts = ("vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head")
        return self._export(BlipForImageTextRetrieval, parts)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        alpha: float | Tensor | None = None,
        image_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool = True,
    ) -> BlipPreTrainingOutput:
        """The three losses of a batch of pairs, from one pass of the image encoder.

        Args:
            pixel_values (`torch.Tensor` of shape `(b, 3, height, width)`):
                Normalised pixels.
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Captions, [CLS] first and [SEP] last; the other roles' first tokens are set here.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                0 for padding, on the right.
            alpha (`float` or scalar `torch.Tensor`, *optional*, defaults to the configuration's):
                Share of the momentum towers in the contrastive targets.
            image_ids (`torch.Tensor` of shape `(b,)`, *optional*):
                Equal for captions of one image, which then are no negatives of each other.
            generator (`torch.Generator`, *optional*):
                Source of the hard negatives.
            return_loss (`bool`, *optional*, defaults to `True`):
                Tells Trainer that this model has a loss without labels. There is nothing to return without it.

        Returns:
            `BlipPreTrainingOutput`: Losses, logits and features.
        """
        if not return_loss:
            raise ValueError("BlipForPreTraining computes losses only: use export_captioner() or export_retriever().")
        if attention_mask is None:
            attention_mask = (input_ids != self.config.text_config.pad_token_id).long()
        config = self.config
        alpha = config.alpha if alpha is None else alpha

        image_embeds = self.vision_model(pixel_values).last_hidden_state
        memory = None
        if config.itm_weight or config.lm_weight:
            memory = self.text_decoder.bert.build_image_memory(image_embeds)
        image_features = project_first(image_embeds, self.vision_proj)
        text_embeds = self.text_encoder(input_ids, attention_mask).last_hidden_state
        text_features = project_first(text_embeds, self.text_proj)
        if config.momentum:
            keys = self.momentum_towers(pixel_values, input_ids, attention_mask)
        else:  # averages without memory are the weights themselves
            keys = image_features.detach(), text_features.detach()

        with torch.autocast(pixel_values.device.type, enabled=False):
            loss_itc, logits, positives = self._contrast(image_features, text_features, *keys, alpha, image_ids)
        loss = config.itc_weight * loss_itc
        loss_itm = itm_logits = itm_labels = loss_lm = lm_logits = None
        if config.itm_weight:
            loss_itm, itm_logits, itm_labels = self._match(
                memory, input_ids, attention_mask, logits, positives, generator
            )
            loss = loss + config.itm_weight * loss_itm
        if config.lm_weight:
            loss_lm, lm_logits = self._caption(memory, input_ids, attention_mask)
            loss = loss + config.lm_weight * loss_lm
        return BlipPreTrainingOutput(
            loss=loss,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            loss_lm=loss_lm,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            lm_logits=lm_logits,
            image_features=image_features,
            text_features=text_features,
            momentum_image_features=keys[0],
            momentum_text_features=keys[1],
            image_ids=image_ids,
        )

    def _contrast(
        self,
        image_features: Tensor,
        text_features: Tensor,
        image_keys: Tensor,
        text_keys: Tensor,
        alpha: float | Tensor,
        image_ids: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """ITC; also the in-batch logits (image to text, text to image) and which of them are positives."""
        temperature = self.temp.float().clamp(*TEMPERATURE_RANGE)
        all_texts = torch.cat([text_keys, self.queue.text_features])  # (k, d)
        all_images = torch.cat([image_keys, self.queue.image_features])  # (k, d)
        if image_ids is None:
            image_ids = torch.full((len(image_features),), UNKNOWN_IMAGE, device=image_features.device)
        positives = matching_pairs(image_ids, torch.cat([image_ids, self.queue.image_ids]))  # (b, k)

        losses, batch_logits = [], []
        for queries, teachers, keys in (
            (image_features, image_keys, all_texts),
            (text_features, text_keys, all_images),
        ):
            logits = queries @ keys.T / temperature  # (b, k)
            with torch.no_grad():
                targets = contrastive_targets(teachers @ keys.T / temperature, positives, alpha)
            losses.append(contrastive_loss(logits, targets))
            batch_logits.append(logits[:, : len(queries)])
        return (losses[0] + losses[1]) / 2, tuple(batch_logits), positives[:, : len(image_features)]

    def _match(
        self,
        memory: ImageMemory,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits: tuple[Tensor, Tensor],
        positives: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """ITM of each image with its text and a hard text, and of each text with a hard image, in one pass."""
        num_pairs = len(input_ids)
        if num_pairs == 1:
            logger.warning_once("A batch of one pair has no negatives: image-text matching is left out of its loss.")
            return logits[0].sum() * 0, None, None
        hard_texts, has_text = sample_hard_negatives(logits[0], positives, generator)
        hard_images, has_image = sample_hard_negatives(logits[1], positives, generator)

        input_ids = with_first_token(input_ids, self.config.text_config.enc_token_id)
        rows = torch.arange(num_pairs, device=input_ids.device)
        # Row order: for each image its text and a hard text, which read the memory in order; then each text for a hard image.
        texts = torch.cat([torch.stack([rows, hard_texts], dim=1).flatten(), rows])  # (3b,)
        states = self.text_encoder(
            input_ids[texts], attention_mask[texts], image_memory=memory, image_index=hard_images
        ).last_hidden_state
        itm_logits = self.itm_head(states[:, 0])  # (3b, 2)
        always = torch.ones_like(has_text)
        valid = torch.cat([torch.stack([always, has_text], dim=1).flatten(), has_image])
        labels = torch.cat([torch.stack([always, ~always], dim=1).flatten(), ~always]).long()
        loss = matching_loss(itm_logits, labels, valid)
        return loss, itm_logits, labels.masked_fill(~valid, -100)

    def _caption(self, memory: ImageMemory, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """LM of every caption given its image; all its tokens are targets, [SEP] included."""
        config = self.config.text_config
        targets = input_ids.masked_fill(attention_mask == 0, -100)[:, 1:]
        lm_logits = self.text_decoder(
            with_first_token(input_ids, config.bos_token_id), attention_mask, image_memory=memory, use_cache=False
        ).logits
        return captioning_loss(lm_logits[:, :-1], targets, label_smoothing=config.label_smoothing), lm_logits

    def _averaged_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        currents = dict(self.named_parameters(remove_duplicate=False))
        averages = dict(self.momentum_towers.named_parameters())
        return list(averages.values()), [currents[name] for name in averages]

    def _export(self, head_class: type, parts: tuple[str, ...]) -> Any:
        fields = {
            name: value
            for name, value in self.config.to_dict().items()
            if name not in ("model_type", "architectures", "transformers_version")
            and name in BlipConfig.__dataclass_fields__
        }
        with torch.device("meta"):
            head = head_class(BlipConfig.from_dict(fields))
        for part in parts:
            setattr(head, part, getattr(self, part))
        head.train(self.training)
        return head


__all__ = ["BlipForPreTraining"]
