# SPDX-License-Identifier: BSD-3-Clause
"""Converts images and text to model inputs, with the first token of each role of the text transformer."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers import BlipProcessor as UpstreamBlipProcessor
from transformers.image_utils import ImageInput

from .caption_settings import CaptionSettings
from .cjk import join_cjk
from .image_processing_blip import BlipImageProcessor


Role = Literal["contrast", "matching", "lm", "captioning"]

DEC_TOKEN = "[DEC]"
ENC_TOKEN = "[ENC]"
IGNORE_INDEX = -100

# Maximum length of rows in tokens, as in salesforce/BLIP: models/blip_retrieval.py, blip_pretrain.py and blip.py.
_MAX_LENGTHS = {"contrast": 35, "matching": 35, "lm": 30, "captioning": 40}
_ROLES_WITH_LABELS = ("lm", "captioning")


class BlipProcessor(UpstreamBlipProcessor):
    """Converts images and text to the inputs of the BLIP models.

    Does what `transformers.BlipProcessor` does, reads and writes the same files, and adds `role`, which prepares text
    for one objective. Adds `[DEC]` and `[ENC]` to a tokenizer without them, such as that of BERT or of the released
    checkpoints: ids 30522 and 30523 for `bert-base-uncased`.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            A BERT tokenizer with rows `[CLS] ... [SEP]`.
        caption_settings ([`CaptionSettings`], *optional*):
            Prompt and lengths that the captioner of this checkpoint was trained with, the defaults of
            [`BlipCaptioner`], CapFilt and evaluation. Saved in `processor_config.json`; transformers ignores them.
            `None` means the package defaults.
        chat_template (`str` or `dict[str, str]`, *optional*):
            Jinja template of [`~transformers.ProcessorMixin.apply_chat_template`], or several by name. Saved in
            `chat_template.jinja`.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "dog", "two", "dogs"]
        >>> tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        >>> processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=32)
        >>> inputs = processor(text=["a dog", "dogs"], role="captioning", prompt="a picture of", return_tensors="pt")
        >>> inputs["input_ids"]
        tensor([[11,  5,  6,  7,  5,  8,  3],
                [11,  5,  6,  7, 10,  3,  0]])
        >>> inputs["labels"]
        tensor([[-100, -100, -100, -100,    5,    8,    3],
                [-100, -100, -100, -100,   10,    3, -100]])
        >>> processor.post_process_captions(inputs["input_ids"], prompt="a picture of")
        ['a dog', 'dogs']
    """

    def __init__(
        self,
        image_processor: BlipImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        caption_settings: CaptionSettings | dict[str, Any] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        _add_role_tokens(tokenizer)
        _drop_read_lengths(tokenizer)
        super().__init__(image_processor, tokenizer)
        self.chat_template = chat_template
        if isinstance(caption_settings, dict):
            caption_settings = CaptionSettings.from_dict(caption_settings)
        self.caption_settings = caption_settings

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> "BlipProcessor":
        """Loads a processor that was saved by this package or by transformers.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or model id.
            *args, **kwargs:
                Options of `transformers.ProcessorMixin.from_pretrained`: `cache_dir`, `revision`, `token`, `subfolder`,
                ...; components that replace the saved ones: `tokenizer`, `image_processor`, `chat_template`,
                `caption_settings`; and options of the tokenizer and of the image processor, such as `size`.

        Raises:
            ValueError: If `backend` is not `"pil"`: images are read with Pillow.
        """
        backend = kwargs.pop("backend", "pil")
        if backend != "pil":
            raise ValueError(
                f"backend={backend!r} is not supported: images are read with Pillow. Pass 'pil' or leave it out."
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        processor_dict: dict[str, Any] | None = None,
        *,
        image_processor: BlipImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Loads the components that are not given. The Auto classes of transformers only find its own image processor."""
        for name in ("caption_settings", "return_unused_kwargs"):
            kwargs.pop(name, None)
        if image_processor is None:
            image_processor = BlipImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if tokenizer is None:
            image_options = BlipImageProcessor.valid_kwargs.__annotations__
            options = {name: value for name, value in kwargs.items() if name not in image_options}
            # With a config, the tokenizer does not read config.json, whose model type may be unknown to transformers.
            options.setdefault("config", AutoConfig.for_model("blip"))
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **options)
        return [image_processor, tokenizer]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `processor_config.json`."""
        contents = super().to_dict()
        settings = contents.pop("caption_settings")
        return contents if settings is None else {**contents, "caption_settings": settings.to_dict()}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """Saves the files of the processor, which this package and transformers load. See `ProcessorMixin`."""
        _forget_last_call(self.tokenizer)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_bert_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str],
        image_size: int = 384,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> "BlipProcessor":
        """Creates the processor of a new model from a BERT tokenizer.

        Args:
            tokenizer (`PreTrainedTokenizerBase`, `str` or `os.PathLike`):
                A tokenizer, or its folder or model id.
            image_size (`int`, *optional*, defaults to 384):
                Height and width of the resized images in pixels.
            image_mean, image_std (`Sequence[float]`, *optional*):
                Mean and standard deviation of each channel. Default to those of CLIP, as in salesforce/BLIP.
        """
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        moments = {"image_mean": image_mean, "image_std": image_std}
        given_moments: dict[str, Any] = {name: list(values) for name, values in moments.items() if values is not None}
        size = {"height": image_size, "width": image_size}
        return cls(BlipImageProcessor(size=size, **given_moments), tokenizer)

    @property
    def dec_token_id(self) -> int:
        """Id of `[DEC]`, the first token of the image-grounded decoder."""
        return self.tokenizer.convert_tokens_to_ids(DEC_TOKEN)

    @property
    def enc_token_id(self) -> int:
        """Id of `[ENC]`, the first token of the image-grounded encoder."""
        return self.tokenizer.convert_tokens_to_ids(ENC_TOKEN)

    def config_token_ids(self) -> dict[str, int]:
        """Returns the vocabulary size and the ids of the special tokens, for `BlipTextConfig(**ids)`."""
        return {
            "vocab_size": len(self.tokenizer),
            "bos_token_id": self.dec_token_id,
            "enc_token_id": self.enc_token_id,
            "cls_token_id": self.tokenizer.cls_token_id,
            "sep_token_id": self.tokenizer.sep_token_id,
            "eos_token_id": self.tokenizer.sep_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        *,
        role: Role | None = None,
        prompt: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares images, text or both.

        Without `role`, the output is that of transformers: rows `[CLS] ... [SEP]`. Several texts that are returned as
        tensors are padded to the longest, always on the right. With `role`, rows are padded to the longest, truncated
        to the maximum length of the role with `[SEP]` kept, and start with the token of the role (salesforce/BLIP):

        | `role`         | position 0 | maximum length | labels                              |
        |----------------|------------|----------------|-------------------------------------|
        | `"contrast"`   | `[CLS]`    | 35             | none                                |
        | `"matching"`   | `[ENC]`    | 35             | none                                |
        | `"lm"`         | `[DEC]`    | 30             | all but position 0 and padding      |
        | `"captioning"` | `[DEC]`    | 40             | same as `"lm"`, without the prompt  |

        Args:
            prompt (`str`, *optional*):
                With `role="captioning"`, text before each caption, without labels.
            **kwargs:
                Options of transformers: `return_tensors`, `padding`, `truncation`, `max_length`, ...

        Returns:
            `BatchFeature`: `pixel_values` of shape `(images, 3, size, size)`; `input_ids` and `attention_mask` of shape
            `(b, t)`; with the roles `"lm"` and `"captioning"` also `labels` of shape `(b, t)`, not shifted, -100 at
            positions without loss.
        """
        if role is not None and role not in _MAX_LENGTHS:
            raise ValueError(f"role={role!r} is unknown. Pass one of {', '.join(_MAX_LENGTHS)}, or leave it out.")
        if prompt is not None and role != "captioning":
            raise ValueError(
                f"`prompt` requires role='captioning', got role={role!r}. For generation, pass the prompt as `text`."
            )
        _check_text(text, role)
        options = _merge_text_options(kwargs)
        # Ignores the padding side of the tokenizer, because models read position 0.
        if options.setdefault("padding_side", "right") != "right":
            raise ValueError(
                f"padding_side={options['padding_side']!r} moves texts away from position 0, which BLIP reads. Remove"
                " it: `generate` pads prompts on the left itself."
            )
        if role is None:
            if isinstance(text, list) and options.get("return_tensors") is not None:
                options.setdefault("padding", True)
            return super().__call__(images, text, **options)
        return self._call_with_role(
            images, [text] if isinstance(text, str) else list(text or ()), role, prompt, options
        )

    def _call_with_role(
        self,
        images: ImageInput | None,
        texts: list[str],
        role: Role,
        prompt: str | None,
        options: dict[str, Any],
    ) -> BatchFeature:
        return_tensors = options.pop("return_tensors", None)
        options = {"padding": True, "truncation": True, "max_length": _MAX_LENGTHS[role], **options}
        if prompt is not None:
            texts = [f"{prompt.rstrip()} {text.lstrip()}" for text in texts]
        features = super().__call__(images, texts, **options)
        rows = features["input_ids"]
        if any(row[0] != self.tokenizer.cls_token_id for row in rows):
            raise ValueError(
                f"role={role!r} replaces [CLS] at position 0, but a row starts with another token. Use a BERT"
                " tokenizer, without add_special_tokens=False."
            )
        if role in _ROLES_WITH_LABELS:
            num_context = 1 + (0 if prompt is None else self._count_prompt_tokens(prompt, rows))
            features["labels"] = [self._labels(row, num_context) for row in rows]
        features["input_ids"] = [[self._start_token_id(role), *row[1:]] for row in rows]
        return features.convert_to_tensors(return_tensors)

    def _start_token_id(self, role: Role) -> int:
        if role == "contrast":
            return self.tokenizer.cls_token_id
        return self.enc_token_id if role == "matching" else self.dec_token_id

    def _labels(self, row: list[int], num_context: int) -> list[int]:
        pad_token_id = self.tokenizer.pad_token_id
        targets = [IGNORE_INDEX if token_id == pad_token_id else token_id for token_id in row[num_context:]]
        return [IGNORE_INDEX] * num_context + targets

    def _prompt_token_ids(self, prompt: str) -> list[int]:
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def _count_prompt_tokens(self, prompt: str, rows: list[list[int]]) -> int:
        prompt_ids = self._prompt_token_ids(prompt)
        for index, row in enumerate(rows):
            if row[1 : 1 + len(prompt_ids)] != prompt_ids:
                raise ValueError(
                    f"Row {index} does not start with the {len(prompt_ids)} tokens of the prompt {prompt!r}, so they"
                    " cannot be removed from the labels. Raise max_length above the length of the prompt, or end the"
                    " prompt with a token that does not merge with the first token of the caption."
                )
        return len(prompt_ids)

    def post_process_captions(
        self, sequences: torch.Tensor | Sequence[Sequence[int]], prompt: str | None = None
    ) -> list[str]:
        """Decodes sequences of `generate` to captions, without special tokens and without `prompt` at the start."""
        rows = sequences.tolist() if isinstance(sequences, torch.Tensor) else sequences
        special_ids = set(self.tokenizer.all_special_ids)
        prompt_ids = [] if prompt is None else self._prompt_token_ids(prompt)
        captions = []
        for row in rows:
            token_ids = [token_id for token_id in row if token_id not in special_ids]
            if token_ids[: len(prompt_ids)] == prompt_ids:
                token_ids = token_ids[len(prompt_ids) :]
            captions.append(self.batch_decode([token_ids])[0].strip())
        return captions

    def decode(self, *args: Any, **kwargs: Any) -> str | list[str]:
        """Decodes token ids as the tokenizer does, with Chinese and Japanese text without spaces."""
        decoded = super().decode(*args, **kwargs)
        return join_cjk(decoded) if isinstance(decoded, str) else [join_cjk(text) for text in decoded]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decodes rows of token ids. See `decode`."""
        return [join_cjk(text) for text in super().batch_decode(*args, **kwargs)]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Decodes the outputs of `generate`, as pipelines do. See `decode`."""
        decoded = self.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        return [decoded] if isinstance(decoded, str) else decoded


def _merge_text_options(options: dict[str, Any]) -> dict[str, Any]:
    """Moves the options in `common_kwargs` and `text_kwargs` to the others."""
    common, nested = options.pop("common_kwargs", {}), options.pop("text_kwargs", {})
    twice = sorted(nested.keys() & options.keys())
    if twice:
        raise ValueError(
            f"{twice[0]!r} was passed two times: as {twice[0]}={options[twice[0]]!r}, and in"
            f" text_kwargs={{{twice[0]!r}: {nested[twice[0]]!r}}}. Pass it once."
        )
    merged = {**common, **nested, **options}
    if "return_tensors" in merged and "return_tensors" not in options and "images_kwargs" in options:
        # It applies to all outputs, also in transformers.
        merged["images_kwargs"] = {**options["images_kwargs"]}
        merged["images_kwargs"].pop("return_tensors", None)
    return merged


def _add_role_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds `[DEC]` and `[ENC]`, in this order, if they are missing."""
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise ValueError(
            f"{type(tokenizer).__name__} lacks one of [CLS], [SEP] and [PAD]. BLIP needs a BERT tokenizer, such as that"
            " of bert-base-uncased."
        )
    if tokenizer.bos_token != DEC_TOKEN:
        tokenizer.add_special_tokens({"bos_token": DEC_TOKEN})
    if ENC_TOKEN not in tokenizer.extra_special_tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": [ENC_TOKEN]}, replace_extra_special_tokens=False)


def _forget_last_call(tokenizer: PreTrainedTokenizerBase) -> None:
    """Unsets truncation and padding, which a fast tokenizer keeps from its last call and saves."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def _drop_read_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    """Unsets truncation that was saved from the last call: transformers would truncate every text to that length."""
    if tokenizer.is_fast and tokenizer.backend_tokenizer.truncation is not None:
        if tokenizer.init_kwargs.get("max_length") == tokenizer.backend_tokenizer.truncation["max_length"]:
            del tokenizer.init_kwargs["max_length"]
        _forget_last_call(tokenizer)


def _check_text(text: Any, role: Role | None) -> None:
    if text is None:
        if role is not None:
            raise ValueError(f"role={role!r} needs text. Pass `text`, or leave out `role`.")
    elif isinstance(text, list) and not text:
        raise ValueError("`text` is an empty list. Pass at least one text, or leave it out.")
    elif not isinstance(text, str) and not (isinstance(text, list) and all(isinstance(item, str) for item in text)):
        kind = type(text).__name__
        if isinstance(text, list):
            kind += " of " + ", ".join(sorted({type(item).__name__ for item in text}))
        raise ValueError(f"`text` is a {kind}, expected a str or a list of str.")


__all__ = ["BlipProcessor", "Role"]
