# SPDX-License-Identifier: BSD-3-Clause
"""Models of three sizes with random weights, and their inputs."""

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from blip_hf import BlipConfig, optimize_for_cpu


PAD, CLS, SEP = 0, 101, 102
PATCH_SIZE = 16
HEAD_SIZE = 64


@dataclass(frozen=True)
class Size:
    """Sizes of image encoder and text transformer. `image_size` is for captioning and matching."""

    image_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    vocab_size: int


SIZES = {
    "base": Size(384, 768, 12, 768, 12, 30_524),
    "small": Size(224, 384, 6, 384, 6, 8_000),
    "tiny": Size(32, 64, 2, 64, 2, 200),
}


def config_fields(size: Size, image_size: int | None = None) -> dict[str, dict[str, object]]:
    """Configuration fields without dropout."""
    text = {
        "vocab_size": size.vocab_size,
        "bos_token_id": size.vocab_size - 2,
        "enc_token_id": size.vocab_size - 1,
        "cls_token_id": CLS,
        "sep_token_id": SEP,
        "eos_token_id": SEP,
        "pad_token_id": PAD,
        "encoder_hidden_size": size.vision_width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "label_smoothing": 0.1,
    }
    vision = {"image_size": image_size or size.image_size, "patch_size": PATCH_SIZE}
    return {
        "text_config": text | _widths(size.text_width, size.text_layers),
        "vision_config": vision | _widths(size.vision_width, size.vision_layers),
    }


def _widths(width: int, num_layers: int) -> dict[str, int]:
    heads = {"num_attention_heads": width // HEAD_SIZE, "num_hidden_layers": num_layers}
    return {"hidden_size": width, "intermediate_size": 4 * width, **heads}


def build(model_class: type[PreTrainedModel], config: BlipConfig, device: torch.device) -> PreTrainedModel:
    """A model in evaluation mode with the same random weights in each call, optimised if the device is a CPU."""
    torch.manual_seed(0)
    model = model_class(config).eval().to(device)
    return optimize_for_cpu(model) if device.type == "cpu" else model


def upstream_model(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers class of the same name with the same weights."""
    fields = model.config.to_dict()
    config = transformers.BlipConfig(
        text_config=fields["text_config"],
        vision_config=fields["vision_config"],
        image_text_hidden_size=fields["image_text_hidden_size"],
    )
    upstream = getattr(transformers, type(model).__name__)(config)
    missing, unexpected = upstream.load_state_dict(model.state_dict(), strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{type(model).__name__} and its transformers class differ: missing {missing}, unexpected {unexpected}."
        )
    return upstream.eval().to(model.device)


def random_pixels(count: int, image_size: int, device: torch.device) -> Tensor:
    """Normalised pixels of shape `(count, 3, image_size, image_size)`."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, image_size, image_size, generator=generator).to(device)


def random_captions(count: int, length: int, size: Size, device: torch.device) -> Tensor:
    """Rows `[CLS] words [SEP]` of shape `(count, length)`."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(SEP + 1, size.vocab_size - 2, (count, length), generator=generator)
    rows[:, 0], rows[:, -1] = CLS, SEP
    return rows.to(device)


def pad_to(rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Rows padded to `length` tokens, and their mask, of shape `(b, length)` each."""
    padded = nn.functional.pad(rows, (0, length - rows.shape[1]), value=PAD)
    return padded, (padded != PAD).long()


__all__ = [
    "PAD",
    "SIZES",
    "Size",
    "build",
    "config_fields",
    "pad_to",
    "random_captions",
    "random_pixels",
    "upstream_model",
]
