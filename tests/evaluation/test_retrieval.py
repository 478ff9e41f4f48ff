# SPDX-License-Identifier: BSD-3-Clause
"""Two-stage retrieval against a plain loop over queries and pairs, and the number of forward passes."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from blip_hf import BlipForImageTextRetrieval
from blip_hf.data.text import pre_caption
from blip_hf.evaluation import retrieval, two_stage
from blip_hf.evaluation.recall import retrieval_recalls
from blip_hf.evaluation.retrieval import evaluate_retrieval
from blip_hf.evaluation.two_stage import rerank
from tests.support.images import noise_images
from tests.support.tiny_models import SUMMATION_TOLERANCE, tiny_model_for
from tests.support.vocabularies import LETTERS


NUM_IMAGES = 6


def make_pairs():
    """Up to three captions per image, of 1 to 9 words, not grouped by image."""
    rng = random.Random(0)
    images = noise_images(NUM_IMAGES)
    return [
        {
            "image": images[number],
            "caption": " ".join(rng.choices(LETTERS, k=rng.randint(1, 9))),
            "image_id": 10 + number,
        }
        for repeat in range(3)
        for number in range(NUM_IMAGES - repeat)
    ]


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


def images_and_texts(pairs):
    """Images in the order of their ids, captions grouped by image, and the image of each."""
    images = {pair["image_id"]: pair["image"] for pair in pairs}
    texts = [
        (pair["caption"], number) for number, key in enumerate(images) for pair in pairs if pair["image_id"] == key
    ]
    return list(images.values()), *map(list, zip(*texts, strict=True))


@pytest.fixture(scope="module")
def cosines_and_logits(model, processor, pairs):
    """Scores of each pair from a separate forward pass."""
    images, texts, _ = images_and_texts(pairs)
    cosines, logits = torch.empty(2, len(images), len(texts))
    with torch.no_grad():
        for i, image in enumerate(images):
            pixels = processor(images=image, return_tensors="pt")["pixel_values"]
            for j, text in enumerate(texts):
                row = processor(text=text, role="contrast", return_tensors="pt")["input_ids"]
                cosines[i, j] = model(row, pixels, use_itm_head=False).itc_similarity
                row = processor(text=text, role="matching", return_tensors="pt")["input_ids"]
                logits[i, j] = model(row, pixels).itm_logits[0, 1]
    return cosines, logits


def plain_scores(cosines, logits, k):
    """Computes re-ranked scores in loops; -inf for a pair that is not among the `k` candidates."""
    scores = torch.full_like(cosines, -torch.inf)
    for query, row in enumerate(cosines.tolist()):
        for candidate in sorted(range(len(row)), key=lambda candidate: -row[candidate])[:k]:
            scores[query, candidate] = logits[query, candidate] + cosines[query, candidate]
    return scores


def dense(candidates, num_candidates):
    full = torch.full((len(candidates.index), num_candidates), -torch.inf)
    return full.scatter_(1, candidates.index, candidates.scores)


@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("text_batch_size", [4, 256])
def test_both_retrieval_stages_match_a_plain_loop(model, processor, pairs, cosines_and_logits, k, text_batch_size):
    images, texts, text_to_image = images_and_texts(pairs)
    cosines, logits = cosines_and_logits
    of_images, of_texts = plain_scores(cosines, logits, k), plain_scores(cosines.T, logits.T, k)
    result = evaluate_retrieval(model, processor, pairs, k=k, image_batch_size=4, text_batch_size=text_batch_size)
    assert result.texts == texts
    assert result.text_to_image.tolist() == text_to_image
    assert result.image_ids == list(range(10, 10 + NUM_IMAGES))
    assert_close(dense(result.image_candidates, len(texts)), of_images, **SUMMATION_TOLERANCE)
    assert_close(dense(result.text_candidates, len(images)), of_texts, **SUMMATION_TOLERANCE)
    for metrics, to_text, to_image in (
        (result.itc, cosines, cosines),
        (result.reranked, of_images, of_texts.T),
    ):
        for name, value in retrieval_recalls(to_text, text_to_image).items():
            if name.startswith("image"):
                assert metrics[name] == pytest.approx(value)
        for name, value in retrieval_recalls(to_image, text_to_image).items():
            if name.startswith("text"):
                assert metrics[name] == pytest.approx(value)


def test_re_ranking_changes_the_order(model, processor, pairs):
    result = evaluate_retrieval(model, processor, pairs)
    assert result.itc != result.reranked
    assert result.image_candidates.scores.diff(dim=1).le(0).all()


def test_each_image_is_encoded_and_each_pair_is_scored_once(model, processor, pairs):
    rows = {"vision": 0, "key": 0, "pair": 0}

    def count(name):
        return lambda module, inputs, output: rows.update({name: rows[name] + len(inputs[0])})

    hooks = [
        model.vision_model.encoder.register_forward_hook(count("vision")),
        model.text_encoder.encoder.layer[0].crossattention.self.key.register_forward_hook(count("key")),
        model.itm_head.register_forward_hook(count("pair")),
    ]
    try:
        result = evaluate_retrieval(model, processor, pairs, k=4, image_batch_size=4, text_batch_size=3)
    finally:
        for hook in hooks:
            hook.remove()
    assert rows == {"vision": NUM_IMAGES, "key": NUM_IMAGES, "pair": result.num_pairs}
    assert (
        NUM_IMAGES * 4 < result.num_pairs < NUM_IMAGES * 4 + len(pairs) * 4
    )  # some pairs are candidates in both directions


def test_text_batches_are_padded_to_their_longest_text(model, processor, pairs):
    read = []
    embeddings = model.text_encoder.embeddings.word_embeddings
    hook = embeddings.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    try:
        evaluate_retrieval(model, processor, pairs, text_batch_size=3)
    finally:
        hook.remove()
    padding = processor.tokenizer.pad_token_id
    assert len({rows.shape[1] for rows in read}) > 1
    assert all((rows != padding).any(dim=0).all() for rows in read)


def test_rerank_scores_each_pair_once():
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.6, 0.2]])
    # Two texts per image: 00 01 10 11; one image per text would be 00, 11, 12; two are all.
    asked = []

    def score(images, texts):
        asked.extend(zip(images.tolist(), texts.tolist(), strict=True))
        matched = torch.tensor([{(0, 0): 0.0, (0, 1): 1.0, (1, 0): 5.0, (1, 1): 2.0}[pair] for pair in asked])
        return torch.stack([torch.zeros_like(matched), matched], dim=1)

    of_images, _, num_pairs = rerank(similarity[:, :2], 2, score)
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert num_pairs == 4
    assert of_images.index.tolist() == [[1, 0], [0, 1]]
    assert_close(of_images.scores, torch.tensor([[1.5, 0.9], [5.3, 2.6]]))


def test_broken_images_are_skipped_with_their_captions(model, processor, pairs):
    broken = [{**pair, "image": b"no image"} if pair["image_id"] == 12 else pair for pair in pairs]
    rest = [pair for pair in pairs if pair["image_id"] != 12]
    result = evaluate_retrieval(model, processor, broken, k=4)
    expected = evaluate_retrieval(model, processor, rest, k=4)
    assert result.num_skipped == 1
    assert 12 not in result.image_ids
    assert result.texts == expected.texts
    assert result.reranked == expected.reranked
    skipped = {"num_skipped": 1, "num_skipped_by_reason": {"unreadable_image": 1}}
    assert result.metrics() == {**expected.metrics(), **skipped}


def test_captions_without_words_are_left_out(model, processor, pairs):
    wordless = [*pairs, {**pairs[0], "caption": " ... "}, {"image": pairs[0]["image"], "caption": "!", "image_id": 99}]
    result = evaluate_retrieval(model, processor, wordless, k=4)
    assert result.num_skipped == 1
    assert result.reranked == evaluate_retrieval(model, processor, pairs, k=4).reranked


def test_captions_are_normalised_as_in_training(model, processor, pairs):
    shouted = [{**pair, "caption": pair["caption"].upper() + "!"} for pair in pairs]
    assert evaluate_retrieval(model, processor, shouted).texts == [
        pre_caption(text) for text in evaluate_retrieval(model, processor, pairs).texts
    ]
    assert all(
        text.endswith("!") for text in evaluate_retrieval(model, processor, shouted, normalize_captions=False).texts
    )


def test_the_mode_of_the_model_is_kept(model, processor, pairs):
    try:
        evaluate_retrieval(model.train(), processor, pairs)
        assert model.training
    finally:
        model.eval()


def test_autocast_and_bfloat16_states_are_close(model, processor, pairs):
    exact = evaluate_retrieval(model, processor, pairs)
    half = evaluate_retrieval(model, processor, pairs, states_dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = evaluate_retrieval(model, processor, pairs)
    for other in (half, mixed):
        # bf16 has 8 significant bits, so scores of a few units change by a few hundredths. Cosines stay fp32.
        scores = dense(exact.image_candidates, len(pairs))
        assert_close(dense(other.image_candidates, len(pairs)), scores, atol=0.15, rtol=0.05)
        assert not torch.equal(dense(other.image_candidates, len(pairs)), scores)
        assert other.image_candidates.scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"k": 0}, "k=0 is too small"),
        ({"image": b"no image"}, {}, "None of the 6 images"),
    ],
)
def test_invalid_input_raises(model, processor, pairs, change, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(model, processor, [{**pair, **change} for pair in pairs], **options)


@pytest.mark.parametrize("broken", ["vision_proj", "itm_head"])
def test_nan_weights_raise(broken, processor, pairs):
    model = tiny_model_for(BlipForImageTextRetrieval, processor)
    with torch.no_grad():
        getattr(model, broken).weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="hold NaN or infinity, first in"):
        evaluate_retrieval(model, processor, pairs, k=3)


class TwoRanks:
    """Two threads that simulate two processes; `gather` has its own test."""

    def __init__(self):
        self.local = threading.local()
        self.slots = [None, None]
        self.barrier = threading.Barrier(2, timeout=60)

    def gather(self, tensor):
        self.slots[self.local.rank] = tensor
        self.barrier.wait()
        gathered = torch.cat(self.slots)
        self.barrier.wait()
        return gathered

    def run(self, function):
        def run_rank(rank):
            self.local.rank = rank
            return function()

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(run_rank, range(2)))


@pytest.mark.parametrize("broken", [{11}, {11, 13, 15}])  # of six images in turn, the second rank's are 11, 13, 15
def test_two_processes_share_the_images_and_return_the_same_result(monkeypatch, model, processor, pairs, broken):
    ranks = TwoRanks()
    for module in (retrieval, two_stage):
        monkeypatch.setattr(module, "gather", ranks.gather)
        monkeypatch.setattr(module, "rank", lambda: ranks.local.rank)
        monkeypatch.setattr(module, "world_size", lambda: 2)
    with_broken = [{**pair, "image": b""} if pair["image_id"] in broken else pair for pair in pairs]
    num_projected = []
    key = model.text_encoder.encoder.layer[0].crossattention.self.key
    hook = key.register_forward_hook(lambda *_: num_projected.append(ranks.local.rank))
    try:
        results = ranks.run(lambda: evaluate_retrieval(model, processor, with_broken, k=2))
    finally:
        hook.remove()
        monkeypatch.undo()
    alone = evaluate_retrieval(model, processor, [pair for pair in pairs if pair["image_id"] not in broken], k=2)
    assert (num_projected.count(0), num_projected.count(1)) == (3, 3 - len(broken))
    for result in results:
        # These ranks gather tensors only, so each knows the reasons of its own images.
        reasons = result.num_skipped_by_reason
        skipped = {"num_skipped": len(broken), "num_skipped_by_reason": reasons}
        assert result.metrics() == {**alone.metrics(), **skipped}
        assert_close(dense(result.image_candidates, 15), dense(alone.image_candidates, 15), **SUMMATION_TOLERANCE)
        assert_close(dense(result.text_candidates, 6), dense(alone.text_candidates, 6), **SUMMATION_TOLERANCE)


@pytest.mark.parametrize("score", ["itm", "paper", "posterior"])
def test_metrics_of_a_score_do_not_depend_on_the_chosen_one(model, processor, pairs, score, monkeypatch):
    monkeypatch.setattr(model.config, "itm_temperature", 0.02)
    chosen = evaluate_retrieval(model, processor, pairs, k=3, score=score)
    other = evaluate_retrieval(model, processor, pairs, k=3, score="paper")
    assert chosen.reranked == chosen.rescored(score) == other.rescored(score)
    logits, cosines = chosen.image_candidates.itm_logits, chosen.image_candidates.cosines
    expected = {
        "itm": logits[..., 1] - logits[..., 0],
        "paper": logits[..., 1] + cosines,
        "posterior": logits[..., 1] - logits[..., 0] + cosines / 0.02,
    }
    assert_close(chosen.image_candidates.scores, expected[score], **SUMMATION_TOLERANCE)
    assert chosen.image_candidates.scores.diff(dim=1).le(0).all()
    metrics = chosen.metrics()
    assert metrics["itm_temperature"] == 0.02
    for reported in {"paper", "posterior"} - {score}:
        assert metrics[f"{reported}_r_mean"] == other.rescored(reported)["r_mean"]


def test_unknown_score_is_refused_before_images_are_read(model, processor, pairs):
    with pytest.raises(ValueError, match="score='cosine' is unknown"):
        evaluate_retrieval(model, processor, [{**pair, "image": b"no image"} for pair in pairs], score="cosine")
