# SPDX-License-Identifier: BSD-3-Clause
import json
import random
from collections import Counter
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from blip_hf.data.readers import find_shards
from blip_hf.data.skips import BrokenDataError
from blip_hf.data.streams import PairStream, image_number, repeat
from tests.support.streams import make_reader, numbered_shards, numbers_of, write_tar


SIZES = (7, 30, 1, 12, 0, 23)


def read_at_random(readers, num_pairs, generator):
    """Draws pairs from the readers in a random order of turns, until `num_pairs` are read or all epochs end."""
    found, iterators = [], {reader: iter(reader) for reader in readers}
    while iterators and len(found) < num_pairs:
        reader = generator.choice(list(iterators))
        pair = next(iterators[reader], None)
        if pair is None:
            del iterators[reader]
        else:
            found += numbers_of([pair])
    return found


@pytest.mark.parametrize("num_readers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("captions_per_image", [1, 3])
def test_readers_read_each_pair_once(num_readers, captions_per_image):
    shards = numbered_shards(SIZES, captions_per_image)
    parts = [numbers_of(make_reader(shards, reader, num_readers)) for reader in range(num_readers)]

    assert sorted(number for part in parts for number in part) == list(range(sum(SIZES) * captions_per_image))


def test_workers_read_each_pair_once():
    stream = PairStream(numbered_shards(SIZES))
    loader = DataLoader(stream, batch_size=None, num_workers=2)

    assert sorted(numbers_of(loader)) == list(range(sum(SIZES)))


def test_epochs_are_shuffled_differently_and_reproducibly():
    stream = make_reader(numbered_shards(SIZES))
    first, second = numbers_of(stream), numbers_of(stream)
    stream.set_epoch(0)

    assert first != sorted(first)
    assert first != second
    assert numbers_of(stream) == first


def test_neighbours_come_from_several_shards():
    order = numbers_of(make_reader(numbered_shards((40, 40, 40)), buffer_size=120))

    assert len({number // 40 for number in order[:12]}) == 3
    assert order[:5] != sorted(order[:5])


@pytest.mark.parametrize("num_pairs", [0, 1, 5, 20, 30, 60])
def test_resumed_reader_continues_bit_for_bit(num_pairs):
    shards = numbered_shards(SIZES, captions_per_image=2)
    whole = list(islice(repeat(make_reader(shards, 1, 2)), 120))
    stopped = make_reader(shards, 1, 2)
    first = list(islice(repeat(stopped), num_pairs))
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = make_reader(shards, 1, 2)
    resumed.load_state_dict(state)
    rest = list(islice(repeat(resumed), 120 - num_pairs))

    assert numbers_of(first + rest) == numbers_of(whole)


@pytest.mark.parametrize("seed", range(12))
def test_resume_with_other_numbers_of_readers_loses_and_repeats_nothing(seed):
    generator, shards = random.Random(seed), numbered_shards(SIZES, captions_per_image=2)
    found, state = [], None
    for num_readers in (generator.randint(1, 6), generator.randint(1, 6), generator.randint(1, 6), 1):
        readers = [make_reader(shards, reader, num_readers) for reader in range(num_readers)]
        if state is not None:
            for reader in readers:
                reader.load_state_dict(state)
        is_last = num_readers == 1
        found += read_at_random(readers, 10**6 if is_last else generator.randint(0, 60), generator)
        state = json.loads(json.dumps(readers[0].merge_states([reader.state_dict() for reader in readers])))
    num_epochs = {state["epoch"]}

    assert set(Counter(found).values()) <= num_epochs
    assert len(found) == state["epoch"] * sum(SIZES) * 2


def test_readers_may_be_epochs_apart_on_resume():
    shards = numbered_shards((4, 50))
    fast, slow = make_reader(shards, 0, 2), make_reader(shards, 1, 2)
    found = numbers_of(islice(repeat(fast), 90)) + numbers_of(islice(repeat(slow), 3))
    state = fast.merge_states([fast.state_dict(), slow.state_dict()])
    resumed = make_reader(shards)
    resumed.load_state_dict(state)

    assert fast.epoch >= 2
    assert Counter(found + numbers_of(resumed)) == Counter(list(range(54)) * (fast.epoch + 1))


def test_captions_of_an_image_share_its_number():
    pairs = list(make_reader(numbered_shards((3,), captions_per_image=2)))
    of_captions = {int(pair["caption"]) // 2: set() for pair in pairs}
    for pair in pairs:
        of_captions[int(pair["caption"]) // 2].add(pair["image_id"])

    assert all(len(own) == 1 for own in of_captions.values())
    assert len(set.union(*of_captions.values())) == 3
    assert image_number("web/1") != image_number("1")
    assert torch.tensor(2**61 - 1) + image_number("1") < 2**62


def test_skipped_records_are_counted_once_by_reason(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", 20, start=20 * number, broken={20 * number, 20 * number + 7})
    readers = [make_reader(find_shards(tmp_path), reader, 2, max_bad_share=1) for reader in range(2)]
    numbers = [numbers_of(reader) for reader in readers]

    assert sum(map(len, numbers)) == 54
    assert sum(reader.skips.by_reason["unreadable_image"] for reader in readers) == 6
    assert sum(reader.skips.num_records for reader in readers) == 60


def test_counts_survive_a_resume():
    shards = numbered_shards(SIZES, broken=range(5))
    stopped = make_reader(shards)
    list(islice(stopped, 60))
    resumed = make_reader(shards)
    resumed.load_state_dict(stopped.state_dict())
    list(resumed)

    assert (resumed.skips.total, resumed.skips.num_records) == (5, sum(SIZES))


def test_counts_are_merged_into_one_reader():
    shards = numbered_shards(SIZES, broken=range(5))
    readers = [make_reader(shards, reader, 3) for reader in range(3)]
    read_at_random(readers, 40, random.Random(0))
    state = readers[0].merge_states([reader.state_dict() for reader in readers])
    resumed = [make_reader(shards, reader, 2) for reader in range(2)]
    for reader in resumed:
        reader.load_state_dict(state)
        list(reader)

    num_epochs = state["epoch"] + 1
    assert sum(reader.skips.total for reader in resumed) == 5 * num_epochs
    assert sum(reader.skips.num_records for reader in resumed) == sum(SIZES) * num_epochs


def test_broken_data_stop_the_stream_with_the_reasons():
    stream = make_reader(numbered_shards([3000], broken=range(0, 3000, 5)))

    with pytest.raises(BrokenDataError, match=r"bad_record \(first shard-00.*max_bad_share=0.1"):
        list(stream)
    assert 1000 <= stream.skips.num_records < 1100


def test_fewer_bad_records_than_the_bound_do_not_stop_the_stream():
    stream = make_reader(numbered_shards([3000], broken=range(0, 3000, 20)))

    assert len(list(stream)) == 2850


def test_reader_without_usable_pairs_raises_instead_of_waiting():
    stream = make_reader(numbered_shards([5], broken=range(5)))

    with pytest.raises(ValueError, match=r"finds no usable pair\. Skipped 10 of 10 records"):
        next(repeat(stream))


def test_state_of_other_data_is_refused():
    state = make_reader(numbered_shards([5, 5])).state_dict()

    for other in (make_reader(numbered_shards([5])), make_reader(numbered_shards([5, 5]), seed=2)):
        with pytest.raises(ValueError, match="other shards, another seed"):
            other.load_state_dict(state)


def test_missing_state_of_a_reader_is_refused():
    shards = numbered_shards([5, 5])
    readers = [make_reader(shards, reader, 2) for reader in range(2)]

    with pytest.raises(ValueError, match="1 states of 2 readers"):
        readers[0].merge_states([readers[0].state_dict()])


def test_one_split_per_epoch():
    stream = make_reader(numbered_shards([4, 4, 4]), num_splits=3)
    epochs = [sorted(numbers_of(stream)) for _ in range(4)]

    assert epochs == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]
    assert stream.num_pairs == 4
    with pytest.raises(ValueError, match="3 shards, which cannot be split into 4"):
        make_reader(numbered_shards([4, 4, 4]), num_splits=4)
