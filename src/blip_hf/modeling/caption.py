# SPDX-License-Identifier: BSD-3-Clause
"""Captioning model: image encoder and image-grounded text decoder."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple

from ..configuration_blip import BlipConfig
from .attention import ImageMemory, expand_text
from .base import BlipPreTrainedModel, refuse_unknown
from .input_checks import refuse_token_types
from .language_modeling import BlipTextLMHeadModel, LanguageModelingKwargs
from .outputs import BlipCaptioningOutput
from .projection import with_first_token
from .prompts import align_prompts, limit_each_row, refuse_long_generation, resolve_settings, start_tokens
from .vision import BlipVisionModel


class BlipForConditionalGeneration(BlipPreTrainedModel, GenerationMixin):
    """Generates captions, with or without a prompt.

    Drop-in replacement for `transformers.BlipForConditionalGeneration`; reads and writes the same checkpoints.
    """

    config: BlipConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = True
    # Makes Trainer count labels for `num_items_in_batch` like this loss: without the first of each row.
    loss_type = "ForCausalLM"
    _tied_weights_keys = {
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        config = self.config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.text_decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection."""
        return self.text_decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the vocabulary projection and its bias."""
        self.text_decoder.set_output_embeddings(new_embeddings)

    @property
    def decoder_input_ids(self) -> int:
        """[DEC], the first token of a caption, under the name of transformers."""
        return self.config.text_config.bos_token_id

    @property
    def decoder_pad_token_id(self) -> int:
        """The padding token of captions."""
        return self.config.text_config.pad_token_id

    def get_image_memory(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> ImageMemory:
        """Encodes images once, for any number of calls of `forward` and `generate`.

        Returns:
            `ImageMemory`: Pass it instead of pixels.
        """
        states = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state
        return self.text_decoder.bert.build_image_memory(states, for_decoding=True)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        image_memory: ImageMemory | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[LanguageModelingKwargs],
    ) -> BlipCaptioningOutput:
        """Computes the logits of captions, and the loss if labels are given.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`, *optional*):
                Normalised pixels, or pass `image_memory`.
            input_ids (`torch.Tensor` of shape `(n * g, t)`, *optional*):
                Captions: `g` consecutive rows per image, or one row for all images. Defaults to [DEC] alone. With labels,
                a [CLS] at position 0 is read as [DEC], the first token of generation.
            labels (`torch.Tensor` of shape `(n * g, t)`, *optional*):
                Token ids, -100 at positions without loss (the prompt). Padding is ignored.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept another image size than the configured one.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions to compute logits for; 0 for all.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Labelled tokens of the whole optimiser step; Trainer passes it with gradient accumulation.
            image_memory (`ImageMemory`, *optional*):
                Result of `get_image_memory`, instead of `pixel_values`. The output then has no image states.
            token_type_ids (`torch.Tensor` of shape `(n * g, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
            **kwargs:
                `output_attentions`, `output_hidden_states`, `return_dict`, and `shift_labels` of shape `(n * g, t)`: labels
                already aligned with the logits.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        refuse_unknown(kwargs, self)
        refuse_token_types(token_type_ids, self)
        text_config = self.config.text_config
        _one_image_source(pixel_values, image_memory)
        if image_memory is None:
            vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
            images = vision.last_hidden_state  # (n, ...)
        else:
            vision = BaseModelOutputWithPooling()
            images = image_memory.keys[0]
        if input_ids is None:
            input_ids = start_tokens(images, text_config)
        input_ids, attention_mask, labels = expand_text(images.shape[0], input_ids, attention_mask, labels)
        if labels is not None:
            input_ids, labels = self._taught(input_ids, labels)
        outputs = self.text_decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=vision.last_hidden_state,
            image_memory=image_memory,
            labels=labels,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
            shift_labels=shift_labels,
            **kwargs,
        )
        return BlipCaptioningOutput(
            loss=outputs.loss,
            logits=outputs.logits,
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def _taught(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Captions from [DEC], where they started with [CLS], and labels without padding."""
        text_config = self.config.text_config
        first = input_ids[:, :1]
        first = torch.where(first == text_config.cls_token_id, text_config.bos_token_id, first)
        return with_first_token(input_ids, first), labels.masked_fill(labels == text_config.pad_token_id, -100)

    @torch.no_grad()
    def generate(  # type: ignore[override]  # images come first, as in the class of transformers
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        generation_config: GenerationConfig | None = None,
        image_memory: ImageMemory | None = None,
        token_type_ids: Tensor | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generates captions.

        Images are encoded and projected once for all beams and returned sequences. Prompts of different lengths may
        share a batch: each loses its [SEP], starts with [DEC] and is padded on the left.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`, *optional*):
                Normalised pixels, or pass `image_memory`.
            input_ids (`torch.Tensor` of shape `(n * g, t)`, *optional*):
                Prompts from the processor: `g` consecutive rows per image, or one row for all images.
            image_memory (`ImageMemory`, *optional*):
                Result of `get_image_memory`, instead of `pixel_values`.
            token_type_ids (`torch.Tensor` of shape `(n * g, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
            **generate_kwargs:
                Options that override `generation_config`, such as `num_beams`, `do_sample`, `top_p`, `max_new_tokens`. A
                caption ends with [SEP] unless `eos_token_id` names other tokens.

        Returns:
            `torch.Tensor` of shape `(rows, t)`: Prompts and captions, or a `ModelOutput` with
            `return_dict_in_generate=True`.

        Raises:
            ValueError: If a prompt, or what the settings allow after it, exceeds `max_position_embeddings`.
        """
        images = _one_image_source(pixel_values, image_memory)
        refuse_token_types(token_type_ids, self)
        text_config = self.config.text_config
        settings, decoder_kwargs = resolve_settings(
            generation_config or self.generation_config, generate_kwargs, text_config
        )
        device = images.keys[0].device if isinstance(images, ImageMemory) else images.device
        if input_ids is None:
            input_ids = torch.tensor([[text_config.bos_token_id]], device=device)
            attention_mask = torch.ones_like(input_ids)
        else:
            input_ids = torch.as_tensor(input_ids, device=device)
            input_ids, attention_mask = align_prompts(input_ids, attention_mask, text_config)
        processors, criteria = limit_each_row(settings, (attention_mask == 0).sum(dim=1))
        processors.extend(decoder_kwargs.pop("logits_processor", None) or [])
        criteria.extend(decoder_kwargs.pop("stopping_criteria", None) or [])
        refuse_long_generation(settings, input_ids.shape[1], text_config)

        if not isinstance(images, ImageMemory):
            images = self.get_image_memory(images, interpolate_pos_encoding)
        device = images.keys[0].device
        input_ids, attention_mask = expand_text(images.num_images, input_ids.to(device), attention_mask.to(device))
        return self.text_decoder.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_memory=images,
            generation_config=settings,
            logits_processor=processors,
            stopping_criteria=criteria,
            **decoder_kwargs,
        )


def score_sequences(
    model: BlipForConditionalGeneration, memory: ImageMemory, sequences: Tensor, num_context: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of generated captions under the model, and their numbers of tokens, both of shape `(n * g,)`.

    `sequences` are what `generate` returned for the `n` images of `memory`; the first `num_context` tokens ([DEC] and
    the prompt) are not scored. Sums include the first [SEP].
    """
    # Padding follows the caption and the decoder is causal, so no mask is needed.
    logits = model(image_memory=memory, input_ids=sequences).logits
    return sum_log_probabilities(logits, sequences, num_context, model.config.text_config.sep_token_id)


def sum_log_probabilities(
    logits: Tensor, sequences: Tensor, num_context: int, sep_token_id: int
) -> tuple[Tensor, Tensor]:
    """Sums and numbers of the log-probabilities of tokens after `num_context`, up to and including the first [SEP]."""
    targets = sequences[:, num_context:]  # (n * g, t)
    logits = logits[:, num_context - 1 : -1]
    log_probabilities = -cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    is_end = targets == sep_token_id
    is_caption = is_end.cumsum(dim=1) - is_end.long() == 0
    return (log_probabilities * is_caption).sum(dim=1), is_caption.sum(dim=1)


def _one_image_source(pixel_values: Tensor | None, image_memory: ImageMemory | None) -> Tensor | ImageMemory:
    if pixel_values is not None and image_memory is None:
        return pixel_values
    if image_memory is not None and pixel_values is None:
        return image_memory
    raise ValueError("Pass exactly one of pixel_values (the output of the processor) and image_memory.")


__all__ = ["BlipForConditionalGeneration", "score_sequences", "sum_log_probabilities"]
