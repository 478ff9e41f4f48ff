# SPDX-License-Identifier: BSD-3-Clause
"""Fine-tuning with low-rank adapters (LoRA), by `peft`: the extra `lora`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import option


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers.modeling_utils import PreTrainedModel

    from ..training import BlipFinetuningArguments


# The attention layers of both encoders. Rank and scale are common choices, not the paper's.
TARGET_MODULES = ["qkv", "query", "value"]
# Sub-folder of the output folder.
ADAPTER = "adapter"
MIN_LEARNING_RATE = 5e-5


@dataclass(kw_only=True)
class LoraOptions:
    """Options of LoRA."""

    lora: bool = option(
        False, "Train low-rank adapters in place of all weights: saves the merged model, and the adapter in adapter/"
    )
    lora_r: int = option(16, "Rank of the adapters", "N")
    lora_alpha: float = option(32, "Scale of the adapters: their output is multiplied by alpha / rank", "X")
    lora_dropout: float = option(0.05, "Dropout of the adapters' input", "RATE")
    lora_target_modules: list[str] | None = option(
        None, f"Linear layers with adapters, by the end of their names (default: {' '.join(TARGET_MODULES)})", "NAME"
    )


def check_lora(options: LoraOptions, arguments: "BlipFinetuningArguments") -> None:
    """Raises if `peft` is missing, and warns about a learning rate for all weights. Call it before loading a model."""
    from transformers.utils import logging

    if not options.lora:
        return
    _import_peft()
    if arguments.learning_rate < MIN_LEARNING_RATE:
        logging.get_logger(__name__).warning(
            f"The learning rate is {arguments.learning_rate:g}, which suits the training of all weights. Adapters start"
            " from zero and usually need 1e-4 or more: pass `learning_rate`."
        )


def add_adapters(
    model: "PreTrainedModel", options: LoraOptions, *, base: str, modules_to_save: Sequence[str] = ()
) -> "PeftModel":
    """Freezes a model and adds adapters.

    Args:
        base (`str`):
            Checkpoint of the model, which the adapter's configuration names.
        modules_to_save (sequence of `str`, *optional*):
            Modules to train as a whole, such as a head with random weights.

    Raises:
        ValueError: If a target module does not exist.
    """
    from ..modeling.contrastive import BlipContrastiveModel

    peft = _import_peft()
    targets = options.lora_target_modules or TARGET_MODULES
    _check_targets(model, targets)
    config = peft.LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(targets),
        modules_to_save=list(modules_to_save) or None,
    )
    model.name_or_path = base  # peft stores it in the adapter
    adapted = peft.get_peft_model(model, config)
    if isinstance(model, BlipContrastiveModel):
        # Its adapters follow those of the model.
        model.momentum_towers.requires_grad_(False)
        model.reset_momentum()
    return adapted


def save_adapter(model: "PeftModel", output_dir: str) -> None:
    """Saves the adapter, without that of a momentum encoder."""
    state = {name: value for name, value in model.state_dict().items() if ".momentum_towers." not in name}
    model.save_pretrained(str(Path(output_dir, ADAPTER)), state_dict=state)


def _check_targets(model: "PreTrainedModel", targets: Sequence[str]) -> None:
    import torch

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(
            f"lora_target_modules: the model has no linear layer {unknown[0]!r}. Pass ends of names such as"
            f" {', '.join(known)}."
        )


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft, which is not installed: pip install 'blip_hf[lora]'") from error
    return peft


__all__ = ["ADAPTER", "LoraOptions", "add_adapters", "check_lora", "save_adapter"]
