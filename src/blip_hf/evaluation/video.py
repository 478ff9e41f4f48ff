# SPDX-License-Identifier: BSD-3-Clause
"""Zero-shot video-text retrieval with a model trained on images (BLIP, section 5.6)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.videos import read_frames
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..pair_scores import PAIR_SCORE, PairScore
from ..processing_blip import BlipProcessor
from .defaults import K_TEST
from .features import read_pixels
from .relevance import Relevance
from .retrieval import RetrievalResult, TwoStageSettings, evaluate_two_stages, usable_captions


def evaluate_video_retrieval(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    records: Sequence[Mapping[str, Any]],
    *,
    num_frames: int = 8,
    k: int = K_TEST,
    ks: Sequence[int] = (1, 5, 10),
    video_batch_size: int = 4,
    text_batch_size: int = 64,
    num_workers: int = 0,
    states_dtype: torch.dtype | None = None,
    show_progress: bool = False,
    relevance: Relevance = "equal",
    score: PairScore = PAIR_SCORE,
) -> RetrievalResult:
    """Ranks all captions for each video, and all videos for each caption, without training on videos.

    The feature of a video is the normalised mean of the projections of its frames. The ITM head reads the tokens of all
    frames as those of one image, so the order of the frames has no effect. All else is as in
    [`~blip_hf.evaluation.retrieval.evaluate_retrieval`]. Eight frames of ViT-B at 384 pixels take 14 MB per video in fp32.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; BLIP uses the one fine-tuned on COCO retrieval. Its mode, device and dtype are kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        records (sequence of records):
            Records `{"video", "caption", "video_id"}` from [`~blip_hf.data.videos.load_video_captions`]. An unreadable
            video is skipped with its captions.
        num_frames (`int`, *optional*, defaults to 8):
            Frames per video.
        k (`int`, *optional*, defaults to 128):
            Candidates per query that are re-ranked.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            Values of k for recall at k.
        video_batch_size (`int`, *optional*, defaults to 4):
            Videos per batch of the vision model.
        text_batch_size (`int`, *optional*, defaults to 64):
            Largest number of texts per batch, in both stages.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read videos.
        states_dtype (`torch.dtype`, *optional*):
            Data type of the stored vision states. `torch.bfloat16` halves their memory and lowers their precision.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.
        relevance (`str`, *optional*, defaults to `"equal"`):
            Which captions are right for a video, as in [`~blip_hf.evaluation.retrieval.evaluate_retrieval`].
        score (`str`, *optional*, defaults to `"paper"`):
            Score that re-ranks, as in [`~blip_hf.evaluation.retrieval.evaluate_retrieval`].

    Returns:
        `RetrievalResult`: metrics named `video_to_text_...` and `text_to_video_...`; its images are the videos.

    Raises:
        ValueError: If no video can be used, or `k` or `num_frames` is below one.
        ImportError: If there are video files and PyAV is not installed.
    """
    settings = TwoStageSettings(
        direction_names=("video_to_text", "text_to_video"),
        k=k,
        ks=ks,
        image_batch_size=video_batch_size,
        text_batch_size=text_batch_size,
        num_workers=num_workers,
        states_dtype=states_dtype,
        show_progress=show_progress,
        relevance=relevance,
        score=score,
    )
    videos: dict[int, str] = {}
    captions: dict[int | str, list[str]] = {}
    for record in records:
        videos.setdefault(record["video_id"], record["video"])
        captions.setdefault(record["video_id"], []).append(record["caption"])
    captions = {video_id: usable_captions(own, normalize=True) for video_id, own in captions.items()}
    read = partial(_read_video, processor, list(videos.values()), num_frames)
    return evaluate_two_stages(model, processor, captions, read, settings)


def _read_video(processor: BlipProcessor, videos: Sequence[str], num_frames: int, number: int) -> Tensor:
    return read_pixels(processor, read_frames(videos[number], num_frames))


__all__ = ["evaluate_video_retrieval"]
