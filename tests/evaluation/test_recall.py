# SPDX-License-Identifier: BSD-3-Clause
"""Retrieval recalls against values computed by hand, a plain loop and random rankings."""

import numpy as np
import pytest
import torch

from blip_hf.evaluation.recall import (
    best_ranks,
    chance_recalls,
    listed_ranks,
    rank_metrics,
    relevance_matrix,
    retrieval_recalls,
)


# Texts 0 and 1 describe image 0, text 2 image 1, text 3 image 2.
TEXT_TO_IMAGE = [0, 0, 1, 2]
SCORES = torch.tensor(
    [
        [0.1, 0.9, 0.5, 0.3],
        [0.8, 0.7, 0.6, 0.2],
        [0.2, 0.4, 0.3, 0.1],
    ]
)


def recalls_by_loop(scores: torch.Tensor, relevance: torch.Tensor, k: int) -> float:
    """Sorts each row, irrelevant before relevant for equal scores, and checks the first `k`."""
    hits = 0
    for row, relevant in zip(scores.tolist(), relevance.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], relevant[j]))
        hits += any(relevant[j] for j in order[:k])
    return hits / len(scores)


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with many ties; images have several relevant texts, and texts several images."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (13, 29), generator=generator).double()
    relevance = torch.rand(13, 29, generator=generator) < 0.1
    relevance[torch.arange(29) % 13, torch.arange(29)] = True
    return scores, relevance


def test_recalls_match_values_computed_by_hand() -> None:
    # Image 0: best own text 0.9, nothing above: rank 0. Image 1: own 0.6 behind 0.8 and 0.7: rank 2.
    # Image 2: own 0.1 behind 0.4, 0.3, 0.2: rank 3.
    # Text 0: own 0.1 behind 0.8, 0.2: rank 2. Text 1: own 0.9: rank 0. Text 2: own 0.6: rank 0.
    # Text 3: own 0.1 behind 0.3, 0.2: rank 2.
    recalls = retrieval_recalls(SCORES, TEXT_TO_IMAGE, ks=(1, 3))
    assert recalls == pytest.approx(
        {
            "image_to_text_r@1": 1 / 3,
            "image_to_text_r@3": 2 / 3,
            "text_to_image_r@1": 2 / 4,
            "text_to_image_r@3": 4 / 4,
            "r_mean": (1 / 3 + 2 / 3 + 2 / 4 + 1) / 4,
        }
    )


def test_default_keys_are_both_directions_at_1_5_10_and_the_mean() -> None:
    expected = [f"{direction}_r@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert list(retrieval_recalls(SCORES, TEXT_TO_IMAGE)) == [*expected, "r_mean"]
    assert list(chance_recalls(relevance_matrix(TEXT_TO_IMAGE, 3))) == [*expected, "r_mean"]


def test_arrays_and_tensors_give_the_same_recalls() -> None:
    expected = retrieval_recalls(SCORES, TEXT_TO_IMAGE)
    assert retrieval_recalls(SCORES.numpy(), np.array(TEXT_TO_IMAGE)) == expected
    assert retrieval_recalls(SCORES.bfloat16(), torch.tensor(TEXT_TO_IMAGE)) == expected
    assert retrieval_recalls(SCORES, relevance=relevance_matrix(TEXT_TO_IMAGE, 3).numpy()) == expected


@pytest.mark.parametrize("seed", range(5))
def test_recalls_match_a_plain_loop(seed: int) -> None:
    scores, relevance = random_case(seed)
    recalls = retrieval_recalls(scores, relevance=relevance)
    for k in (1, 5, 10):
        assert recalls[f"image_to_text_r@{k}"] == pytest.approx(recalls_by_loop(scores, relevance, k))
        assert recalls[f"text_to_image_r@{k}"] == pytest.approx(recalls_by_loop(scores.T, relevance.T, k))


def test_matrices_of_many_blocks_match_a_plain_loop() -> None:
    # Blocks hold 2**18 scores: two uneven ones here, from either side.
    scores = torch.randint(0, 300, (700, 600)).float()
    relevance = relevance_matrix(torch.cat([torch.arange(600), torch.randint(600, (100,))]), 600).T
    recalls = retrieval_recalls(scores, relevance=relevance, ks=(50,))
    assert recalls["image_to_text_r@50"] == pytest.approx(recalls_by_loop(scores, relevance, 50))
    assert recalls["text_to_image_r@50"] == pytest.approx(recalls_by_loop(scores.T, relevance.T, 50))


def test_recalls_do_not_depend_on_the_order_of_the_texts() -> None:
    scores, relevance = random_case(0)
    order = torch.randperm(29)
    assert retrieval_recalls(scores[:, order], relevance=relevance[:, order]) == retrieval_recalls(
        scores, relevance=relevance
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -torch.inf])
def test_constant_scores_have_no_recall(value: float) -> None:
    recalls = retrieval_recalls(torch.full((20, 20), value), range(20))
    assert set(recalls.values()) == {0.0}


def test_perfect_scores_have_full_recall() -> None:
    relevance = relevance_matrix(TEXT_TO_IMAGE, 3)
    assert set(retrieval_recalls(relevance.float(), relevance=relevance).values()) == {1.0}


def test_equal_captions_are_relevant_for_each_of_their_images() -> None:
    # Both texts are the same sentence about both images: with the index alone one of each pair would be wrong.
    scores = torch.tensor([[0.5, 0.4], [0.9, 0.8]])
    assert retrieval_recalls(scores, [0, 1], ks=(1,))["r_mean"] == 0.5
    assert retrieval_recalls(scores, relevance=torch.ones(2, 2, dtype=torch.bool), ks=(1,))["r_mean"] == 1.0


def test_chance_matches_values_computed_by_hand() -> None:
    # Image 0 has 2 of 4 texts, images 1 and 2 one: at 2, misses C(2,2)/C(4,2) = 1/6 and twice C(3,2)/C(4,2) = 1/2,
    # so (5/6 + 1/2 + 1/2) / 3 = 11/18. Each text has 1 of 3 images: 2/3. With k above the candidates all is found.
    chance = chance_recalls(relevance_matrix(TEXT_TO_IMAGE, 3), ks=(2, 9))
    assert chance == pytest.approx(
        {
            "image_to_text_r@2": 11 / 18,
            "image_to_text_r@9": 1.0,
            "text_to_image_r@2": 2 / 3,
            "text_to_image_r@9": 1.0,
            "r_mean": (11 / 18 + 2 / 3 + 2) / 4,
        }
    )


def test_chance_of_a_thousand_photos_with_five_captions_each() -> None:
    chance = chance_recalls(relevance_matrix(torch.arange(5000) // 5, 1000))
    assert chance["text_to_image_r@1"] == pytest.approx(1 / 1000)
    assert chance["text_to_image_r@10"] == pytest.approx(10 / 1000)
    assert chance["image_to_text_r@1"] == pytest.approx(5 / 5000)


def test_chance_is_the_mean_over_random_scores() -> None:
    _, relevance = random_case(0)
    draws = [retrieval_recalls(torch.rand(13, 29), relevance=relevance) for _ in range(400)]
    for key, expected in chance_recalls(relevance).items():
        # 400 draws of 13 queries at p <= 1/2: standard error at most 0.5 / sqrt(5200) = 0.007.
        assert np.mean([draw[key] for draw in draws]) == pytest.approx(expected, abs=0.03)


def test_rank_metrics_match_values_computed_by_hand() -> None:
    # Ranks from 0: 0, 2, 3 and 2, 0, 0, 2 as above. The median of 0 0 2 2 is 1, from 1 it is 2.
    ranks = {"image_to_text": torch.tensor([0, 2, 3]), "text_to_image": torch.tensor([2, 0, 0, 2])}
    assert rank_metrics(ranks, ks=(1, 3)) == pytest.approx(
        {
            **retrieval_recalls(SCORES, TEXT_TO_IMAGE, ks=(1, 3)),
            "image_to_text_r_mean": (1 / 3 + 2 / 3) / 2,
            "text_to_image_r_mean": (2 / 4 + 1) / 2,
            "image_to_text_median_rank": 3,
            "text_to_image_median_rank": 2,
        }
    )
    assert torch.equal(best_ranks(SCORES, relevance_matrix(TEXT_TO_IMAGE, 3)), ranks["image_to_text"])


@pytest.mark.parametrize("k", [1, 4, 29])
def test_listed_ranks_equal_ranks_with_all_others_last(k: int) -> None:
    scores, relevance = random_case(0)
    index = torch.rand(13, 29).topk(k, dim=1).indices
    full = torch.full_like(scores, -torch.inf).scatter(1, index, scores.gather(1, index))
    ranks = listed_ranks(scores.gather(1, index), relevance.gather(1, index), (~relevance).sum(dim=1))
    assert torch.equal(ranks, best_ranks(full, relevance))


def test_nan_scores_raise() -> None:
    scores = SCORES.clone()
    scores[1, 2:] = torch.nan
    relevance = relevance_matrix(TEXT_TO_IMAGE, 3)
    for rank in (best_ranks, lambda *given: listed_ranks(*given, num_irrelevant=3)):
        with pytest.raises(ValueError, match=r"2 of 12 scores are NaN.*try float32"):
            rank(scores, relevance)


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (torch.full((3, 4), torch.nan), {"text_to_image": TEXT_TO_IMAGE}, "12 of 12 scores are NaN"),
        (torch.ones(3, 4, dtype=torch.long), {"text_to_image": TEXT_TO_IMAGE}, "floating-point matrix"),
        (torch.ones(4), {"text_to_image": TEXT_TO_IMAGE}, "floating-point matrix"),
        (SCORES, {}, "exactly one"),
        (SCORES, {"text_to_image": TEXT_TO_IMAGE, "relevance": torch.ones(3, 4, dtype=torch.bool)}, "exactly one"),
        (SCORES, {"text_to_image": [0, 1, 2]}, "must be equal"),
        (SCORES, {"text_to_image": [0, 1, 2, 3]}, r"in \[0, 3\), got 3"),
        (SCORES, {"text_to_image": [0.0, 1.0, 2.0, 2.0]}, "one row of integers"),
        (SCORES, {"text_to_image": [0, 0, 1, 1]}, "1 images have no relevant counterpart"),
        (SCORES, {"relevance": torch.ones(3, 4)}, "boolean matrix"),
        (torch.empty(0, 0), {"text_to_image": torch.empty(0, dtype=torch.long)}, "with entries"),
        (SCORES, {"text_to_image": TEXT_TO_IMAGE, "ks": (0, 1)}, "at least one"),
        (SCORES, {"text_to_image": TEXT_TO_IMAGE, "ks": ()}, "at least one"),
    ],
)
def test_invalid_arguments_raise(scores: torch.Tensor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_recalls(scores, **arguments)
