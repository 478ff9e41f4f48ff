# SPDX-License-Identifier: BSD-3-Clause
"""Images per second of CapFilt, compared with plain calls of the two models of transformers.

    python benchmarks/capfilt.py --size base

Each image gets one caption by nucleus sampling, and a matching probability and a cosine for three texts (two from the
web, and the caption). Compares:

- `blip_hf`: the engine of `blip-hf capfilt run`, which encodes an image once per model and also computes log-probabilities.
- `batched`: the models of transformers on batches of images. The matcher encodes an image for each text and score.
- `single`: the models of transformers, one image and one text at a time.

Asserts that captions are equal and scores close. Random weights write captions of the maximum length, 16 tokens after
the prompt. Figures are medians over rounds that alternate. The last line of the output is JSON.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, LogitsProcessorList

import blip_hf
from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
    optimize_for_cpu,
)
from blip_hf.capfilt.engine import CapFilt, CapFiltSettings
from blip_hf.capfilt.sampling import SeededNucleus, caption_seed
from blip_hf.data.readers.samples import Sample, Shard


# Image size, width and layers of the image encoder, width and layers of the text transformer, vocabulary size.
SIZES = {
    "tiny": (64, 64, 2, 64, 2, 1_000),
    "small": (224, 384, 12, 384, 6, 8_000),
    "base": (384, 768, 12, 768, 12, 30_522),
}
# Absolute tolerance of scores.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
WEB_TEXTS = 2
TEXTS = WEB_TEXTS + 1

Rows = list[tuple[str, float, float]]
"""Text, matching probability and cosine of each text, image by image."""


def main() -> None:
    """Builds the models, alternates the three implementations, and prints a table and JSON."""
    options = parse_arguments()
    torch.manual_seed(0)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    samples = draw_samples(options.num_images, SIZES[options.size])
    engine, plain = build(options, device)
    ways = {
        "blip_hf": lambda: run_engine(engine, samples),
        "batched": lambda: plain.run(samples, options.batch_size),
        "single": lambda: plain.run(samples, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(options.rounds + 1):
        results = {name: measure(way, device) for name, way in ways.items()}
        check_agreement({name: rows for name, (rows, _) in results.items()}, options.num_images, options.dtype)
        if round_number:  # the first round warms up
            for name, (_, duration) in results.items():
                seconds[name].append(duration)
    report(options, device, {name: options.num_images / statistics.median(times) for name, times in seconds.items()})


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCES)
    return parser.parse_args()


def draw_samples(num_images: int, size: tuple[int, ...]) -> list[Sample]:
    """Images of smooth noise as JPEG, with web texts of 8 to 16 words."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(num_images):
        levels = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
        encoded = BytesIO()
        Image.fromarray(levels).resize((640, 480)).save(encoded, "JPEG")
        lengths = rng.integers(8, 17, size=WEB_TEXTS)
        texts = tuple(
            " ".join(f"word{word}" for word in rng.integers(0, size[-1] - 100, length)) for length in lengths
        )
        samples.append(Sample(f"benchmark/{number}", encoded.getvalue(), texts, str(number)))
    return samples


def build(options: argparse.Namespace, device: str) -> tuple[CapFilt, "PlainWay"]:
    """Builds both implementations with the same weights, which transformers loads from a checkpoint."""
    image_size, vision_width, vision_layers, text_width, text_layers, num_words = SIZES[options.size]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of"]
    words += [f"word{number}" for number in range(num_words - len(words))]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=image_size)
    config = BlipConfig(
        text_config={**processor.config_token_ids(), **_widths(text_width, text_layers)},
        vision_config={"image_size": image_size, "patch_size": 16, **_widths(vision_width, vision_layers)},
    )
    captioner = BlipForConditionalGeneration(config).eval()
    # Like a trained model, it writes no special token. It also never ends a caption.
    captioner.text_decoder.cls.predictions.bias.data[processor.tokenizer.all_special_ids] = -100
    matcher = BlipForImageTextRetrieval(config).eval()
    dtype = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        captioner.save_pretrained(Path(folder, "captioner"))
        matcher.save_pretrained(Path(folder, "filter"))
        plain_captioner = transformers.BlipForConditionalGeneration.from_pretrained(
            Path(folder, "captioner"), dtype=dtype
        )
        plain_matcher = transformers.BlipForImageTextRetrieval.from_pretrained(Path(folder, "filter"), dtype=dtype)
    settings = CapFiltSettings(batch_size=options.batch_size)
    captioner, matcher = captioner.to(device, dtype), matcher.to(device, dtype)
    if device == "cpu":
        captioner, matcher = optimize_for_cpu(captioner), optimize_for_cpu(matcher)
    engine = CapFilt(captioner, processor, matcher, processor, settings)
    return engine, PlainWay(plain_captioner.to(device), plain_matcher.to(device), processor, settings)


def _widths(width: int, num_layers: int) -> dict[str, int]:
    heads = {"num_attention_heads": max(1, width // 64), "num_hidden_layers": num_layers}
    return {"hidden_size": width, "intermediate_size": 4 * width, **heads}


def run_engine(engine: CapFilt, samples: list[Sample]) -> Rows:
    """Runs the engine of this package."""
    table, _ = engine.score_shard(Shard("benchmark", lambda: iter(samples)))
    return [(row["text"], row["itm"], row["itc"]) for row in table.to_pylist()]


class PlainWay:
    """The models of transformers, called as in their documentation."""

    def __init__(
        self,
        captioner: transformers.BlipForConditionalGeneration,
        matcher: transformers.BlipForImageTextRetrieval,
        processor: BlipProcessor,
        settings: CapFiltSettings,
    ) -> None:
        self.captioner = captioner.eval()
        self.matcher = matcher.eval()
        self.processor = processor
        self.settings = settings

    @torch.no_grad()
    def run(self, samples: list[Sample], batch_size: int) -> Rows:
        """Writes captions and scores texts, `batch_size` images at a time."""
        rows = []
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            pixels = self.processor(images=[sample.open_image() for sample in batch], return_tensors="pt")[
                "pixel_values"
            ]
            pixels = pixels.to(self.captioner.device, self.captioner.dtype)
            captions = self.write(pixels, batch)
            texts = [[*sample.texts, caption] for sample, caption in zip(batch, captions, strict=True)]
            # One text per image at a time.
            scores = [self.score(pixels, [own[slot] for own in texts]) for slot in range(TEXTS)]
            rows += [
                (texts[image][slot], *scores[slot][image]) for image in range(len(batch)) for slot in range(TEXTS)
            ]
        return rows

    def write(self, pixels: Tensor, samples: list[Sample]) -> list[str]:
        """A caption of each image, with the noise of the engine."""
        prompts = self.processor(text=[self.settings.prompt] * len(samples), return_tensors="pt").to(pixels.device)
        seeds = [caption_seed(self.settings.seed, sample.sample_id, 0) for sample in samples]
        noise = SeededNucleus(torch.tensor(seeds, device=pixels.device), self.settings.top_p)
        sequences = self.captioner.generate(
            pixel_values=pixels,
            **prompts,
            do_sample=False,
            min_length=self.settings.min_length,
            max_length=self.settings.max_length,
            logits_processor=LogitsProcessorList([noise]),
        )
        return self.processor.post_process_captions(sequences, prompt=self.settings.prompt)

    def score(self, pixels: Tensor, texts: list[str]) -> list[tuple[float, float]]:
        """Matching probability and cosine of each pair."""
        matching, contrast = (
            self.processor(text=texts, role=role, return_tensors="pt").to(pixels.device)
            for role in ("matching", "contrast")
        )
        itm = self.matcher(pixel_values=pixels, **matching).itm_score.float().softmax(dim=1)[:, 1]
        itc = self.matcher(pixel_values=pixels, **contrast, use_itm_head=False).itm_score.float().diagonal()
        return list(zip(itm.tolist(), itc.tolist(), strict=True))


def measure(way: Callable[[], Rows], device: str) -> tuple[Rows, float]:
    """Result and seconds of one run."""
    start = time.perf_counter()
    rows = way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return rows, time.perf_counter() - start


def check_agreement(results: dict[str, Rows], num_images: int, dtype: str) -> None:
    """Asserts that captions are equal and scores close."""
    texts = {name: [text for text, _, _ in rows] for name, rows in results.items()}
    assert len(texts["blip_hf"]) == TEXTS * num_images
    assert texts["blip_hf"] == texts["batched"] == texts["single"], "captions differ"
    scores = {name: np.array([row[1:] for row in rows]) for name, rows in results.items()}
    for name in ("batched", "single"):
        np.testing.assert_allclose(scores["blip_hf"], scores[name], atol=TOLERANCES[dtype])


def report(options: argparse.Namespace, device: str, speeds: dict[str, float]) -> None:
    """Prints a table, then one line of JSON."""
    ratios = {name: speeds["blip_hf"] / speed for name, speed in speeds.items()}
    for name, speed in speeds.items():
        print(f"{name:>8}  {speed:8.2f} images/s  blip_hf is {ratios[name]:5.2f} times as fast")
    is_cuda = device.startswith("cuda")
    result = {
        "benchmark": "capfilt",
        **{name: getattr(options, name) for name in ("size", "num_images", "batch_size", "rounds", "dtype")},
        "texts_per_image": TEXTS,
        "images_per_second": {name: round(speed, 3) for name, speed in speeds.items()},
        "speedup": {name: round(ratio, 2) for name, ratio in ratios.items() if name != "blip_hf"},
        "device": torch.cuda.get_device_name() if is_cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "blip_hf": blip_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
