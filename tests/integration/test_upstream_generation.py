# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the generation tests of transformers, restated for the captioner, the VQA model and the text decoder."""

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import LogitsProcessor, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tests.support.model_cases import MODEL_CASES
from tests.support.tiny_models import DEC, SEP, SUMMATION_TOLERANCE, VOCAB_SIZE, tiny_batch


GENERATING = ["captioning", "vqa", "text_decoder"]
NEW_TOKENS = 5
# With these weights, no caption ends before its length is reached.
UNENDING = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}


class Writer:
    """A model and what it continues."""

    def __init__(self, name):
        self.model = MODEL_CASES[name].build()
        batch = tiny_batch(lengths=(4, 4, 4), first=DEC)
        if name == "captioning":
            self.inputs = batch
            self.num_context = 3  # without [SEP]
        elif name == "vqa":
            self.inputs = batch
            self.num_context = 1
        else:
            states = MODEL_CASES[name].make_batch()["encoder_hidden_states"]
            with torch.no_grad():
                memory = self.model.bert.build_image_memory(states)
            self.inputs = {"input_ids": batch["input_ids"][:, :3], "image_memory": memory}
            self.num_context = 3

    def generate(self, **settings):
        return self.model.generate(**self.inputs, **{**UNENDING, **settings})

    @property
    def decoder(self):
        return getattr(self.model, "text_decoder", self.model)


@pytest.fixture(params=GENERATING)
def writer(request):
    return Writer(request.param)


def test_greedy_scores_are_those_of_the_tokens(writer):
    output = writer.generate(
        return_dict_in_generate=True, output_scores=True, output_logits=True, output_hidden_states=True
    )
    assert output.sequences.shape == (3, writer.num_context + NEW_TOKENS)
    assert len(output.scores) == len(output.logits) == len(output.hidden_states) == NEW_TOKENS
    assert {tuple(scores.shape) for scores in output.scores} == {(3, VOCAB_SIZE)}
    tokens = torch.stack([scores.argmax(-1) for scores in output.scores], dim=1)
    assert_close(output.sequences[:, writer.num_context :], tokens)
    assert [len(states) for states in output.hidden_states] == [3] * NEW_TOKENS
    assert_close(output.sequences, writer.generate())
    scores = writer.decoder.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    expected = torch.stack([scores.log_softmax(-1).amax(-1) for scores in output.scores], dim=1)
    assert_close(scores, expected, **SUMMATION_TOLERANCE)


def test_attentions_of_each_step_are_returned(writer):
    output = writer.generate(return_dict_in_generate=True, output_attentions=True)
    lengths = [writer.num_context + step for step in range(NEW_TOKENS)]
    assert [attentions[-1].shape[-1] for attentions in output.attentions] == lengths
    assert len(output.attentions[0]) == 2


@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_return_scores_and_indices(writer, num_beams):
    output = writer.generate(
        num_beams=num_beams, num_return_sequences=2, return_dict_in_generate=True, output_scores=True
    )
    assert output.sequences.shape == (6, writer.num_context + NEW_TOKENS)
    best, second = output.sequences_scores.view(3, 2).unbind(1)
    assert (best >= second).all()
    transitions = writer.decoder.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    assert_close(transitions.sum(-1) / NEW_TOKENS, output.sequences_scores, **SUMMATION_TOLERANCE)


def test_more_beams_find_a_caption_of_at_least_the_greedy_score(writer):
    def score(**settings):
        output = writer.generate(return_dict_in_generate=True, output_logits=True, **settings)
        tokens = output.sequences[:, writer.num_context :]
        steps = torch.stack(output.logits, dim=1).log_softmax(-1)
        return steps.gather(2, tokens[:, :, None]).sum()

    beams = writer.generate(num_beams=VOCAB_SIZE, return_dict_in_generate=True, output_scores=True)
    assert beams.sequences_scores.sum() * NEW_TOKENS >= score() - 1e-4


def test_samples_repeat_with_a_seed_and_differ_otherwise(writer):
    def sample(seed):
        torch.manual_seed(seed)
        return writer.generate(do_sample=True, top_p=0.9, temperature=2.0, num_return_sequences=3)

    assert sample(0).shape == (9, writer.num_context + NEW_TOKENS)
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("option", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_the_kind_of_cache_does_not_change_the_tokens(writer, settings, option):
    assert torch.equal(writer.generate(**settings, **option), writer.generate(**settings))


def test_processors_criteria_and_streamers_are_called(writer):
    class OnlyFive(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([5]), 0.0)

    class Recorder(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens.extend(value.flatten().tolist())

        def end(self):
            self.tokens.append("end")

    tokens = writer.generate(
        logits_processor=LogitsProcessorList([OnlyFive()]),
        stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(writer.num_context + 2)]),
    )
    assert tokens[:, writer.num_context :].tolist() == [[5, 5]] * 3
    recorder = Recorder()
    writer.inputs = first_row(writer.inputs)
    tokens = writer.generate(streamer=recorder)
    assert recorder.tokens == [*tokens[0].tolist(), "end"]


def first_row(inputs):
    index = torch.tensor([0])
    return {
        name: value[:1] if isinstance(value, torch.Tensor) else value.select(index) for name, value in inputs.items()
    }


def test_prompt_lookup_gives_the_greedy_tokens(writer):
    writer.inputs = first_row(writer.inputs)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12}
    expected = writer.generate(**settings)
    assert torch.equal(writer.generate(prompt_lookup_num_tokens=3, **settings), expected)


def test_an_assistant_gives_the_greedy_tokens():
    writer = Writer("text_decoder")
    writer.inputs = first_row(writer.inputs)
    assistant = MODEL_CASES["text_decoder"].build(seed=1)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8}
    expected = writer.generate(**settings)
    assert torch.equal(writer.generate(assistant_model=assistant, **settings), expected)


def test_generation_continues_from_a_cache():
    writer = Writer("text_decoder")
    whole = writer.generate(max_new_tokens=6, min_new_tokens=6)
    part = writer.generate(max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    assert torch.equal(part.sequences, whole[:, :6])
    continued = writer.model.generate(
        part.sequences,
        image_memory=writer.inputs["image_memory"],
        past_key_values=part.past_key_values,
        max_new_tokens=3,
        min_new_tokens=3,
    )
    assert torch.equal(continued, whole)


def test_word_embeddings_are_continued_as_their_tokens():
    writer = Writer("text_decoder")
    expected = writer.generate()
    ids = writer.inputs.pop("input_ids")
    embedded = writer.model.get_input_embeddings()(ids)
    assert torch.equal(writer.generate(inputs_embeds=embedded), expected[:, writer.num_context :])


def test_left_padding_of_the_decoder_changes_no_token():
    writer = Writer("text_decoder")
    expected = writer.generate()
    ids = torch.nn.functional.pad(writer.inputs.pop("input_ids"), (2, 0))
    mask = (torch.arange(ids.shape[1]) >= 2).long().expand(ids.shape)
    assert torch.equal(writer.generate(input_ids=ids, attention_mask=mask)[:, 2:], expected)


# Of the answers, transformers reads padding of questions, so these rows have equal lengths.
SETTINGS = {
    "greedy": {},
    "length": {"min_length": 6, "max_length": 9},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 3},
    "forbidden": {"bad_words_ids": [[7], [8, 9]], "suppress_tokens": [10]},
    "forced": {"forced_eos_token_id": SEP, "max_new_tokens": 4},
    "sample": {"do_sample": True, "top_k": 5, "temperature": 1.3},
    "sampled beams": {"do_sample": True, "num_beams": 2, "top_p": 0.9},
    "bias": {"sequence_bias": [[[11], 4.0]]},
    "prefix": {"prefix_allowed_tokens_fn": lambda row, tokens: [SEP, 6, 7, 8]},
}


@pytest.fixture(scope="module", params=["captioning", "vqa"])
def twins(request, tmp_path_factory):
    """Our model and that of transformers with the same weights."""
    case, folder = MODEL_CASES[request.param], tmp_path_factory.mktemp(request.param)
    config = case.make_config()
    if request.param == "vqa":
        # transformers projects the states of questions from the width of images, and reads questions from [CLS].
        config.vision_config.hidden_size = config.text_config.hidden_size
        config.text_config.encoder_hidden_size = config.text_config.hidden_size
        config.question_start_token = "cls"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = case.model_class(config).eval()
    model.save_pretrained(folder)
    return model, getattr(transformers, case.model_class.__name__).from_pretrained(folder)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_tokens_of_all_settings_equal_those_of_transformers(twins, settings):
    batch = tiny_batch(lengths=(5, 5, 5))
    settings = {"max_new_tokens": 6, **settings} if "max_length" not in settings else settings

    def generate(model):
        torch.manual_seed(0)
        return model.generate(**{key: value.clone() for key, value in batch.items()}, **settings)

    ours, theirs = (generate(model) for model in twins)
    assert torch.equal(ours, theirs)
