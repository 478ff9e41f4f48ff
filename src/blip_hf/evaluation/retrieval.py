# SPDX-License-Identifier: BSD-3-Clause
"""Image-text retrieval in both directions (BLIP, section 5.1): cosine similarity first, then the ITM head."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor

from ..data.readers import group_captions
from ..data.readers.records import CaptionGroup
from ..data.text import pre_caption
from ..distributed import gather, rank, world_size
from ..finite import require_finite_results
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..pair_scores import PAIR_SCORE, PairScore, check_score
from ..processing_blip import BlipProcessor
from .defaults import BATCH_SIZE, K_TEST
from .features import TokenizedTexts, encode_texts, evaluating, read_pixels
from .recall import best_ranks, rank_metrics
from .relevance import Equality, Relevance, check_relevance
from .rescoring import JudgedCandidates, fit_temperature
from .two_stage import Candidates, PixelDataset, encode_images, matching_scores, rerank


# Scores whose metrics stand beside those of the chosen one.
_REPORTED_SCORES: tuple[PairScore, ...] = ("paper", "posterior")


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics and ranked candidates of both directions. Images (or videos) are numbered as in `image_ids`, texts as in `texts`.

    Args:
        itc (`dict[str, float]`):
            Metrics of the cosine similarities, as named by [`~blip_hf.evaluation.recall.rank_metrics`].
        reranked (`dict[str, float]`):
            The same metrics after re-ranking by `score`: the result.
        score (`str`):
            The score, as in [`~blip_hf.pair_scores.pair_scores`].
        temperature (`float`):
            Temperature of the posterior score: `itm_temperature` of the model.
        num_skipped (`int`):
            Images left out with their captions: unreadable, or without usable captions.
        num_skipped_by_reason (`dict[str, int]`):
            The same by reason, as in [`~blip_hf.data.readers`].
        num_pairs (`int`):
            Distinct pairs that the ITM head scored.
        num_equal_images (`int`):
            Images that the model sees as equal to another one: their pixels after preprocessing are the same.
        num_equal_texts (`int`):
            Captions that equal, once normalised, a caption of another image.
        image_ids (`list[int | str]`):
            Id of each image; its `source_id` if the pairs have one.
        texts (`list[str]`):
            The captions, normalised.
        text_to_image (`torch.Tensor` of shape `(m,)`):
            Number of the image of each caption.
        image_candidates (`Candidates`):
            Re-ranked captions of each image, `(n, k)`.
        text_candidates (`Candidates`):
            Re-ranked images of each caption, `(m, k)`.
        judged (`dict[str, JudgedCandidates]`):
            The candidates of each direction with their relevance.
        ks (sequence of `int`):
            Values of k for recall at k.
    """

    itc: dict[str, float]
    reranked: dict[str, float]
    num_skipped: int
    num_pairs: int
    num_equal_images: int
    num_equal_texts: int
    image_ids: list[int | str] = field(repr=False)
    texts: list[str] = field(repr=False)
    text_to_image: Tensor = field(repr=False)
    image_candidates: Candidates = field(repr=False)
    text_candidates: Candidates = field(repr=False)
    score: PairScore
    temperature: float
    judged: dict[str, JudgedCandidates] = field(repr=False)
    ks: Sequence[int] = field(repr=False)
    num_skipped_by_reason: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Returns re-ranked metrics, those of the cosines (`itc_...`), and counts as one flat dictionary.

        Metrics of the other scores have names such as `paper_r_mean` and `posterior_r_mean`.
        """
        others = {score: self.rescored(score) for score in _REPORTED_SCORES if score != self.score}
        return {
            **self.reranked,
            **{f"{score}_{name}": value for score, metrics in others.items() for name, value in metrics.items()},
            **{f"itc_{name}": value for name, value in self.itc.items()},
            "num_items": len(self.image_ids),
            "num_texts": len(self.texts),
            "num_skipped": self.num_skipped,
            "num_skipped_by_reason": self.num_skipped_by_reason,
            "num_pairs": self.num_pairs,
            "num_equal_images": self.num_equal_images,
            "num_equal_texts": self.num_equal_texts,
            "itm_temperature": self.temperature,
        }

    def rescored(self, score: PairScore, *, temperature: float | None = None) -> dict[str, float]:
        """Returns the metrics of another score of the same candidates, without the model.

        Args:
            score (`str`):
                `"itm"`, `"paper"` or `"posterior"`, see [`~blip_hf.pair_scores.pair_scores`].
            temperature (`float`, *optional*):
                Temperature of the posterior score. Defaults to `self.temperature`.
        """
        own = self.temperature if temperature is None else temperature
        ranks = {name: judged.ranks(score, temperature=own) for name, judged in self.judged.items()}
        return rank_metrics(ranks, ks=self.ks)

    def with_temperature(self, temperature: float) -> "RetrievalResult":
        """Returns the result that another `model.config.itm_temperature` gives, without the model."""
        of_images, of_texts = (
            judged.candidates.sorted_by(self.score, temperature=temperature) for judged in self.judged.values()
        )
        return replace(
            self,
            temperature=temperature,
            reranked=self.rescored(self.score, temperature=temperature),
            image_candidates=of_images,
            text_candidates=of_texts,
        )

    def fit_temperature(self) -> float:
        """Returns the temperature that fits this set, see [`~blip_hf.evaluation.rescoring.fit_temperature`].

        Set it as `model.config.itm_temperature`, and evaluate on another set.
        """
        return fit_temperature(self.judged.values())


def evaluate_retrieval(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    pairs: datasets.Dataset | Sequence[Mapping[str, Any]],
    *,
    k: int = K_TEST,
    ks: Sequence[int] = (1, 5, 10),
    image_batch_size: int = BATCH_SIZE,
    text_batch_size: int = 256,
    normalize_captions: bool = True,
    num_workers: int = 0,
    states_dtype: torch.dtype | None = None,
    show_progress: bool = False,
    relevance: Relevance = "equal",
    score: PairScore = PAIR_SCORE,
) -> RetrievalResult:
    """Ranks all captions for each image, and all images for each caption.

    The cosine similarity of the features selects `k` candidates per query. They are re-ranked by `score`, which combines ITM
    logits and cosines; all others rank below them. Each image is encoded once, and each pair is scored once.

    The vision states of all images stay in main memory between the stages: 1.8 MB per image for ViT-B at 384 pixels in
    fp32. Under `torch.distributed` each process takes a share of the images, and all return the same result.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode, device and dtype are kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        pairs (`datasets.Dataset` or sequence of records):
            Records `{"image", "caption", "image_id"}` from [`~blip_hf.data.readers.load_pairs`].
        k (`int`, *optional*, defaults to 128):
            Candidates per query that are re-ranked. BLIP uses 128 for Flickr30k and 256 for COCO.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            Values of k for recall at k.
        image_batch_size (`int`, *optional*, defaults to 32):
            Images per batch of the vision model.
        text_batch_size (`int`, *optional*, defaults to 256):
            Largest number of texts per batch, in both stages.
        normalize_captions (`bool`, *optional*, defaults to `True`):
            Whether to apply [`~blip_hf.data.text.pre_caption`], as in training.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read images.
        states_dtype (`torch.dtype`, *optional*):
            Data type of the stored vision states. `torch.bfloat16` halves their memory and lowers their precision.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.
        relevance (`str`, *optional*, defaults to `"equal"`):
            Which captions are right for an image, and which images for a caption. `"own"`: those with the same
            `image_id` alone, the protocol of the published numbers, in which a caption is wrong for an image whose own
            caption equals it. `"equal"`: also captions equal to a right one, and those of an equal image, because no
            model can tell equal inputs apart.
        score (`str`, *optional*, defaults to `"paper"`):
            Score that re-ranks: `"paper"`, the ITM logit plus the cosine; `"posterior"`, the log-odds of a match plus the
            cosine divided by `model.config.itm_temperature`; or `"itm"`, the log-odds alone. The result has the metrics of
            all of them.

    Returns:
        `RetrievalResult`: metrics of both stages, and the ranked candidates.

    Raises:
        ValueError: If there are no pairs, none can be used, a score is NaN, `k` is below one, or `relevance` or `score` is unknown.

    Example:
        >>> result = evaluate_retrieval(model, processor, load_pairs("test.json"), k=256)  # doctest: +SKIP
        >>> result.itc["r_mean"], result.reranked["r_mean"]  # doctest: +SKIP
        (0.713, 0.796)
    """
    settings = TwoStageSettings(
        direction_names=("image_to_text", "text_to_image"),
        k=k,
        ks=ks,
        image_batch_size=image_batch_size,
        text_batch_size=text_batch_size,
        num_workers=num_workers,
        states_dtype=states_dtype,
        show_progress=show_progress,
        relevance=relevance,
        score=score,
    )
    groups = group_captions(pairs)
    captions = {group["image_id"]: usable_captions(group["captions"], normalize_captions) for group in groups}
    return evaluate_two_stages(model, processor, captions, partial(_read_image, processor, groups), settings)


@dataclass(frozen=True, kw_only=True)
class TwoStageSettings:
    """Arguments of [`evaluate_retrieval`], which explains them, and the names of both directions."""

    direction_names: tuple[str, str]
    k: int
    ks: Sequence[int]
    image_batch_size: int
    text_batch_size: int
    num_workers: int
    states_dtype: torch.dtype | None
    show_progress: bool
    relevance: Relevance
    score: PairScore

    def __post_init__(self) -> None:
        check_score(self.score)
        check_num_candidates(self.k)
        check_relevance(self.relevance)

    def metrics(self, ranks: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Returns the metrics of the ranks of both directions."""
        return rank_metrics(dict(zip(self.direction_names, ranks, strict=True)), ks=self.ks)


def evaluate_two_stages(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    captions: Mapping[int | str, Sequence[str]],
    read: Callable[[int], Tensor],
    settings: TwoStageSettings,
) -> RetrievalResult:
    """Evaluates images or videos; `read` maps a position in `captions` to pixels `(f, 3, height, width)`.

    Ids without captions are left out.
    """
    temperature = model.config.itm_temperature
    with evaluating(model):
        images = encode_images(
            model,
            PixelDataset([position for position, own in enumerate(captions.values()) if own], read),
            batch_size=settings.image_batch_size,
            num_workers=settings.num_workers,
            states_dtype=settings.states_dtype,
            show_progress=settings.show_progress,
        )
        image_ids, texts, text_to_image = _flatten(captions, images.numbers)
        require_finite_results(_are_finite(images.features), image_ids, model=model)
        equality = Equality.of(text_to_image, images.content, texts)
        is_right = equality.relevance(settings.relevance)  # (n, m)
        rows = TokenizedTexts.from_texts(processor, texts, model.device)
        text_features = _shared_text_features(model, rows, settings.text_batch_size)
        require_finite_results(_are_finite(text_features), [f"of the text {text!r}" for text in texts], model=model)
        similarity = _cosines(images.features, text_features)
        cosine_ranks = _cosine_ranks(similarity, is_right.to(similarity.device))
        scorer = matching_scores(
            model, images, rows, batch_size=settings.text_batch_size, show_progress=settings.show_progress
        )
        of_images, of_texts, num_pairs = rerank(
            similarity, settings.k, scorer, score=settings.score, temperature=temperature
        )
        require_finite_results(_are_finite(of_images.scores), image_ids, model=model)
    of_images, of_texts = of_images.cpu(), of_texts.cpu()
    judged = {
        direction: JudgedCandidates.of(candidates, relevance)
        for direction, candidates, relevance in zip(
            settings.direction_names, (of_images, of_texts), (is_right, is_right.T), strict=True
        )
    }
    image_ranks, text_ranks = (own.ranks(settings.score, temperature=temperature) for own in judged.values())
    return RetrievalResult(
        itc=settings.metrics(cosine_ranks),
        reranked=settings.metrics((image_ranks, text_ranks)),
        num_skipped=len(captions) - len(image_ids),
        num_skipped_by_reason=dict(images.skipped + Counter(empty_text=sum(not own for own in captions.values()))),
        num_pairs=num_pairs,
        num_equal_images=equality.num_equal_images,
        num_equal_texts=equality.num_equal_texts,
        image_ids=image_ids,
        texts=texts,
        text_to_image=text_to_image,
        image_candidates=of_images,
        text_candidates=of_texts,
        score=settings.score,
        temperature=temperature,
        judged=judged,
        ks=settings.ks,
    )


def _are_finite(rows: Tensor) -> list[bool]:
    return rows.isfinite().all(dim=1).tolist()


def _flatten(
    captions: Mapping[int | str, Sequence[str]], positions: Tensor
) -> tuple[list[int | str], list[str], Tensor]:
    """Returns the ids at the given positions, `(n,)`, their texts, and the number of the image of each text, `(m,)`."""
    ids = list(captions)
    image_ids = [ids[position] for position in positions.tolist()]
    texts = [text for image_id in image_ids for text in captions[image_id]]
    counts = torch.tensor([len(captions[image_id]) for image_id in image_ids])
    return image_ids, texts, torch.arange(len(image_ids)).repeat_interleave(counts)


def check_num_candidates(k: int) -> None:
    """Raises a ValueError if `k` is below one, so that commands can check it before a long run."""
    if k < 1:
        raise ValueError(f"k={k} is too small. Pass the number of candidates to re-rank, 1 or more.")


def usable_captions(captions: Sequence[str], normalize: bool) -> list[str]:
    """Normalises captions if asked to, and drops those without words."""
    captions = [pre_caption(caption) if normalize else caption for caption in captions]
    return [caption for caption in captions if caption.strip()]


def _read_image(processor: BlipProcessor, groups: Sequence[CaptionGroup], number: int) -> Tensor:
    return read_pixels(processor, [groups[number]["image"]])


def _shared_text_features(model: BlipForImageTextRetrieval, rows: TokenizedTexts, batch_size: int) -> Tensor:
    """Returns the features of all texts, `(m, d)`. Each process encodes every n-th text by length, to balance the work."""
    own = rows.lengths.argsort(stable=True)[rank() :: world_size()]
    features = gather(encode_texts(model, rows, own, batch_size))
    return torch.empty_like(features).index_copy_(0, gather(own.to(model.device)), features)


def _cosines(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Returns cosine similarities `(n, m)` in fp32, even under autocast: in bf16 most of the best candidates would tie."""
    with torch.autocast(image_features.device.type, enabled=False):
        return image_features @ text_features.T


def _cosine_ranks(similarity: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor]:
    return best_ranks(similarity, is_right), best_ranks(similarity.T, is_right.T)


__all__ = [
    "RetrievalResult",
    "TwoStageSettings",
    "check_num_candidates",
    "evaluate_retrieval",
    "evaluate_two_stages",
    "usable_captions",
]
