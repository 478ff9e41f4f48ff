# SPDX-License-Identifier: BSD-3-Clause
"""Retrieval fine-tuning: ITC with image ids, and ITM with hard negatives (paper, section 5.1).

Letters: `b` batch, `m` rows of all processes, `d` width, `t` tokens, `p` image tokens.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from ..configuration_blip import BlipConfig, BlipRetrievalTrainingConfig
from ..distributed import first_row, gather, gather_with_gradient, pad_to_longest, world_size
from ..objectives import matching_pairs
from .contrastive import BlipContrastiveModel, itm_loss_and_labels
from .input_checks import refuse_token_types
from .momentum import image_ids_or_unknown
from .outputs import BlipContrastiveOutput
from .pretraining import SHARED_TEXT_PARTS, BlipForPreTraining
from .retrieval import BlipForImageTextRetrieval
from .text import BlipTextModel
from .vision import BlipVisionModel


# A pre-training checkpoint stores the shared weights of encoder and decoder under the decoder's names.
_PRETRAINING_NAMES = {rf"^text_decoder\.bert\.({'|'.join(SHARED_TEXT_PARTS)})\.": r"text_encoder.\1."}


class BlipForRetrievalTraining(BlipContrastiveModel):
    """Retrieval model for fine-tuning, with temperature, momentum encoder and feature queue.

    Captions with the same `image_ids` are positives of each other in ITC and never negatives in ITM. Hard negatives
    are sampled by the similarity of the online features; with `config.negative_all_rank`, from the batches of all
    processes.

    `from_pretrained` takes checkpoints of this class, of `BlipForImageTextRetrieval` (also of transformers), and of
    `BlipForPreTraining`. The momentum encoder starts from the loaded weights, the queue at random. `forward` changes no
    state: call `enqueue` and `update_momentum` as for `BlipForPreTraining`, or use `BlipContrastiveTrainer`.

    Example:
        ```python
        model = BlipForRetrievalTraining.from_pretrained("Salesforce/blip-itm-base-coco", queue_size=4096)
        BlipContrastiveTrainer(model, BlipFinetuningArguments("runs/retrieval"), train_dataset=pairs, ...).train()
        model.export_retriever().save_pretrained("matcher")
        ```
    """

    config: BlipRetrievalTrainingConfig
    _keys_to_ignore_on_load_missing = [*BlipContrastiveModel._keys_to_ignore_on_load_missing, r"^temp$"]
    _keys_to_ignore_on_load_unexpected = [
        *BlipContrastiveModel._keys_to_ignore_on_load_unexpected,
        r"^text_decoder\.",
    ]

    def __init__(self, config: BlipRetrievalTrainingConfig) -> None:
        super().__init__(config)
        config = self.config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self._add_contrastive_parts()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint of this class, of `BlipForImageTextRetrieval`, or of `BlipForPreTraining`.

        Arguments as in `BlipPreTrainedModel.from_pretrained`, including configuration fields such as `queue_size`.
        """
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, key_mapping=dict(_PRETRAINING_NAMES), **kwargs
        )

    def _finish_loading(self) -> None:
        super()._finish_loading()
        self._weight_conversions = None  # transformers (5.23) would save the weights under their old names

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.text_encoder.set_input_embeddings(value)

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
        token_type_ids: Tensor | None = None,
    ) -> BlipContrastiveOutput:
        """Computes ITC and ITM for a batch of pairs.

        Args:
            pixel_values (`torch.Tensor` of shape `(b, 3, height, width)`):
                Normalised pixels.
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Captions from [CLS] to [SEP]. [ENC] is set here.
            alpha (`float` or scalar `torch.Tensor`, *optional*, defaults to the configuration's):
                Weight of the momentum encoder's distribution in the contrastive targets.
            image_ids (`torch.Tensor` of shape `(b,)`, *optional*):
                Equal for captions of one image. By default each pair has its own image.
            generator (`torch.Generator`, *optional*):
                Samples the hard negatives.
            return_loss (`bool`, *optional*, defaults to `True`):
                Makes Trainer compute the loss without labels. Must be true.
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_token_types(token_type_ids, self)
        attention_mask = self._check_inputs(input_ids, attention_mask, return_loss)
        words, encoder_words = self._embed_words(input_ids, self.config.text_config.enc_token_id)
        image_embeds, features, keys = self._encode(pixel_values, input_ids, attention_mask, words)
        known_ids = image_ids_or_unknown(image_ids, pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            loss_itc, _, positives = self._contrast(features, keys, alpha, known_ids)
        if self.config.negative_all_rank and world_size() > 1:
            loss_itm, itm_logits, itm_labels = self._match_all_ranks(
                image_embeds, features, input_ids, attention_mask, known_ids, generator
            )
        else:
            logits = self._online_logits(features, features)
            loss_itm, itm_logits, itm_labels = self._match(
                image_embeds, encoder_words, attention_mask, logits, positives, generator
            )
        return BlipContrastiveOutput(
            loss=loss_itc + loss_itm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            image_features=features[0],
            text_features=features[1],
            momentum_image_features=keys[0],
            momentum_text_features=keys[1],
            image_ids=image_ids,
        )

    @torch.no_grad()
    def _online_logits(
        self, features: tuple[Tensor, Tensor], candidates: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Similarities divided by the temperature, image to text and text to image, each `(b, m)`."""
        temperature = self._clamped_temperature()
        with torch.autocast(temperature.device.type, enabled=False):
            return features[0] @ candidates[1].T / temperature, features[1] @ candidates[0].T / temperature

    def _match_all_ranks(
        self,
        image_embeds: Tensor,
        features: tuple[Tensor, Tensor],
        input_ids: Tensor,
        attention_mask: Tensor,
        image_ids: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ITM as in `_match`, with negatives (and gradients for them) from all processes."""
        input_ids = pad_to_longest(input_ids, self.config.text_config.pad_token_id)
        attention_mask = pad_to_longest(attention_mask, 0)
        rows = gather(torch.cat([image_ids[:, None], input_ids, attention_mask], dim=1))  # (m, 1 + 2t)
        all_input_ids, all_masks = rows[:, 1:].chunk(2, dim=1)
        own_start = first_row(input_ids)
        positives = matching_pairs(image_ids, rows[:, 0], first_key=own_start)  # (b, m)
        logits = self._online_logits(features, gather(torch.cat(features, dim=1)).chunk(2, dim=1))
        (hard_texts, has_text), (hard_images, has_image) = self._draw_negatives(logits, positives, generator)

        hard_embeds = gather_with_gradient(image_embeds).index_select(0, hard_images)  # (b, p, d)
        # Project only the images in use. Each text reads its own image and then a hard one; hard texts read this
        # process's images.
        images = torch.cat([image_embeds, hard_embeds])
        own = torch.arange(input_ids.shape[0], device=input_ids.device)
        texts = torch.cat([own + own_start, own + own_start, hard_texts])  # (3b,)
        _, words = self._embed_words(all_input_ids[texts], self.config.text_config.enc_token_id)
        matched, with_hard_image, with_hard_text = self._score_pairs(images, words, all_masks[texts], own).chunk(3)
        itm_logits = torch.cat([torch.stack([matched, with_hard_text], dim=1).flatten(0, 1), with_hard_image])
        return itm_loss_and_labels(itm_logits, has_text, has_image)


def load_matching_model(path: str | os.PathLike) -> BlipForImageTextRetrieval | BlipContrastiveModel:
    """Loads a checkpoint with an ITM head in fp32, by the class that saved it."""
    settings, _ = BlipConfig.get_config_dict(path)
    for trained_class in (BlipForPreTraining, BlipForRetrievalTraining):
        if settings.get("model_type") == trained_class.config_class.model_type:
            return trained_class.from_pretrained(path, dtype=torch.float32)
    # Raises for a checkpoint of another class.
    return BlipForImageTextRetrieval.from_pretrained(path, dtype=torch.float32)


__all__ = ["BlipForRetrievalTraining", "load_matching_model"]
