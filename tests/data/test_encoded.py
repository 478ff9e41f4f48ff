# SPDX-License-Identifier: BSD-3-Clause
"""Pairs in memory train as pairs that are read do."""

import pytest
from torch.testing import assert_close

from blip_hf.data.collators import BlipCaptioningCollator, BlipMatchingCollator, BlipPretrainingCollator
from blip_hf.data.encoded import EncodedPairs, encoded_or
from blip_hf.data.pairs import PairDataset
from tests.data.test_left_out_records import make_contrastive, make_records
from tests.support.twins import tiny_capfilt


@pytest.mark.parametrize("collator_class", [BlipPretrainingCollator, BlipMatchingCollator, BlipCaptioningCollator])
def test_batches_are_those_of_pairs_that_are_read(collator_class):
    collator = collator_class(tiny_capfilt()[1])
    pairs = PairDataset(make_records(6))
    encoded = EncodedPairs(pairs, collator)
    collate = encoded_or(collator)
    for rows in ([1, 0], [4, 2], range(6)):  # captions of row + 1 words
        found, expected = collate([encoded[i] for i in rows]), collate([pairs[i] for i in rows])
        assert found.keys() == expected.keys()
        assert_close(found, expected, rtol=0, atol=0)


def test_lengths_are_those_of_the_rows():
    encoded = EncodedPairs(PairDataset(make_records(3)), BlipPretrainingCollator(tiny_capfilt()[1]))
    assert encoded.caption_lengths() == [3, 4, 5]  # of one, two and three words between [CLS] and [SEP]


def test_a_trainer_groups_them_by_length_and_knows_their_images(tmp_path, caplog):
    collator = BlipPretrainingCollator(tiny_capfilt()[1])
    encoded = EncodedPairs(PairDataset(make_records(3)), collator)
    trainer = make_contrastive(tmp_path, encoded, train_sampling_strategy="group_by_length")
    assert trainer.get_train_dataloader().batch_sampler.sampler.lengths.tolist() == [3, 4, 5]
    assert trainer.model.config.queue_size > len(encoded)
    assert "among its own negatives" not in caplog.text
    del encoded.columns["image_ids"]
    make_contrastive(tmp_path, encoded)
    assert "among its own negatives" in caplog.text
