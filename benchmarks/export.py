# SPDX-License-Identifier: BSD-3-Clause
"""Exported models beside PyTorch: the image encoder, captions, matching of many texts, files and memory.

Weights are random, so captions have a fixed length. `python -m benchmarks export --size base`; only on CPUs.
"""

import functools
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
    export_model,
)
from blip_hf.files import size_of

from .harness import OURS, Case, Options, Way, finish, parse_options, print_row, run_case, small_heap
from .limit import DemandCounter, Rates
from .runtime_rates import measure_runtime_rates
from .sizes import build, config_fields, random_pixels, upstream_model


NUM_TOKENS = {"base": 20, "small": 20, "tiny": 4}
NUM_TEXTS, TEXT_LENGTH = 64, 12
BATCH_SIZE = 8
UPSTREAM = "transformers, fp32"
OURS_FP32, OURS_BF16 = "PyTorch, fp32", "PyTorch, bf16"
# Format and precision of the exports; the first is `OURS`.
EXPORTS = {
    OURS: ("openvino", "int8"),
    "OpenVINO, bf16": ("openvino", "bf16"),
    "OpenVINO, fp32": ("openvino", "fp32"),
    "ONNX Runtime, int8": ("onnx", "int8"),
    "ONNX Runtime, fp32": ("onnx", "fp32"),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs all cases and prints them, then JSON."""
    options = parse_options(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder, small_heap():
        models = Models(options, Path(folder))
        rates = measure_runtime_rates({"base": 2048, "small": 1024, "tiny": 128}[options.size_name])
        for case in cases(options, models):
            rows.append(run_case(case, options) | {"note": "int8 with OpenVINO"})
            if "tower" in case.name:
                rows[-1]["limit"] = tower_shares(models, rates, rows[-1]["seconds"])
            print_row(rows[-1])
        rows += [size_row(models), memory_row(options, models)]
        for row in rows[-2:]:
            print_row(row)
    return finish("export", options, rows)


class Models:
    """The model in PyTorch and its exports, for each head."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder

    @functools.cache  # noqa: B019
    def torch_model(self, head: type, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """The model with the kernels of `optimize_for_cpu`."""
        return build(head, BlipConfig(**config_fields(self.options.size)), self.options.device).to(dtype)

    @functools.cache  # noqa: B019
    def upstream(self) -> torch.nn.Module:
        """The captioner of transformers."""
        return upstream_model(self.torch_model(BlipForConditionalGeneration))

    def export_folder(self, head: type, name: str) -> Path:
        """The folder of an export, which is written at the first call."""
        format, precision = EXPORTS[name]
        folder = self.folder / f"{head.__name__}-{format}-{precision}"
        if not folder.exists():
            model = head(BlipConfig(**config_fields(self.options.size)))
            model.load_state_dict(self.torch_model(head).state_dict())
            size = self.options.size.image_size
            processor = BlipProcessor.from_bert_tokenizer(_tokenizer(), image_size=size)
            export_model(
                model.eval(), processor, folder, format=format, precision=precision, num_calibration_images=16
            )
        return folder

    @functools.cache  # noqa: B019
    def export(self, head: type, name: str) -> torch.nn.Module:
        """An exported model."""
        return head.from_pretrained(self.export_folder(head, name))


def cases(options: Options, models: Models) -> Iterator[Case]:
    """The image tower, greedy captions, three beams, and one image with many texts."""
    size, tokens = options.size.image_size, NUM_TOKENS[options.size_name]
    one, many = (random_pixels(count, size, options.device) for count in (1, BATCH_SIZE))
    captioner, matcher = BlipForConditionalGeneration, BlipForImageTextRetrieval
    yield Case(
        f"image tower, one image, {size} px",
        _ways(models, captioner, lambda model: functools.partial(encode, model, one)),
        targets={OURS_FP32: 3.3, OURS_BF16: 2.0},
        has_tensors=False,
    )
    for num_beams, pixels, target in ((1, one, 3.0), (3, many, 5.0)):
        yield Case(
            f"caption, {num_beams} beam(s), batch {len(pixels)}, {tokens} tokens",
            _ways(
                models, captioner, lambda model, p=pixels, n=num_beams: functools.partial(write, model, p, n, tokens)
            )
            | {UPSTREAM: functools.partial(write, models.upstream(), pixels, num_beams, tokens)},
            targets={UPSTREAM: target},
            has_tensors=False,
        )
    texts = torch.randint(103, options.size.vocab_size - 2, (NUM_TEXTS, TEXT_LENGTH))
    yield Case(
        f"one image with {NUM_TEXTS} texts by the matching head",
        _ways(models, matcher, lambda model: functools.partial(match, model, one, texts)),
        targets={OURS_FP32: 2.0},
        has_tensors=False,
    )


def _ways(models: Models, head: type, make: Callable[[torch.nn.Module], Way]) -> dict[str, Way]:
    ways = {name: make(models.export(head, name)) for name in EXPORTS}
    return ways | {
        OURS_FP32: make(models.torch_model(head)),
        OURS_BF16: make(models.torch_model(head, torch.bfloat16)),
    }


def _tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={token: number for number, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))})


@torch.inference_mode()
def encode(model: torch.nn.Module, pixels: Tensor) -> Tensor:
    """States of images."""
    return model.vision_model(pixels.to(model.dtype)).last_hidden_state


def write(model: torch.nn.Module, pixels: Tensor, num_beams: int, num_tokens: int) -> Tensor:
    """Captions of a fixed length."""
    return model.generate(
        pixel_values=pixels.to(model.dtype),
        num_beams=num_beams,
        do_sample=False,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
    )


@torch.inference_mode()
def match(model: torch.nn.Module, pixels: Tensor, texts: Tensor) -> Tensor:
    """ITM logits of one image and all texts."""
    memory = model.get_image_memory(pixels.to(model.dtype))
    return model.get_itm_logits(memory, texts, torch.ones_like(texts))


# Shares of the limit, files and memory


def tower_shares(models: Models, rates: dict[str, float], seconds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """FLOPs of the image tower, and the share of the best matrix rate of its precision that each way reaches."""
    pixels = random_pixels(1, models.options.size.image_size, models.options.device)
    with DemandCounter(Rates(1.0, float("inf"))) as counter:
        encode(models.torch_model(BlipForConditionalGeneration), pixels)
    shares = {
        name: round(counter.flops / rates[_precision(name)] / summary["median"], 3)
        for name, summary in seconds.items()
    }
    return {"flops": counter.flops, "rates": rates, "shares": shares, "share": shares[OURS]}


def _precision(name: str) -> str:
    return EXPORTS[name][1] if name in EXPORTS else name.rpartition(" ")[2]


def size_row(models: Models) -> dict[str, Any]:
    """Bytes of the folders of the captioner."""
    sizes = {name: size_of(models.export_folder(BlipForConditionalGeneration, name)) for name in EXPORTS}
    return _bytes_row("files of the captioner, bytes", sizes, {"OpenVINO, fp32": 0.3})


def memory_row(options: Options, models: Models) -> dict[str, Any]:
    """Memory of a process that loads the captioner and captions a batch, above that of the imports."""
    folders = {name: str(models.export_folder(BlipForConditionalGeneration, name)) for name in EXPORTS}
    checkpoint = models.folder / "checkpoint"
    models.torch_model(BlipForConditionalGeneration).save_pretrained(checkpoint)
    folders |= {OURS_FP32: str(checkpoint), UPSTREAM: str(checkpoint)}
    size, tokens = options.size.image_size, NUM_TOKENS[options.size_name]
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name, folder in folders.items():
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            peaks[name] = executor.submit(caption_memory, folder, name == UPSTREAM, size, tokens).result()
    return _bytes_row(f"peak memory of captioning {BATCH_SIZE} images, 3 beams", peaks, {UPSTREAM: 0.5})


def caption_memory(folder: str, is_upstream: bool, image_size: int, num_tokens: int) -> int:
    """Peak resident bytes above those before the model is loaded."""
    import transformers

    head = transformers.BlipForConditionalGeneration if is_upstream else BlipForConditionalGeneration
    pixels = random_pixels(BATCH_SIZE, image_size, torch.device("cpu"))
    before = _status("VmRSS")
    write(head.from_pretrained(folder).eval(), pixels, 3, num_tokens)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def _bytes_row(case: str, sizes: dict[str, int], targets: dict[str, float]) -> dict[str, Any]:
    row = {"case": case, "note": "", "seconds": {}, "speedup": {}, "targets": {}, "limit": None}
    is_met = all(sizes[OURS] <= share * sizes[name] for name, share in targets.items())
    return row | {"peak_bytes": sizes, "memory_targets": targets, "met": is_met}


if __name__ == "__main__":
    main()
