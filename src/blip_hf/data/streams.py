# SPDX-License-Identifier: BSD-3-Clause
"""Image-text pairs as a torch stream over shards: shuffled, split among readers, and resumed exactly.

A reader is one loader worker of one process. It reads some shards at once, each in shuffled blocks, and draws the next pair
from one of them at random. All random numbers depend only on the seed, the epoch and positions, so the state of a reader is a
position in each open shard, and nothing in a buffer is lost on resume.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset, get_worker_info

from ..distributed import rank, world_size
from ..image_utils import UnreadableImageError
from .pairs import Pair, PairTransform, SkipReporter
from .pieces import Piece, pieces_of_epoch, split_pieces
from .readers import Sample, Shard, Skipped
from .readers.remote import NUM_REQUESTS
from .readers.samples import Reason
from .skips import MAX_BAD_SHARE, MIN_RECORDS, SkipCounts, image_reason
from .text import pre_caption


if TYPE_CHECKING:
    from .mixtures import PairMixture


State = dict[str, Any]

_DRAWS_PER_CHUNK = 1024


class PairStream(IterableDataset):
    """Stream of the image-text pairs of shards, one item per caption.

    Each iteration reads the rest of the current epoch; the next one starts the next epoch. Each process and each worker of
    its loader reads its own part. A part is made of whole shards, or of every n-th pair of a shard where there are few.

    Unusable records are skipped and counted by reason. The random numbers of a pair depend only on the seed, the epoch, the
    shard and the position in it.

    Args:
        shards (sequence of `Shard`):
            The output of [`~blip_hf.data.readers.find_shards`].
        transform (`Callable`, *optional*):
            As in [`~blip_hf.data.pairs.PairDataset`].
        seed (`int`, *optional*, defaults to 0):
            Seed of the order and of the transform.
        max_words (`int`, *optional*, defaults to 30):
            Maximum number of words of a normalised caption, as in BLIP.
        normalize_captions (`bool`, *optional*, defaults to `True`):
            Whether to normalise captions with [`~blip_hf.data.text.pre_caption`].
        buffer_size (`int`, *optional*, defaults to 1024):
            Number of records that a reader holds, undecoded, to shuffle them.
        num_open_shards (`int`, *optional*, defaults to 8):
            Number of shards that a reader mixes.
        num_splits (`int`, *optional*, defaults to 1):
            Number of parts of the shards; each epoch reads one, as the paper does with LAION.
        max_bad_share (`float`, *optional*, defaults to 0.1):
            Share of skipped records that raises an error, from 1,000 records on.
        id_prefix (`str`, *optional*, defaults to `""`):
            Distinguishes the image ids of different sources.

    Raises:
        ValueError: If there are fewer shards than splits.
        BrokenDataError: During iteration, if too many records are skipped.

    Example:
        >>> from blip_hf.data.readers import find_shards
        >>> stream = PairStream(find_shards("scenes:6", shard_size=2), seed=1)
        >>> first = [pair["caption"] for pair in stream]
        >>> second = [pair["caption"] for pair in stream]
        >>> len(first), first != second, sorted(first) == sorted(second)
        (6, True, True)
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        transform: PairTransform | None = None,
        seed: int = 0,
        *,
        max_words: int = 30,
        normalize_captions: bool = True,
        buffer_size: int = 1024,
        num_open_shards: int = 8,
        num_splits: int = 1,
        max_bad_share: float = MAX_BAD_SHARE,
        id_prefix: str = "",
    ) -> None:
        if not 1 <= num_splits <= len(shards):
            raise ValueError(
                f"The source has {len(shards)} shards, which cannot be split into {num_splits} parts, one for each epoch."
                " Pass num_splits from 1 to the number of shards."
            )
        self.shards = shards
        self.transform = transform
        self.seed = seed
        self.max_words = max_words
        self.normalize_captions = normalize_captions
        self.num_open_shards = num_open_shards
        self.block_size = max(1, buffer_size // num_open_shards)
        self.num_splits = num_splits
        self.max_bad_share = max_bad_share
        self.id_prefix = id_prefix
        self.skips = SkipCounts()
        self._reporter = SkipReporter()
        self.process = (rank(), world_size())  # a worker that is spawned has no process group
        self._reader: tuple[int, int] | None = None  # number of this reader and of all readers
        self._start_epoch(0)

    @property
    def num_pairs(self) -> int | None:
        """Number of records of an epoch, if the source knows it without being read."""
        with ThreadPoolExecutor(NUM_REQUESTS) as pool:  # each may need a request to a server
            counts = list(pool.map(Shard.num_records, self.shards))
        known = [count for count in counts if count is not None]
        return sum(known) // self.num_splits if len(known) == len(counts) else None

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, unless it is the current one."""
        if epoch != self.epoch:
            self._start_epoch(epoch)

    def __len__(self) -> int:
        """`num_pairs`. Raises `TypeError` if it is unknown, as an object without a length does."""
        if self.num_pairs is None:
            raise TypeError("The number of records is only known after reading them.")
        return self.num_pairs

    def captions(self, max_captions: int) -> list[str]:
        """The first captions, from shards in random order. Opens no image."""
        found: list[str] = []
        for piece in pieces_of_epoch(0, len(self.shards), seed=self.seed):
            for item in self.shards[piece.shard].samples(checks_images=False):
                found += item.texts if isinstance(item, Sample) else ()
                if len(found) >= max_captions:
                    return found[:max_captions]
        return found

    def __iter__(self) -> Iterator[Pair]:
        self._identify()
        own = self._own_pieces()
        draws = self._draws(self._num_draws)
        items = [self._items(own[number], start) for number, start in self._opened]
        while True:
            while len(items) < self.num_open_shards and self._num_started < len(own):
                piece = own[self._num_started]
                self._opened.append([self._num_started, piece.start])
                items.append(self._items(piece, piece.start))
                self._num_started += 1
            if not items:
                break
            slot = int(next(draws) * len(items))
            self._num_draws += 1
            found = next(items[slot], None)
            if found is None:
                del items[slot], self._opened[slot]
                continue
            piece = own[self._opened[slot][0]]
            position, item = found
            self._opened[slot][1] = position + piece.stride
            pair = self._prepare(piece, position, *item)
            if pair is not None:
                yield pair
        self._start_epoch(self.epoch + 1)

    # Order

    def _start_epoch(self, epoch: int, backlog: list[list[int]] | None = None) -> None:
        self.epoch = epoch
        self._backlog = backlog  # the rest of the epoch for all readers, after a resume with another number of readers
        self._num_started = 0  # of own pieces
        self._opened: list[list[int]] = []  # number of the piece, and the next position
        self._num_draws = 0

    def _identify(self) -> tuple[int, int]:
        """Finds the number of this reader, once."""
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        reader = (self.process[0] * num_workers + worker, self.process[1] * num_workers)
        if self._reader is None:
            self._reader = reader
            if reader[0] > 0:
                self.skips = SkipCounts()  # the counts before a resume belong to the first reader
        elif self._reader != reader:
            raise ValueError(
                f"The state belongs to reader {self._reader[0]} of {self._reader[1]}, not {reader[0]} of {reader[1]}. Load"
                " the output of `merge_states` for another number of processes or workers."
            )
        return reader

    def _own_pieces(self) -> list[Piece]:
        reader, num_readers = self._identify()
        return split_pieces(self._all_pieces(self.epoch, self._backlog), num_readers)[reader]

    def _all_pieces(self, epoch: int, backlog: list[list[int]] | None = None) -> list[Piece]:
        if backlog is not None:
            return [Piece(*fields) for fields in backlog]
        return pieces_of_epoch(epoch, len(self.shards), seed=self.seed, num_splits=self.num_splits)

    def _draws(self, first: int) -> Iterator[float]:
        """Random numbers of this reader in this epoch, from the `first` on."""
        chunk, position = divmod(first, _DRAWS_PER_CHUNK)
        while True:
            generator = random.Random(f"{self.seed}/{self.epoch}/{self._reader}/{chunk}")
            yield from [generator.random() for _ in range(_DRAWS_PER_CHUNK)][position:]
            chunk, position = chunk + 1, 0

    def _items(self, piece: Piece, start: int) -> Iterator[tuple[int, tuple[Sample | Skipped, int]]]:
        """Positions and items of a piece from `start` on: a sample with the number of its text, or a skipped record."""
        position = 0
        for number, block in enumerate(self._blocks(self.shards[piece.shard])):
            if position + len(block) > start:
                generator = random.Random(f"{self.seed}/{piece.epoch}/{piece.shard}/{number}")
                generator.shuffle(block)
                for place in range(
                    max(start - position, -(position - start) % piece.stride), len(block), piece.stride
                ):
                    yield position + place, block[place]
            position += len(block)

    def _blocks(self, shard: Shard) -> Iterator[list[tuple[Sample | Skipped, int]]]:
        block: list[tuple[Sample | Skipped, int]] = []
        num_records = 0
        for item in shard.samples(checks_images=False):
            block += [(item, text) for text in range(len(item.texts) if isinstance(item, Sample) else 1)]
            num_records += 1
            if num_records == self.block_size:
                yield block
                block, num_records = [], 0
        yield block

    # Pairs

    def _prepare(self, piece: Piece, position: int, item: Sample | Skipped, text: int) -> Pair | None:
        if isinstance(item, Skipped):
            self._skip(item.sample_id, item.reason, item.detail)
            return None
        caption = item.texts[text]
        if self.normalize_captions:
            caption = pre_caption(caption, max_words=self.max_words)
        try:
            image = item.open_image()
        except UnreadableImageError as error:
            self._skip(item.sample_id, image_reason(error.kind), str(error))
            return None
        if self.transform is not None:
            place = f"{self.seed}/{piece.epoch}/{self.shards[piece.shard].name}/{position}"
            image, caption = self.transform(image, caption, random.Random(place))
        self.skips.num_usable += 1
        return {"image": image, "caption": caption, "image_id": image_number(f"{self.id_prefix}{item.image_id}")}

    def _skip(self, sample_id: str, reason: Reason, detail: str) -> None:
        self.skips.add(reason, sample_id)
        self._reporter.report(detail if sample_id in detail else f"{sample_id}: {detail}")
        self.skips.check(self.max_bad_share, min_records=MIN_RECORDS)

    # State

    def state_dict(self) -> State:
        """The position in the epoch and the counts of skipped records of this reader, which JSON can store."""
        return {
            "source": self._identity(),
            "reader": list(self._identify()),
            "epoch": self.epoch,
            "backlog": self._backlog,
            "num_started": self._num_started,
            "opened": [list(each) for each in self._opened],
            "num_draws": self._num_draws,
            "skips": self.skips.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of the same reader, or from the output of [`merge_states`].

        Raises:
            ValueError: If the state belongs to other data, another seed or another buffer.
        """
        self._check_source(state)
        self._start_epoch(state["epoch"], state["backlog"])
        self._reader = None if state["reader"] is None else tuple(state["reader"])
        self._num_started = state["num_started"]
        self._opened = [list(each) for each in state["opened"]]
        self._num_draws = state["num_draws"]
        self.skips = SkipCounts.from_state(state["skips"])

    def merge_states(self, states: Sequence[Mapping[str, Any]]) -> State:
        """One state for any number of readers, from those of all readers: what they have not read is split again.

        Raises:
            ValueError: If the state of a reader is missing.
        """
        num_readers = states[0]["reader"][1]
        if sorted(state["reader"][0] for state in states) != list(range(num_readers)):
            raise ValueError(f"Got {len(states)} states of {num_readers} readers; pass that of each reader once.")
        last_epoch = max(state["epoch"] for state in states)
        left = [piece for state in states for piece in self._left(state, last_epoch)]
        left.sort(key=lambda piece: piece.epoch)
        return {
            "source": self._identity(),
            "reader": None,
            "epoch": last_epoch,
            "backlog": [piece.to_list() for piece in left],
            "num_started": 0,
            "opened": [],
            "num_draws": 0,
            "skips": SkipCounts.sum(SkipCounts.from_state(state["skips"]) for state in states).state_dict(),
        }

    def _left(self, state: Mapping[str, Any], last_epoch: int) -> list[Piece]:
        """What a reader has not read up to the end of `last_epoch`. Readers may be in different epochs."""
        self._check_source(state)
        reader, num_readers = state["reader"]
        own = split_pieces(self._all_pieces(state["epoch"], state["backlog"]), num_readers)[reader]
        left = [
            Piece(own[number].epoch, own[number].shard, start, own[number].stride) for number, start in state["opened"]
        ]
        left += own[state["num_started"] :]
        for epoch in range(state["epoch"] + 1, last_epoch + 1):
            left += split_pieces(self._all_pieces(epoch), num_readers)[reader]
        return left

    def _identity(self) -> str:
        """Changes with what the order depends on."""
        names = [shard.name for shard in self.shards]
        fields = (names, self.seed, self.block_size, self.num_splits)
        return blake2b(repr(fields).encode(), digest_size=16).hexdigest()

    def _check_source(self, state: Mapping[str, Any]) -> None:
        if state["source"] != self._identity():
            raise ValueError(
                f"The state belongs to a stream with other shards, another seed or another buffer; this one has"
                f" {len(self.shards)} shards from {self.shards[0].name} on. Resume with the data and options of the run,"
                " or start a new one."
            )


def repeat(stream: "PairStream | PairMixture") -> Iterator[Pair]:
    """The pairs of all further epochs.

    Raises:
        ValueError: If this reader finds no usable pair in two epochs, which would continue for ever.
    """
    num_empty = 0
    while num_empty < 2:
        num_empty += 1
        for pair in stream:
            num_empty = 0
            yield pair
    raise ValueError(
        f"A reader of the stream finds no usable pair. {stream.skips} Repair the data, or use fewer loader workers and"
        " processes."
    )


def image_number(image_id: str) -> int:
    """A number of 61 bits, equal for equal ids. Leaves room to shift the ids of an evaluation set past those in a queue."""
    return int.from_bytes(blake2b(image_id.encode(), digest_size=8).digest()) >> 3


__all__ = ["PairStream", "State", "image_number", "repeat"]
