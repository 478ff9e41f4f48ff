# SPDX-License-Identifier: BSD-3-Clause
"""What a training would do: its data, steps and memory, without training."""

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..data.mixtures import PairMixture
    from ..data.pairs import PairDataset
    from ..data.streams import PairStream
    from ..training import BlipTrainer

NUM_SHOWN = 3
NUM_CHECKED = 100


def describe_run(trainer: "BlipTrainer") -> dict[str, Any]:
    """Returns counts and first records of the data, the number of steps, and an estimate of the memory.

    Raises:
        ValueError: If the run would fail: no record can be used, or the data are fewer than a batch.
    """
    from ..data.mixtures import PairMixture
    from ..data.streams import PairStream
    from ..training.memory import estimate_memory

    arguments = trainer.args
    dataset: Any = trainer.train_dataset
    eval_dataset: Any = trainer.eval_dataset
    values = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())
    num_epochs, steps_per_epoch, records_per_step, max_steps = values[0], values[1], values[4], values[6]
    is_stream = isinstance(dataset, PairStream | PairMixture)
    first = list(islice(dataset, 2)) if is_stream else [dataset[i] for i in range(min(2, len(dataset)))]
    batch = trainer.data_collator(first)
    parameters = list(trainer.model.parameters())
    return {
        "train": describe_stream(dataset) if is_stream else describe_data(dataset),
        "eval": None if eval_dataset is None else describe_data(eval_dataset),
        "num_steps": max_steps,
        "num_epochs": num_epochs,
        "steps_per_epoch": steps_per_epoch,
        "records_per_step": records_per_step,
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "device": str(arguments.device),
        "memory_gib": estimate_memory(trainer, batch, arguments.train_batch_size),
    }


def describe_stream(stream: "PairStream | PairMixture") -> dict[str, Any]:
    """Returns the number of records, if it is known, the first ones in the order of training, and counts of unusable ones."""
    pairs = list(islice(stream, NUM_CHECKED))
    return {
        "num_records": stream.num_pairs,
        "num_checked": stream.skips.num_records,
        "num_unusable": stream.skips.total,
        "first_records": [_readable(pair) for pair in pairs[:NUM_SHOWN]],
    }


def describe_data(dataset: "PairDataset") -> dict[str, Any]:
    """Returns the number of records, the first ones, and how many of some at equal distances cannot be used."""
    dataset[0]  # raises for a wrong folder
    step = max(1, len(dataset) // NUM_CHECKED)
    checked = range(0, len(dataset), step)
    return {
        "num_records": len(dataset),
        "num_checked": len(checked),
        "num_unusable": sum(dataset.get(i) is None for i in checked),
        "first_records": [_readable(dataset.pairs[i]) for i in range(min(NUM_SHOWN, len(dataset)))],
    }


def _readable(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _name_of(value) if name.startswith("image") else value for name, value in record.items()}


def _name_of(value: Any) -> Any:
    """Describes an image, which may be a path, bytes, a PIL image or a `datasets` dictionary; ids stay as they are."""
    from PIL import Image

    if isinstance(value, list):
        return [_name_of(each) for each in value]
    if isinstance(value, Image.Image):
        return f"image of {value.width}x{value.height} pixels"
    if isinstance(value, bytes):
        return f"image of {len(value)} bytes"
    if isinstance(value, Mapping):
        return value["path"] or _name_of(value["bytes"])
    return value


__all__ = ["describe_run"]
