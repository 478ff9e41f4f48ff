# SPDX-License-Identifier: BSD-3-Clause
"""Frames of videos in every form, and the captions of MSR-VTT."""

import json
import sys

import numpy as np
import pytest

from blip_hf.data.videos import load_video_captions, read_frames, sample_frame_indices
from blip_hf.image_utils import UnreadableImageError
from tests.support.images import grey_image


def grey_frames(num_frames):
    """Frame `i` has the grey level `10 * i`."""
    return [grey_image(10 * i, (32, 32)) for i in range(num_frames)]


def numbers_of(frames):
    """The number of the frame of each image."""
    return [round(np.asarray(frame).mean() / 10) for frame in frames]


def write_folder(path, frames):
    path.mkdir()
    for number, frame in enumerate(frames):
        frame.save(path / f"frame{number}.png")


def write_animation(path, frames):
    frames[0].save(path, save_all=True, append_images=frames[1:])


def write_video(path, frames, codec, pix_fmt):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_mp4(path, frames):
    write_video(path, frames, "mpeg4", "yuv420p")


def write_mkv(path, frames):
    # Matroska files do not store the number of frames.
    write_video(path, frames, "ffv1", "bgr0")


WRITERS = {
    "frames": write_folder,
    "a.gif": write_animation,
    "a.webp": write_animation,
    "a.mp4": write_mp4,
    "a.mkv": write_mkv,
}


@pytest.mark.parametrize(
    ("num_available", "num_frames", "expected"),
    [
        (16, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (100, 8, [0, 12, 25, 37, 50, 62, 75, 87]),  # i * 12.5, cut
        (12, 5, [0, 2, 4, 7, 9]),  # i * 2.4, cut
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, 5, [0, 0, 0, 1, 1]),
        (1, 3, [0, 0, 0]),
        (0, 8, []),
    ],
)
def test_frames_are_sampled_at_equal_distances(num_available, num_frames, expected):
    assert sample_frame_indices(num_available, num_frames) == expected


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("num_available", "expected"), [(12, [0, 2, 4, 7, 9]), (2, [0, 0, 0, 1, 1]), (1, [0] * 5)])
def test_all_input_types_give_the_same_frames(tmp_path, name, num_available, expected):
    WRITERS[name](tmp_path / name, grey_frames(num_available))
    frames = read_frames(tmp_path / name, 5)
    assert numbers_of(frames) == expected
    assert {frame.mode for frame in frames} == {"RGB"}


def test_folder_is_read_in_numeric_order_without_other_files(tmp_path):
    write_folder(tmp_path / "frames", grey_frames(11))
    (tmp_path / "frames" / "notes.txt").write_text("not a frame")
    assert numbers_of(read_frames(tmp_path / "frames", 11)) == list(range(11))


@pytest.mark.parametrize("name", ["absent.mp4", "text.mp4", "text.gif", "empty", "sound.wav", "broken"])
def test_non_videos_raise(tmp_path, name):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "text.gif").write_text("not a video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.jpg").write_text("not an image")
    if name.endswith((".mp4", ".wav")):
        av = pytest.importorskip("av")
        with av.open(str(tmp_path / "sound.wav"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
            samples.sample_rate = 8000
            container.mux(stream.encode(samples))
            container.mux(stream.encode())
    with pytest.raises(UnreadableImageError, match=name):
        read_frames(tmp_path / name)


def test_a_video_file_without_pyav_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install blip_hf\[video\]"):
        read_frames(tmp_path / "a.mp4")


def test_empty_video_raises(tmp_path):
    with pytest.raises(ValueError, match="num_frames=0"):
        read_frames(tmp_path, 0)


def test_captions_of_msrvtt_are_read(tmp_path):
    (tmp_path / "video9").mkdir()
    lines = [("video7", "a man sings"), ("video9", "a dog runs"), ("video7", "someone sings")]
    path = tmp_path / "msrvtt_test.jsonl"
    path.write_text("".join(json.dumps({"clip_name": name, "caption": text}) + "\n" for name, text in lines))
    assert load_video_captions(path) == [
        {"video": str(tmp_path / "video7.mp4"), "caption": "a man sings", "video_id": 0},
        {"video": str(tmp_path / "video9"), "caption": "a dog runs", "video_id": 1},
        {"video": str(tmp_path / "video7.mp4"), "caption": "someone sings", "video_id": 0},
    ]
    assert load_video_captions(path, video_root="clips", suffix=".avi")[0]["video"] == "clips/video7.avi"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"clip": "a", "caption": "b"}', r"record 0: field 'clip_name' is missing"),
        ('{"clip_name": "a", "caption": 3}', r"record 0: field 'caption' is int"),
        ("[1]", "record 0 is a list"),
        ("", "is not a list of records"),
    ],
)
def test_invalid_caption_file_raises_with_the_record(tmp_path, line, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        load_video_captions(path)
