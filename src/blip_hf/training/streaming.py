# SPDX-License-Identifier: BSD-3-Clause
"""The training loader of streams, and its state in checkpoints.

Each process reads only its own part of the data, so accelerate does not wrap the loader. Streams are endless here: a reader
that ends its part of an epoch continues with its part of the next one. Therefore no batch is cut or dropped, and processes need
no collective operation to end an epoch together. The epochs of the trainer are numbers of steps.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainingArguments

from ..data.mixtures import PairMixture
from ..data.pairs import Pair
from ..data.skips import SkipCounts
from ..data.streams import PairStream, State, repeat
from ..files import write_json


if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader


STREAM_STATE_NAME = "stream_state_{rank}.json"

Stream = PairStream | PairMixture
Collator = Callable[[Sequence[Pair]], dict[str, Any]]


def make_stream_loader(stream: Stream, collator: Any, args: TrainingArguments, batch_size: int) -> DataLoader:
    """The loader of this process. Its data set, [`StreamBatches`], has the state."""
    unchanged: Any = _unchanged  # of a batch, not of a list
    return DataLoader(StreamBatches(stream, collator, args, batch_size), batch_size=None, collate_fn=unchanged)


class StreamBatches(IterableDataset):
    """Batches of an endless stream; one iteration is an epoch of the trainer.

    torchdata's `StatefulDataLoader` sends the state of a worker with each batch, so the state is that of the last batch
    that was taken here, and not of those that workers have read ahead.
    """

    def __init__(self, stream: Stream, collator: Collator, args: TrainingArguments, batch_size: int) -> None:
        self.stream = stream
        self.rank, self.world_size = args.process_index, args.world_size
        self.batch_size = batch_size
        self.num_to_skip = 0
        self._loader = _stateful_loader(_EndlessStream(stream), collator, args, batch_size)
        self._batches: Iterator[dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Number of batches of an epoch for each process. Raises `TypeError` if the source does not know it."""
        return max(1, len(self.stream) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        num_skipped, self.num_to_skip = self.num_to_skip, 0
        # The trainer skips the batches before a checkpoint, but the state is behind them already.
        yield from [None] * num_skipped
        if self._batches is None:
            self._batches = iter(self._loader)
        length = _length_or_none(self)
        while length is None or num_skipped < length:
            num_skipped += 1
            yield next(self._batches)

    def skips(self) -> SkipCounts:
        """Counts of skipped records in the batches of this process."""
        return SkipCounts.sum(_skips_of(state) for state in _reader_states(self._loader.state_dict()))

    def save_state(self, folder: Path) -> None:
        """Writes the state of this process."""
        state = {
            "world_size": self.world_size,
            "num_workers": self._loader.num_workers,
            "loader": self._loader.state_dict(),
        }
        write_json(state, folder / STREAM_STATE_NAME.format(rank=self.rank))

    def load_state(self, folder: Path) -> None:
        """Continues from a checkpoint, also one of another number of processes or workers.

        Raises:
            ValueError: If the state of a process is missing or cannot be read.
        """
        own = _read_state(folder, 0)
        numbers = (own["world_size"], own["num_workers"])
        self._batches = None
        if numbers == (self.world_size, self._loader.num_workers):
            self._loader.load_state_dict(_read_state(folder, self.rank)["loader"])
            return
        states = [_read_state(folder, rank) for rank in range(own["world_size"])]
        readers = [reader for state in states for reader in _reader_states(state["loader"])]
        self.stream.load_state_dict(self.stream.merge_states(readers))


class _EndlessStream(IterableDataset):
    """All further epochs of a stream, with its state."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Pair]:
        return repeat(self.stream)

    def state_dict(self) -> State:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _stateful_loader(
    stream: IterableDataset, collator: Collator, args: TrainingArguments, batch_size: int
) -> "StatefulDataLoader":
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise ImportError("Streams need torchdata: pip install 'blip_hf[streams]'") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata 0.11 calls it
        return StatefulDataLoader(
            stream,
            batch_size=batch_size,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )


def _reader_states(loader_state: Mapping[str, Any]) -> list[State]:
    """The state of the stream in each worker, or in this process without workers."""
    if "_snapshot" not in loader_state:
        return [loader_state["dataset_state"]]
    return [worker["dataset_state"] for worker in loader_state["_snapshot"]["_worker_snapshots"].values()]


def _skips_of(state: Mapping[str, Any]) -> SkipCounts:
    """The counts in the state of a stream or of a mixture."""
    if "streams" in state:
        return SkipCounts.sum(_skips_of(each) for each in state["streams"].values())
    return SkipCounts.from_state(state["skips"])


def _read_state(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / STREAM_STATE_NAME.format(rank=rank)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}, the position in the training stream, cannot be read ({error}). Resume from another checkpoint, or set"
            " ignore_data_skip=True to start the stream again."
        ) from error


def _length_or_none(batches: StreamBatches) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


__all__ = ["STREAM_STATE_NAME", "Stream", "StreamBatches", "make_stream_loader"]
