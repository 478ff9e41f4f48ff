# SPDX-License-Identifier: BSD-3-Clause
"""Base class of the BLIP models: initialisation, capabilities, and checks of loaded checkpoints."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from ..checkpoints import WrongCheckpointError, is_export
from ..configuration_blip import BlipConfig, own_config
from .prompts import unset_library_defaults


# Submodules of each class, used to recognise the class of a checkpoint.
_CLASS_PARTS = {
    "BlipForConditionalGeneration": {"vision_model", "text_decoder"},
    "BlipForImageTextRetrieval": {"vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head"},
    "BlipForQuestionAnswering": {"vision_model", "text_encoder", "text_decoder"},
    "BlipForRetrievalTraining": {"vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head", "temp"},
    "BlipForPreTraining": {
        "vision_model",
        "text_encoder",
        "text_decoder",
        "vision_proj",
        "text_proj",
        "itm_head",
        "temp",
    },
    "BlipForVisualReasoning": {"vision_model", "text_encoder", "cls_head"},
    "BlipModel": {"vision_model", "text_model", "visual_projection", "text_projection", "logit_scale"},
}
# Keyword arguments that transformers may pass to any `forward`.
_MACHINERY_KWARGS = {"output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch", "use_cache"}


class BlipPreTrainedModel(PreTrainedModel):
    """Base class of the BLIP models."""

    config: BlipConfig
    base_model_prefix = "blip"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["BlipVisionLayer", "BlipTextLayer"]
    # Transformers guesses this from source code, and fails where layers call a shared function.
    _can_set_attn_implementation_cached_value = True
    _skip_keys_device_placement = ["past_key_values", "image_memory"]
    _keys_to_ignore_on_load_unexpected = [r"position_ids$"]
    # Advice in the error for a checkpoint that lacks parts of the class.
    _new_heads_remedy = "train these parts from random weights after from_pretrained(..., allow_new_heads=True)"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(own_config(config, self.config_class))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint, or the folder of an exported model, and checks that it fits this class.

        Args:
            **kwargs:
                Options of `PreTrainedModel.from_pretrained`, and `allow_new_heads` (`bool`, defaults to `False`):
                whether parts that the checkpoint lacks may start at random.

        Returns:
            `BlipPreTrainedModel`: The model in evaluation mode, or `(model, loading_info)` with `output_loading_info=True`.

        Raises:
            ValueError: If the checkpoint lacks whole parts of this class, or its files are damaged.
        """
        if is_export(pretrained_model_name_or_path):
            # It replaces parts of the heads, which are built on this module.
            from .exported.models import open_export

            return open_export(pretrained_model_name_or_path, cls, **kwargs)
        allow_new_heads = kwargs.pop("allow_new_heads", False)
        output_loading_info = kwargs.pop("output_loading_info", False)
        loading = {**kwargs, "output_loading_info": True}
        with _delayed_loading_logs():
            try:
                model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **loading)
            except (SafetensorError, UnpicklingError, EOFError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"The weights of {pretrained_model_name_or_path} are damaged, or hold Python objects that are not tensors:"
                    f" {reason} Download or save the checkpoint again."
                ) from error
            if not allow_new_heads:
                _refuse_wrong_class(model, info, str(pretrained_model_name_or_path))
        model._finish_loading()
        return (model, info) if output_loading_info else model

    @staticmethod
    def _finalize_model_loading(model: PreTrainedModel, load_config: Any, loading_info: Any) -> Any:
        # Before memory is taken for weights that the checkpoint does not have.
        if not load_config.ignore_mismatched_sizes:
            _refuse_other_shapes(model, loading_info.mismatched_keys, str(load_config.pretrained_model_name_or_path))
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)

    def _finish_loading(self) -> None:
        """Runs after loading: removes library defaults from generation configurations."""
        for module in self.modules():
            if isinstance(module, GenerationMixin):
                unset_library_defaults(module.generation_config)

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Resizes the image encoder's position embeddings (bicubic) to a new image size in pixels."""
        self.vision_model.resize_position_embeddings(new_num_position_embeddings)

    def get_position_embeddings(self) -> Any:
        """The image encoder's position embeddings, of shape `(1, p, d)`."""
        return self.vision_model.get_position_embeddings()


def refuse_unknown(kwargs: dict[str, Any], model: PreTrainedModel) -> None:
    """Raises `TypeError` for keyword arguments that `forward` would ignore."""
    unknown = sorted(set(kwargs) - _MACHINERY_KWARGS)
    if unknown:
        raise TypeError(
            f"{type(model).__name__}.forward() got unknown arguments: {', '.join(unknown)}. Remove them; its signature"
            " lists the accepted names."
        )


def wants_attentions(kwargs: dict[str, Any], config: PreTrainedConfig) -> bool:
    """Whether a call of `forward` or the configuration asks for attention probabilities."""
    return bool(kwargs.get("output_attentions", config.output_attentions))


def _refuse_wrong_class(model: PreTrainedModel, info: dict[str, Any], source: str) -> None:
    missing = set(info["missing_keys"])
    parameters: dict[str, list[str]] = {}
    for name in model.state_dict():
        parameters.setdefault(name.split(".")[0], []).append(name)
    tied = set(model.all_tied_weights_keys)
    heads = [name for name in (base.__name__ for base in type(model).__mro__) if name in _CLASS_PARTS]
    required = _CLASS_PARTS[heads[0]] if heads else set(parameters)
    untied = {part: set(names) - tied for part, names in parameters.items() if part in required}
    lacking = {part: names & missing for part, names in untied.items() if names & missing}
    if not lacking:
        return
    absent = {part for part, names in lacking.items() if names == untied[part]}
    if not heads and len(absent) < len(untied):
        return  # an encoder may lack a small part, such as BERT's pooler
    unexpected = {key.split(".")[0] for key in info["unexpected_keys"]}
    present = (set(parameters) - absent) | unexpected
    fitting = [name for name, parts in _CLASS_PARTS.items() if parts == present & set().union(*_CLASS_PARTS.values())]
    remedy = f"Load it with {fitting[0]}" if fitting else "Load it with the class that saved it"
    # A pre-training checkpoint stores the shared weights of encoder and decoder once, so one of them may be partial.
    names = [part if part in absent else f"some of {part}" for part in sorted(lacking)]
    raise WrongCheckpointError(
        f"{source} has no weights for {', '.join(names)} of {type(model).__name__}.",
        remedy=f"{remedy}, or {model._new_heads_remedy}.",
        model_class=type(model).__name__,
    )


def _refuse_other_shapes(model: PreTrainedModel, mismatched: set[tuple[str, Any, Any]], source: str) -> None:
    if not mismatched:
        return
    name, stored, expected = min(mismatched)
    raise WrongCheckpointError(
        f"{source} has {len(mismatched)} weights whose shapes differ from its configuration, such as {name}:"
        f" {tuple(stored)}, expected {tuple(expected)}.",
        remedy="Load it with its own config.json, or pass ignore_mismatched_sizes=True to start these weights at random.",
        model_class=type(model).__name__,
    )


@contextmanager
def _delayed_loading_logs() -> Iterator[None]:
    """Delays the logs of loading, and drops them if the checkpoint is refused with an error."""
    records: list[logging.LogRecord] = []

    def delay(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(delay)
    try:
        yield
    except WrongCheckpointError:
        records.clear()
        raise
    finally:
        logger.removeFilter(delay)
        for record in records:
            logger.handle(record)


__all__ = ["BlipPreTrainedModel", "refuse_unknown", "wants_attentions"]
