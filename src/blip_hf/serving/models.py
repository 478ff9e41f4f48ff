# SPDX-License-Identifier: BSD-3-Clause
"""The models of a server, loaded from one checkpoint or from one for each head."""

import os
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from ..captioner import BlipCaptioner
from ..checkpoints import head_of, require_checkpoint
from ..devices import pick_device
from ..modeling.base import BlipPreTrainedModel
from ..modeling.cpu import optimize_for_cpu
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..modeling.vqa import BlipForQuestionAnswering
from ..processing_blip import BlipProcessor


_Model = TypeVar("_Model", bound=BlipPreTrainedModel, covariant=True)


@dataclass(frozen=True)
class LoadedModel(Generic[_Model]):
    """A model in evaluation mode, and its processor."""

    model: _Model
    processor: BlipProcessor


@dataclass(frozen=True, kw_only=True)
class ServedModels:
    """The models of a server. Endpoints of a model that is `None` answer 501.

    Args:
        captioner (`BlipCaptioner`, *optional*):
            For `/caption`. Requests choose the settings of generation; those of the captioner are not used.
        matcher (`LoadedModel`, *optional*):
            A `BlipForImageTextRetrieval` for `/match`, `/features` and the ITM probability of captions.
        vqa (`LoadedModel`, *optional*):
            A `BlipForQuestionAnswering` for `/ask`.
    """

    captioner: BlipCaptioner | None = None
    matcher: LoadedModel[BlipForImageTextRetrieval] | None = None
    vqa: LoadedModel[BlipForQuestionAnswering] | None = None

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        matcher: str | os.PathLike[str] | None = None,
        vqa: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "ServedModels":
        """Loads a checkpoint for the head that it has, and others for the other heads.

        Args:
            checkpoint (`str` or `os.PathLike`):
                Folder or model id of a captioning, retrieval or VQA model.
            matcher (`str` or `os.PathLike`, *optional*):
                Folder or model id of an image-text retrieval model.
            vqa (`str` or `os.PathLike`, *optional*):
                Folder or model id of a VQA model.
            device (`str` or `torch.device`, *optional*):
                Defaults to an accelerator (CUDA, XPU, MPS) if there is one.
            dtype (`str` or `torch.dtype`, *optional*):
                Data type of the weights. Defaults to that of the checkpoints.

        Raises:
            ValueError: If the server does not serve models of this class, or a head is given twice.
        """
        sources = {name: path for name, path in (("matcher", matcher), ("vqa", vqa)) if path is not None}
        own_head = head_of(checkpoint)
        if own_head in sources:
            raise ValueError(f"{checkpoint} is already the {own_head} of the server. Leave out --{own_head}.")
        sources[own_head] = checkpoint
        device = pick_device(device)
        models: dict[str, Any] = {}
        for head, source in sources.items():
            require_checkpoint(str(source))
            if head == "captioner":
                models[head] = BlipCaptioner.from_pretrained(source, device=device, dtype=dtype)
            else:
                model_class = BlipForImageTextRetrieval if head == "matcher" else BlipForQuestionAnswering
                models[head] = _load(model_class, source, device, dtype)
        return cls(**models)

    def processor_of(self, head: str) -> BlipProcessor:
        """The processor of a model, `"captioner"`, `"matcher"` or `"vqa"`."""
        return getattr(self, head).processor


def _load(
    model_class: type[BlipPreTrainedModel],
    source: str | os.PathLike[str],
    device: torch.device,
    dtype: str | torch.dtype | None,
) -> LoadedModel:
    model = model_class.from_pretrained(source, dtype="auto" if dtype is None else dtype).to(device).eval()
    if device.type == "cpu":
        optimize_for_cpu(model)
    return LoadedModel(model, BlipProcessor.from_pretrained(source))


__all__ = ["LoadedModel", "ServedModels"]
