# SPDX-License-Identifier: BSD-3-Clause
import json

import pytest

from blip_hf.data.skips import BrokenDataError, SkipCounts


def make_counts(num_usable=0, **by_reason):
    counts = SkipCounts(num_usable)
    for reason, number in by_reason.items():
        for i in range(number):
            counts.add(reason, f"{reason}/{i}")
    return counts


def test_counts_by_reason_with_the_first_of_each():
    counts = make_counts(7, empty_text=2, unreadable_image=1)

    assert (counts.total, counts.num_records, counts.share()) == (3, 10, 0.3)
    assert counts.metrics() == {"num_skipped": 3, "num_skipped_by_reason": {"empty_text": 2, "unreadable_image": 1}}
    assert str(counts) == (
        "Skipped 3 of 10 records: 2 empty_text (first empty_text/0), 1 unreadable_image (first unreadable_image/0)."
    )
    assert SkipCounts().share() == 0
    assert str(SkipCounts(4)) == "Skipped none of 4 records."


def test_sum_and_state_keep_all_counts():
    parts = [make_counts(1, empty_text=1), make_counts(2, empty_text=1, huge_image=2)]
    total = SkipCounts.sum(SkipCounts.from_state(json.loads(json.dumps(part.state_dict()))) for part in parts)

    assert total.metrics()["num_skipped_by_reason"] == {"empty_text": 2, "huge_image": 2}
    assert total.num_records == 7


def test_bound_names_the_reasons():
    counts = make_counts(80, unreadable_image=20)

    counts.check(0.2)
    counts.check(0.1, min_records=101)
    with pytest.raises(BrokenDataError, match=r"20 of 100 .*20 unreadable_image.* 0.200, and max_bad_share=0.1"):
        counts.check(0.1)
