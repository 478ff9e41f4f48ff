# SPDX-License-Identifier: BSD-3-Clause
"""Folders of exported models: what is in them, and what is refused."""

import json
import shutil
import sys

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
from blip_hf.export.graphs import graphs_of
from blip_hf.export.writers import write_graph
from blip_hf.modeling.exported import runtimes
from blip_hf.modeling.exported.graph_names import IMAGE_ENCODER, TEXT_ENCODER
from blip_hf.modeling.exported.runtimes import open_graph
from tests.support.exports import tiny_head
from tests.support.images import write_image
from tests.support.processors import make_processor, random_photo
from tests.support.tiny_models import tiny_nlvr2_config


PHOTOS = [random_photo(seed) for seed in range(3)]


def size_of_graphs(folder):
    return sum(path.stat().st_size for path in folder.glob("*") if path.suffix in (".bin", ".onnx"))


def pixel_values():
    return make_processor()(images=PHOTOS, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def similarity_to_pytorch(model):
    """The smallest cosine of image features."""
    expected, found = (each.get_image_features(pixel_values()).pooler_output for each in (tiny_head("matcher"), model))
    return (found * expected).sum(dim=1).min()


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_fp16_is_near(exports, format):
    assert similarity_to_pytorch(exports.model("matcher", format, "fp16")) > 0.9999


# With OpenVINO, each graph is quantised by a process of its own: `test_openvino_quantises_a_graph` starts two of them.
@pytest.mark.parametrize("format", [pytest.param("openvino", marks=pytest.mark.slow), "onnx"])
def test_int8_is_smaller_and_near(exports, format):
    sizes = {precision: size_of_graphs(exports.path("matcher", format, precision)) for precision in ("fp32", "int8")}
    assert sizes["int8"] < sizes["fp32"]
    assert similarity_to_pytorch(exports.model("matcher", format, "int8")) > 0.9


@pytest.mark.parametrize("name", [IMAGE_ENCODER, TEXT_ENCODER])
def test_openvino_quantises_a_graph(tmp_path, name):
    graph = graphs_of(tiny_head("matcher"))[name]
    inputs = {"pixel_values": pixel_values()} if name == IMAGE_ENCODER else graph.inputs
    calibration = [(pixels,) for pixels in pixel_values().split(1)] if name == IMAGE_ENCODER else ()
    sizes, outputs = {}, {}
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        write_graph("openvino", name, graph, folder / name, precision, calibration)
        sizes[precision] = size_of_graphs(folder)
        (outputs[precision],) = open_graph("openvino", name, folder / name, precision)(*inputs.values())
    assert sizes["int8"] < sizes["fp32"]
    similarity = torch.cosine_similarity(outputs["int8"].flatten(1), outputs["fp32"].flatten(1))
    assert 0.9 < similarity.min() < 1


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


def test_no_usage_statistics_are_sent(exports):
    exports.path("captioner", "openvino")
    assert sys.modules["openvino_telemetry"] is None
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"  # its methods do nothing


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
