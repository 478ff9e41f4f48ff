# SPDX-License-Identifier: BSD-3-Clause
"""What the page works with: its models, an index and a CapFilt run, each of which may be missing."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from ..captioner import BlipCaptioner
from ..checkpoints import require_checkpoint
from ..devices import pick_device
from ..image_utils import ImageSource
from ..modeling.cpu import optimize_for_cpu
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..modeling.vqa import BlipForQuestionAnswering
from ..processing_blip import BlipProcessor


# By the architecture in `config.json`.
_ROLES = {
    "BlipForConditionalGeneration": "captioner",
    "BlipForImageTextRetrieval": "matcher",
    "BlipForRetrievalTraining": "matcher",
    "BlipForQuestionAnswering": "vqa",
}
# The folders in the output of a pre-training.
_EXPORTS = {"captioner": "captioner", "matcher": "retriever"}


class Hit(Protocol):
    """An image that a search found: its full path, and its cosine with what was searched for."""

    image: str
    similarity: float


class SearchIndex(Protocol):
    """An index of images."""

    def search(self, text: str | None = None, *, image: ImageSource | None = None, k: int = 10) -> Sequence[Hit]:
        """The `k` images nearest to a text, an image or both, best first."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, and its processor."""

    model: PreTrainedModel
    processor: BlipProcessor


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """What the tabs of the page work with. The tab of what is `None` names the option that loads it."""

    captioner: BlipCaptioner | None = None
    matcher: LoadedModel | None = None
    vqa: LoadedModel | None = None
    index: SearchIndex | None = None
    capfilt_run: Path | None = None


def find_checkpoints(model: str | None, *, matcher: str | None = None, vqa: str | None = None) -> dict[str, str]:
    """The checkpoints of a captioner, a matcher and a VQA model, by role.

    Args:
        model (`str`, *optional*):
            Folder or model id of one of them, or the output folder of a pre-training, for its captioner and retriever.
        matcher (`str`, *optional*):
            Folder or model id of a retrieval model.
        vqa (`str`, *optional*):
            Folder or model id of a VQA model.

    Raises:
        ValueError: If a checkpoint does not exist, the page has no tab for it, or a role is given twice.
    """
    found = {} if model is None else _roles_of(model)
    for role, source in (("matcher", matcher), ("vqa", vqa)):
        if source is None:
            continue
        if found.get(role, "") == model:
            raise ValueError(f"{model} is already the model of --{role}. Leave out one of them.")
        require_checkpoint(source)
        found[role] = source
    return found


def _roles_of(source: str) -> dict[str, str]:
    exports = {role: str(Path(source, name)) for role, name in _EXPORTS.items() if Path(source, name).is_dir()}
    if exports:
        return exports
    require_checkpoint(source)
    config = json.loads(Path(cached_file(source, CONFIG_NAME)).read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or ["model without architecture"])[0]
    if architecture not in _ROLES:
        raise ValueError(
            f"{source} is a {architecture}, for which the page has no tab. Pass a captioning, retrieval or VQA model, or the"
            " output folder of a pre-training."
        )
    return {_ROLES[architecture]: source}


def load_models(
    checkpoints: dict[str, str], *, device: str | None = None, dtype: str | None = None
) -> dict[str, BlipCaptioner | LoadedModel]:
    """Loads the checkpoints of [`find_checkpoints`], as arguments of [`PageContent`]."""
    models: dict[str, Any] = {}
    for role, model_class in (("matcher", BlipForImageTextRetrieval), ("vqa", BlipForQuestionAnswering)):
        if role in checkpoints:
            models[role] = _load(model_class, checkpoints[role], device, dtype)
    if "captioner" in checkpoints:
        captioner = BlipCaptioner.from_pretrained(checkpoints["captioner"], device=device, dtype=dtype)
        models["captioner"] = captioner
    return models


def load_index(folder: str, *, device: str | None = None) -> SearchIndex:
    """Opens an index of `blip-hf index` with its model.

    Raises:
        ValueError: If the folder has no index, or the package no search.
    """
    try:
        module = importlib.import_module("blip_hf.search.index")
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder} cannot be opened: {error.name} is not installed. Leave out --index.") from error
    return module.BlipIndex.open(folder, device=device)


def _load(model_class: type[PreTrainedModel], source: str, device: str | None, dtype: str | None) -> LoadedModel:
    device = pick_device(device)
    model = model_class.from_pretrained(source, dtype="auto" if dtype is None else dtype).to(device).eval()
    if device.type == "cpu":
        optimize_for_cpu(model)
    return LoadedModel(model, BlipProcessor.from_pretrained(source))


__all__ = ["Hit", "LoadedModel", "PageContent", "SearchIndex", "find_checkpoints", "load_index", "load_models"]
