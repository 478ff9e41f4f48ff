# SPDX-License-Identifier: BSD-3-Clause
"""Question answering: the question reads the image, and the answer reads the question (paper, section 5.4)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from ..configuration_blip import BlipConfig, BlipTextConfig
from .attention import ImageMemory, expand_text
from .base import BlipPreTrainedModel, refuse_unknown
from .language_modeling import BlipTextLMHeadModel
from .outputs import BlipAnswerRankingOutput, BlipQuestionAnsweringOutput
from .pretraining import BlipForPreTraining
from .projection import with_first_token
from .prompts import resolve_settings, start_tokens
from .text import BlipTextModel
from .vision import BlipVisionModel


logger = logging.get_logger(__name__)

# Bounds the scores of the vocabulary that exist at once while candidates are ranked.
_CANDIDATES_AT_ONCE = 512


class BlipForQuestionAnswering(BlipPreTrainedModel, GenerationMixin):
    """Answers questions about images, by writing or by choosing from a list.

    An image-grounded encoder reads the question, starting with [ENC], and the decoder writes an answer that reads the
    question's states and never the image. These states are an `ImageMemory`: their keys and values are projected once a
    question, for all of its answers, candidates and beams.

    Reads and writes the checkpoints of `transformers.BlipForQuestionAnswering`, and differs from it in two points:

    - Questions start with [ENC], as BLIP was trained; `config.question_start_token="cls"` gives transformers' behaviour.
    - Padding of a question is never read. Transformers' answers read it, so there they depend on the batch.

    The decoder attends to text, so its cross-attention takes the text's width; transformers' takes the image's and works
    only where both are equal, as in every checkpoint that was released.

    Args:
        config (`BlipConfig`):
            Configuration of both towers. The paper sets `vision_config.drop_path_rate=0.1` for this task.
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
        self.text_decoder = BlipTextLMHeadModel(_decoder_config(config.text_config))
        self.post_init()

    @classmethod
    def from_pretraining(cls, model: BlipForPreTraining) -> "BlipForQuestionAnswering":
        """Starts fine-tuning from a pre-trained model (paper, section 5.4).

        What encoder and decoder share in pre-training is copied to both, to be trained apart. Where images are wider than
        text, the decoder's projections of the image do not fit the question and stay random, which is logged.

        Args:
            model (`BlipForPreTraining`):
                The pre-trained model. It is not changed.

        Returns:
            `BlipForQuestionAnswering`: With copied weights, on the same device and in the same precision.
        """
        answerer = cls(model.export_captioner().config).to(model.device, model.dtype)
        answerer.vision_model.load_state_dict(model.vision_model.state_dict())
        answerer.text_encoder.load_state_dict(model.text_encoder.state_dict())
        sizes = {name: value.shape for name, value in answerer.text_decoder.state_dict().items()}
        decoder_state = model.text_decoder.state_dict()
        fitting = {name: value for name, value in decoder_state.items() if value.shape == sizes[name]}
        if len(fitting) < len(decoder_state):
            logger.warning(
                f"{len(decoder_state) - len(fitting)} cross-attention weights of the decoder start at random: they read"
                f" images of width {model.config.vision_config.hidden_size}, and questions have"
                f" {model.config.text_config.hidden_size}."
            )
        answerer.text_decoder.load_state_dict(fitting, strict=False)
        return answerer

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of questions; answers have their own."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings of questions."""
        self.text_encoder.set_input_embeddings(value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the word embeddings of questions and of answers, which share a vocabulary."""
        self.text_decoder.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    def get_question_memory(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ImageMemory:
        """Reads questions once, to be answered any number of times by the decoder.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Questions, as in `forward`.
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                0 for padding.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate position embeddings for images of another size than the configured one.

        Returns:
            `ImageMemory`: Of `b` questions in place of images, for `text_decoder`.
        """
        input_ids, attention_mask = expand_text(len(pixel_values), input_ids, attention_mask)
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BlipQuestionAnsweringOutput:
        """Scores answers, and the loss where labels are given.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Questions, [CLS] first and padded on the right. `b` is a multiple of the `n` images, the questions of one
                image being neighbours, or one for all of them.
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels.
            decoder_input_ids (`torch.Tensor` of shape `(m, t)`, *optional*, defaults to the labels):
                Answers, those of one question being neighbours. A [CLS] at position 0 is read as [DEC], the token that
                generation starts from.
            decoder_attention_mask (`torch.Tensor` of shape `(m, t)`, *optional*):
                0 for padding.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                0 for padding of the questions.
            labels (`torch.Tensor` of shape `(m, t)`, *optional*):
                Ids of the answers, not shifted; -100 and padding never count.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate position embeddings for images of another size than the configured one.
            answer_weights (`torch.Tensor` of shape `(m,)`, *optional*):
                Weight of each answer. The loss is then the weighted sum of the answers' losses over the number of
                questions (salesforce/BLIP); without it, the mean over all answer tokens (transformers).
            answers_per_question (`torch.Tensor` of shape `(b,)`, *optional*):
                Number of answers of each question, adding up to `m`; by default all have `m / b`.
            **kwargs:
                `output_attentions`, `output_hidden_states`, `return_dict`.

        Returns:
            `BlipQuestionAnsweringOutput`: Loss, logits (in training with labels those that predict a token, of shape
            `(m, t - 1, v)`), and the states of images and questions.

        Raises:
            ValueError: If there are no answers, or they do not divide among the questions.
        """
        refuse_unknown(kwargs, self)
        pad_token_id = self.config.text_config.pad_token_id
        if labels is not None:
            labels = labels.masked_fill(labels == pad_token_id, -100)
        elif decoder_input_ids is None:
            raise ValueError("pass labels or decoder_input_ids to score answers, or call generate for an answer.")
        if decoder_input_ids is None:
            decoder_input_ids = labels.masked_fill(labels == -100, pad_token_id)
        input_ids, attention_mask = expand_text(len(pixel_values), input_ids, attention_mask)
        answer_owner = _answer_owner(answers_per_question, len(input_ids), len(decoder_input_ids))

        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        question = self._read_questions(vision.last_hidden_state, input_ids, attention_mask, **kwargs)
        answers = self.text_decoder(
            input_ids=self._with_dec(decoder_input_ids),
            attention_mask=decoder_attention_mask,
            image_memory=self.text_decoder.bert.build_image_memory(question.last_hidden_state, attention_mask),
            image_index=answer_owner,
            labels=labels,
            reduction="none",
            skip_last=self.training,
            **kwargs,
        )
        return BlipQuestionAnsweringOutput(
            loss=None if labels is None else _answer_loss(answers.loss, labels, answer_weights, len(input_ids)),
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

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Writes answers. Beams and returned answers of a question read the same memory.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Questions, as in `forward`. They are not changed.
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                0 for padding.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate position embeddings for images of another size than the configured one.
            generation_config (`GenerationConfig`, *optional*, defaults to the model's own):
                Settings.
            **generate_kwargs:
                Settings that win over `generation_config`. The paper's code has `num_beams=3`, `max_length=10` and
                `min_length=1`.

        Returns:
            `torch.Tensor` of shape `(rows, t)`: Answers from [DEC] on, or the output object of `generate` where it is
            asked for.
        """
        memory = self.get_question_memory(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        settings, decoder_kwargs = resolve_settings(
            generation_config or self.generation_config, generate_kwargs, self.config.text_config
        )
        start = start_tokens(memory, self.config.text_config)
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
    ) -> BlipAnswerRankingOutput:
        """Chooses answers from a list, in two stages (paper, section 5.4).

        The answers with the likeliest first tokens become candidates, and the one with the highest log-likelihood as a
        whole is the answer. As in the paper's code the log-likelihood is the negative training loss, with its label
        smoothing; set `text_decoder.config.label_smoothing` to 0 for the plain one.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels.
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Questions, as in `forward`.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                0 for padding.
            answer_ids (`torch.Tensor` of shape `(m, t)`):
                The list: [CLS] or [DEC], the answer, [SEP], padding on the right.
            answer_attention_mask (`torch.Tensor` of shape `(m, t)`, *optional*):
                0 for padding.
            num_candidates (`int`, *optional*, defaults to 128):
                Candidates of a question, all of the list where it is shorter.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate position embeddings for images of another size than the configured one.

        Returns:
            `BlipAnswerRankingOutput`: The best answers, and the candidates with their scores.

        Raises:
            ValueError: If `num_candidates` is below 1 or the list is empty.
        """
        num_candidates = min(num_candidates, len(answer_ids))
        if num_candidates < 1:
            raise ValueError(f"{num_candidates} candidates leave nothing to choose from; pass a list, and 1 or more.")
        memory = self.get_question_memory(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        start = start_tokens(memory, self.config.text_config)
        first_logits = self.text_decoder(start, image_memory=memory).logits[:, 0]  # (b, v)
        # An answer's first token decides for all answers that share it; the softmax would not change their order.
        candidates = first_logits[:, answer_ids[:, 1]].topk(num_candidates, dim=1).indices  # (b, k)

        if answer_attention_mask is None:
            answer_attention_mask = answer_ids != self.config.text_config.pad_token_id
        scores = -self._candidate_losses(memory, answer_ids, answer_attention_mask.sum(dim=1), candidates)  # (b, k)
        best = candidates.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]  # (b,)
        return BlipAnswerRankingOutput(best=best, candidates=candidates, scores=scores)

    def _candidate_losses(
        self, memory: ImageMemory, answer_ids: Tensor, lengths: Tensor, candidates: Tensor
    ) -> Tensor:
        """Losses of candidates, `(b, k)` -> `(b, k)`: those of one length at a time, so that none is padded."""
        answers = candidates.flatten()  # (b * k,)
        owners = torch.arange(len(candidates), device=answers.device).repeat_interleave(candidates.shape[1])
        losses = torch.zeros(len(answers), device=answers.device, dtype=torch.float32)
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        if self.config.question_start_token == "enc":
            input_ids = with_first_token(input_ids, self.config.text_config.enc_token_id)
        memory = self.text_encoder.build_image_memory(image_states)
        return self.text_encoder(input_ids, attention_mask, image_memory=memory, **kwargs)

    def _with_dec(self, answer_ids: Tensor) -> Tensor:
        """A copy that starts with [DEC] where it starts with [CLS], or where labels leave the start out."""
        config = self.config.text_config
        first = answer_ids[:, :1]
        is_start = (first == config.cls_token_id) | (first == config.pad_token_id)
        return torch.cat([first.masked_fill(is_start, config.bos_token_id), answer_ids[:, 1:]], dim=1)


def _decoder_config(text_config: BlipTextConfig) -> BlipTextConfig:
    config = copy.deepcopy(text_config)
    config.encoder_hidden_size = config.hidden_size
    return config


def _answer_owner(answers_per_question: Tensor | None, num_questions: int, num_answers: int) -> Tensor | None:
    """Question of each answer, of shape `(m,)`, or `None` where all have the same number, which needs no index."""
    if answers_per_question is None:
        return None
    counts = answers_per_question.tolist()  # one wait for the device
    if len(counts) != num_questions or sum(counts) != num_answers:
        raise ValueError(
            f"answers_per_question is {counts}, expected {num_questions} numbers, one a question, that add up to the"
            f" {num_answers} answers."
        )
    if len(set(counts)) == 1:
        return None
    questions = torch.arange(num_questions, device=answers_per_question.device)
    return questions.repeat_interleave(answers_per_question, output_size=num_answers)


def _answer_loss(losses: Tensor, labels: Tensor, weights: Tensor | None, num_questions: int) -> Tensor:
    """Sums of answers `(m,)` -> scalar: weighted over questions, or the mean over tokens."""
    if weights is None:
        return losses.sum() / (labels[:, 1:] != -100).sum()
    if weights.shape != losses.shape:
        raise ValueError(
            f"answer_weights has shape {tuple(weights.shape)}, expected one for each of {len(losses)} answers."
        )
    return (weights * losses).sum() / num_questions


__all__ = ["BlipForQuestionAnswering"]
