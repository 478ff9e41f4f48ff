# SPDX-License-Identifier: BSD-3-Clause
"""Batches of encoded pairs equal those of pairs that are read."""

import pytest
from torch.testing import assert_close

from blip_hf.data.collators import BlipCaptioningCollator, BlipMatchingCollator, BlipPretrainingCollator
from blip_hf.data.encoded import EncodedPairs
from blip_hf.data.pairs import PairDataset
from tests.support.tiny_models import tiny_capfilt
from tests.support.trainers import make_contrastive_trainer, make_records


@pytest.fixture(scope="module")
def collator():
    return BlipPretrainingCollator(tiny_capfilt()[1])


@pytest.mark.parametrize("collator_class", [BlipPretrainingCollator, BlipMatchingCollator, BlipCaptioningCollator])
def test_encoded_batches_equal_batches_of_pairs(collator_class):
    collator = collator_class(tiny_capfilt()[1])
    pairs = PairDataset(make_records(6))
    encoded = EncodedPairs(pairs, collator)
    for rows in ([1, 0], [4, 2], range(6)):  # captions of row + 1 words
        found, expected = EncodedPairs.collate([encoded[i] for i in rows]), collator([pairs[i] for i in rows])
        assert found.keys() == expected.keys()
        assert_close(found, expected, rtol=0, atol=0)


def test_lengths_are_in_tokens(collator):
    encoded = EncodedPairs(PairDataset(make_records(3)), collator)
    assert encoded.caption_lengths() == [3, 4, 5]  # of one, two and three words between [CLS] and [SEP]


def test_unusable_records_are_skipped_even_in_whole_chunks(collator, monkeypatch):
    monkeypatch.setattr("blip_hf.data.encoded._CHUNK_SIZE", 2)
    encoded = EncodedPairs(PairDataset(make_records(7, broken=(0, 4, 5))), collator)
    assert encoded.columns["image_ids"].tolist() == [1, 2, 3, 6]
    assert (len(encoded), encoded.num_skipped, encoded.captions[0]) == (4, 3, "a b")
    with pytest.raises(ValueError, match="None of the 3 records"):
        EncodedPairs(PairDataset(make_records(3, broken=range(3))), collator)


def test_equal_captions_share_an_id_on_request(collator):
    records = [{**record, "caption": caption} for record, caption in zip(make_records(4), "abac", strict=True)]
    encoded = EncodedPairs(PairDataset(records), collator, equal_captions_share_id=True)
    assert encoded.columns["image_ids"].tolist() == [0, 1, 0, 2]


def test_trainer_trains_on_encoded_pairs_grouped_by_length(collator, tmp_path, caplog):
    encoded = EncodedPairs(PairDataset(make_records(3, broken=(1,))), collator)
    trainer = make_contrastive_trainer(tmp_path, encoded, encoded, train_sampling_strategy="group_by_length")
    trainer.data_collator = EncodedPairs.collate
    trainer.train()
    assert trainer.state.log_history[0]["num_skipped"] == 1
    assert trainer.get_train_dataloader().batch_sampler.sampler.lengths.tolist() == [3, 5]
    assert trainer.evaluate()["eval_loss"] > 0


def test_image_ids_decide_whether_a_long_queue_warns(collator, tmp_path, caplog):
    encoded = EncodedPairs(PairDataset(make_records(3)), collator)
    assert make_contrastive_trainer(tmp_path, encoded).model.config.queue_size > len(encoded)
    assert "one of its own negatives" not in caplog.text
    del encoded.columns["image_ids"]
    make_contrastive_trainer(tmp_path, encoded)
    assert "one of its own negatives" in caplog.text
