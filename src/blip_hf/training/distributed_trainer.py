# SPDX-License-Identifier: BSD-3-Clause
"""Trainer that shards any model with FSDP2, and resumes with another number of processes."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import StateDictType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import safe_globals

from ..modeling.base import BlipPreTrainedModel
from .lost_processes import naming_lost_processes
from .resharding import (
    has_whole_weights,
    is_sharded,
    load_optimizer,
    load_sharded_weights,
    load_whole_weights,
    whole_state_dict,
)


class DistributedTrainer(Trainer):
    """Extends `transformers.Trainer` by FSDP2 for models with shared parameters, scalars and momentum encoders."""

    model: BlipPreTrainedModel  # or the wrapper of peft
    optimizer: Optimizer  # once training starts
    lr_scheduler: LambdaLR

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._whole_class = type(self.model)
        self._sharded_groups: list[list[nn.Parameter]] = []
        if self._uses_fsdp2:
            self._check_sharding()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; if another process dies or hangs, the error names it."""
        with naming_lost_processes(self.args.ddp_timeout):
            return super().train(*args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Creates the accelerator, and enables FSDP on CPUs too, where accelerate (1.15) ignores it."""
        super().create_accelerator_and_postprocess()
        is_asked_for = (
            self.args.fsdp_plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        )
        if is_asked_for and not self.is_fsdp_enabled and self.args.world_size > 1:
            state = self.accelerator.state
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    @property
    def _uses_fsdp2(self) -> bool:
        return self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version == 2

    def _check_sharding(self) -> None:
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.activation_checkpointing:
            raise ValueError(
                "fsdp_activation_checkpointing is set, but BLIP's layers do their own. Set it to false and pass"
                " `--gradient_checkpointing`."
            )
        if plugin.state_dict_type != StateDictType.SHARDED_STATE_DICT:
            raise ValueError(
                f"fsdp_state_dict_type is {plugin.state_dict_type.name}, but checkpoints of FSDP2 are sharded. Set it to"
                " SHARDED_STATE_DICT; the model in the output folder is gathered to model.safetensors anyway."
            )
        if not isinstance(self.model, PreTrainedModel):
            raise ValueError(
                "LoRA does not train with FSDP2, whose checkpoints would lack the frozen weights and the queue. Use DDP"
                " (examples/accelerate/ddp.yaml), where only the adapters have gradients and optimizer state."
            )

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Shards the model before accelerate would do it, and creates the optimizer of the shards."""
        if self._uses_fsdp2:
            self._shard()
        return super()._prepare_for_training(*args, **kwargs)

    def _shard(self) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, OffloadPolicy

        from .sharding import shard_model

        plugin, mesh = self.accelerator.state.fsdp_plugin, self.accelerator.torch_device_mesh
        plugin.auto_wrap_policy = None  # accelerate would look for the layers again
        if mesh is None:
            mesh = torch.distributed.init_device_mesh(self.args.device.type, (self.args.world_size,))
        else:
            mesh = mesh[tuple(self.accelerator.parallelism_config.fsdp_dim_names)]
        shard_model(
            self.model.to(self.args.device),
            mesh=mesh,
            reshard_after_forward=plugin.reshard_after_forward,
            # Parameters on CPUs cannot be offloaded to them.
            offload_policy=OffloadPolicy() if self.args.device.type == "cpu" else plugin.cpu_offload,
            mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        )
        optimizer = self.create_optimizer()
        self._sharded_groups = [list(group["params"]) for group in optimizer.param_groups]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # accelerate identifies parameters by address, but all empty shards have the same one.
        for group, parameters in zip(self.optimizer.param_groups, self._sharded_groups, strict=False):
            group["params"] = parameters
        if checkpoint is None or not self._is_other_kind(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.model, _inner(self.optimizer), checkpoint)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, "scheduler.pt"), weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._is_other_kind(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif self._uses_fsdp2:
            load_whole_weights(self.model, Path(resume_from_checkpoint, "model.safetensors"))
        else:
            load_sharded_weights(self.model, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restores the random state, with another number of processes that of the first process."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        names = [f"rng_state_{self.args.process_index}.pth"] if self.args.world_size > 1 else ["rng_state.pth"]
        names += ["rng_state_0.pth", "rng_state.pth"]
        found = next((name for name in names if Path(checkpoint, name).is_file()), names[0])
        if found != names[0]:
            with safe_globals():
                state = torch.load(Path(checkpoint, found), weights_only=True)
            random.setstate(state["python"])
            np.random.set_state(state["numpy"])
            torch.random.set_rng_state(state["cpu"])

    def _is_other_kind(self, checkpoint: str | os.PathLike[str]) -> bool:
        """Whether a whole model resumes from a sharded checkpoint, or a sharded model from a whole one."""
        return has_whole_weights(checkpoint) if self._uses_fsdp2 else is_sharded(checkpoint)

    def gather_model(self) -> None:
        """Replaces a sharded model by the whole one, on each process, to save, export and evaluate it."""
        if not self._uses_fsdp2 or type(self.model) is self._whole_class:
            return
        state = whole_state_dict(self.model)
        self.model = self.model_wrapped = self._whole_class(self.model.config).to(self.args.device)
        self.model.load_state_dict(state)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model for `from_pretrained`; a checkpoint of FSDP2 has its shards instead."""
        if self.is_deepspeed_enabled and not is_deepspeed_zero3_enabled():
            # Each process has all weights. DeepSpeed would save tied ones twice.
            if self.args.should_save:
                self._save(output_dir)
            return
        if not self._uses_fsdp2 or _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        self.gather_model()
        if self.args.should_save:
            self._save(output_dir)


def _inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside the wrapper of accelerate."""
    return getattr(optimizer, "optimizer", optimizer)


__all__ = ["DistributedTrainer"]
