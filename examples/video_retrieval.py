# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf[video]"]
# ///
"""Evaluate text-to-video and video-to-text retrieval with a matcher that was trained on images.

python examples/video_retrieval.py Salesforce/blip-itm-base-coco msrvtt_test.jsonl --video_root videos
python examples/video_retrieval.py --tiny  # random weights on drawn clips, a few seconds

Each line of the file is `{"clip_name": ..., "caption": ...}`. A clip is a folder of frames or a video file.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import ImageChops

from blip_hf import BlipConfig, BlipForImageTextRetrieval, BlipProcessor, evaluate_video_retrieval
from blip_hf.data.scenes import Scenes, scene_vocabulary_texts
from blip_hf.data.videos import load_video_captions
from blip_hf.data.vocabulary import train_wordpiece_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates on the clips of the command line, or on drawn ones."""
    options = parse_options(argv)
    if options.tiny:
        model, processor = make_tiny_matcher()
        with tempfile.TemporaryDirectory() as folder:
            report(model, processor, draw_clips(Path(folder), num_clips=16), options)
    else:
        model = BlipForImageTextRetrieval.from_pretrained(options.model)
        processor = BlipProcessor.from_pretrained(options.model)
        report(model, processor, options.captions, options)


def report(
    model: BlipForImageTextRetrieval, processor: BlipProcessor, captions: str | Path, options: argparse.Namespace
) -> None:
    """Prints recalls and median ranks (the paper, section 5.6: eight frames, 128 candidates)."""
    records = load_video_captions(captions, video_root=options.video_root)
    result = evaluate_video_retrieval(model, processor, records, num_frames=options.num_frames)
    print(f"{len(result.image_ids)} videos, {len(result.texts)} captions")
    for name, value in result.reranked.items():
        print(f"{name:28}{value:8.3f}")


def draw_clips(folder: Path, num_clips: int) -> Path:
    """Writes scenes that move to the right, as folders of four frames, and returns the file of their captions."""
    lines = []
    for record in Scenes(num_clips, image_size=32):
        clip = f"scene{record['image_id']}"
        (folder / clip).mkdir()
        for number in range(4):
            ImageChops.offset(record["image"], number, 0).save(folder / clip / f"{number}.png")
        lines.append(json.dumps({"clip_name": clip, "caption": record["caption"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder / "captions.jsonl"


def make_tiny_matcher() -> tuple[BlipForImageTextRetrieval, BlipProcessor]:
    """Makes a matcher with random weights and the vocabulary of drawn scenes."""
    tokenizer = train_wordpiece_tokenizer(scene_vocabulary_texts())
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=32)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_config = {**sizes, **processor.config_token_ids()}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text_config, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    return BlipForImageTextRetrieval(config), processor


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder or model id of a matcher")
    parser.add_argument("captions", nargs="?", help="file of captions, .json or .jsonl")
    parser.add_argument("--video_root", help="folder of the videos; by default that of the captions")
    parser.add_argument("--num_frames", type=int, default=8, help="frames per video")
    parser.add_argument("--tiny", action="store_true", help="run random weights on drawn clips")
    options = parser.parse_args(argv)
    if not options.tiny and not options.captions:
        parser.error("name a model and a file of captions, or pass --tiny")
    return options


if __name__ == "__main__":
    main()
