# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""Caption images, with the mean log-probability of each caption.

python examples/caption_images.py Salesforce/blip-image-captioning-base dog.jpg boat.png
python examples/caption_images.py --tiny  # random weights on drawn scenes, a few seconds
"""

import argparse
from collections.abc import Sequence

import torch

from blip_hf import BlipCaptioner, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from blip_hf.data.scenes import Scenes
from blip_hf.data.vocabulary import train_wordpiece_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Captions the images of the command line, or drawn scenes."""
    parser = argparse.ArgumentParser(description="Caption images.")
    parser.add_argument("model", nargs="?", help="folder or model id of a captioning model")
    parser.add_argument("images", nargs="*", help="images to caption")
    parser.add_argument("--prompt", help="start of each caption; by default that of the checkpoint")
    parser.add_argument("--num_captions", type=int, default=1, help="captions per image")
    parser.add_argument("--tiny", action="store_true", help="run random weights on drawn scenes")
    options = parser.parse_args(argv)

    if options.tiny:
        scenes = Scenes(4)
        names = [f"scene {record['image_id']}" for record in scenes]
        images = [record["image"] for record in scenes]
        captioner = BlipCaptioner(*make_tiny_captioner(scenes.captions()), prompt=options.prompt, max_new_tokens=8)
    elif options.images:
        names = images = options.images
        captioner = BlipCaptioner.from_pretrained(options.model, prompt=options.prompt)
    else:
        parser.error("name a model and at least one image, or pass --tiny")

    for caption in captioner.iter_captions(
        images, num_return_sequences=options.num_captions, return_scores=True, on_error="skip"
    ):
        if caption.error is not None:
            print(f"{names[caption.image_index]}: {caption.error}")
        else:
            print(f"{names[caption.image_index]}: {caption.text} ({caption.mean_log_probability:.2f} a token)")


def make_tiny_captioner(texts: Sequence[str]) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Makes a captioner with random weights and the vocabulary of `texts`."""
    processor = BlipProcessor.from_bert_tokenizer(train_wordpiece_tokenizer(texts), image_size=32)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={**processor.config_token_ids(), **sizes, "encoder_hidden_size": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    return BlipForConditionalGeneration(config), processor


if __name__ == "__main__":
    main()
