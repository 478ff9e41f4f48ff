# SPDX-License-Identifier: BSD-3-Clause
"""Image encoder: a pre-norm vision transformer (paper, section 3.1)."""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import is_torchdynamo_exporting
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration_blip import BlipVisionConfig
from .attention import attend, split_heads
from .base import BlipPreTrainedModel, ForwardKwargs, refuse_unknown, wants_attentions
from .recompute import recompute_in_backward


class BlipVisionEmbeddings(nn.Module):
    """Patch, [CLS] and position embeddings."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        num_patches = (config.image_size // patch) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, width))

    @property
    def num_positions(self) -> int:
        """Number of position embeddings: one per patch, and [CLS]."""
        return self.position_embedding.shape[1]

    @property
    def num_patches(self) -> int:
        """Number of patches of an image of the configured size."""
        return self.num_positions - 1

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings for images of `height` x `width` pixels, `(1, p, d)`; `embeddings` are not used."""
        patch = self.config.patch_size
        return resize_position_grid(self.position_embedding, height // patch, width // patch)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """`(n, 3, height, width)` -> `(n, p, d)`."""
        height, width = pixel_values.shape[-2:]
        size = self.config.image_size
        if interpolate_pos_encoding:
            positions = self.interpolate_pos_encoding(self.position_embedding, height, width)
        elif (height, width) != (size, size):
            raise ValueError(
                f"pixel_values has {height} x {width} pixels, the model expects {size} x {size}. Resize the images"
                " with the model's processor, pass interpolate_pos_encoding=True, or call"
                " resize_position_embeddings() once to train at another size."
            )
        else:
            positions = self.position_embedding
        weight = self.patch_embedding.weight
        patches = self.patch_embedding(pixel_values.to(weight.dtype)).flatten(2).transpose(1, 2)
        classes = self.class_embedding.expand(patches.shape[0], -1, -1)
        return torch.cat([classes, patches], dim=1) + positions.to(weight.dtype)


def resize_position_grid(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Resizes position embeddings `(1, 1 + side * side, d)` to another patch grid (bicubic); [CLS] is kept."""
    side = int((positions.shape[1] - 1) ** 0.5)
    # A graph for images of any size always interpolates, which changes nothing at the same size.
    is_general = torch.jit.is_tracing() or is_torchdynamo_exporting()
    if not is_general and (rows, columns) == (side, side):
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, d, side, side)
    grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class BlipVisionAttention(nn.Module):
    """Self-attention with one fused query-key-value projection."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        """`(n, p, d)` -> `(n, p, d)` and optional probabilities of shape `(n, h, p, p)`."""
        query, key, value = (
            split_heads(states, self.config.num_attention_heads) for states in self.qkv(hidden_states).chunk(3, dim=-1)
        )
        context, probabilities = attend(
            self,
            query,
            key,
            value,
            None,
            dropout=self.config.attention_dropout,
            is_causal=False,
            output_attentions=output_attentions,
        )
        return self.projection(context), probabilities


class BlipVisionMLP(nn.Module):
    """Feed-forward block."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(n, p, d)` -> `(n, p, d)`."""
        # Activations are a quarter of the memory that a layer needs for backward.
        return recompute_in_backward(self, self._activate_and_project, self.fc1(hidden_states))

    def _activate_and_project(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(hidden_states))


class BlipVisionLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block with stochastic depth on both of its branches."""

    def __init__(self, config: BlipVisionConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.self_attn = BlipVisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = BlipVisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> Tensor:
        """`(n, p, d)` -> `(n, p, d)`."""
        branch, _ = self.self_attn(self.layer_norm1(hidden_states), output_attentions)
        hidden_states = hidden_states + self._drop(branch)
        branch = self.mlp(self.layer_norm2(hidden_states))
        return hidden_states + self._drop(branch)

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep).div_(keep)


class BlipVisionEncoder(nn.Module):
    """The stack of blocks. Stochastic depth grows linearly with depth."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList([BlipVisionLayer(config, rate) for rate in rates])

    def forward(self, inputs_embeds: Tensor, output_attentions: bool = False) -> BaseModelOutput:
        """`(n, p, d)` -> `(n, p, d)`."""
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, output_attentions)
        return BaseModelOutput(last_hidden_state=hidden_states)


class BlipVisionModel(BlipPreTrainedModel):
    """Image encoder (ViT): pixels to states of [CLS] and each patch.

    `from_pretrained` also accepts checkpoints of whole models.

    Example:
        >>> import torch
        >>> from blip_hf import BlipVisionConfig, BlipVisionModel
        >>> config = BlipVisionConfig(
        ...     hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32
        ... )
        >>> BlipVisionModel(config)(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
        torch.Size([1, 5, 16])
    """

    config: BlipVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _can_record_outputs = {"hidden_states": BlipVisionLayer, "attentions": BlipVisionAttention}

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__(config)
        config = self.config
        self.embeddings = BlipVisionEmbeddings(config)
        self.encoder = BlipVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlipVisionEmbeddings):
            std = self.config.initializer_range
            init.trunc_normal_(module.position_embedding, mean=0.0, std=std)
            init.trunc_normal_(module.class_embedding, mean=0.0, std=std)

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding module."""
        return self.embeddings

    def get_position_embeddings(self) -> nn.Parameter:  # type: ignore[override]  # a module in other models
        """Position embeddings of shape `(1, p, d)`."""
        return self.embeddings.position_embedding

    def freeze_first_layers(self, num_layers: int) -> None:
        """Freezes the embeddings and the first `num_layers` layers; 0 freezes nothing."""
        if not 0 <= num_layers <= len(self.encoder.layers):
            raise ValueError(
                f"num_layers is {num_layers}, expected 0 to {len(self.encoder.layers)}, the layers of the image encoder."
            )
        if num_layers:
            self.embeddings.requires_grad_(False)
        for layer in self.encoder.layers[:num_layers]:
            layer.requires_grad_(False)

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Resizes the position embeddings (bicubic) to a new image size in pixels, and updates the configuration."""
        size, patch = new_num_position_embeddings, self.config.patch_size
        if size <= 0 or size % patch:
            raise ValueError(f"The image size is {size}, expected a positive multiple of the patch size {patch}.")
        old = self.embeddings.position_embedding
        resized = resize_position_grid(old.detach().float(), size // patch, size // patch).to(old.dtype)
        self.embeddings.position_embedding = nn.Parameter(resized.clone(), requires_grad=old.requires_grad)
        self.config.image_size = size

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encodes images.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels. They are cast to the dtype of the model.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate position embeddings for images of another size than the configured one.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` of shape `(n, p, d)`; `[:, 0]` is the state of [CLS].
            `pooler_output` is that state normalised twice, as in transformers.
        """
        refuse_unknown(kwargs, self)
        if pixel_values is None:
            raise ValueError("pixel_values is missing. Pass the output of the processor for at least one image.")
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        encoded = self.encoder(hidden_states, wants_attentions(kwargs, self.config)).last_hidden_state
        last_hidden_state = self.post_layernorm(encoded)
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state, pooler_output=self.post_layernorm(last_hidden_state[:, 0])
        )


__all__ = ["BlipVisionModel", "resize_position_grid"]
