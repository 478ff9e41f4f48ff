# SPDX-License-Identifier: BSD-3-Clause
import pytest

from blip_hf.data.pieces import Piece, pieces_of_epoch, split_pieces


def positions(piece, size):
    return [(piece.shard, position) for position in range(piece.start, size, piece.stride)]


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 12, 100])
@pytest.mark.parametrize("num_readers", [1, 2, 3, 4, 6, 7, 16])
def test_readers_share_all_positions_equally(num_shards, num_readers):
    own = split_pieces(pieces_of_epoch(0, num_shards, seed=0), num_readers)

    found = [[place for piece in pieces for place in positions(piece, 60)] for pieces in own]
    assert sorted(place for part in found for place in part) == [(s, i) for s in range(num_shards) for i in range(60)]
    spread = max(map(len, found)) - min(map(len, found))
    assert spread <= (60 if num_shards >= 8 * num_readers else 0.25 * 60 * num_shards / num_readers + 1)


def test_parts_of_a_part_are_disjoint():
    piece = Piece(0, 0, start=3, stride=2)
    parts = [place for part in piece.cut(3) for cut in part.cut(2) for place in positions(cut, 50)]

    assert sorted(parts) == positions(piece, 50)


def test_each_epoch_reads_one_split():
    splits = [{piece.shard for piece in pieces_of_epoch(epoch, 10, seed=0, num_splits=3)} for epoch in range(4)]

    assert splits == [{0, 3, 6, 9}, {1, 4, 7}, {2, 5, 8}, {0, 3, 6, 9}]


def test_epochs_read_shards_in_another_order():
    orders = [[piece.shard for piece in pieces_of_epoch(epoch, 20, seed=0)] for epoch in (0, 1, 0)]

    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
