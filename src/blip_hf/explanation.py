# SPDX-License-Identifier: BSD-3-Clause
"""Which patches a word looks at: Grad-CAM of the cross-attention, as in the notebook of LAVIS.

The map of a token is ReLU(attention * gradient of a score), averaged over the heads of one text layer ([Grad-CAM](
https://huggingface.co/papers/1610.02391), for attention as in [ALBEF](https://huggingface.co/papers/2107.07651), section 4).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .caption_settings import CaptionSettings
from .cjk import split_cjk
from .data.text import pre_caption
from .image_utils import ImageSource, open_image
from .modeling.caption import BlipForConditionalGeneration
from .modeling.exported.models import ExportedModel
from .modeling.retrieval import BlipForImageTextRetrieval
from .processing_blip import BlipProcessor, Role


# Control points of the colour scale of overlays, from 0 to 1: blue, cyan, yellow, red.
_COLOURS = np.array([[0, 0, 160], [0, 190, 255], [255, 230, 0], [200, 0, 0]], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The patches that each word of a text looks at.

    Example:
        >>> explanation = explain(model, processor, "dog.jpg", "a dog on a beach")  # doctest: +SKIP
        >>> explanation.overlay("beach").save("beach.png")  # doctest: +SKIP
    """

    image: Image.Image
    """The image, upright and in RGB."""
    words: tuple[str, ...]
    """The words of the text, normalised as in training."""
    maps: Tensor
    """fp32, on the CPU, of shape `(words, rows, columns)`: one non-negative value for each patch, not normalised."""
    layer: int
    """Index of the text layer that the maps are from."""
    score: float
    """What the gradients are of: the ITM logit of a match, or the log-probability of the caption."""

    def map_of(self, word: str | int) -> Tensor:
        """The map of a word, `(rows, columns)`. Of a word that occurs several times, the first one, or pass its index.

        Raises:
            ValueError: If the text does not have this word.
        """
        if isinstance(word, str):
            if word not in self.words:
                raise ValueError(f"The text has no word {word!r}. Its words are {', '.join(self.words)}.")
            word = self.words.index(word)
        elif not 0 <= word < len(self.words):
            raise ValueError(f"There is no word {word}. Pass 0 to {len(self.words) - 1}.")
        return self.maps[word]

    def overlay(self, word: str | int, *, opacity: float = 0.5) -> Image.Image:
        """Draws the map of a word over the image, from blue (0) to red (the maximum of this word).

        Args:
            word (`str` or `int`):
                The word, or its index.
            opacity (`float`, *optional*, defaults to 0.5):
                Weight of the map, from 0 (the image alone) to 1.

        Returns:
            `PIL.Image.Image`: in RGB, with the size of the image.

        Raises:
            ValueError: If the text does not have this word, or `opacity` is not from 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity={opacity} is not a weight. Pass a value in [0, 1].")
        values = self.map_of(word)
        scaled = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
        smooth = Image.fromarray(scaled.numpy()).resize(self.image.size, Image.Resampling.BICUBIC)
        return Image.blend(self.image, _colour(np.asarray(smooth)), opacity)


def explain(
    model: BlipForImageTextRetrieval | BlipForConditionalGeneration,
    processor: BlipProcessor,
    image: ImageSource,
    text: str,
    *,
    layer: int | None = None,
    prompt: str | None = None,
    interpolate_pos_encoding: bool = False,
) -> Explanation:
    """Computes which patches of an image each word of a text looks at.

    A retrieval model gives the gradient of the ITM logit of a match. A captioning model gives, for each token, the gradient
    of its log-probability, at the position that predicts it. Values are comparable between patches and between words of one
    text. They show what changes the score, not what a person would point at. The model, its mode and its gradients are kept.

    Args:
        model (`BlipForImageTextRetrieval` or `BlipForConditionalGeneration`):
            The model.
        processor (`BlipProcessor`):
            The processor it was trained with.
        image (`ImageSource`):
            A path, a PIL image, or any other form that [`~blip_hf.image_utils.open_image`] reads.
        text (`str`):
            A text, which is normalised by [`~blip_hf.data.text.pre_caption`]. A word of several word pieces has the mean of
            their maps.
        layer (`int`, *optional*):
            Index of the text layer. Defaults to that of the notebook of LAVIS, 7 of 12 (from 0), or in proportion. The last layer
            of a retrieval model has no maps of words, because the matching head reads position 0 alone.
        prompt (`str`, *optional*):
            For a captioning model, text before the caption, which is not explained. Defaults to that of its checkpoint.
        interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
            Whether the processor may have another image size than the model, also one that is not square.

    Returns:
        `Explanation`: words, their maps, and overlays.

    Raises:
        ValueError: If the text has no words, the layer does not exist, or the model is of another class or exported.
        UnreadableImageError: If the image cannot be read.
    """
    opened = open_image(image)
    is_captioner = isinstance(model, BlipForConditionalGeneration)
    if not is_captioner and not isinstance(model, BlipForImageTextRetrieval):
        raise ValueError(
            f"{type(model).__name__} cannot be explained. Pass a BlipForImageTextRetrieval or a"
            " BlipForConditionalGeneration; a model of pre-training has export_retriever()."
        )
    if isinstance(model, ExportedModel):
        raise ValueError("An exported model computes no gradients. Pass the checkpoint that it was exported from.")
    if prompt is not None and not is_captioner:
        raise ValueError("prompt applies to captioning models only. Leave it out.")
    layer = _check_layer(layer, model.config.text_config.num_hidden_layers, is_captioner=is_captioner)
    if is_captioner and prompt is None:
        prompt = CaptionSettings.resolve(processor.caption_settings).prompt
    with _gradients(model):
        token_ids, tokens_of_words = _tokenize(model, processor, text, prompt)
        states = _image_states(model, processor, opened, interpolate_pos_encoding)
        token_ids = token_ids.to(model.device)
        if isinstance(model, BlipForConditionalGeneration):
            maps, score = _caption_maps(model, states, token_ids, layer)  # (t, p)
        else:
            maps, score = _matching_maps(model, states, token_ids, layer)
    size, patch = processor.image_processor.size, model.config.vision_config.patch_size
    grid = maps[:, 1:].unflatten(1, (size["height"] // patch, size["width"] // patch))  # without [CLS]
    return Explanation(
        image=opened,
        words=tuple(word for word, _ in tokens_of_words),
        maps=torch.stack([grid[index].mean(dim=0) for _, index in tokens_of_words]),
        layer=layer,
        score=score,
    )


def _check_layer(layer: int | None, num_layers: int, *, is_captioner: bool) -> int:
    num_usable = num_layers if is_captioner else num_layers - 1
    if num_usable < 1:
        raise ValueError("The text model has one layer, whose matching head reads no word. Pass a deeper model.")
    if layer is None:
        return max(0, 2 * num_layers // 3 - 1)  # `block_num=7` of 12 in LAVIS; before the last one
    if not 0 <= layer < num_usable:
        raise ValueError(f"layer={layer} has no maps of words. Pass 0 to {num_usable - 1}.")
    return layer


def _tokenize(
    model: BlipForImageTextRetrieval | BlipForConditionalGeneration,
    processor: BlipProcessor,
    text: str,
    prompt: str | None,
) -> tuple[Tensor, list[tuple[str, list[int]]]]:
    """Token ids `(1, t)` with the first token of the model, and each word with the positions of its tokens."""
    words = split_cjk(pre_caption(text)).split()
    prompt_words = [] if prompt is None else prompt.split()
    if not words:
        raise ValueError(f"text is {text!r}, expected a text with words.")
    role: Role
    if isinstance(model, BlipForConditionalGeneration):
        role = "lm"
    else:
        role = "matching" if model.config.itm_start_token == "enc" else "contrast"
    joined = " ".join([*prompt_words, *words])
    token_ids = processor(text=joined, role=role, return_tensors="pt")["input_ids"]  # (1, t)
    # Word pieces depend on their word alone.
    position, tokens_of_words = 1, []
    for word in [*prompt_words, *words]:
        num_tokens = len(processor.tokenizer(word, add_special_tokens=False)["input_ids"])
        tokens_of_words.append((word, list(range(position, position + num_tokens))))
        position += num_tokens
    last = token_ids.shape[1] - 1  # [SEP]
    fitting = [(word, index) for word, index in tokens_of_words[len(prompt_words) :] if index and index[-1] < last]
    if not fitting:
        raise ValueError(f"No word of {text!r} fits into {last - 1} tokens. Shorten the prompt or the text.")
    return token_ids, fitting


@contextmanager
def _gradients(model: torch.nn.Module) -> Iterator[None]:
    """Computes gradients in evaluation mode, also within `torch.no_grad` and `torch.inference_mode`."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model.train(was_training)


def _image_states(
    model: BlipForImageTextRetrieval | BlipForConditionalGeneration,
    processor: BlipProcessor,
    image: Image.Image,
    interpolate_pos_encoding: bool,
) -> Tensor:
    """States of an image, `(1, p, d)`, which require a gradient even if all weights are frozen."""
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    with torch.no_grad():
        vision = model.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
    return vision.last_hidden_state.requires_grad_()


def _matching_maps(
    model: BlipForImageTextRetrieval, states: Tensor, token_ids: Tensor, layer: int
) -> tuple[Tensor, float]:
    """Maps of tokens, `(t, p)`, and the ITM logit of a match."""
    text = model.text_encoder(token_ids, encoder_hidden_states=states, output_attentions=True)
    logit = model.itm_head(text.last_hidden_state[:, 0])[0, 1]
    attention = text.cross_attentions[layer]  # (1, h, t, p)
    (gradient,) = torch.autograd.grad(logit, attention)
    return _weighted(attention, gradient), logit.item()


def _caption_maps(
    model: BlipForConditionalGeneration, states: Tensor, token_ids: Tensor, layer: int
) -> tuple[Tensor, float]:
    """Maps of tokens, `(t, p)`, and the log-probability of all tokens after [DEC]. Position 0 has zeros."""
    memory = model.text_decoder.bert.build_image_memory(states)
    output = model(image_memory=memory, input_ids=token_ids, output_attentions=True)
    targets = token_ids[0, 1:]
    log_probabilities = output.logits[0, :-1].float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]  # (t - 1,)
    attention = output.cross_attentions[layer]  # (1, h, t, p)
    maps = torch.zeros(attention.shape[2:])  # (t, p)
    for position, log_probability in enumerate(log_probabilities):
        (gradient,) = torch.autograd.grad(log_probability, attention, retain_graph=True)
        maps[position + 1] = _weighted(attention, gradient)[position]
    return maps, log_probabilities.sum().item()


def _weighted(attention: Tensor, gradient: Tensor) -> Tensor:
    """Mean over heads of ReLU(attention * gradient): `(1, h, t, p)` -> fp32 `(t, p)` on the CPU."""
    return (attention * gradient).relu().mean(dim=1)[0].detach().float().cpu()


def _colour(values: np.ndarray) -> Image.Image:
    """Values from 0 to 1, `(height, width)`, as colours from blue to red."""
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, stops, _COLOURS[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


__all__ = ["Explanation", "explain"]
