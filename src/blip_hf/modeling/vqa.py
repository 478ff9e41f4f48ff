# SPDX-License-Identifier: BSD-3-Clause
"""Visual question answering (paper, section 5.4)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple, logging

from ..configuration_blip import BlipConfig, BlipTextConfig
from .attention import ImageMemory, expand_text
from .base import BlipPreTrainedModel, ForwardKwargs, refuse_unknown
from .input_checks import refuse_long_text, refuse_token_types
from .language_modeling import BlipTextLMHeadModel
from .outputs import BlipAnswerRankingOutput, BlipQuestionAnsweringOutput
from .pretraining import BlipForPreTraining
from .projection import with_first_token
from .prompts import refuse_long_generation, resolve_settings, start_tokens
from .text import BlipTextModel
from .vision import BlipVisionModel


logger = logging.get_logger(__name__)

# Candidates ranked at a time; limits the memory of vocabulary logits.
_CANDIDATES_AT_ONCE = 512


class BlipForQuestionAnswering(BlipPreTrainedModel, GenerationMixin):
    """Answers questions about images, by generation or by ranking a list of answers.

    An image-grounded encoder reads the question. The decoder reads the states of the question, not the image. The
    paper sets `vision_config.drop_path_rate=0.1` for this task.

    Reads and writes the checkpoints of `transformers.BlipForQuestionAnswering`, with two differences:

    - Questions start with [ENC], as BLIP was trained. `config.question_start_token="cls"` restores transformers' behaviour.
    - Answers do not attend to padding of questions. In transformers they do, so answers there depend on the batch.

    The decoder's cross-attention has the width of the text. That of transformers has the width of images; all released
    checkpoints have equal widths.
    """

    config: BlipConfig
    _tied_weights_keys = {
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        config = self.config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(decoder_config(config.text_config))
        self.post_init()

    @classmethod
    def from_pretraining(cls, model: BlipForPreTraining) -> "BlipForQuestionAnswering":
        """Initialises a model from a pre-trained one for fine-tuning (paper, section 5.4).

        Encoder and decoder get separate copies of their shared weights. If images and texts have different widths, the
        decoder's cross-attention starts at random, with a warning.
        """
        answerer = cls(model.export_captioner().config).to(model.device, model.dtype)
        answerer.vision_model.load_state_dict(model.vision_model.state_dict())
        answerer.text_encoder.load_state_dict(model.text_encoder.state_dict())
        sizes = {name: value.shape for name, value in answerer.text_decoder.state_dict().items()}
        decoder_state = model.text_decoder.state_dict()
        fitting = {name: value for name, value in decoder_state.items() if value.shape == sizes[name]}
        if len(fitting) < len(decoder_state):
            logger.warning(
                f"{len(decoder_state) - len(fitting)} cross-attention weights of the decoder start at random: in pre-training"
                f" they read images of width {model.config.vision_config.hidden_size}, here questions of width"
                f" {model.config.text_config.hidden_size}."
            )
        answerer.text_decoder.load_state_dict(fitting, strict=False)
        return answerer

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of questions; answers have separate ones."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings of questions."""
        self.text_encoder.set_input_embeddings(value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the word embeddings of questions and of answers."""
        self.text_decoder.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    @property
    def decoder_start_token_id(self) -> int:
        """[DEC], the first token of an answer."""
        return self.config.text_config.bos_token_id

    @property
    def decoder_pad_token_id(self) -> int:
        """The padding token of answers."""
        return self.config.text_config.pad_token_id

    def get_question_memory(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ImageMemory:
        """Encodes `b` questions once, for any number of calls of `text_decoder`. Arguments as in `forward`."""
        refuse_long_text(input_ids.shape[1], self.config.text_config)
        input_ids, attention_mask = expand_text(pixel_values.shape[0], input_ids, attention_mask)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        question = self._read_questions(vision.last_hidden_state, input_ids, attention_mask)
        return self.text_decoder.bert.build_image_memory(question.last_hidden_state, attention_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        answer_weights: Tensor | None = None,
        answers_per_question: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BlipQuestionAnsweringOutput:
        """Computes the logits of answers, and the loss if labels are given.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Questions, [CLS] first and padded on the right: `b / n` consecutive questions per image, or one question for
                all images.
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels.
            decoder_input_ids (`torch.Tensor` of shape `(m, t)`, *optional*, defaults to the labels):
                Answers; those of one question are consecutive. A [CLS] at position 0 is read as [DEC], the first token of
                generation.
            labels (`torch.Tensor` of shape `(m, t)`, *optional*):
                Token ids of the answers, not shifted. -100 and padding are ignored.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept another image size than the configured one.
            answer_weights (`torch.Tensor` of shape `(m,)`, *optional*):
                Weight of each answer. The loss is then the weighted sum of answer losses divided by the number of questions
                (salesforce/BLIP). By default it is the mean over all answer tokens (transformers).
            answers_per_question (`torch.Tensor` of shape `(b,)`, *optional*):
                Number of answers of each question, `m` in total. Defaults to `m / b` for each.
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_unknown(kwargs, self)
        refuse_token_types(token_type_ids, self)
        decoder_input_ids, labels = self._answers(decoder_input_ids, labels)
        input_ids, attention_mask = expand_text(pixel_values.shape[0], input_ids, attention_mask)
        answer_owner = _answer_owner(answers_per_question, input_ids.shape[0], decoder_input_ids.shape[0])

        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        question = self._read_questions(vision.last_hidden_state, input_ids, attention_mask, **kwargs)
        answers = self.text_decoder(
            input_ids=self._with_dec(decoder_input_ids),
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=question.last_hidden_state,
            encoder_attention_mask=attention_mask,
            image_index=answer_owner,
            labels=labels,
            reduction="none",
            skip_last=self.training,
            **kwargs,
        )
        return BlipQuestionAnsweringOutput(
            loss=None if labels is None else _answer_loss(answers.loss, labels, answer_weights, input_ids.shape[0]),
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            logits=answers.logits,
            answer_losses=answers.loss,
            question_embeds=question.last_hidden_state,
            decoder_hidden_states=answers.hidden_states,
            decoder_attentions=answers.attentions,
            cross_attentions=question.cross_attentions,
        )

    def _answers(self, decoder_input_ids: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Inputs of the decoder, by default those of the labels, and labels without padding."""
        pad_token_id = self.config.text_config.pad_token_id
        if labels is not None:
            labels = labels.masked_fill(labels == pad_token_id, -100)
            if decoder_input_ids is None:
                decoder_input_ids = labels.masked_fill(labels == -100, pad_token_id)
        if decoder_input_ids is None:
            raise ValueError("Pass labels or decoder_input_ids to score answers, or call generate to write one.")
        return decoder_input_ids, labels

    @torch.no_grad()
    def generate(  # type: ignore[override]  # questions come first, as in the class of transformers
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        generation_config: GenerationConfig | None = None,
        token_type_ids: Tensor | None = None,
        question_memory: ImageMemory | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generates answers to questions as in `forward`, which are encoded once for all beams and returned sequences.

        Args:
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
            question_memory (`ImageMemory`, *optional*):
                What `get_question_memory` returned for the questions, which are then not encoded again. Other inputs are
                not needed.
            **generate_kwargs:
                Options that override `generation_config`. salesforce/BLIP uses `num_beams=3`, `max_length=10`,
                `min_length=1`.

        Returns:
            `torch.Tensor` of shape `(rows, t)`: Answers, [DEC] first, or a `ModelOutput` with
            `return_dict_in_generate=True`.

        Raises:
            ValueError: If a question, or the answer that the settings allow, exceeds `max_position_embeddings`, or if there
                are neither questions with images nor their memory.
        """
        refuse_token_types(token_type_ids, self)
        settings, decoder_kwargs = resolve_settings(
            generation_config or self.generation_config, generate_kwargs, self.config.text_config
        )
        refuse_long_generation(settings, 1, self.config.text_config)
        memory = question_memory
        if memory is None:
            if input_ids is None or pixel_values is None:
                raise ValueError("Pass input_ids and pixel_values, or question_memory from get_question_memory.")
            memory = self.get_question_memory(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        start = start_tokens(memory.keys[0], self.config.text_config)
        return self.text_decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            image_memory=memory,
            generation_config=settings,
            **decoder_kwargs,
        )

    @torch.no_grad()
    def rank_answers(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        answer_ids: Tensor,
        answer_attention_mask: Tensor | None = None,
        num_candidates: int = 128,
        interpolate_pos_encoding: bool = False,
        token_type_ids: Tensor | None = None,
    ) -> BlipAnswerRankingOutput:
        """Ranks a list of answers to questions as in `forward`, in two stages (paper, section 5.4).

        The answers with the most likely first tokens become candidates. The candidate with the highest log-likelihood
        is the answer. As in salesforce/BLIP, the log-likelihood includes label smoothing; set
        `text_decoder.config.label_smoothing` to 0 for the exact one.

        Args:
            answer_ids (`torch.Tensor` of shape `(m, t)`):
                The list: each row is [CLS] or [DEC], the answer, [SEP], padding on the right.
            num_candidates (`int`, *optional*, defaults to 128):
                Number of candidates per question; at most the length of the list.
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_token_types(token_type_ids, self)
        num_answers = answer_ids.shape[0]
        if num_candidates < 1 or num_answers < 1:
            raise ValueError(
                f"num_candidates is {num_candidates} for a list of {num_answers} answers. Pass 1 or more candidates and at"
                " least one answer."
            )
        num_candidates = min(num_candidates, num_answers)
        memory = self.get_question_memory(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        start = start_tokens(memory.keys[0], self.config.text_config)
        first_logits = self.text_decoder(start, image_memory=memory).logits[:, 0]  # (b, v)
        # Logits suffice: a softmax would not change the order of the first tokens.
        candidates = first_logits[:, answer_ids[:, 1]].topk(num_candidates, dim=1).indices  # (b, k)

        if answer_attention_mask is None:
            answer_attention_mask = answer_ids != self.config.text_config.pad_token_id
        scores = -self._candidate_losses(memory, answer_ids, answer_attention_mask.sum(dim=1), candidates)  # (b, k)
        best = candidates.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]  # (b,)
        return BlipAnswerRankingOutput(best=best, candidates=candidates, scores=scores)

    def _candidate_losses(
        self, memory: ImageMemory, answer_ids: Tensor, lengths: Tensor, candidates: Tensor
    ) -> Tensor:
        """Losses of candidates, `(b, k)` -> `(b, k)`, one length at a time, without padding."""
        answers = candidates.flatten()  # (b * k,)
        owners = torch.arange(candidates.shape[0], device=answers.device).repeat_interleave(candidates.shape[1])
        losses = torch.zeros(answers.shape[0], device=answers.device, dtype=torch.float32)
        options = {"image_memory": memory, "reduction": "none", "skip_last": True}
        for length in lengths[answers].unique().tolist():
            for rows in (lengths[answers] == length).nonzero()[:, 0].split(_CANDIDATES_AT_ONCE):
                texts = answer_ids[answers[rows], :length]
                outputs = self.text_decoder(self._with_dec(texts), labels=texts, image_index=owners[rows], **options)
                losses[rows] = outputs.loss
        return losses.view_as(candidates)

    def _read_questions(
        self,
        image_states: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Any:
        if self.config.question_start_token == "enc":
            input_ids = with_first_token(input_ids, self.config.text_config.enc_token_id)
        return self.text_encoder(input_ids, attention_mask, encoder_hidden_states=image_states, **kwargs)

    def _with_dec(self, answer_ids: Tensor) -> Tensor:
        """Copies answers, and replaces a [CLS] or an ignored label at position 0 by [DEC]."""
        config = self.config.text_config
        first = answer_ids[:, :1]
        is_start = (first == config.cls_token_id) | (first == config.pad_token_id)
        return with_first_token(answer_ids, first.masked_fill(is_start, config.bos_token_id))


def decoder_config(text_config: BlipTextConfig) -> BlipTextConfig:
    """The configuration of the answer decoder, which reads states of the width of texts."""
    config = copy.deepcopy(text_config)
    config.encoder_hidden_size = config.hidden_size
    return config


def _answer_owner(answers_per_question: Tensor | None, num_questions: int, num_answers: int) -> Tensor | None:
    """Question of each answer, `(m,)`, or `None` if all questions have the same number of answers."""
    if answers_per_question is None:
        return None
    counts = answers_per_question.tolist()  # one synchronisation with the device
    if len(counts) != num_questions or sum(counts) != num_answers:
        raise ValueError(
            f"answers_per_question is {counts}, expected {num_questions} numbers (one per question) that sum up to"
            f" {num_answers} answers."
        )
    if len(set(counts)) == 1:
        return None
    questions = torch.arange(num_questions, device=answers_per_question.device)
    return questions.repeat_interleave(answers_per_question, output_size=num_answers)


def _answer_loss(losses: Tensor, labels: Tensor, weights: Tensor | None, num_questions: int) -> Tensor:
    """Losses of answers `(m,)` -> scalar: weighted sum per question, or mean over tokens."""
    if weights is None:
        return losses.sum() / (labels[:, 1:] != -100).sum()
    if weights.shape != losses.shape:
        raise ValueError(
            f"answer_weights has shape {tuple(weights.shape)}, expected one for each of {losses.shape[0]} answers."
        )
    return (weights * losses).sum() / num_questions


__all__ = ["BlipForQuestionAnswering", "decoder_config"]
