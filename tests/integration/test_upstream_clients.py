# SPDX-License-Identifier: BSD-3-Clause
"""Clients of transformers with the classes of this package: pipelines, Trainer, quantisation, processes, processors."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoTokenizer,
    ImageTextToTextPipeline,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    pipeline,
)

from blip_hf import BlipForConditionalGeneration, BlipForQuestionAnswering, BlipProcessor
from tests.support.images import noise_images
from tests.support.model_cases import MODEL_CASES, cases_except, for_cases, tensors_of
from tests.support.processors import CLS, SEP, make_processor, make_upstream, plain_tokenizer, random_photo
from tests.support.tiny_models import tiny_capfilt, tiny_model_for


@pytest.fixture(scope="module")
def captioner():
    return tiny_capfilt()[:2]


# ---- Pipelines


def test_the_pipeline_for_images_and_text_continues_prompts(captioner):
    model, processor = captioner
    captions = pipeline("image-text-to-text", model=model, processor=processor, max_new_tokens=6)
    assert isinstance(captions, ImageTextToTextPipeline)
    images = noise_images(2)
    expected = model.generate(**processor(images[0], "a b", return_tensors="pt"), max_new_tokens=6)
    text = captions(images[0], text="a b")[0]["generated_text"]
    assert text == processor.decode(expected[0], skip_special_tokens=True)
    assert text.startswith("a b ")

    several = captions(
        images, text=["a b", "c"], generate_kwargs={"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 4}
    )
    assert [caption["generated_text"][:2] for caption in several] == ["a ", "a ", "c ", "c "]


def test_the_pipeline_takes_a_folder(captioner, captioner_folder):
    model, processor = captioner
    loaded = BlipForConditionalGeneration.from_pretrained(captioner_folder)
    captions = pipeline("image-text-to-text", model=loaded, processor=BlipProcessor.from_pretrained(captioner_folder))
    image = noise_images(1)[0]
    expected = model.generate(**processor(image, "a", return_tensors="pt"), max_new_tokens=4)
    text = captions(image, text="a", generate_kwargs={"max_new_tokens": 4})[0]["generated_text"]
    assert text == processor.decode(expected[0], skip_special_tokens=True)


# ---- Trainer


def tensor_records(case, num_records=3):
    batch = case.make_batch()
    batch.pop("generator", None)
    return [{name: value[row] for name, value in batch.items()} for row in range(num_records)]


@for_cases(["captioning", "matching", "nlvr2", "vqa"])
def test_a_plain_trainer_lowers_the_loss(case, tmp_path):
    records = tensor_records(case)
    options = {"per_device_train_batch_size": 3, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=2, learning_rate=1e-2, use_cpu=True, **options)
    trainer = Trainer(case.build(), arguments, train_dataset=records, eval_dataset=records)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_a_plain_trainer_resumes_with_the_same_weights(tmp_path):
    case = MODEL_CASES["captioning"]
    records = tensor_records(case)
    options = {"per_device_train_batch_size": 3, "report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=3, save_steps=2, learning_rate=1e-2, **options)
    whole, resumed = (Trainer(case.build(), arguments, train_dataset=records) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3
    assert_close(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("name", ["captioning", "vqa"])
def test_seq2seq_trainer_predicts_by_generation(name, tmp_path):
    case = MODEL_CASES[name]
    records = tensor_records(case)
    for record in records:
        if name == "captioning":
            record["input_ids"], record["attention_mask"] = record["input_ids"][:4], record["attention_mask"][:4]
            record["labels"] = record["labels"][:4]
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        predict_with_generate=True,
        generation_num_beams=2,
        generation_max_length=9,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    tokenizer = plain_tokenizer()
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {"rows": len(prediction.predictions)}

    model = case.build()
    trainer = Seq2SeqTrainer(
        model, arguments, eval_dataset=records, processing_class=tokenizer, compute_metrics=compute_metrics
    )
    metrics = trainer.evaluate()
    assert metrics["eval_rows"] == 3
    assert np.isfinite(metrics["eval_loss"])
    batch = {key: torch.stack([record[key] for record in records]) for key in records[0] if key != "labels"}
    expected = model.generate(**batch, num_beams=2, max_length=9)
    assert seen[0][:, : expected.shape[1]].tolist() == expected.tolist()


# ---- Quantisation and processes


# torchao replaces it.
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@for_cases(cases_except("pretraining", "retrieval"))
def test_dynamic_quantization_stays_near_the_outputs(case):
    model = case.build()
    quantized = torch.ao.quantization.quantize_dynamic(case.build(), {nn.Linear}, dtype=torch.qint8)
    assert any("quantized" in type(module).__module__ for module in quantized.modules())
    with torch.no_grad():
        expected, actual = (tensors_of(each(**case.make_batch())) for each in (model, quantized))
    for name, value in expected.items():
        assert (actual[name] - value).norm() < 0.2 * value.norm() + 0.1, name


def caption_in_a_process(model, inputs, results):
    torch.set_num_threads(1)
    results.put(model.generate(**inputs, max_new_tokens=4).tolist())


def test_another_process_generates_the_same_tokens(captioner):
    model, processor = captioner
    inputs = dict(processor(noise_images(1), "a", return_tensors="pt"))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=caption_in_a_process, args=(model, inputs, results))
    process.start()
    try:
        assert results.get(timeout=60) == model.generate(**inputs, max_new_tokens=4).tolist()
    finally:
        process.join(timeout=60)


# ---- Processor


@pytest.fixture
def processor():
    return make_processor()


@pytest.fixture
def upstream():
    return make_upstream()


TEXTS = ["a dog on the beach", "two dogs"]


@pytest.mark.parametrize(
    "options",
    [
        {"return_tensors": "np", "padding": "max_length", "max_length": 12, "truncation": True},
        {"return_tensors": "pt", "padding": "longest", "size": {"height": 20, "width": 24}},
        {"return_tensors": "pt", "padding": True, "do_rescale": True, "rescale_factor": -1.0},
        {
            "text_kwargs": {"padding": "max_length", "max_length": 9},
            "images_kwargs": {"size": {"height": 16, "width": 16}, "do_normalize": False},
            "common_kwargs": {"return_tensors": "pt"},
        },
        {"images_kwargs": {"do_resize": True}, "return_tensors": "pt", "padding": "longest", "truncation": True},
        {"return_tensors": "pt", "padding": True, "add_special_tokens": False, "return_token_type_ids": True},
        {"return_tensors": "pt", "padding": True, "return_special_tokens_mask": True, "return_length": True},
        {"return_tensors": "pt", "padding": True, "return_attention_mask": False},
    ],
)
def test_options_reach_their_component_as_in_transformers(processor, upstream, options):
    images = [random_photo(0), random_photo(1)]
    ours, theirs = (each(images=images, text=TEXTS, **options) for each in (processor, upstream))
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(value), err_msg=name)


def test_options_of_the_tokenizer_are_defaults_of_calls(tmp_path):
    plain_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, max_length=7, padding="max_length")
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=32)
    ids = processor(text="a dog", return_tensors="pt").input_ids
    assert ids.shape == (1, 7)
    assert processor(text="a dog", return_tensors="pt", max_length=9, padding="max_length").input_ids.shape == (1, 9)


def test_the_processor_has_the_parts_and_names_of_transformers(processor, upstream):
    assert processor.get_attributes() == upstream.get_attributes()
    assert processor.model_input_names == upstream.model_input_names
    ids = [[CLS, 5, 6, SEP, 0], [CLS, 8, SEP, 0, 0]]
    assert processor.batch_decode(ids) == processor.tokenizer.batch_decode(ids) == upstream.batch_decode(ids)
    assert processor.decode(ids[0], skip_special_tokens=True) == "a picture"
    post_processed = processor.post_process_image_text_to_text(torch.tensor(ids))
    assert post_processed == upstream.post_process_image_text_to_text(torch.tensor(ids))


def test_a_processor_loads_as_it_was_saved(processor, tmp_path):
    saved = processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())
    assert saved
    loaded = BlipProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert repr(loaded.image_processor) == repr(processor.image_processor)
    changed = BlipProcessor.from_pretrained(tmp_path, do_normalize=False, size={"height": 16, "width": 16})
    assert not changed.image_processor.do_normalize
    assert changed(images=random_photo(), return_tensors="pt").pixel_values.shape == (1, 3, 16, 16)


def test_answers_are_decoded_by_the_processor(captioner):
    _, processor = captioner
    model = tiny_model_for(BlipForQuestionAnswering, processor)
    inputs = processor(noise_images(2), ["a b", "c d"], return_tensors="pt")
    answers = processor.batch_decode(model.generate(**inputs, max_new_tokens=3), skip_special_tokens=True)
    assert len(answers) == 2
    assert not any("[" in answer for answer in answers)
