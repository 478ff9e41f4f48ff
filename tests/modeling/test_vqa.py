# SPDX-License-Identifier: BSD-3-Clause
"""Question answering: inputs, the weighted loss, generation, and ranking against a plain loop."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.testing import assert_close

from blip_hf import BlipForPreTraining, BlipForQuestionAnswering
from tests.support.tiny_models import CLS, DEC, ENC, PAD, SEP, tiny_batch, tiny_config, tiny_pretraining_config


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
COUNTS = torch.tensor([2, 1, 3])


@pytest.fixture
def model():
    return BlipForQuestionAnswering(tiny_config()).eval()


@pytest.fixture
def questions():
    return tiny_batch()  # 7, 5 and 6 tokens


def answers_of(lengths, seed=3):
    """Ids and mask of answers, [CLS] first."""
    batch = tiny_batch(lengths, seed=seed)
    return batch["input_ids"], batch["attention_mask"]


def one_of(batch, row):
    """One question without its padding."""
    length = batch["attention_mask"][row].sum()
    return {
        "pixel_values": batch["pixel_values"][row : row + 1],
        "input_ids": batch["input_ids"][row : row + 1, :length],
        "attention_mask": batch["attention_mask"][row : row + 1, :length],
    }


@pytest.fixture
def projected_rows(model):
    """Number of rows in each key projection of the decoder's first layer."""
    rows = []
    key = model.text_decoder.bert.encoder.layer[0].crossattention.self.key
    key.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    return rows


# Questions


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_padding_of_a_question_does_not_change_outputs(model, questions, backend):
    model.set_attn_implementation(backend)
    labels, _ = answers_of((4, 4, 4))
    together = model(**questions, labels=labels)
    for row in range(3):
        alone = model(**one_of(questions, row), labels=labels[row : row + 1])
        assert_close(together.logits[row : row + 1], alone.logits, **TOLERANCE)
        assert_close(together.answer_losses[row : row + 1], alone.answer_losses, **TOLERANCE)
    unmasked = model(**{**questions, "attention_mask": None}, labels=labels)
    assert not torch.allclose(unmasked.logits[1], together.logits[1], atol=1e-3)


def test_questions_start_with_enc_unless_the_configuration_says_cls(model, questions):
    labels, _ = answers_of((4, 4, 4))
    marked = {**questions, "input_ids": questions["input_ids"].clone()}
    marked["input_ids"][:, 0] = ENC
    with_enc = model(**questions, labels=labels).logits
    model.config.question_start_token = "cls"
    assert_close(model(**marked, labels=labels).logits, with_enc)
    assert not torch.allclose(model(**questions, labels=labels).logits, with_enc, atol=1e-3)
    with pytest.raises(StrictDataclassError, match="question_start_token is 'sep', expected 'enc' or 'cls'"):
        tiny_config(question_start_token="sep")


def test_several_questions_may_share_one_image(model, questions):
    labels, _ = answers_of((4, 4, 4))
    pixel_values = questions["pixel_values"][:1]
    shared = model(**{**questions, "pixel_values": pixel_values}, labels=labels)
    repeated = model(**{**questions, "pixel_values": pixel_values.repeat(3, 1, 1, 1)}, labels=labels)
    assert_close(shared.logits, repeated.logits, **TOLERANCE)


# Answers and their loss


@pytest.mark.parametrize("first", [CLS, DEC, -100])
def test_answers_start_with_dec_for_any_first_label(model, questions, first):
    labels, _ = answers_of((4, 3, 5))
    labels[:, 0] = first
    answer_ids = labels.clone()
    answer_ids[:, 0] = DEC
    expected = model(**questions, decoder_input_ids=answer_ids, labels=labels)
    actual = model(**questions, labels=labels.masked_fill(labels == PAD, -100))
    assert_close(actual.loss, expected.loss)
    assert_close(actual.logits, expected.logits)


@pytest.mark.parametrize("counts", [COUNTS, torch.tensor([2, 2, 2]), None])
def test_weighted_loss_equals_the_losses_of_single_answers(model, questions, counts):
    labels, mask = answers_of((4, 3, 5, 4, 6, 3))
    weights = torch.tensor([0.7, 0.3, 1.0, 0.5, 0.3, 0.2])
    output = model(
        **questions,
        labels=labels,
        decoder_attention_mask=mask,
        answer_weights=weights,
        answers_per_question=counts,
    )
    owners = torch.arange(3).repeat_interleave(torch.tensor([2, 2, 2]) if counts is None else counts)
    expected = torch.zeros(())
    for answer, owner in enumerate(owners.tolist()):
        length = mask[answer].sum()
        alone = model(**one_of(questions, owner), labels=labels[answer : answer + 1, :length])
        # The mean over the answer's tokens except the first.
        expected = expected + weights[answer] * alone.loss * (length - 1)
    assert_close(output.loss, expected / 3, **TOLERANCE)


def test_keys_and_values_are_projected_once_a_question(model, questions, projected_rows):
    labels, mask = answers_of((4, 3, 5, 4, 6, 3))
    model(**questions, labels=labels, answers_per_question=COUNTS)
    model.generate(**questions, num_beams=3, max_new_tokens=4)
    model.rank_answers(**questions, answer_ids=labels, answer_attention_mask=mask, num_candidates=4)
    assert projected_rows == [3, 3, 3]


def test_every_parameter_gets_a_gradient(questions):
    model = BlipForQuestionAnswering(tiny_config()).train()
    labels, _ = answers_of((4, 3, 5, 4, 6, 3))
    model(**questions, labels=labels, answers_per_question=COUNTS, answer_weights=torch.ones(6)).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"answers_per_question": torch.tensor([2, 1, 2])}, r"\[2, 1, 2\], expected 3 numbers.*sum up to 6 answers"),
        ({"answers_per_question": torch.tensor([3, 3])}, r"\[3, 3\], expected 3 numbers"),
        ({"answer_weights": torch.ones(3)}, r"answer_weights has shape \(3,\).*each of 6 answers"),
        ({"labels": None}, "Pass labels or decoder_input_ids"),
    ],
)
def test_mismatched_answers_and_questions_raise(model, questions, inputs, message):
    labels, _ = answers_of((4, 3, 5, 4, 6, 3))
    with pytest.raises(ValueError, match=message):
        model(**{**questions, "labels": labels, **inputs})


def test_unused_arguments_raise(model, questions):
    with pytest.raises(TypeError, match="unknown arguments: answer_weight"):
        model(**questions, labels=answers_of((4, 4, 4))[0], answer_weight=torch.ones(3))


# Generation


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_generated_answers_do_not_depend_on_the_batch(model, questions, settings):
    before = {name: value.clone() for name, value in questions.items()}
    together = model.generate(**questions, max_new_tokens=6, **settings)
    for row in range(3):
        alone = model.generate(**one_of(questions, row), max_new_tokens=6, **settings)[0]
        assert torch.equal(together[row, : len(alone)], alone)
        assert (together[row, len(alone) :] == PAD).all()
    assert together[:, 0].tolist() == [DEC] * 3
    for name, value in before.items():
        assert torch.equal(questions[name], value)


def test_returned_answers_of_a_question_are_consecutive(model, questions):
    best = model.generate(**questions, num_beams=4, max_new_tokens=5)
    several = model.generate(**questions, num_beams=4, num_return_sequences=2, max_new_tokens=5)
    assert len(several) == 6
    length = min(best.shape[1], several.shape[1])
    assert torch.equal(several[::2, :length], best[:, :length])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_from_a_memory_encodes_nothing_again(num_beams, model, questions, monkeypatch):
    expected = model.generate(**questions, num_beams=num_beams, max_new_tokens=5)
    memory = model.get_question_memory(**questions)
    monkeypatch.setattr(model.vision_model, "forward", None)
    for _ in range(2):  # the memory is not changed
        found = model.generate(question_memory=memory, num_beams=num_beams, max_new_tokens=5)
        assert found.tolist() == expected.tolist()
    with pytest.raises(ValueError, match="or question_memory from get_question_memory"):
        model.generate(questions["input_ids"])


def test_generation_settings_of_the_model_are_used(model, questions):
    model.generation_config.max_new_tokens = 2
    assert model.generate(**questions).shape[1] <= 3
    model.generation_config.max_new_tokens = None
    assert model.generate(**questions, max_length=4).shape[1] <= 4


# Ranking


def rank_by_loops(model, questions, answer_ids, answer_mask, num_candidates):
    """Both stages of ranking, one question and one answer at a time."""
    best = []
    for row in range(len(questions["input_ids"])):
        question = one_of(questions, row)
        first = model(**question, decoder_input_ids=torch.tensor([[DEC]])).logits[0, 0].softmax(dim=-1)
        candidates = first[answer_ids[:, 1]].topk(num_candidates).indices.tolist()
        losses = [
            model(**question, labels=answer_ids[i : i + 1, : answer_mask[i].sum()]).answer_losses.item()
            for i in candidates
        ]
        best.append(candidates[losses.index(min(losses))])
    return best


@pytest.mark.parametrize("num_candidates", [1, 3, 8])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_ranking_equals_plain_loops(model, questions, num_candidates, backend):
    model.set_attn_implementation(backend)
    answer_ids, answer_mask = answers_of((3, 4, 5, 3, 6, 4, 3, 5))
    ranking = model.rank_answers(
        **questions, answer_ids=answer_ids, answer_attention_mask=answer_mask, num_candidates=num_candidates
    )
    assert ranking.candidates.shape == ranking.scores.shape == (3, num_candidates)
    with torch.no_grad():
        expected = rank_by_loops(model, questions, answer_ids, answer_mask, num_candidates)
    assert ranking.best.tolist() == expected


def test_more_candidates_than_answers_ranks_all_answers(model, questions):
    answer_ids, answer_mask = answers_of((3, 4, 5))
    ranking = model.rank_answers(**questions, answer_ids=answer_ids, answer_attention_mask=answer_mask)
    assert ranking.candidates.sort(dim=1).values.tolist() == [[0, 1, 2]] * 3
    with pytest.raises(ValueError, match="num_candidates is 0 for a list of 3 answers"):
        model.rank_answers(**questions, answer_ids=answer_ids, num_candidates=0)


# Files and sizes


def test_saved_model_loads_bit_equal(model, questions, tmp_path):
    labels, _ = answers_of((4, 4, 4))
    model.save_pretrained(tmp_path)
    loaded, info = BlipForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_close(loaded(**questions, labels=labels).logits, model(**questions, labels=labels).logits, atol=0, rtol=0)
    assert loaded.get_input_embeddings().weight is not loaded.text_decoder.get_input_embeddings().weight


def test_the_switch_can_be_set_on_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = BlipForQuestionAnswering.from_pretrained(tmp_path, question_start_token="cls")
    assert loaded.config.question_start_token == "cls"


def test_pretrained_weights_initialize_both_text_models(questions, caplog):
    pretrained = BlipForPreTraining(tiny_pretraining_config(queue_size=0))
    model = BlipForQuestionAnswering.from_pretraining(pretrained).eval()
    theirs, ours = pretrained.state_dict(), model.state_dict()
    different = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    image_width = [
        f"text_decoder.bert.encoder.layer.{i}.crossattention.self.{k}.weight" for i in (0, 1) for k in ("key", "value")
    ]
    assert different == image_width
    assert "4 cross-attention weights of the decoder start at random" in caplog.text
    words = [part.get_input_embeddings().weight for part in (pretrained, model, model.text_decoder)]
    assert len({id(weight) for weight in words}) == 3
    assert model(**questions, labels=questions["input_ids"]).loss.isfinite()


def test_resizing_the_vocabulary_resizes_encoder_and_decoder(model, questions, tmp_path):
    model.resize_token_embeddings(44, mean_resizing=False)
    labels, _ = answers_of((4, 4, 4))
    labels[:, 1] = 43
    assert model(**questions, labels=labels).logits.shape[-1] == 44
    assert len(model.get_input_embeddings().weight) == model.config.text_config.vocab_size == 44
    model.save_pretrained(tmp_path)
    loaded = BlipForQuestionAnswering.from_pretrained(tmp_path)
    assert_close(loaded(**questions, labels=labels).loss, model(**questions, labels=labels).loss)
    assert loaded.generate(**questions, eos_token_id=SEP, max_new_tokens=2).shape[1] <= 3
