# SPDX-License-Identifier: BSD-3-Clause
import json
from collections import Counter
from itertools import islice

import pytest

from blip_hf.data.mixtures import PairMixture
from tests.support.streams import make_reader, numbered_shards, numbers_of


def make_mixture(weights=None, reader=0, num_readers=1):
    sources = {"web": numbered_shards([30, 30]), "human": numbered_shards([6, 5], captions_per_image=2)}
    streams = {
        name: make_reader(shards, reader, num_readers, id_prefix=name, transform=lambda i, c, _, n=name: (i, n + c))
        for name, shards in sources.items()
    }
    return PairMixture(streams, weights or {"web": 0.8, "human": 0.2})


def captions(pairs):
    return [pair["caption"] for pair in pairs]


@pytest.mark.parametrize("weights", [{"web": 0.8, "human": 0.2}, {"web": 4, "human": 1}])
def test_shares_are_the_weights(weights):
    found = captions(islice(make_mixture(weights), 500))

    for end in range(1, 500):
        assert abs(sum("human" in caption for caption in found[:end]) - 0.2 * end) < 1


def test_source_that_ends_starts_again_while_others_continue():
    mixture = make_mixture({"web": 0.5, "human": 0.5})
    found = Counter(captions(islice(mixture, 88)))

    assert mixture.streams["human"].epoch == 1
    assert {found[f"human{number}"] for number in range(22)} == {2}
    assert sum(count for caption, count in found.items() if "web" in caption) == 44


def test_resumed_mixture_continues_bit_for_bit():
    whole = captions(islice(make_mixture(), 200))
    stopped = make_mixture()
    first = captions(islice(stopped, 77))
    resumed = make_mixture()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))

    assert first + captions(islice(resumed, 123)) == whole


def test_resume_with_another_number_of_readers_loses_nothing():
    readers = [make_mixture(reader=reader, num_readers=2) for reader in range(2)]
    found = [caption for reader in readers for caption in captions(islice(reader, 20))]
    resumed = make_mixture()
    resumed.load_state_dict(readers[0].merge_states([reader.state_dict() for reader in readers]))
    found += captions(islice(resumed, 35))

    assert len(set(found)) == 75  # 20 and 20 before, 35 after


def test_ids_of_sources_differ():
    pairs = list(islice(make_mixture({"web": 1, "human": 1}), 40))
    ids = [{pair["image_id"] for pair in pairs if name in pair["caption"]} for name in ("web", "human")]

    assert not ids[0] & ids[1]


@pytest.mark.parametrize("weights", [{"web": 1}, {"web": 1, "human": 0}, {"web": 1, "other": 1}])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError, match="pass one above 0 for each"):
        make_mixture(weights)


def test_numbers_are_those_of_all_sources():
    assert make_mixture().num_pairs == 71
    assert len(make_mixture().captions(50)) == 50
    assert numbers_of(islice(make_reader(numbered_shards([1])), 1)) == [0]
