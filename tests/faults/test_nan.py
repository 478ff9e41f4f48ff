# SPDX-License-Identifier: BSD-3-Clause
"""NaN weights and infinite pixels end each tool with an error that names the weight or the images."""

import pytest
import torch

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering
from blip_hf.capfilt.engine import CapFilt, CapFiltSettings
from blip_hf.captioner import BlipCaptioner
from blip_hf.data.readers import find_shards
from blip_hf.data.scenes import SceneNlvr2
from blip_hf.evaluation.caption import evaluate_captions
from blip_hf.evaluation.nlvr2 import evaluate_nlvr2
from blip_hf.evaluation.retrieval import evaluate_retrieval
from blip_hf.evaluation.vqa import evaluate_vqa
from blip_hf.files import format_json
from blip_hf.finite import NotFiniteError
from blip_hf.modeling.nlvr2 import BlipForVisualReasoning
from tests.support.images import noise_images
from tests.support.tiny_models import tiny_model_for, tiny_nlvr2_config
from tests.support.vocabularies import make_processor, make_scene_processor


IMAGES = noise_images(3)
PAIRS = [{"image": image, "caption": "a b c", "image_id": f"image-{i}"} for i, image in enumerate(IMAGES)]
QUESTIONS = [
    {"image": image, "question": "a b", "answers": ["c"], "weights": [1.0], "question_id": i}
    for i, image in enumerate(IMAGES)
]


def caption(model, processor):
    return BlipCaptioner(model, processor, max_length=8)(IMAGES)


def caption_by_sampling(model, processor):
    return BlipCaptioner(model, processor, max_length=8, do_sample=True).caption(IMAGES, num_return_sequences=2)


def judge_captions(model, processor):
    groups = [{"image": pair["image"], "captions": ["a b"], "image_id": pair["image_id"]} for pair in PAIRS]
    return evaluate_captions(model, processor, groups, batch_size=2, metrics=["bleu"])


def answer(model, processor):
    return evaluate_vqa(model, processor, QUESTIONS)


def rank(model, processor):
    return evaluate_vqa(model, processor, QUESTIONS, answer_list=["a b", "c"])


def retrieve(model, processor):
    return evaluate_retrieval(model, processor, PAIRS)


TOOLS = [
    (caption, BlipForConditionalGeneration, "text_decoder.cls.predictions.bias"),
    (caption_by_sampling, BlipForConditionalGeneration, "vision_model.post_layernorm.weight"),
    (judge_captions, BlipForConditionalGeneration, "text_decoder.bert.embeddings.LayerNorm.weight"),
    (answer, BlipForQuestionAnswering, "text_encoder.embeddings.LayerNorm.weight"),
    (rank, BlipForQuestionAnswering, "text_decoder.cls.predictions.bias"),
    (retrieve, BlipForImageTextRetrieval, "vision_proj.weight"),
    (retrieve, BlipForImageTextRetrieval, "itm_head.weight"),
    (retrieve, BlipForImageTextRetrieval, "text_proj.weight"),
]
NAMES = [f"{tool.__name__}-{weight}" for tool, _, weight in TOOLS]


@pytest.mark.parametrize(("tool", "model_class", "weight"), TOOLS, ids=NAMES)
def test_a_nan_weight_is_named(tool, model_class, weight):
    processor = make_processor()
    model = tiny_model_for(model_class, processor)
    tool(model, processor)
    model.get_parameter(weight).data.flatten()[-1] = float("nan")
    with pytest.raises(NotFiniteError, match=f"hold NaN or infinity, first in {weight}"):
        tool(model, processor)


def with_infinite_pixels(processor, number):
    """Makes the pixels of the n-th image infinite."""
    num_read = 0

    class Broken(type(processor)):
        def __call__(self, *args, **kwargs):
            nonlocal num_read
            inputs = super().__call__(*args, **kwargs)
            for pixels in inputs.get("pixel_values", []):
                if num_read == number:
                    pixels.fill_(float("inf"))
                num_read += 1
            return inputs

    processor.__class__ = Broken
    return processor


@pytest.mark.parametrize(
    ("tool", "model_class", "name"),
    [
        (caption, BlipForConditionalGeneration, "images 1 are NaN"),
        (judge_captions, BlipForConditionalGeneration, "images image-1 are NaN"),
        (answer, BlipForQuestionAnswering, "of question 1 are NaN"),
        (rank, BlipForQuestionAnswering, "of question 1 are NaN"),
    ],
)
def test_an_image_with_infinite_pixels_is_named(tool, model_class, name):
    processor = make_processor()
    model = tiny_model_for(model_class, processor)
    with pytest.raises(NotFiniteError, match=name):
        tool(model, with_infinite_pixels(processor, 1))


def test_retrieval_names_the_images():
    processor = make_processor()
    model = tiny_model_for(BlipForImageTextRetrieval, processor)
    with pytest.raises(NotFiniteError, match="images image-2 are NaN"):
        retrieve(model, with_infinite_pixels(processor, 2))


def test_nlvr2_names_the_weight():
    processor = make_scene_processor()
    config = tiny_nlvr2_config()
    for name, value in processor.config_token_ids().items():
        setattr(config.text_config, name, value)
    model = BlipForVisualReasoning(config)
    model.vision_model.post_layernorm.weight.data[0] = torch.inf
    with pytest.raises(NotFiniteError, match=r"first in vision_model\.post_layernorm\.weight"):
        evaluate_nlvr2(model, processor, [dict(record) for record in SceneNlvr2(3, image_size=32)])


@pytest.mark.parametrize("role", ["captioner", "filter"])
@pytest.mark.parametrize("strategy", ["beam", "nucleus"])
def test_capfilt_names_the_model(role, strategy):
    processor = make_processor()
    models = {
        "captioner": tiny_model_for(BlipForConditionalGeneration, processor),
        "filter": tiny_model_for(BlipForImageTextRetrieval, processor),
    }
    engine = CapFilt(
        models["captioner"],
        processor,
        models["filter"],
        processor,
        CapFiltSettings(prompt="a b", max_length=12, num_workers=0, strategy=strategy),
    )
    models[role].vision_model.post_layernorm.weight.data[0] = torch.nan
    with pytest.raises(
        NotFiniteError,
        match=rf"weights of the {role} hold NaN or infinity, first in vision_model\.post_layernorm\.weight",
    ):
        engine.score_shard(find_shards("scenes:4:0.5")[0])


def test_json_has_null_for_nan():
    assert format_json({"a": [float("nan"), 1.5], "b": {"c": float("-inf")}}) == '{"a": [null, 1.5], "b": {"c": null}}'
