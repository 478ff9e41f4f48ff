# SPDX-License-Identifier: BSD-3-Clause
"""Folders of exported models: what is in them, and what is refused."""

import json
import shutil

import pytest
import torch

from blip_hf import (
    BlipCaptioner,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForVisualReasoning,
    export_model,
)
from blip_hf.cli import main
from blip_hf.modeling.exported import runtimes
from tests.support.exports import tiny_head
from tests.support.images import write_image
from tests.support.processors import make_processor, random_photo
from tests.support.tiny_models import tiny_nlvr2_config


PHOTOS = [random_photo(seed) for seed in range(3)]


def size_of_graphs(folder):
    return sum(path.stat().st_size for path in folder.glob("*") if path.suffix in (".bin", ".onnx"))


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_int8_is_smaller_and_int8_and_fp16_are_near(exports, format):
    sizes = {precision: size_of_graphs(exports.path("matcher", format, precision)) for precision in ("fp32", "int8")}
    assert sizes["int8"] < sizes["fp32"]
    pixels = make_processor()(images=PHOTOS, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = tiny_head("matcher").get_image_features(pixels).pooler_output
        for precision, least in (("fp16", 0.9999), ("int8", 0.9)):
            found = exports.model("matcher", format, precision).get_image_features(pixels).pooler_output
            assert (found * expected).sum(dim=1).min() > least


def test_bf16_is_near(exports):
    captions = BlipCaptioner.from_pretrained(exports.path("captioner", "openvino", "bf16")).caption(
        PHOTOS, return_scores=True
    )
    expected = BlipCaptioner(tiny_head("captioner"), make_processor()).caption(PHOTOS, return_scores=True)
    for found, wanted in zip(captions, expected, strict=True):
        assert abs(found.mean_log_probability - wanted.mean_log_probability) < 0.1


def test_onnx_has_no_bf16(tmp_path):
    with pytest.raises(ValueError, match=r"The format onnx has no bf16\. Pass one of fp32, fp16, int8"):
        export_model(tiny_head("captioner"), make_processor(), tmp_path / "out", format="onnx", precision="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "The format is 'tflite'. Pass one of openvino, onnx"),
        ({"precision": "int4"}, "has no int4"),
    ],
)
def test_unknown_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_model(tiny_head("captioner"), make_processor(), tmp_path / "out", **options)


def test_other_models_and_dtypes_are_refused(tmp_path):
    with pytest.raises(TypeError, match="BlipForVisualReasoning is not exported"):
        export_model(BlipForVisualReasoning(tiny_nlvr2_config()), make_processor(), tmp_path / "out", format="onnx")
    half = BlipForConditionalGeneration(tiny_head("captioner").config).bfloat16()
    with pytest.raises(ValueError, match=r"Load it with dtype=torch.float32"):
        export_model(half, make_processor(), tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("blip_hf.export.exporter.write_graph", fail)
    with pytest.raises(OSError, match="No space left"):
        export_model(tiny_head("captioner"), make_processor(), tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(exports):
    with pytest.raises(ValueError, match="already exists"):
        export_model(tiny_head("captioner"), make_processor(), exports.path("captioner", "onnx"), format="onnx")


def test_a_missing_runtime_is_named(monkeypatch):
    monkeypatch.setitem(runtimes._PACKAGES, "onnx", ("package_that_is_missing",))
    with pytest.raises(
        ImportError, match=r"needs package_that_is_missing. Install it with `pip install blip_hf\[export\]`"
    ):
        runtimes.require_packages("onnx")


def test_another_head_or_dtype_is_refused(exports):
    folder = exports.path("captioner", "onnx")
    with pytest.raises(
        ValueError, match=r"is an exported BlipForConditionalGeneration, not a BlipForImageTextRetrieval"
    ):
        BlipForImageTextRetrieval.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"was exported in fp32"):
        BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)


@pytest.mark.parametrize("head", ["captioner", "matcher", "vqa"])
def test_commands_export_and_open(tmp_path, capsys, head):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "export"
    tiny_head(head).save_pretrained(checkpoint)
    make_processor().save_pretrained(checkpoint)
    image = write_image(tmp_path / "photo.png")
    assert main(["export", str(checkpoint), "--output_dir", str(folder), "--format", "onnx"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["bytes"] == sum(printed["graphs"].values()) == size_of_graphs(folder)
    command = {
        "captioner": ["caption", "MODEL", str(image)],
        "matcher": ["match", "MODEL", str(image), "--text", "a b", "--format", "json"],
        "vqa": ["ask", "MODEL", str(image), "--question", "a b", "--format", "json"],
    }[head]
    outputs = []
    for model in (checkpoint, folder):
        assert main([str(model) if word == "MODEL" else word for word in command]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0][:20] == outputs[1][:20]
    shutil.rmtree(folder)


def test_capfilt_reads_exports(exports, tmp_path):
    write_image(tmp_path / "photos" / "photo.png")
    (tmp_path / "photos" / "photo.txt").write_text("a b")
    for name, precision in (("first", "fp32"), ("second", "int8")):
        models = [str(exports.path(head, "onnx", precision)) for head in ("captioner", "matcher")]
        arguments = ["--captioner", models[0], "--filter", models[1], "--output_dir", str(tmp_path / name)]
        assert main(["capfilt", "run", "--source", str(tmp_path / "photos"), *arguments]) == 0
    runs = [json.loads((tmp_path / name / "run.json").read_text())["models"] for name in ("first", "second")]
    assert runs[0] != runs[1]


def test_drawn_calibration_is_warned_of(tmp_path, caplog):
    export_model(
        tiny_head("captioner"),
        make_processor(),
        tmp_path / "out",
        format="onnx",
        precision="int8",
        num_calibration_images=2,
    )
    assert "Pass --calibration with a folder" in caplog.text


def test_an_empty_calibration_folder_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="no readable images"):
        export_model(
            tiny_head("captioner"),
            make_processor(),
            tmp_path / "out",
            format="onnx",
            precision="int8",
            calibration=tmp_path / "photos",
        )
