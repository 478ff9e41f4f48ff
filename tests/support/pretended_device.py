# SPDX-License-Identifier: BSD-3-Clause
"""A simulated device, to test the placement of tensors without an accelerator.

Its tensors compute on the CPU and report "meta", a device of every build of PyTorch. As on CUDA, an operation that mixes
devices fails. With `may_wait=False`, so does an operation that would wait for the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only


DEVICE = torch.device("meta")
# Only these move values between devices.
COPIES = {"_to_copy", "copy_", "to"}
# The host waits for these: their size or result depends on values.
WAITS = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "repeat_interleave", "unique_dim", "_unique2"}
INDEXING = {"index", "index_put", "index_put_"}


class PretendedTensor(Tensor):
    """A tensor that reports `DEVICE` and has its values on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendedTensor":
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        with torch.inference_mode(False):  # a view must not be an inference tensor if its base is not
            return Tensor._make_wrapper_subclass(cls, values.shape, device=DEVICE, **layout)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def tolist(self) -> list:
        return self.cpu().tolist()  # `Tensor.tolist` does not support subclasses

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {}, may_wait=True)


class PretendedDevice(TorchDispatchMode):
    """Creates tensors on `DEVICE`."""

    def __init__(self, may_wait: bool = True) -> None:
        super().__init__()
        self.may_wait = may_wait

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {}, may_wait=self.may_wait)


class ValuesGoThere(TorchFunctionMode):
    """Makes `torch.tensor` copy numbers to `DEVICE`, which it would not do for "meta"."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return function(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


def run(operation: Any, args: Any, kwargs: dict[str, Any], *, may_wait: bool) -> Any:
    """Runs an operation on the CPU and puts the result on the device that it would have."""
    name = operation.overloadpacket.__name__
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    on_device = [isinstance(tensor, PretendedTensor) for tensor in tensors]
    # A CPU tensor without axes counts as a number, as on CUDA.
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor) and tensor.dim() > 0]
    assert name in COPIES or not (any(on_device) and on_cpu), f"{operation} mixes devices"
    targets = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    is_there = DEVICE in targets if targets else any(on_device)
    if not may_wait:
        by_mask = name in INDEXING and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        crosses = (tensors and is_there != any(on_device)) or (is_there and name == "copy_" and on_cpu)
        waits = crosses or (any(on_device) and (name in WAITS or by_mask))
        assert not waits, f"{operation} waits for the device"
    args, kwargs = tree_map_only(torch.device, lambda device: torch.device("cpu"), (args, kwargs))
    args, kwargs = tree_map_only(PretendedTensor, lambda tensor: tensor.values, (args, kwargs))
    result = operation(*args, **kwargs)
    if not is_there:
        return result
    changed_in_place = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, PretendedTensor)}

    def there(values: Tensor) -> Tensor:
        return changed_in_place[id(values)] if id(values) in changed_in_place else PretendedTensor(values)

    return tree_map_only(Tensor, there, result)


@contextmanager
def pretended_device(may_wait: bool = True) -> Iterator[None]:
    autocast = torch.autocast  # does not support "meta"
    with (
        PretendedDevice(may_wait),
        ValuesGoThere(),
        patch("torch.autocast", lambda device, *args, **kwargs: autocast("cpu", *args, **kwargs)),
    ):
        yield


def on_cpu(value: Any) -> Any:
    return tree_map_only(PretendedTensor, lambda tensor: tensor.values, value)
