# SPDX-License-Identifier: BSD-3-Clause
"""Configurations of the models, with the paper's defaults.

The classes extend those of transformers and keep `model_type` and field names, so plain transformers opens checkpoints
saved here. They define only new fields and other defaults: the defaults of transformers (8 text heads, no dropout,
vision weights with standard deviation 1e-10) fit no released model.
"""

import math
import os
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import BlipConfig as UpstreamBlipConfig
from transformers import BlipTextConfig as UpstreamBlipTextConfig
from transformers import BlipVisionConfig as UpstreamBlipVisionConfig
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec as Spec
from transformers.utils import logging

from .configuration_sizes import check_heads, check_sizes


if TYPE_CHECKING:
    from .converted_field import ConvertedField

logger = logging.get_logger(__name__)

_MAX_QUEUE_SIZE = 10**7
# That of ITC at its start (salesforce/BLIP), and of ITM's negatives in checkpoints that do not store it.
DEFAULT_TEMPERATURE = 0.07
# Fields with another default than in transformers that changes the outputs of a trained model.
_FIELDS_NOT_TO_GUESS = {"text_config": ("num_attention_heads",), "vision_config": ("layer_norm_eps",)}


@strict
class BlipTextConfig(UpstreamBlipTextConfig):
    """Configuration of the text transformer.

    Has the fields of `transformers.BlipTextConfig`, with a dropout of 0.1. New fields and other defaults:

    Args:
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of heads, as in BERT-base. transformers defaults to 8.
        label_smoothing (`float`, *optional*, defaults to 0.1):
            Label smoothing of the language-modelling loss (paper, section 3.2).
        eos_token_id (`int`, *optional*, defaults to 102):
            `[SEP]`, which ends a caption.
        cls_token_id (`int`, *optional*, defaults to 101):
            `[CLS]`, position 0 of the unimodal text encoder.
        enc_token_id (`int`, *optional*, defaults to `bos_token_id + 1`):
            `[ENC]`, position 0 of the image-grounded encoder, right after `[DEC]`. Checkpoints of transformers do not
            store it.
    """

    num_attention_heads: int = 12
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    label_smoothing: float = 0.1
    eos_token_id: int | list[int] | None = 102
    cls_token_id: int = 101
    if TYPE_CHECKING:  # all models need these tokens
        bos_token_id: int = 30522
        pad_token_id: int = 0
        sep_token_id: int = 102
        enc_token_id: ConvertedField[int, int | None] = ConvertedField()
    else:
        enc_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.enc_token_id is None and self.bos_token_id is not None:
            self.enc_token_id = self.bos_token_id + 1

    def validate_sizes(self) -> None:
        """Checks that sizes are in range, and that the heads divide the width."""
        check_sizes(self)
        check_heads(self)


@strict
class BlipVisionConfig(UpstreamBlipVisionConfig):
    """Configuration of the image encoder (ViT).

    Has the fields of `transformers.BlipVisionConfig`. New fields and other defaults:

    Args:
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the layer norms.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth rate of the last block, from which the rates fall linearly to 0. The paper uses 0.1 for
            ViT-L, VQA and NLVR2.
    """

    image_size: int = 384
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    drop_path_rate: float = 0.0

    def validate_sizes(self) -> None:
        """Checks that sizes are in range, and that the heads divide the width."""
        check_sizes(self)
        check_heads(self)


@strict
class BlipConfig(UpstreamBlipConfig):
    """Configuration of a BLIP model: an image encoder and a text transformer.

    Has the fields of `transformers.BlipConfig`. Sub-configurations of transformers are converted; they keep their values.
    New fields and other meanings:

    Args:
        label_smoothing (`float`, *optional*):
            Label smoothing of `text_config`. Values in both configurations must be equal.
        itm_start_token (`str`, *optional*, defaults to `"enc"`):
            Position-0 token of image-text matching: `"enc"` as in the BLIP paper, or `"cls"` as in transformers.
        question_start_token (`str`, *optional*, defaults to `"enc"`):
            Position-0 token of questions in VQA: `"enc"` or `"cls"`.
        itm_temperature (`float`, *optional*, defaults to 0.07):
            Temperature that the hard negatives of ITM were drawn at, which the posterior score divides cosines by. Training
            stores it in the retrieval model, and `blip-hf evaluate retrieval --fit_temperature` replaces it.

    Example:
        >>> config = BlipConfig(text_config={"num_hidden_layers": 2}, label_smoothing=0.2)
        >>> config.text_config.label_smoothing, config.text_config.num_attention_heads
        (0.2, 12)
    """

    sub_configs_defaults = {"text_config": Spec(BlipTextConfig), "vision_config": Spec(BlipVisionConfig)}

    if TYPE_CHECKING:
        text_config: ConvertedField[BlipTextConfig, dict[str, Any] | PreTrainedConfig | None] = ConvertedField()
        vision_config: ConvertedField[BlipVisionConfig, dict[str, Any] | PreTrainedConfig | None] = ConvertedField()
    label_smoothing: float | None = None  # type: ignore[assignment]  # `None` is that of `text_config`
    itm_start_token: str = "enc"
    question_start_token: str = "enc"
    itm_temperature: float = DEFAULT_TEMPERATURE

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict) and self.label_smoothing is not None:
            self.text_config = {"label_smoothing": self.label_smoothing, **self.text_config}
        elif self.text_config is None and self.label_smoothing is not None:
            self.text_config = {"label_smoothing": self.label_smoothing}
        for name, sub_class in self.sub_configs.items():
            if isinstance(getattr(self, name), PreTrainedConfig):
                setattr(self, name, own_config(getattr(self, name), sub_class))
        super().__post_init__(**kwargs)
        text_value = self.text_config.label_smoothing
        if self.label_smoothing not in (None, text_value):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} in BlipConfig and {text_value} in its text_config. Set it"
                " in one of them, or to the same value in both."
            )
        self.label_smoothing = text_value

    def validate_sizes(self) -> None:
        """Checks that the width of the features is in range."""
        check_sizes(self)

    def validate_start_tokens(self) -> None:
        """Checks the position-0 tokens."""
        for name in ("itm_start_token", "question_start_token"):
            value = getattr(self, name)
            if value not in ("enc", "cls"):
                raise ValueError(f"{name} is {value!r}, expected 'enc' or 'cls'.")

    def validate_itm_temperature(self) -> None:
        """Checks that the temperature is above 0."""
        if not 0 < self.itm_temperature < math.inf:
            raise ValueError(f"itm_temperature is {self.itm_temperature}, expected a finite value above 0.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        """Reads the `config.json` of a checkpoint.

        Raises:
            ValueError: If a value has the wrong type or is out of range.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except StrictDataclassError as error:
            reason = error.__cause__ or error
            raise ValueError(f"config.json of {pretrained_model_name_or_path} cannot be used: {reason}") from error

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Builds a configuration from the contents of a `config.json` of this package or of transformers.

        `kwargs` are fields to override, and options of `PreTrainedConfig.from_dict`.
        """
        config_dict = dict(config_dict)
        _warn_about_guesses(config_dict)
        sub_configs = cls.sub_configs.items()
        stored = {name: _as_dict(config_dict.get(name), sub_class) for name, sub_class in sub_configs}
        if "label_smoothing" in stored["text_config"]:
            # Upstream ignores the top-level value, so existing files may have two values: use that of text_config.
            config_dict.pop("label_smoothing", None)
        # Upstream sets overrides on the finished configuration, which would change only one of the two values, and would
        # not convert sub-configurations of transformers.
        overrides = {name: _as_dict(kwargs.pop(name, None), sub_class) for name, sub_class in sub_configs}
        label_smoothing = kwargs.pop("label_smoothing", None)
        if label_smoothing is not None:
            config_dict["label_smoothing"] = label_smoothing
            overrides["text_config"] = {"label_smoothing": label_smoothing, **overrides["text_config"]}
        config_dict |= {name: stored[name] | overrides[name] for name in stored}
        return super().from_dict(config_dict, **kwargs)


@strict
class BlipContrastiveConfig(BlipConfig):
    """Base configuration of models that train with a momentum encoder and a feature queue.

    Args:
        queue_size (`int`, *optional*, defaults to 57600):
            Number of momentum features in the queue (salesforce/BLIP). 0 disables the queue.
        momentum (`float`, *optional*, defaults to 0.995):
            EMA decay of the momentum encoder (paper, section 3.2, after ALBEF). 0 disables the momentum encoder.
        contrastive_warmup_steps (`int`, *optional*, defaults to 0):
            Training steps at the start of a short run in which only the batch gives keys for ITC, from the current weights,
            and the temperature of hard negatives falls from 1 to its value. After them, the momentum rises to its value, and
            the queue counts once it is filled again. 0 uses momentum, queue and hard negatives from the first step, as the
            paper does.
        alpha (`float`, *optional*, defaults to 0.4):
            Weight of the momentum encoder's distribution in the contrastive targets.
        temperature_init_value (`float`, *optional*, defaults to 0.07):
            Initial value of the learnable temperature, clamped to [0.001, 0.5].
        negative_temperature (`float`, *optional*):
            Temperature to sample hard negatives of ITM. Defaults to that of ITC, as in the paper. A higher one samples
            easier negatives, which may help an ITM head at chance level.
        gather_keys (`bool`, *optional*, defaults to `True`):
            Whether the keys of ITC in training are the batches of all processes and the queue, so that the loss depends on
            the global batch only. `False` takes the batch of the process and the queue, as salesforce/BLIP does.
        negative_all_rank (`bool`, *optional*, defaults to `False`):
            Whether to sample hard negatives in training from the batches of all processes (salesforce/BLIP
            `configs/retrieval_coco.yaml`), not only from the own batch (pre-training and `configs/retrieval_flickr.yaml`).
    """

    queue_size: int = 57600
    momentum: float = 0.995
    contrastive_warmup_steps: int = 0
    alpha: float = 0.4
    temperature_init_value: float = DEFAULT_TEMPERATURE
    negative_temperature: float | None = None
    gather_keys: bool = True
    negative_all_rank: bool = False

    def validate_ranges(self) -> None:
        """Checks the ranges of the values."""
        if self.negative_temperature is not None and self.negative_temperature <= 0:
            raise ValueError(f"negative_temperature is {self.negative_temperature}, expected more than 0.")
        if self.contrastive_warmup_steps < 0:
            raise ValueError(f"contrastive_warmup_steps is {self.contrastive_warmup_steps}, expected 0 or more.")
        if not 0 <= self.queue_size <= _MAX_QUEUE_SIZE:
            raise ValueError(f"queue_size is {self.queue_size}, expected 0 (no queue) to {_MAX_QUEUE_SIZE}.")
        for name in ("momentum", "alpha"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected a value in [0, 1].")


@strict
class BlipPreTrainingConfig(BlipContrastiveConfig):
    """Configuration of `BlipForPreTraining`, with all fields of `BlipContrastiveConfig`.

    Args:
        itc_weight (`float`, *optional*, defaults to 1.0):
            Weight of the ITC loss. The paper weights all losses equally.
        itm_weight (`float`, *optional*, defaults to 1.0):
            Weight of the ITM loss. 0 skips it.
        lm_weight (`float`, *optional*, defaults to 1.0):
            Weight of the LM loss. 0 skips it.
    """

    model_type = "blip_pretraining"

    itc_weight: float = 1.0
    itm_weight: float = 1.0
    lm_weight: float = 1.0

    def validate_weights(self) -> None:
        """Checks the weights of the losses."""
        weights = (self.itc_weight, self.itm_weight, self.lm_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"The loss weights are {weights}, expected no negative one and at least one above 0.")


@strict
class BlipRetrievalTrainingConfig(BlipContrastiveConfig):
    """Configuration of `BlipForRetrievalTraining`, with all fields of `BlipContrastiveConfig`."""

    model_type = "blip_retrieval_training"

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a `config.json` of this class, of a retrieval model, or of a pre-training model without its loss weights."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") in (BlipConfig.model_type, BlipPreTrainingConfig.model_type):
            left_out = BlipPreTrainingConfig.__dataclass_fields__.keys() - cls.__dataclass_fields__.keys()
            config_dict = {name: value for name, value in config_dict.items() if name not in left_out}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


@strict
class BlipVisualReasoningConfig(BlipConfig):
    """Configuration of `BlipForVisualReasoning`.

    Args:
        merge_from_layer (`int`, *optional*, defaults to 6):
            First text layer, from 0, that merges the two images by learned weights. Lower layers average them (paper,
            section 5.5).
    """

    model_type = "blip_visual_reasoning"

    merge_from_layer: int = 6

    def validate_merge_from_layer(self) -> None:
        """Checks that the layer is not negative."""
        if self.merge_from_layer < 0:
            raise ValueError(f"merge_from_layer is {self.merge_from_layer}, expected 0 (all layers merge) or more.")


def own_config(config: PreTrainedConfig, config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Converts a configuration of transformers, also inside one of ours, to `config_class`; it keeps its values.

    A configuration of a whole BLIP model becomes any configuration of such a model: new fields have their defaults.

    Raises:
        TypeError: If it is the configuration of another kind of model.
    """
    if isinstance(config, config_class):
        for name, sub_class in config_class.sub_configs.items():
            if not isinstance(getattr(config, name), sub_class):
                setattr(config, name, own_config(getattr(config, name), sub_class))
        return config
    accepted = {config_class.model_type}
    if issubclass(config_class, BlipConfig):
        accepted.add(BlipConfig.model_type)
    if config.model_type not in accepted:
        raise TypeError(
            f"Got a {type(config).__name__} of model type {config.model_type!r}, expected a {config_class.__name__} or a"
            f" configuration of transformers of type {' or '.join(sorted(accepted))}."
        )
    fields = config.to_dict()
    del fields["model_type"]
    converted = config_class.from_dict(fields)
    parts = {name: getattr(config, name) for name in config_class.sub_configs}
    # `to_dict` leaves it out.
    converted._attn_implementation = {name: part._attn_implementation for name, part in {"": config, **parts}.items()}
    return converted


def _as_dict(config: dict[str, Any] | PreTrainedConfig | None, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    if config is None or isinstance(config, dict):
        return config or {}
    return own_config(config, config_class).to_dict()


def _warn_about_guesses(config_dict: dict[str, Any]) -> None:
    """Warns if a checkpoint lacks one of `_FIELDS_NOT_TO_GUESS`."""
    for name, fields in _FIELDS_NOT_TO_GUESS.items():
        sub_config = config_dict.get(name)
        if not isinstance(sub_config, dict):
            continue
        for field in fields:
            if field not in sub_config:
                logger.warning(
                    f"config.json has no {name}.{field}: BLIP's default is used, which differs from that of transformers."
                    " Add the value that the checkpoint was trained with to its config.json."
                )


__all__ = [
    "DEFAULT_TEMPERATURE",
    "BlipConfig",
    "BlipContrastiveConfig",
    "BlipPreTrainingConfig",
    "BlipRetrievalTrainingConfig",
    "BlipTextConfig",
    "BlipVisionConfig",
    "BlipVisualReasoningConfig",
    "own_config",
]
