# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""Classify images zero-shot by labels, and compute image, text and multimodal features.

python examples/zero_shot.py Salesforce/blip-itm-base-coco rex.jpg tom.jpg --labels dog cat horse
python examples/zero_shot.py --tiny  # random weights on drawn scenes, a few seconds
"""

import argparse
from collections.abc import Sequence

import torch

from blip_hf import BlipConfig, BlipForImageTextRetrieval, BlipProcessor, ZeroShotClassifier
from blip_hf.data.scenes import Scenes, scene_vocabulary_texts
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from blip_hf.evaluation.features import image_features, multimodal_embeds, text_features


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the most probable labels of each image and the three kinds of features."""
    options = parse_options(argv)
    if options.tiny:
        scenes = Scenes(3)
        images, names = [record["image"] for record in scenes], scenes.captions()
        labels = ["circle", "square", "star"]
        model, processor = make_tiny_matcher()
    else:
        images = names = options.images
        labels = options.labels
        model = BlipForImageTextRetrieval.from_pretrained(options.model)
        processor = BlipProcessor.from_pretrained(options.model)

    # The feature of a label is the mean over templates, computed once for all images.
    classifier = ZeroShotClassifier(model, processor, labels, templates=options.templates)
    for name, found in zip(names, classifier(images, top_k=3), strict=True):
        print(f"{name}: {', '.join(f'{label.label} {label.probability:.2f}' for label in found)}")

    # Unimodal features are normalised, so that their dot product is the cosine.
    texts = [f"a picture of a {label}" for label in labels]
    of_images = image_features(model, processor, images)  # (images, d)
    of_texts = text_features(model, processor, texts)  # (labels, d)
    print(f"cosines of each image with {texts}:\n{(of_images @ of_texts.T).cpu()}")
    # Multimodal features of an image with a text are neither projected nor normalised.
    together = multimodal_embeds(model, processor, images, [texts[0]] * len(images))
    print(f"multimodal features of each image with {texts[0]!r}: {tuple(together.shape)}")


def make_tiny_matcher() -> tuple[BlipForImageTextRetrieval, BlipProcessor]:
    """Makes a matcher with random weights and the vocabulary of drawn scenes."""
    tokenizer = train_wordpiece_tokenizer(scene_vocabulary_texts())
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=32)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={**processor.config_token_ids(), **sizes},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    return BlipForImageTextRetrieval(config), processor


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder or model id of a matcher")
    parser.add_argument("images", nargs="*", help="images to classify")
    parser.add_argument("--labels", nargs="+", help="labels to choose from")
    parser.add_argument(
        "--templates", nargs="+", default=["a picture of a {}", "there is a {}"], help="texts around a label"
    )
    parser.add_argument("--tiny", action="store_true", help="run random weights on drawn scenes")
    options = parser.parse_args(argv)
    if not options.tiny and not (options.images and options.labels):
        parser.error("name a model, images and --labels, or pass --tiny")
    return options


if __name__ == "__main__":
    main()
