# SPDX-License-Identifier: BSD-3-Clause
"""Opens the folder of an exported model: a head with the usual methods, whose parts call a runtime.

The forward, `generate` and the scores are those of the heads; only the image encoder and the text models are replaced.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ...checkpoints import EXPORT_FILE, WrongCheckpointError
from ...configuration_blip import BlipConfig, BlipTextConfig
from ..base import BlipPreTrainedModel
from ..caption import BlipForConditionalGeneration
from ..language_modeling import BlipTextLMHeadModel
from ..prompts import unset_library_defaults
from ..retrieval import BlipForImageTextRetrieval
from ..text import BlipTextPreTrainedModel
from ..vqa import BlipForQuestionAnswering, decoder_config
from .graph_names import IMAGE_ENCODER, IMAGE_MEMORY, QUESTION_MEMORY
from .parts import RuntimeTextModel, RuntimeVisionModel
from .runtimes import Runtime, open_graph


HEADS_FILE = "heads.safetensors"
DIGEST_KEY = "digest"


class _OnCpu:
    """Device and dtype of a model without parameters."""

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of pixels, features and logits."""
        return torch.float32


class ExportedModel(_OnCpu, BlipPreTrainedModel):
    """What exported heads share: they run on the CPU, and are neither trained nor saved."""

    digest: Tensor
    _graphs: Mapping[str, Runtime]

    def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]  # see BlipPreTrainedModel
        """Returns the model itself: exported graphs run on the CPU in the precision of the export."""
        return self

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the graphs contain the attention."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises `NotImplementedError`."""
        raise NotImplementedError("An exported model is not saved again. Copy its folder.")

    def _open(self, graphs: Mapping[str, Runtime], digest: str) -> None:
        self._graphs = graphs
        # Part of the state, so that runs which compare weights see another export.
        self.register_buffer("digest", torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8))


class _ExportedDecoder(_OnCpu, BlipTextLMHeadModel):
    """The text decoder. Its `bert` returns logits, so the head is empty."""

    def __init__(self, config: BlipTextConfig, graphs: Mapping[str, Runtime], memory: str) -> None:
        BlipTextPreTrainedModel.__init__(self, config)
        self.add_module("bert", RuntimeTextModel(self.config, graphs, memory=memory))
        self.add_module("cls", nn.Identity())


class ExportedCaptioner(ExportedModel, BlipForConditionalGeneration):
    """A captioner whose image encoder and text decoder are exported."""

    def __init__(self, config: BlipConfig, graphs: Mapping[str, Runtime], digest: str) -> None:
        BlipPreTrainedModel.__init__(self, config)
        self.add_module("vision_model", RuntimeVisionModel(config.vision_config, graphs[IMAGE_ENCODER]))
        self.text_decoder = _ExportedDecoder(config.text_config, graphs, IMAGE_MEMORY)
        self._open(graphs, digest)


class ExportedMatcher(ExportedModel, BlipForImageTextRetrieval):
    """A matcher whose image encoder and text encoder are exported. `last_hidden_state` of texts has [CLS] only."""

    def __init__(self, config: BlipConfig, graphs: Mapping[str, Runtime], digest: str) -> None:
        BlipPreTrainedModel.__init__(self, config)
        self.add_module("vision_model", RuntimeVisionModel(config.vision_config, graphs[IMAGE_ENCODER]))
        self.add_module("text_encoder", RuntimeTextModel(config.text_config, graphs, memory=IMAGE_MEMORY))
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, config.image_text_hidden_size)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self._open(graphs, digest)


class ExportedAnswerer(ExportedModel, BlipForQuestionAnswering):
    """A VQA model whose encoders and decoder are exported."""

    def __init__(self, config: BlipConfig, graphs: Mapping[str, Runtime], digest: str) -> None:
        BlipPreTrainedModel.__init__(self, config)
        self.add_module("vision_model", RuntimeVisionModel(config.vision_config, graphs[IMAGE_ENCODER]))
        self.add_module("text_encoder", RuntimeTextModel(config.text_config, graphs, memory=IMAGE_MEMORY))
        self.text_decoder = _ExportedDecoder(decoder_config(config.text_config), graphs, QUESTION_MEMORY)
        self._open(graphs, digest)


_EXPORTED: dict[type[BlipPreTrainedModel], Callable[..., ExportedModel]] = {
    BlipForConditionalGeneration: ExportedCaptioner,
    BlipForImageTextRetrieval: ExportedMatcher,
    BlipForQuestionAnswering: ExportedAnswerer,
}


def open_export(
    folder: str | os.PathLike[str], model_class: type[BlipPreTrainedModel], **options: Any
) -> ExportedModel:
    """Opens an exported model as a model of `model_class`, whose `from_pretrained` calls this.

    Raises:
        ValueError: If the folder holds another head, or options ask for a dtype.
        ImportError: If the runtime is not installed.
    """
    folder = Path(folder)
    manifest = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    _check(folder, manifest, model_class, options)
    config = BlipConfig.from_pretrained(folder)
    graphs = {
        name: open_graph(manifest["format"], name, folder / name, manifest["precision"]) for name in manifest["graphs"]
    }
    model = _EXPORTED[model_class](config, graphs, manifest[DIGEST_KEY])
    if (folder / HEADS_FILE).is_file():
        state = load_file(folder / HEADS_FILE)
        model.load_state_dict({**state, "digest": model.digest})
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    if model.can_generate():
        unset_library_defaults(model.generation_config)
    return model.eval()


def _check(
    folder: Path, manifest: Mapping[str, Any], model_class: type[BlipPreTrainedModel], options: Mapping[str, Any]
) -> None:
    stored = manifest["model_class"]
    if model_class not in _EXPORTED or stored != model_class.__name__:
        raise WrongCheckpointError(
            f"{folder} is an exported {stored}, not a {model_class.__name__}.",
            remedy=f"Load it with {stored}.",
            model_class=model_class.__name__,
        )
    dtype = options.get("dtype")
    if dtype not in (None, "auto", "float32", torch.float32):
        raise ValueError(
            f"dtype={dtype} does not apply to {folder}, which was exported in {manifest['precision']}. Leave it out, or"
            " export the checkpoint with another --precision."
        )


__all__ = [
    "DIGEST_KEY",
    "HEADS_FILE",
    "ExportedAnswerer",
    "ExportedCaptioner",
    "ExportedMatcher",
    "ExportedModel",
    "open_export",
]
