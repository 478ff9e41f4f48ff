# SPDX-License-Identifier: BSD-3-Clause
"""Base class of the BLIP models: initialisation, capabilities, and checks of loaded checkpoints."""

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Self, TypedDict

from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from ..checkpoints import WrongCheckpointError, is_export
from ..configuration_blip import BlipConfig, own_config
from ..remote_code import write_remote_code
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


class ForwardKwargs(TypedDict, total=False):
    """Keyword arguments of each `forward`."""

    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None


# Keyword arguments that transformers may pass to any `forward`.
_MACHINERY_KWARGS = {*ForwardKwargs.__annotations__, "num_items_in_batch", "use_cache"}


class BlipPreTrainedModel(PreTrainedModel):
    """Base class of the BLIP models."""

    config: PreTrainedConfig
    config_class: type[PreTrainedConfig] = BlipConfig
    base_model_prefix = "blip"
    input_modalities = ["image", "text"]
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
    # Auto class of transformers that loads the copied code of this class, see `register_for_auto_class`.
    _remote_auto_class: str | None = None

    if TYPE_CHECKING:

        def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
            """As in torch. A decorator of transformers hides its signature from type checkers."""

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
            # By name: it replaces parts of the heads, which are built on this module, and is not copied as remote code.
            exported = importlib.import_module("blip_hf.modeling.exported.models")
            return exported.open_export(pretrained_model_name_or_path, cls, **kwargs)
        allow_new_heads = kwargs.pop("allow_new_heads", False)
        output_loading_info = kwargs.pop("output_loading_info", False)
        loading = {**kwargs, "output_loading_info": True}
        with _delayed_loading_logs():
            try:
                loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **loading)
            except (SafetensorError, UnpicklingError, EOFError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"The weights of {pretrained_model_name_or_path} are damaged, or hold Python objects that are not tensors:"
                    f" {reason} Download or save the checkpoint again."
                ) from error
            model, info = loaded
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

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Makes `save_pretrained` copy the code of this class beside the weights, for `trust_remote_code=True`.

        `push_to_hub` does it by default for the classes that transformers lacks.

        Args:
            auto_class (`str` or `type`, *optional*, defaults to `"AutoModel"`):
                Auto class of transformers that loads the model.
        """
        # Not `_auto_class`, for which transformers would copy modules of one folder only.
        cls._remote_auto_class = auto_class if isinstance(auto_class, str) else auto_class.__name__

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """Saves the model, and its code if the class is registered or was loaded with `trust_remote_code=True`.

        Args:
            save_directory (`str` or `os.PathLike`):
                Folder to write.
            *args, **kwargs:
                Options of `PreTrainedModel.save_pretrained`.
        """
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if self._remote_auto_class is not None and is_main_process:
            write_remote_code(Path(save_directory), type(self), auto_class=self._remote_auto_class)

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Adds the model card and the code of a class that transformers lacks to the files of `push_to_hub`."""
        try:
            from blip_hf.hub import complete_model_folder
        except ImportError:
            pass  # code that was copied beside weights, without the package
        else:
            complete_model_folder(Path(working_dir), repo_id, source=self.name_or_path or "")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Resizes the image encoder's position embeddings (bicubic) to a new image size in pixels."""
        vision_model: Any = self.vision_model  # set by each head
        vision_model.resize_position_embeddings(new_num_position_embeddings)

    def get_position_embeddings(self) -> Any:
        """The image encoder's position embeddings, of shape `(1, p, d)`."""
        vision_model: Any = self.vision_model
        return vision_model.get_position_embeddings()


def refuse_unknown(kwargs: Mapping[str, object], model: PreTrainedModel) -> None:
    """Raises `TypeError` for keyword arguments that `forward` would ignore."""
    unknown = sorted(set(kwargs) - _MACHINERY_KWARGS)
    if unknown:
        raise TypeError(
            f"{type(model).__name__}.forward() got unknown arguments: {', '.join(unknown)}. Remove them; its signature"
            " lists the accepted names."
        )


def wants_attentions(kwargs: Mapping[str, object], config: PreTrainedConfig) -> bool:
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


__all__ = ["BlipPreTrainedModel", "ForwardKwargs", "refuse_unknown", "wants_attentions"]
