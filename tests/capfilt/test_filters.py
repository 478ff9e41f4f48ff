# SPDX-License-Identifier: BSD-3-Clause
"""The texts that a filter rule keeps."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from blip_hf.capfilt.filters import Rule, find_cutoffs, keep_mask, rule_scores, with_filter_temperature
from blip_hf.capfilt.scores import RunFolder, read_scores, write_scores
from tests.support.scores import score_row, table_of


def score_table(rows: list[tuple]) -> pa.Table:
    """Rows of `(image_id, source, itm)`, with ITC in the reverse order of ITM."""
    return table_of(
        score_row(
            f"s/{image_id}", image_id, "a text", source, itm, itc=None if itm is None else -itm, text_index=index
        )
        for index, (image_id, source, itm) in enumerate(rows)
    )


def random_table(seed: int, num_texts: int = 500, num_images: int = 200) -> pa.Table:
    rng = np.random.default_rng(seed)
    images = np.sort(rng.integers(num_images, size=num_texts))
    sources = rng.choice(["web", "synthetic"], size=num_texts)
    scores = rng.normal(size=num_texts)  # not probabilities: negative scores are ordered too
    return score_table(list(zip(map(str, images), sources.tolist(), scores.tolist(), strict=True)))


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy(zero_copy_only=False)


def split(table: pa.Table, rows: int) -> list[pa.Table]:
    return [table.slice(start, rows) for start in range(0, len(table), rows)]


def test_texts_with_itm_probability_of_at_least_half_are_kept():
    rows = [("a", "web", 0.49), ("a", "synthetic", 0.5), ("b", "web", 0.51), ("b", "human", 1.0)]
    # Independent of the image's other texts; human texts are not filtered by default.
    assert keep_mask(score_table(rows), Rule()).tolist() == [False, True, True, False]


def test_thresholds_are_compared_as_the_scores_are_stored():
    assert keep_mask(score_table([("a", "web", 0.3)]), Rule(threshold=0.3)).tolist() == [True]


@pytest.mark.parametrize(("sources", "expected"), [(["web"], [True, False]), (("synthetic",), [False, True])])
def test_web_or_synthetic_texts_can_be_kept_alone(sources, expected):
    table = score_table([("a", "web", 0.9), ("a", "synthetic", 0.9)])
    assert keep_mask(table, Rule(sources=sources)).tolist() == expected


def test_cosine_similarity_can_be_the_filter_score():
    table = score_table([("a", "web", 0.9), ("a", "web", 0.1)])
    assert keep_mask(table, Rule(threshold=-0.5, by="itc")).tolist() == [False, True]


@pytest.mark.parametrize("rule", [Rule(threshold=-10), Rule(keep_share=1.0)])
def test_texts_without_a_score_are_dropped(rule):
    table = score_table([("a", "web", None), ("a", "web", math.nan), ("a", "web", 0.1)])
    assert keep_mask(table, rule).tolist() == [False, False, True]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.001, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_keep_share_keeps_the_best_texts_of_each_source(seed, share):
    table = random_table(seed)
    mask = keep_mask(table, Rule(keep_share=share))
    for source in ("web", "synthetic"):
        is_own = column(table, "source") == source
        scores = column(table, "itm")[is_own]
        num_kept = round(share * len(scores))
        np.testing.assert_array_equal(mask[is_own], np.isin(scores, np.sort(scores)[len(scores) - num_kept :]))


def test_keep_share_applies_to_the_whole_dataset_not_each_shard():
    table = random_table(0)
    rule = Rule(keep_share=0.3)
    order = np.argsort(column(table, "itm"))  # so that shards differ as much as possible
    table = table.take(order)
    shards = split(table, 70)
    cutoffs = find_cutoffs(rule, lambda: shards)
    mask = np.concatenate([keep_mask(shard, rule, cutoffs) for shard in shards])
    np.testing.assert_array_equal(mask, keep_mask(table, rule))
    assert not keep_mask(shards[0], rule, cutoffs).any()


def test_texts_tied_with_the_last_kept_text_are_kept():
    table = score_table([("a", "web", 0.2), ("b", "web", 0.7), ("c", "web", 0.7), ("d", "web", 0.7)])
    assert keep_mask(table, Rule(keep_share=0.5)).tolist() == [False, True, True, True]


def test_fixed_threshold_needs_no_pass_over_the_data():
    assert find_cutoffs(Rule(threshold=0.4), lambda: pytest.fail("was read")) == {"web": 0.4, "synthetic": 0.4}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", [Rule(threshold=0.0), Rule(keep_share=0.5)])
def test_best_per_image_keeps_only_the_best_text(seed, rule):
    table = random_table(seed)
    all_that_pass = keep_mask(table, rule)
    mask = keep_mask(table, dataclasses.replace(rule, best_per_image=True))
    images, scores = column(table, "image_id"), column(table, "itm")
    assert not (mask & ~all_that_pass).any()
    for image in np.unique(images):
        passed, left = scores[all_that_pass & (images == image)], scores[mask & (images == image)]
        assert left.tolist() == [passed.max()] if len(passed) else len(left) == 0


def test_best_per_image_breaks_ties_by_order():
    table = score_table([("a", "web", 0.6), ("a", "synthetic", 0.9), ("a", "synthetic", 0.9)])
    assert keep_mask(table, Rule(best_per_image=True)).tolist() == [False, True, False]


def test_an_empty_shard_keeps_nothing():
    for rule in (Rule(), Rule(keep_share=0.5), Rule(best_per_image=True)):
        assert keep_mask(score_table([]), rule).tolist() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_share": 0.0}, "keep_share=0.0 is not a share"),
        ({"keep_share": 1.5}, "keep_share=1.5 is not a share"),
        ({"sources": ("net",)}, "expected some of 'web'"),
        ({"sources": ()}, "expected some of 'web'"),
        ({"by": "lm"}, "expected 'itm', 'itc' or 'posterior'"),
        ({"threshold": math.nan}, "threshold=nan"),
    ],
)
def test_invalid_filter_rules_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        Rule(**fields)


def test_scores_round_trip_through_parquet(tmp_path):
    table = random_table(3)
    run = RunFolder(tmp_path)
    write_scores(table, run.scores("b"))
    write_scores(table.slice(0, 2), run.scores("a"))
    assert read_scores(run.scores("b")).equals(table)
    assert [len(shard) for shard in run.tables()] == [2, 500]
    content = run.scores("b").read_bytes()
    write_scores(pa.concat_tables(split(table, 100)), run.scores("b"))
    assert run.scores("b").read_bytes() == content


def test_the_posterior_is_the_log_odds_plus_the_cosine_over_the_temperature():
    pairs = [(0.9, 0.2), (0.1, 0.5), (0.5, -0.3)]
    table = table_of(
        score_row(f"s/{number}", str(number), "a text", "web", itm, itc=itc) for number, (itm, itc) in enumerate(pairs)
    )
    expected = [math.log(itm / (1 - itm)) + itc / 0.1 for itm, itc in pairs]
    rule = Rule(by="posterior", itm_temperature=0.1, threshold=3)
    assert rule_scores(table, rule) == pytest.approx(expected, rel=1e-5)
    # 2.2 + 2, -2.2 + 5, 0 - 3
    assert keep_mask(table, rule).tolist() == [True, False, False]
    assert keep_mask(table, Rule(by="posterior", itm_temperature=0.1, keep_share=2 / 3)).tolist() == [
        True,
        True,
        False,
    ]


def test_the_posterior_of_rounded_probabilities_is_ordered_by_the_cosine():
    rows = [(1.0, 0.3), (1.0, 0.2), (0.0, 0.9), (None, None), (1 - 2**-24, 0.3)]
    table = table_of(
        score_row(f"s/{number}", str(number), "a text", "web", itm, itc=itc) for number, (itm, itc) in enumerate(rows)
    )
    rule = Rule(by="posterior", keep_share=0.5)
    scores = rule_scores(table, rule)
    assert scores[0] == scores[4] == pytest.approx(24 * math.log(2) + 0.3 / 0.07, rel=1e-5)
    assert scores[0] > scores[1]
    assert scores[2] == -math.inf
    assert math.isnan(scores[3])
    assert keep_mask(table, rule).tolist() == [True, False, False, False, True]


def test_the_posterior_has_no_default_threshold():
    with pytest.raises(ValueError, match="by='posterior' needs a minimum score"):
        Rule(by="posterior")
    assert Rule().threshold == Rule(by="itc").threshold == 0.5


def test_a_rule_by_the_posterior_takes_the_temperature_of_the_filter():
    rule, models = Rule(by="posterior", threshold=0), {"filter": {"itm_temperature": 0.3}}
    assert with_filter_temperature(rule, models).itm_temperature == 0.3
    own = dataclasses.replace(rule, itm_temperature=0.2)
    assert with_filter_temperature(own, models) == own
    assert with_filter_temperature(rule, {"filter": {}}).itm_temperature == 0.07  # of an earlier version
    assert with_filter_temperature(Rule(), models) == Rule()
