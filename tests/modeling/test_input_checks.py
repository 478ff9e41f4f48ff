# SPDX-License-Identifier: BSD-3-Clause
"""Token types, and texts that are longer than the position embeddings."""

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, pipeline

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextModel,
)
from tests.support.batches import caption_batch, make_model_and_batch, vqa_batch
from tests.support.tiny_models import TEXT, tiny_batch, tiny_config
from tests.support.vocabularies import make_processor


LIMIT = TEXT["max_position_embeddings"]
TASKS = ["caption", "vqa", "nlvr2", "pretrain", "retrieval"]
GENERATORS = {"captioner": BlipForConditionalGeneration, "vqa": BlipForQuestionAnswering}


def with_token_types(batch, value=0):
    return batch | {"token_type_ids": torch.full_like(batch["input_ids"], value)}


def make_head(task):
    if task == "matcher":
        return BlipForImageTextRetrieval(tiny_config()), tiny_batch()
    if task == "text":
        batch = tiny_batch()
        del batch["pixel_values"]
        return BlipTextModel(tiny_config().text_config), batch
    return make_model_and_batch(task)


@pytest.mark.parametrize("task", [*TASKS, "matcher", "text"])
def test_token_types_of_zeros_change_nothing_and_others_are_refused(task):
    model, batch = make_head(task)
    outputs = []
    for inputs in (batch, with_token_types(batch)):
        torch.manual_seed(0)  # hard negatives
        outputs.append(model(**inputs).to_tuple()[0])
    assert_close(*outputs)
    with pytest.raises(ValueError, match="token_type_ids has values other than 0"):
        model(**with_token_types(batch, value=1))


@pytest.mark.parametrize("model_class", GENERATORS.values(), ids=GENERATORS)
def test_generate_takes_token_types_of_zeros_and_refuses_others(model_class):
    model, batch = model_class(tiny_config()).eval(), tiny_batch()
    options = {"max_new_tokens": 4}
    assert torch.equal(model.generate(**with_token_types(batch), **options), model.generate(**batch, **options))
    with pytest.raises(ValueError, match="token_type_ids has values other than 0"):
        model.generate(**with_token_types(batch, value=1), **options)


def test_token_types_on_an_accelerator_are_not_read_in_training():
    """A meta tensor raises an error when its values are read."""
    model, batch = make_model_and_batch("caption")
    types = torch.empty(3, 7, dtype=torch.long, device="meta")
    assert model.train()(**batch, token_type_ids=types).loss is not None


def test_a_compiled_model_takes_token_types_in_one_graph():
    model, batch = make_head("matcher")
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(**with_token_types(batch)).itm_score, model(**batch).itm_score)


def test_the_feature_extraction_pipeline_runs():
    processor = make_processor()
    fields = {**TEXT, **processor.config_token_ids()}
    model = BlipTextModel(type(tiny_config().text_config)(**fields)).eval()
    extract = pipeline("feature-extraction", model=model, tokenizer=processor.tokenizer)
    inputs = processor.tokenizer("a cat", return_tensors="pt")
    assert "token_type_ids" in inputs
    assert_close(torch.tensor(extract("a cat")), model(**inputs).last_hidden_state.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make_batch", [caption_batch, vqa_batch], ids=["caption", "vqa"])
def test_trainer_passes_token_types_with_remove_unused_columns_off(tmp_path, make_batch):
    model_class = BlipForConditionalGeneration if make_batch is caption_batch else BlipForQuestionAnswering
    batch = with_token_types(make_batch())
    records = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=3,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    assert Trainer(model_class(tiny_config()), arguments, train_dataset=records).train().global_step == 2


def never_encode(model):
    """Fails a test in which images are encoded."""
    model.vision_model.forward = lambda *_, **__: pytest.fail("images were encoded")
    return model.eval()


@pytest.mark.parametrize("model_class", GENERATORS.values(), ids=GENERATORS)
def test_generate_refuses_a_long_text_before_images_are_encoded(model_class):
    model = never_encode(model_class(tiny_config()))
    batch = tiny_batch((LIMIT + 3, 5))
    with pytest.raises(ValueError, match=f"the model takes at most {LIMIT}. Truncate it."):
        model.generate(**batch, max_new_tokens=3)


@pytest.mark.parametrize("model_class", GENERATORS.values(), ids=GENERATORS)
@pytest.mark.parametrize("option", ["max_new_tokens", "max_length"])
def test_generate_refuses_lengths_past_the_positions(model_class, option):
    model = never_encode(model_class(tiny_config()))
    with pytest.raises(ValueError, match=rf"those that {option} allows\), the model takes at most {LIMIT}"):
        model.generate(**tiny_batch(), **{option: 40})


@pytest.mark.parametrize("model_class", GENERATORS.values(), ids=GENERATORS)
def test_generate_reaches_the_last_position(model_class):
    """The last token is not read, so it needs no position."""
    model = model_class(tiny_config()).eval()
    prompt = tiny_batch((5, 5))
    options = {"max_length": LIMIT + 1, "min_length": LIMIT + 1}
    assert model.generate(**prompt, **options).shape[1] == LIMIT + 1
