# SPDX-License-Identifier: BSD-3-Clause
"""Image-text retrieval in both directions, as the paper evaluates it (section 5.1): by cosine, then by matching."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor

from ..data.readers import group_captions
from ..data.readers.records import CaptionGroup
from ..data.text import pre_caption
from ..distributed import gather, rank, world_size
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .features import TokenizedTexts, encode_texts, evaluating, read_pixels
from .recall import best_ranks, listed_ranks, rank_metrics, relevance_matrix
from .two_stage import Candidates, PixelDataset, encode_images, matching_scores, rerank


@dataclass(frozen=True)
class RetrievalResult:
    """How well images (or videos) find texts and texts images, numbered in the order of `image_ids` and `texts`.

    Args:
        itc (`dict[str, float]`):
            Metrics of the first stage, the cosines, under the names of [`~blip_hf.evaluation.recall.rank_metrics`].
        reranked (`dict[str, float]`):
            The same after the second stage: the result.
        num_skipped (`int`):
            Images that were left out, with their captions, as they could not be read.
        num_pairs (`int`):
            Pairs that went through the matching head, each once.
        image_ids (`list[int | str]`):
            Id of each image, its source's own where pairs have it as `source_id`.
        texts (`list[str]`):
            The captions, as the model read them.
        text_to_image (`torch.Tensor` of shape `(m,)`):
            Number of each caption's image.
        image_candidates (`Candidates`):
            Re-ranked captions of each image, `(n, k)`.
        text_candidates (`Candidates`):
            Re-ranked images of each caption, `(m, k)`.
    """

    itc: dict[str, float]
    reranked: dict[str, float]
    num_skipped: int
    num_pairs: int
    image_ids: list[int | str] = field(repr=False)
    texts: list[str] = field(repr=False)
    text_to_image: Tensor = field(repr=False)
    image_candidates: Candidates = field(repr=False)
    text_candidates: Candidates = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """One flat table for logs and JSON: the re-ranked metrics, those of the first stage as `itc_...`, and counts."""
        return {
            **self.reranked,
            **{f"itc_{name}": value for name, value in self.itc.items()},
            "num_items": len(self.image_ids),
            "num_texts": len(self.texts),
            "num_skipped": self.num_skipped,
            "num_pairs": self.num_pairs,
        }


def evaluate_retrieval(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    pairs: datasets.Dataset | Sequence[Mapping[str, Any]],
    *,
    k: int = 128,
    ks: Sequence[int] = (1, 5, 10),
    image_batch_size: int = 32,
    text_batch_size: int = 256,
    normalize_captions: bool = True,
    num_workers: int = 0,
    states_dtype: torch.dtype | None = None,
    show_progress: bool = False,
) -> RetrievalResult:
    """Finds the captions of each image and the image of each caption among all others.

    Features of all images and texts are compared by cosine, and the `k` nearest of each query are ranked by the
    logit of "matched" plus the cosine; the others follow. An image is encoded once, its keys and values are projected
    once, and a pair that both directions want is scored once.

    Between the stages the states of all images wait in main memory: for ViT-B at 384 pixels 1.8 MB each in fp32. The
    cosines take four bytes an image and caption. Within `torch.autocast` both stages run in its dtype. Where
    `torch.distributed` is initialised each process takes its share of the images, and all return the same result.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode, device and dtype are left as they are.
        processor (`BlipProcessor`):
            The processor it was trained with.
        pairs (`datasets.Dataset` or sequence of records):
            Records `{"image", "caption", "image_id"}` as [`~blip_hf.data.readers.load_pairs`] gives them. A caption
            is right for the image of its `image_id` alone, even where another has the same words.
        k (`int`, *optional*, defaults to 128):
            Candidates of a query that are re-ranked. BLIP has 128 for Flickr30k and 256 for COCO.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            Lengths of the list in which a relevant candidate is looked for.
        image_batch_size (`int`, *optional*, defaults to 32):
            Images a batch of the image tower.
        text_batch_size (`int`, *optional*, defaults to 256):
            Most texts a batch, in both stages.
        normalize_captions (`bool`, *optional*, defaults to `True`):
            Whether captions go through [`~blip_hf.data.text.pre_caption`], as in training.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read images.
        states_dtype (`torch.dtype`, *optional*):
            What to keep states in: `torch.bfloat16` halves their memory, at its precision.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show bars.

    Returns:
        `RetrievalResult`: metrics of both stages, and the ranked candidates.

    Raises:
        ValueError: If there are no pairs, none can be used, a score is NaN, or `k` is below one.

    Example:
        >>> result = evaluate_retrieval(model, processor, load_pairs("test.json"), k=256)  # doctest: +SKIP
        >>> result.itc["r_mean"], result.reranked["r_mean"]  # doctest: +SKIP
        (0.713, 0.796)
    """
    groups = group_captions(pairs)
    captions = {group["image_id"]: usable_captions(group["captions"], normalize_captions) for group in groups}
    return evaluate_two_stages(
        model,
        processor,
        captions,
        partial(_read_image, processor, groups),
        direction_names=("image_to_text", "text_to_image"),
        k=k,
        ks=ks,
        image_batch_size=image_batch_size,
        text_batch_size=text_batch_size,
        num_workers=num_workers,
        states_dtype=states_dtype,
        show_progress=show_progress,
    )


def evaluate_two_stages(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    captions: Mapping[int | str, Sequence[str]],
    read: Callable[[int], Tensor],
    *,
    direction_names: tuple[str, str],
    k: int,
    ks: Sequence[int],
    image_batch_size: int,
    text_batch_size: int,
    num_workers: int,
    states_dtype: torch.dtype | None,
    show_progress: bool,
) -> RetrievalResult:
    """What images and videos share; see `evaluate_retrieval` for what is not said here.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model.
        processor (`BlipProcessor`):
            Its processor.
        captions (mapping of `int` or `str` to sequence of `str`):
            By id, the captions of each image or video. One without captions is left out.
        read (`Callable`):
            Maps a position in `captions` to `pixel_values` of shape `(f, 3, height, width)`, all with the same `f`.
        direction_names (`tuple[str, str]`):
            What metrics call the directions from and to images.
        k (`int`):
            Candidates of a query.
        ks (sequence of `int`):
            Of recall.
        image_batch_size (`int`):
            Images or videos a batch.
        text_batch_size (`int`):
            Texts a batch.
        num_workers (`int`):
            Processes that read.
        states_dtype (`torch.dtype`, *optional*):
            What to keep states in.
        show_progress (`bool`):
            Whether to show bars.

    Returns:
        `RetrievalResult`: metrics of both stages, and the ranked candidates.

    Raises:
        ValueError: If nothing can be used, a score is NaN, or `k` is below one.
    """
    check_num_candidates(k)
    ids = list(captions)
    with evaluating(model):
        images = encode_images(
            model,
            PixelDataset([position for position, own in enumerate(captions.values()) if own], read),
            batch_size=image_batch_size,
            num_workers=num_workers,
            states_dtype=states_dtype,
            show_progress=show_progress,
        )
        image_ids = [ids[position] for position in images.numbers.tolist()]
        texts = [text for image_id in image_ids for text in captions[image_id]]
        counts = torch.tensor([len(captions[image_id]) for image_id in image_ids])
        text_to_image = torch.arange(len(image_ids)).repeat_interleave(counts)  # (m,)
        rows = TokenizedTexts.from_texts(processor, texts, model.device)
        similarity = _cosines(images.features, _shared_text_features(model, rows, text_batch_size))
        cosine_ranks = _cosine_ranks(similarity, text_to_image.to(similarity.device))
        scorer = matching_scores(model, images, rows, batch_size=text_batch_size, show_progress=show_progress)
        of_images, of_texts, num_pairs = rerank(similarity, k, scorer)
    of_images, of_texts = of_images.cpu(), of_texts.cpu()
    itc, reranked = (
        rank_metrics(dict(zip(direction_names, ranks, strict=True)), ks=ks)
        for ranks in (
            cosine_ranks,
            _listed_ranks(of_images, of_texts, text_to_image, counts),
        )
    )
    return RetrievalResult(
        itc=itc,
        reranked=reranked,
        num_skipped=len(captions) - len(image_ids),
        num_pairs=num_pairs,
        image_ids=image_ids,
        texts=texts,
        text_to_image=text_to_image,
        image_candidates=of_images,
        text_candidates=of_texts,
    )


def check_num_candidates(k: int) -> None:
    """Refuses at once a number of candidates that an evaluation would refuse.

    Args:
        k (`int`):
            Candidates of a query that are re-ranked.

    Raises:
        ValueError: If it is below one.
    """
    if k < 1:
        raise ValueError(f"k={k} is too small: pass the number of candidates to re-rank, 1 or more.")


def usable_captions(captions: Sequence[str], normalize: bool) -> list[str]:
    """Captions as the model reads them, without those that have no words."""
    captions = [pre_caption(caption) if normalize else caption for caption in captions]
    return [caption for caption in captions if caption.strip()]


def _read_image(processor: BlipProcessor, groups: Sequence[CaptionGroup], number: int) -> Tensor:
    return read_pixels(processor, [groups[number]["image"]])


def _shared_text_features(model: BlipForImageTextRetrieval, rows: TokenizedTexts, batch_size: int) -> Tensor:
    """Features of all texts, `(m, d)`, of which each process has computed its share, long and short alike."""
    own = rows.lengths.argsort(stable=True)[rank() :: world_size()]
    features = gather(encode_texts(model, rows, own, batch_size))
    return torch.empty_like(features).index_copy_(0, gather(own.to(model.device)), features)


def _cosines(image_features: Tensor, text_features: Tensor) -> Tensor:
    """`(n, m)`, in fp32 even where the caller has opened autocast: in bf16 most of a query's best would be tied."""
    with torch.autocast(image_features.device.type, enabled=False):
        return image_features @ text_features.T


def _cosine_ranks(similarity: Tensor, text_to_image: Tensor) -> tuple[Tensor, Tensor]:
    relevance = relevance_matrix(text_to_image, len(similarity))  # (n, m)
    return best_ranks(similarity, relevance), best_ranks(similarity.T, relevance.T)


def _listed_ranks(
    of_images: Candidates, of_texts: Candidates, text_to_image: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    is_own_text = text_to_image[of_images.index] == torch.arange(len(counts))[:, None]  # (n, k)
    is_own_image = of_texts.index == text_to_image[:, None]  # (m, k)
    return (
        listed_ranks(of_images.scores, is_own_text, len(text_to_image) - counts),
        listed_ranks(of_texts.scores, is_own_image, len(counts) - 1),
    )


__all__ = [
    "RetrievalResult",
    "check_num_candidates",
    "evaluate_retrieval",
    "evaluate_two_stages",
    "usable_captions",
]
