# SPDX-License-Identifier: BSD-3-Clause
"""Frames of videos in every form, the captions of MSR-VTT, and retrieval of videos."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.testing import assert_close

from blip_hf import BlipForImageTextRetrieval
from blip_hf.data.videos import load_video_captions, read_frames, sample_frame_indices
from blip_hf.evaluation.retrieval import evaluate_retrieval
from blip_hf.evaluation.video import evaluate_video_retrieval
from blip_hf.image_utils import UnreadableImageError
from tests.support.tiny_models import SUMMATION_TOLERANCE, tiny_model_for
from tests.support.vocabularies import make_processor


def grey_frames(num_frames):
    """Frame `i` has the grey level `10 * i`."""
    return [Image.new("RGB", (32, 32), (10 * i,) * 3) for i in range(num_frames)]


def numbers_of(frames):
    """Which frame each image is."""
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
    # Matroska does not say how many frames it has.
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
        ("", "no list of records"),
    ],
)
def test_invalid_caption_file_raises_with_the_record(tmp_path, line, message):
    path = tmp_path / "captions.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        load_video_captions(path)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model_for(BlipForImageTextRetrieval, processor)


@pytest.fixture
def records(tmp_path):
    """Five videos of three to seven frames of noise as folders, one of them with two captions."""
    rng = np.random.default_rng(0)
    for number in range(5):
        noise = rng.integers(0, 256, size=(3 + number, 4, 4, 3), dtype=np.uint8)
        write_folder(tmp_path / str(number), [Image.fromarray(levels).resize((32, 32)) for levels in noise])
    captions = ["a b", "c", "d e f g", "h h i", "j", "k l"]
    return [
        {"video": str(tmp_path / str(number % 5)), "caption": caption, "video_id": number % 5}
        for number, caption in enumerate(captions)
    ]


@torch.no_grad()
def test_videos_are_scored_by_mean_projection_and_all_their_tokens(model, processor, records):
    num_frames = 4
    result = evaluate_video_retrieval(model, processor, records, num_frames=num_frames, video_batch_size=2)
    videos = {record["video_id"]: record["video"] for record in records}
    for i, video in enumerate(videos.values()):
        pixels = processor(images=read_frames(video, num_frames), return_tensors="pt")["pixel_values"]
        states = model.vision_model(pixels).last_hidden_state  # (frames, tokens, d)
        feature = normalize(model.vision_proj(states[:, 0]).mean(dim=0), dim=0)
        memory = model.text_encoder.build_image_memory(torch.cat(list(states))[None])
        for place, j in enumerate(result.image_candidates.index[i].tolist()):
            row = processor(text=result.texts[j], role="contrast", return_tensors="pt")["input_ids"]
            expected = model.get_itm_logits(memory, row)[0, 1] + model.get_text_features(row)[0] @ feature
            assert_close(result.image_candidates.scores[i, place], expected, **SUMMATION_TOLERANCE)


def test_video_of_one_frame_scores_as_an_image(model, processor, records):
    videos = evaluate_video_retrieval(model, processor, records, num_frames=1, k=2)
    pairs = [
        {"image": read_frames(record["video"], 1)[0], "caption": record["caption"], "image_id": record["video_id"]}
        for record in records
    ]
    pictures = evaluate_retrieval(model, processor, pairs, k=2)
    assert list(videos.reranked.values()) == list(pictures.reranked.values())
    assert_close(videos.text_candidates.scores, pictures.text_candidates.scores, **SUMMATION_TOLERANCE)
    assert "text_to_video_median_rank" in videos.reranked
    assert "itc_video_to_text_r@10" in videos.metrics()


def test_broken_videos_are_skipped_with_their_captions(model, processor, records):
    broken = [{**record, "video": "nowhere.mp4"} if record["video_id"] == 0 else record for record in records]
    result = evaluate_video_retrieval(model, processor, broken)
    assert result.num_skipped == 1
    assert result.image_ids == [1, 2, 3, 4]
    assert result.texts == ["c", "d e f g", "h h i", "j"]


def test_half_precision_frames_stay_near(model, processor, records):
    exact = evaluate_video_retrieval(model, processor, records)
    half = evaluate_video_retrieval(model, processor, records, states_dtype=torch.bfloat16)
    scores = [result.text_candidates.scores.sort(dim=1).values for result in (half, exact)]
    # bf16 has 8 bits: scores of some units move by some hundredths.
    assert_close(*scores, atol=0.1, rtol=0.05)
