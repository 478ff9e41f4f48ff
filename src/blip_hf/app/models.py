# SPDX-License-Identifier: BSD-3-Clause
"""What the page works with: its models, an index and a CapFilt run, each of which may be missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..captioner import BlipCaptioner
from ..checkpoints import head_of, require_checkpoint
from ..search.index import BlipIndex
from ..serving.models import LoadedModel, ServedModels


# The folders in the output of a pre-training.
_PARTS = {"captioner": "captioner", "matcher": "retriever"}


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """What the tabs of the page work with. The tab of what is `None` names the option that loads it."""

    captioner: BlipCaptioner | None = None
    matcher: LoadedModel | None = None
    vqa: LoadedModel | None = None
    index: BlipIndex | None = None
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


__all__ = ["PageContent", "find_checkpoints", "load_models"]
