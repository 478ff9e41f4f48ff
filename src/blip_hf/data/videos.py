# SPDX-License-Identifier: BSD-3-Clause
"""Reads frames of videos (video file, animated image or folder of frames), and captions of MSR-VTT."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from PIL import Image, ImageSequence

from ..image_files import list_images
from ..image_utils import UnreadableImageError, open_image
from .readers.records import check_record, read_json, read_path, read_text


# Pillow reads these. PyAV reads all other files.
ANIMATION_SUFFIXES = (".apng", ".gif", ".png", ".webp")


class VideoCaption(TypedDict):
    """A video with one of its captions."""

    video: str
    caption: str
    video_id: int


class UnreadableVideoError(UnreadableImageError):
    """Raised for a video that cannot be used: missing, broken, or without a frame. The message names it."""


def sample_frame_indices(num_available: int, num_frames: int) -> list[int]:
    """Indices of frames at equal distances, in ascending order.

    Unlike salesforce/BLIP (`data/video_dataset.py`), the distance is not rounded down, and the frames of a short clip
    are repeated evenly.

    Example:
        >>> sample_frame_indices(100, 8)
        [0, 12, 25, 37, 50, 62, 75, 87]
        >>> sample_frame_indices(3, 8)
        [0, 0, 0, 1, 1, 1, 2, 2]
    """
    return [] if num_available == 0 else [i * num_available // num_frames for i in range(num_frames)]


def read_frames(source: str | Path, num_frames: int = 8) -> list[Image.Image]:
    """Reads frames of a video at equal distances, as RGB images. Frames are repeated if the video has fewer.

    Args:
        source (`str` or `Path`):
            A folder of frames in natural order; an animated `.gif`, `.webp` or `.png`; or a video file, which needs
            PyAV (`pip install blip_hf[video]`).
        num_frames (`int`, *optional*, defaults to 8):
            Number of frames, as in BLIP's zero-shot video retrieval.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames} is too small: pass 1 or more.")
    path = Path(source)
    if path.is_dir():
        files = _frame_files(path)
        return [open_image(files[index]) for index in _checked_indices(path, len(files), num_frames)]
    if not path.is_file():
        raise _unreadable(path, "it does not exist")
    if path.suffix.lower() in ANIMATION_SUFFIXES:
        return _read_animation(path, num_frames)
    return _read_video_file(path, num_frames)


def _frame_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order: `frame2.jpg` before `frame10.jpg`."""
    # Names split at numbers, so numbers are compared with numbers and text with text.
    return sorted(
        list_images(folder), key=lambda path: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path.name)]
    )


def _read_animation(path: Path, num_frames: int) -> list[Image.Image]:
    try:
        with Image.open(path) as animation:
            num_available = sum(1 for _ in ImageSequence.Iterator(animation))
            wanted = _checked_indices(path, num_available, num_frames)
            frames = {}
            for index in wanted:
                animation.seek(index)
                frames[index] = open_image(animation)
    except Exception as error:
        # As in `open_image`: decoders raise anything on a broken file.
        raise _unreadable(path, str(error)) from error
    return [frames[index] for index in wanted]


def _read_video_file(path: Path, num_frames: int) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"Reading the video file {path} needs PyAV: pip install blip_hf[video]. Folders of frames and animated"
            " images do not need it."
        ) from error
    try:
        with av.open(str(path)) as container:
            num_promised = container.streams.video[0].frames if container.streams.video else 0
        frames, num_decoded = _decode(path, sample_frame_indices(num_promised, num_frames))
        wanted = _checked_indices(path, num_decoded, num_frames)
        if num_decoded != num_promised:
            # Some formats do not store the number of frames, and some files store a wrong one.
            frames, _ = _decode(path, wanted)
    except av.FFmpegError as error:
        raise _unreadable(path, str(error)) from error
    return [frames[index] for index in wanted]


def _decode(path: Path, wanted: Sequence[int]) -> tuple[dict[int, Image.Image], int]:
    """The wanted frames by number, and the number of all frames."""
    import av

    frames, num_decoded = {}, 0
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
            num_decoded = number + 1
            if number in wanted:
                frames[number] = frame.to_image()
    return frames, num_decoded


def _checked_indices(path: Path, num_available: int, num_frames: int) -> list[int]:
    if num_available == 0:
        raise _unreadable(path, "it has no frames")
    return sample_frame_indices(num_available, num_frames)


def _unreadable(path: Path, reason: str) -> UnreadableVideoError:
    return UnreadableVideoError(
        f"Cannot read the video {path}: {reason.rstrip('.')}. Accepted is a folder of frames (images),"
        " an animation that Pillow reads, or a video file that PyAV reads; replace or"
        " remove this video."
    )


def load_video_captions(
    path: str | os.PathLike[str], *, video_root: str | os.PathLike[str] | None = None, suffix: str = ".mp4"
) -> list[VideoCaption]:
    """Reads captions of videos in BLIP's format for MSR-VTT: records `{"clip_name", "caption"}`.

    The file is JSON lines (`.jsonl`) or a JSON list. `video_root` defaults to its folder.

    Args:
        suffix (`str`, *optional*, defaults to `".mp4"`):
            Suffix of the video files. If a folder has the name of the clip, it is read instead.

    Returns:
        `list[VideoCaption]`: records `{"video", "caption", "video_id"}` in the order of the file. Clips are numbered
        from 0 in order of appearance. No video is opened.
    """
    path = Path(path)
    root = path.parent if video_root is None else Path(video_root)
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} is not a list of records, expected records with 'clip_name' and 'caption'.")
    numbers: dict[str, int] = {}
    captions = []
    for number, record in enumerate(records):
        where = f"{path}, record {number}"
        name = read_path(check_record(record, where, "clip_name"), "clip_name", where)
        video = root / name if (root / name).is_dir() else root / f"{name}{suffix}"
        video_id = numbers.setdefault(name, len(numbers))
        captions.append(VideoCaption(video=str(video), caption=read_text(record, "caption", where), video_id=video_id))
    return captions


__all__ = ["UnreadableVideoError", "VideoCaption", "load_video_captions", "read_frames", "sample_frame_indices"]
