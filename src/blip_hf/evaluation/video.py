# SPDX-License-Identifier: BSD-3-Clause
"""Video-text retrieval with a model that has only seen images (BLIP, section 5.6)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.videos import read_frames
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .features import read_pixels
from .retrieval import RetrievalResult, evaluate_two_stages, usable_captions


def evaluate_video_retrieval(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    records: Sequence[Mapping[str, Any]],
    *,
    num_frames: int = 8,
    k: int = 128,
    ks: Sequence[int] = (1, 5, 10),
    video_batch_size: int = 4,
    text_batch_size: int = 64,
    num_workers: int = 0,
    states_dtype: torch.dtype | None = None,
    show_progress: bool = False,
) -> RetrievalResult:
    """Finds the captions of each video and the video of each caption among all others, without training on videos.

    The feature of a video is the mean of its frames' projections, normalised; the matching head reads the tokens of
    all frames as those of one image, in whatever order (paper, section 5.6: no temporal information is used).
    Otherwise as [`~blip_hf.evaluation.retrieval.evaluate_retrieval`], in memory too: eight frames of ViT-B at 384 pixels
    wait in 14 MB a video in fp32.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; BLIP takes that of COCO retrieval. Its mode, device and dtype are left as they are.
        processor (`BlipProcessor`):
            The processor it was trained with.
        records (sequence of records):
            `{"video", "caption", "video_id"}` as [`~blip_hf.data.videos.load_video_captions`] gives them, a video being
            what [`~blip_hf.data.videos.read_frames`] takes. One that cannot be read is left out with its captions.
        num_frames (`int`, *optional*, defaults to 8):
            Frames a video.
        k (`int`, *optional*, defaults to 128):
            Candidates of a query that are re-ranked.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            Lengths of the list in which a relevant candidate is looked for.
        video_batch_size (`int`, *optional*, defaults to 4):
            Videos a batch of the image tower.
        text_batch_size (`int`, *optional*, defaults to 64):
            Most texts a batch, in both stages.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read videos.
        states_dtype (`torch.dtype`, *optional*):
            What to keep states in: `torch.bfloat16` halves their memory, at its precision.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show bars.

    Returns:
        `RetrievalResult`: metrics named `video_to_text_...` and `text_to_video_...`; its images are the videos.

    Raises:
        ValueError: If no video can be used, or `k` or `num_frames` is below one.
        ImportError: If there are video files and PyAV is not installed.
    """
    videos: dict[int, str] = {}
    captions: dict[int, list[str]] = {}
    for record in records:
        videos.setdefault(record["video_id"], record["video"])
        captions.setdefault(record["video_id"], []).append(record["caption"])
    return evaluate_two_stages(
        model,
        processor,
        {video_id: usable_captions(own, normalize=True) for video_id, own in captions.items()},
        partial(_read_video, processor, list(videos.values()), num_frames),
        direction_names=("video_to_text", "text_to_video"),
        k=k,
        ks=ks,
        image_batch_size=video_batch_size,
        text_batch_size=text_batch_size,
        num_workers=num_workers,
        states_dtype=states_dtype,
        show_progress=show_progress,
    )


def _read_video(processor: BlipProcessor, videos: Sequence[str], num_frames: int, number: int) -> Tensor:
    return read_pixels(processor, read_frames(videos[number], num_frames))


__all__ = ["evaluate_video_retrieval"]
