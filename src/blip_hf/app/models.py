# SPDX-License-Identifier: BSD-3-Clause
"""What the page works with: its models, an index and a CapFilt run, each of which may be missing."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..captioner import BlipCaptioner
from ..checkpoints import head_of, require_checkpoint
from ..image_utils import ImageSource
from ..serving.models import LoadedModel, ServedModels


# The folders in the output of a pre-training.
_PARTS = {"captioner": "captioner", "matcher": "retriever"}


class Hit(Protocol):
    """An image that a search found: its full path, and its cosine with what was searched for."""

    image: str
    similarity: float


class SearchIndex(Protocol):
    """An index of images."""

    def search(self, text: str | None = None, *, image: ImageSource | None = None, k: int = 10) -> Sequence[Hit]:
        """The `k` images nearest to a text, an image or both, best first."""


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
    parts = {role: str(Path(source, name)) for role, name in _PARTS.items() if Path(source, name).is_dir()}
    if parts:
        return parts
    return {head_of(source): source}


def load_models(checkpoints: dict[str, str], *, device: str | None = None, dtype: str | None = None) -> dict[str, Any]:
    """Loads the checkpoints of [`find_checkpoints`], as arguments of [`PageContent`]."""
    if not checkpoints:
        return {}
    first = "captioner" if "captioner" in checkpoints else next(iter(checkpoints))
    others = {role: source for role, source in checkpoints.items() if role != first}
    models = ServedModels.from_pretrained(checkpoints[first], **others, device=device, dtype=dtype)
    return {role: getattr(models, role) for role in checkpoints}


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


__all__ = ["Hit", "PageContent", "SearchIndex", "find_checkpoints", "load_index", "load_models"]
