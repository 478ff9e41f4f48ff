# SPDX-License-Identifier: BSD-3-Clause
"""Code of others runs with only its import changed: docstrings of transformers, clip-interrogator, LAVIS."""

import ast
import doctest
import inspect
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from torch.nn.functional import normalize
from torch.testing import assert_close
from transformers.models.blip import modeling_blip

import blip_hf
from blip_hf import BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipProcessor
from tests.support.examples import load_example, run_example
from tests.support.images import encode_image, noise_images
from tests.support.processors import make_processor
from tests.support.tiny_models import tiny_capfilt, tiny_model_for


# ---- The docstrings of transformers


def documented_snippets():
    """Yields the name of each documented method of transformers' BLIP, and its Python."""
    tree = ast.parse(inspect.getsource(modeling_blip))
    for model_class in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        for method in [node for node in model_class.body if isinstance(node, ast.FunctionDef)]:
            for block in re.findall(r"```python\n(.*?)```", ast.get_docstring(method) or "", re.DOTALL):
                examples = doctest.DocTestParser().get_examples(block)
                yield f"{model_class.name}.{method.name}", "".join(example.source for example in examples)


SNIPPETS = dict(documented_snippets())
# On purpose, ours differ: the first token of a question and of matching, and padding ([ENC]; docs/differences.md).
DIFFERENT = {"BlipForQuestionAnswering", "BlipForImageTextRetrieval"}


@pytest.fixture
def documented_places(monkeypatch, tmp_path):
    """Makes the checkpoint of a snippet, saved by transformers, and the photo that it downloads."""
    from huggingface_hub.utils import httpx

    content = encode_image(noise_images(1)[0], "JPEG")

    class Response:
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731
        read = lambda self: content  # noqa: E731

    monkeypatch.setattr(httpx, "stream", lambda *_, **__: Response())
    monkeypatch.chdir(tmp_path)

    def make(snippet):
        model_class, checkpoint = re.search(r'(Blip\w+)\.from_pretrained\("(.+?)"\)', snippet).groups()
        processor = make_processor()
        ours = getattr(blip_hf, model_class)
        # Equal widths, which transformers needs for VQA.
        tiny_model_for(ours, processor, hidden_size=16).save_pretrained(tmp_path / checkpoint)
        processor.save_pretrained(tmp_path / checkpoint)

    return make


def run_snippet(snippet):
    torch.manual_seed(0)
    names = {}
    exec(snippet, names)
    return names


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`")  # the snippets set none
@pytest.mark.parametrize("name", SNIPPETS)
def test_a_documented_snippet_runs_with_only_the_import_changed(name, documented_places):
    snippet = SNIPPETS[name]
    documented_places(snippet)
    changed = re.sub(
        r"from transformers import AutoProcessor, (\w+)", r"from blip_hf import BlipProcessor, \1", snippet
    )
    changed = changed.replace("AutoProcessor.", "BlipProcessor.")
    assert "blip_hf" in changed
    ours, theirs = run_snippet(changed), run_snippet(snippet)
    assert type(ours["model"]).__module__.startswith("blip_hf.")
    assert type(theirs["model"]).__module__.startswith("transformers.")
    results = {"outputs", "text_features", "image_features", "multimodal_features", "probs", "loss"} & ours.keys()
    assert results
    if name.partition(".")[0] in DIFFERENT or "multimodal" in name:
        return
    for result in results:
        assert_close(first_tensor(ours[result]), first_tensor(theirs[result]), atol=1e-4, rtol=1e-4)


def first_tensor(result):
    if isinstance(result, torch.Tensor):
        return result
    names = ("pooler_output", "logits_per_image", "logits", "loss")
    return next(result[name] for name in names if result.get(name) is not None)


def test_all_heads_of_transformers_have_a_snippet():
    heads = {name.partition(".")[0] for name in SNIPPETS}
    assert {"BlipModel", "BlipForConditionalGeneration", *DIFFERENT} <= heads


# ---- clip-interrogator


def caption_as_clip_interrogator(model, processor, image):
    """The calls of `Interrogator.generate_caption` in clip-interrogator 0.6."""
    model = model.to("cpu")
    inputs = processor(images=image, return_tensors="pt").to("cpu")
    inputs["pixel_values"] = inputs["pixel_values"].type(torch.float32)
    tokens = model.generate(**inputs, max_new_tokens=32)
    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


def test_the_calls_of_clip_interrogator_give_the_caption_of_transformers(captioner_folder):
    captions = [
        caption_as_clip_interrogator(
            package.BlipForConditionalGeneration.from_pretrained(captioner_folder).eval(),
            package.BlipProcessor.from_pretrained(captioner_folder),
            noise_images(1)[0],
        )
        for package in (blip_hf, transformers)
    ]
    assert captions[0]
    assert captions[0] == captions[1]


def test_clip_interrogator_itself_takes_our_model(monkeypatch):
    # Its captions need no CLIP model, which it imports all the same.
    monkeypatch.setitem(sys.modules, "open_clip", ModuleType("open_clip"))
    package = pytest.importorskip("clip_interrogator")
    model, processor, *_ = tiny_capfilt()
    interrogator = object.__new__(package.Interrogator)
    settings = {"caption_model_name": "blip-base", "caption_max_length": 32, "device": "cpu"}
    offload = {"caption_offload": False, "clip_offload": False}
    interrogator.config = SimpleNamespace(caption_model=model, caption_processor=processor, **settings, **offload)
    interrogator.device, interrogator.dtype = "cpu", torch.float32
    interrogator.caption_offloaded, interrogator.clip_offloaded = True, False
    interrogator.load_caption_model()
    image = noise_images(1)[0]
    assert interrogator.generate_caption(image) == caption_as_clip_interrogator(model, processor, image)


# ---- LAVIS


def test_captions_with_the_calls_of_lavis(captioner_folder):
    load = load_example("lavis_adapter")["load_model_and_preprocess"]
    model, vis_processors, _ = load(name="blip_caption", model_type=str(captioner_folder), is_eval=True, device="cpu")
    raw_image = noise_images(1)[0]
    image = vis_processors["eval"](raw_image).unsqueeze(0)
    (caption,) = model.generate({"image": image}, max_length=12, min_length=4)
    (expected,) = blip_hf.BlipCaptioner.from_pretrained(
        captioner_folder, prompt="a picture of ", num_beams=3, max_length=12, min_length=4
    )(raw_image)
    assert caption == expected
    torch.manual_seed(0)
    sampled = model.generate({"image": image}, use_nucleus_sampling=True, num_captions=3, max_length=12, min_length=4)
    assert len(sampled) == 3


def test_features_with_the_calls_of_lavis(matcher_folder):
    load = load_example("lavis_adapter")["load_model_and_preprocess"]
    model, vis_processors, txt_processors = load("blip_feature_extractor", str(matcher_folder))
    image = vis_processors["eval"](noise_images(1)[0]).unsqueeze(0)
    sample = {"image": image, "text_input": [txt_processors["eval"]("A B c")]}
    features_image = model.extract_features(sample, mode="image")
    features_text = model.extract_features(sample, mode="text")
    multimodal = model.extract_features(sample).multimodal_embeds[:, 0, :]

    matcher = BlipForImageTextRetrieval.from_pretrained(matcher_folder)
    inputs = BlipProcessor.from_pretrained(matcher_folder)(text="a b c", return_tensors="pt")
    with torch.no_grad():
        outputs = matcher(pixel_values=image, **inputs)
        cosine = matcher(pixel_values=image, **inputs, use_itm_head=False).itc_similarity
    similarity = features_image.image_embeds_proj[:, 0, :] @ features_text.text_embeds_proj[:, 0, :].t()
    assert_close(similarity, cosine)
    assert_close(matcher.itm_head(multimodal), outputs.itm_logits)
    proj = normalize(matcher.vision_proj(features_image.image_embeds), dim=-1)
    assert_close(features_image.image_embeds_proj, proj)


def test_answers_with_the_calls_of_lavis(tmp_path, capsys):
    _, processor, *_ = tiny_capfilt()
    vqa = tiny_model_for(BlipForQuestionAnswering, processor)
    vqa.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    load = load_example("lavis_adapter")["load_model_and_preprocess"]
    model, vis_processors, txt_processors = load("blip_vqa", str(tmp_path))
    raw_image = noise_images(1)[0]
    sample = {"image": vis_processors["eval"](raw_image)[None], "text_input": txt_processors["eval"]("a b?")}
    inputs = processor(raw_image, "a b?", return_tensors="pt")
    expected = processor.batch_decode(vqa.generate(**inputs, num_beams=3, max_length=10), skip_special_tokens=True)
    assert model.predict_answers(samples=sample, inference_method="generate") == expected

    raw_image.save(tmp_path / "photo.png")
    run_example("lavis_adapter", "blip_vqa", tmp_path, tmp_path / "photo.png", "a b?")
    assert capsys.readouterr().out.strip() == str(expected)
