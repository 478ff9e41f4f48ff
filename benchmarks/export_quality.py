# SPDX-License-Identifier: BSD-3-Clause
"""What each export changes: captions, CIDEr, cosines, ITM probabilities and recall, beside PyTorch in fp32.

    python -m benchmarks.export_quality --captioner DIR --matcher DIR --data val.json --calibration photos/

Evaluates both models on the first images of a data set. Prints a table, and JSON as the last line.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
    evaluate_captions,
    evaluate_retrieval,
    export_model,
    group_captions,
    load_pairs,
    match_texts,
)

from .environment import describe


EXPORTS = (
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
)
REFERENCE = "PyTorch, fp32"
_RECALLS = ("itc_image_to_text_r@1", "itc_text_to_image_r@1", "image_to_text_r@1", "text_to_image_r@1")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluates the models in PyTorch and their exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("captioner", "matcher", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--calibration", type=Path, help="folder of images that are not evaluated")
    parser.add_argument("--num_images", type=int, default=500)
    parser.add_argument("--k_test", type=int, default=32)
    options = parser.parse_args(argv)
    pairs = first_images(load_pairs(options.data), options.num_images)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, models in all_models(options, Path(folder)):
            measured = evaluate(*models, pairs, options.k_test)
            results[name] = compare(measured, results.get(REFERENCE, {}).get("raw", measured)) | {"raw": measured}
            print(name, json.dumps({key: value for key, value in results[name].items() if key != "raw"}), flush=True)
    rows = {name: {key: value for key, value in row.items() if key != "raw"} for name, row in results.items()}
    print("\n".join(table_lines(rows)))
    about = {"num_images": options.num_images, "k_test": options.k_test, **describe(torch.device("cpu"))}
    print(json.dumps({"rows": rows, **about}))
    return rows


def first_images(pairs: Any, num_images: int) -> Any:
    """The pairs of the first images."""
    ids = list(dict.fromkeys(pairs["image_id"]))[:num_images]
    kept = set(ids)
    return pairs.select([place for place, image_id in enumerate(pairs["image_id"]) if image_id in kept])


def all_models(options: argparse.Namespace, folder: Path) -> Any:
    """Yields the name of each way with its captioner and its matcher, each as (model, processor)."""
    heads = {BlipForConditionalGeneration: options.captioner, BlipForImageTextRetrieval: options.matcher}
    loaded = [(head.from_pretrained(path).eval(), BlipProcessor.from_pretrained(path)) for head, path in heads.items()]
    yield REFERENCE, loaded
    for format, precision in EXPORTS:
        exported = []
        for model, processor in loaded:
            target = folder / f"{type(model).__name__}-{format}-{precision}"
            calibration = options.calibration if precision == "int8" else None
            export_model(model, processor, target, format=format, precision=precision, calibration=calibration)
            exported.append((type(model).from_pretrained(target), processor))
        yield f"{format}, {precision}", exported


def evaluate(captioner: tuple[Any, Any], matcher: tuple[Any, Any], pairs: Any, k: int) -> dict[str, Any]:
    """Captions, CIDEr, recalls, and the scores of each image with its first caption and with that of the next image."""
    groups = group_captions(pairs)
    captions = evaluate_captions(*captioner, groups)
    recalls = evaluate_retrieval(*matcher, pairs, k=k).metrics()
    images = [group["image"] for group in groups]
    texts = [[group["captions"][0]] for group in groups]
    matches = [
        match
        for shift in (0, 1)
        for match in match_texts(*matcher, images, texts[shift:] + texts[:shift], pairwise=True)
    ]
    return {
        "captions": list(captions.predictions.values()),
        "cider": captions.metrics["cider"],
        "cosines": [match.itc_similarity for match in matches],
        "itm": [match.itm_probability for match in matches],
        **{name: recalls[name] for name in _RECALLS},
    }


def compare(found: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Share of equal captions, mean changes of scores, and the metrics."""
    equal = [one == other for one, other in zip(found["captions"], reference["captions"], strict=True)]
    changes = {
        f"{name}_change": float((torch.tensor(found[name]) - torch.tensor(reference[name])).abs().mean())
        for name in ("cosines", "itm")
    }
    metrics = {name: found[name] for name in ("cider", *_RECALLS)}
    rounded = {name: round(value, 4) for name, value in {**changes, **metrics}.items()}
    return {"equal_captions": round(sum(equal) / len(equal), 4), **rounded}


def table_lines(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The results as a Markdown table."""
    columns = list(next(iter(rows.values())))
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(str(row[column]) for column in columns)} |" for name, row in rows.items()]


if __name__ == "__main__":
    main()
