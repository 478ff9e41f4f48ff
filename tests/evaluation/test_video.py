# SPDX-License-Identifier: BSD-3-Clause
"""Retrieval of videos."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from blip_hf.data.videos import read_frames
from blip_hf.evaluation.retrieval import evaluate_retrieval
from blip_hf.evaluation.video import evaluate_video_retrieval
from tests.support.images import noise_images
from tests.support.tiny_models import SUMMATION_TOLERANCE


@pytest.fixture
def records(tmp_path):
    """Five videos of three to seven frames of noise as folders, one of them with two captions."""
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        for index, frame in enumerate(noise_images(3 + number, (32, 32), seed=number)):
            frame.save(tmp_path / str(number) / f"frame{index}.png")
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
            expected = (
                model.get_itm_logits(memory, row)[0, 1] + model.get_text_features(row).pooler_output[0] @ feature
            )
            assert_close(result.image_candidates.scores[i, place], expected, **SUMMATION_TOLERANCE)


def test_video_of_one_frame_scores_as_an_image(model, processor, records):
    videos = evaluate_video_retrieval(model, processor, records, num_frames=1, k=2)
    pairs = [
        {"image": read_frames(record["video"], 1)[0], "caption": record["caption"], "image_id": record["video_id"]}
        for record in records
    ]
    images = evaluate_retrieval(model, processor, pairs, k=2)
    assert list(videos.reranked.values()) == list(images.reranked.values())
    assert_close(videos.text_candidates.scores, images.text_candidates.scores, **SUMMATION_TOLERANCE)
    assert "text_to_video_median_rank" in videos.reranked
    assert "itc_video_to_text_r@10" in videos.metrics()


def test_broken_videos_are_skipped_with_their_captions(model, processor, records):
    broken = [{**record, "video": "nowhere.mp4"} if record["video_id"] == 0 else record for record in records]
    result = evaluate_video_retrieval(model, processor, broken)
    assert result.num_skipped == 1
    assert result.image_ids == [1, 2, 3, 4]
    assert result.texts == ["c", "d e f g", "h h i", "j"]


def test_bfloat16_states_are_close(model, processor, records):
    exact = evaluate_video_retrieval(model, processor, records)
    half = evaluate_video_retrieval(model, processor, records, states_dtype=torch.bfloat16)
    scores = [result.text_candidates.scores.sort(dim=1).values for result in (half, exact)]
    # bf16 has 8 significant bits, so scores of a few units change by a few hundredths.
    assert_close(*scores, atol=0.1, rtol=0.05)
