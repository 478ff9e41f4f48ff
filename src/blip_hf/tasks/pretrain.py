# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training with the three objectives (paper, section 3.2), from scratch or from a ViT and a BERT."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..caption_settings import PRETRAINING_SETTINGS, CaptionSettings
from ..checkpoints import require_checkpoint
from .base import Source, TrainingOptions, given_options, load_pair_records, load_processor, train_and_save


if TYPE_CHECKING:
    from ..data.pairs import PairDataset
    from ..modeling.pretraining import BlipForPreTraining
    from ..processing_blip import BlipProcessor
    from ..training import BlipTrainingArguments


# Paper, section 4.1.
IMAGE_SIZE = 224


@dataclass(kw_only=True)
class PretrainOptions(TrainingOptions):
    """Options of pre-training. `None` stands for the value of the checkpoint or configuration."""

    eval_split: str = field(
        default="validation", metadata={"help": "Split of --eval_data, if it has several", "metavar": "SPLIT"}
    )
    min_scale: float = field(
        default=0.2,
        metadata={"help": "Smallest fraction of an image that a random crop keeps", "metavar": "FRACTION"},
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "BlipForPreTraining checkpoint to continue from. Its widths, layers, patches, feature width and"
            " dropout replace the options for them",
            "metavar": "CHECKPOINT",
        },
    )
    in_memory: bool = field(
        default=False,
        metadata={"help": "Encode each pair once and keep it in memory, for a small set without augmentation"},
    )
    vision: str | None = field(
        default=None,
        metadata={
            "help": "ViT or DeiT checkpoint to start from (default: random weights)",
            "metavar": "CHECKPOINT",
        },
    )
    text: str | None = field(
        default=None,
        metadata={
            "help": "BERT checkpoint with its tokenizer to start from (default: random weights)",
            "metavar": "CHECKPOINT",
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "BERT tokenizer (default: that of --text, or else one trained on the captions)",
            "metavar": "TOKENIZER",
        },
    )
    vocab_size: int = field(
        default=30_522, metadata={"help": "Maximum size of a vocabulary that is trained on the captions"}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": f"Image size in pixels (default: that of --model, or {IMAGE_SIZE})"},
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each channel that --vision was trained with (default: CLIP's)"}
    )
    image_std: list[float] | None = field(
        default=None,
        metadata={"help": "Standard deviation of each channel that --vision was trained with (default: CLIP's)"},
    )
    patch_size: int = field(default=16, metadata={"help": "Patch size in pixels, without --vision"})
    vision_width: int = field(default=768, metadata={"help": "Width of the image encoder, without --vision"})
    vision_layers: int = field(default=12, metadata={"help": "Layers of the image encoder, without --vision"})
    text_width: int = field(default=768, metadata={"help": "Width of the text transformer, without --text"})
    text_layers: int = field(default=12, metadata={"help": "Layers of the text transformer, without --text"})
    head_width: int = field(default=64, metadata={"help": "Width of an attention head, for random weights"})
    initializer_range: float = field(
        default=0.02,
        metadata={"help": "Standard deviation of random weights; narrow models learn better with a larger one"},
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the text transformer", "metavar": "RATE"})
    feature_width: int = field(default=256, metadata={"help": "Width of the contrastive features"})
    queue_size: int | None = field(
        default=None,
        metadata={
            "help": "Pairs in the queue, at most as many as there are to train on (default: that of --model, or 57600)"
        },
    )
    momentum: float | None = field(
        default=None,
        metadata={"help": "Decay of the momentum encoder (default: that of --model, or 0.995)", "metavar": "RATE"},
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Initial contrastive temperature (default: 0.07)", "metavar": "TEMPERATURE"},
    )
    negative_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature that hard negatives of ITM are drawn with (default: that of --model, or the contrastive"
            " one); 1 draws nearly any pair",
            "metavar": "TEMPERATURE",
        },
    )
    itc_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the contrastive loss (default: that of --model, or 1)", "metavar": "WEIGHT"},
    )
    itm_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the image-text matching loss; 0 skips it (default: that of --model, or 1)",
            "metavar": "WEIGHT",
        },
    )
    lm_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the language modelling loss; 0 skips it (default: that of --model, or 1)",
            "metavar": "WEIGHT",
        },
    )
    alpha: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the momentum encoder in the contrastive targets (default: that of --model, or 0.4)",
            "metavar": "WEIGHT",
        },
    )

    def evaluation_source(self) -> Source:
        """Where the set to evaluate on is."""
        return replace(super().evaluation_source(), split=self.eval_split)


def pretrain(options: PretrainOptions, arguments: "BlipTrainingArguments") -> dict[str, float]:
    """Pre-trains a model, saves it with its processor, and evaluates it on `eval_data`.

    The output folder also gets `captioner/` and `retriever/`, two models that plain transformers loads.

    Args:
        options (`PretrainOptions`):
            The data and the model.
        arguments ([`BlipTrainingArguments`]):
            Arguments of the trainer.

    Returns:
        `dict[str, float]`: metrics of the training, and those of the evaluation as `eval_...`.

    Raises:
        ValueError: If options contradict each other, or a source cannot be read.
    """
    from transformers import set_seed

    from ..data.collators import BlipPretrainingCollator
    from ..data.encoded import EncodedPairs
    from ..training import BlipContrastiveTrainer

    set_seed(arguments.seed)
    train_pairs, train_dataset = read_training_set(options, arguments.seed)
    processor = make_processor(options, train_pairs)
    eval_dataset = read_evaluation_set(options)
    collator = BlipPretrainingCollator(processor)
    if options.in_memory:
        train_dataset = EncodedPairs(train_dataset, collator)
        eval_dataset = None if eval_dataset is None else EncodedPairs(eval_dataset, collator)
    trainer = BlipContrastiveTrainer(
        make_model(options, processor),
        arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=EncodedPairs.collate if options.in_memory else collator,
        processing_class=processor,
    )
    metrics = train_and_save(trainer)
    if trainer.is_world_process_zero():
        save_parts(trainer.model, processor, Path(arguments.output_dir))
    if options.eval_data is not None:
        metrics |= trainer.evaluate()
    return metrics


def resolve_image_size(options: PretrainOptions) -> int:
    """The image size of the options, else of the checkpoint to continue from, else the paper's."""
    from ..configuration_blip import BlipPreTrainingConfig

    if options.image_size is not None:
        return options.image_size
    if options.model is None:
        return IMAGE_SIZE
    require_checkpoint(options.model)
    return BlipPreTrainingConfig.from_pretrained(options.model).vision_config.image_size


def read_training_set(
    options: PretrainOptions, seed: int
) -> "tuple[Sequence[Mapping[str, Any]], PairDataset]":
    """Reads the training pairs; returns them and a data set that augments them."""
    from ..data.pairs import PairDataset
    from ..data.transforms import TrainTransform

    image_size = resolve_image_size(options)
    source = options.training_source()
    pairs = source.scenes(image_size)
    if pairs is not None:
        # Scenes are not augmented: crops and flips would change what their captions say.
        return pairs, PairDataset(pairs)
    if options.in_memory and options.augment:
        raise ValueError("in_memory keeps one view of each image, but augment makes many. Set one of them to False.")
    pairs = load_pair_records(source, options, image_size)
    transform = TrainTransform(image_size, min_scale=options.min_scale) if options.augment else None
    return pairs, PairDataset(pairs, transform, seed=seed)


def read_evaluation_set(options: PretrainOptions) -> "PairDataset | None":
    """Reads the pairs to evaluate on, if there are any."""
    from ..data.pairs import PairDataset

    if options.eval_data is None:
        return None
    return PairDataset(load_pair_records(options.evaluation_source(), options, resolve_image_size(options)))


def make_processor(options: PretrainOptions, train_pairs: Sequence[Mapping[str, Any]]) -> "BlipProcessor":
    """Makes the processor, with a tokenizer that is loaded or trained on the captions."""
    from transformers import AutoTokenizer

    from ..data.scenes import Scenes, scene_vocabulary_texts
    from ..data.vocabulary import train_wordpiece_tokenizer
    from ..processing_blip import BlipProcessor

    if options.model is not None:
        return load_processor(options.model, options.image_size)
    checkpoint = options.tokenizer or options.text
    if checkpoint is not None:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    else:
        # Questions about scenes have words that no caption has.
        is_drawn = isinstance(train_pairs, Scenes)
        captions = [*train_pairs.captions(), *scene_vocabulary_texts()] if is_drawn else train_pairs["caption"]
        # Captions may lack the words of the prompt.
        tokenizer = train_wordpiece_tokenizer([*captions, CaptionSettings().prompt], vocab_size=options.vocab_size)
    return BlipProcessor.from_bert_tokenizer(
        tokenizer,
        image_size=resolve_image_size(options),
        image_mean=options.image_mean,
        image_std=options.image_std,
    )


def make_model(options: PretrainOptions, processor: "BlipProcessor") -> "BlipForPreTraining":
    """Makes the model in float32, from checkpoints or random weights."""
    import torch

    from ..modeling.pretraining import BlipForPreTraining

    fields = given_options(
        queue_size=options.queue_size,
        momentum=options.momentum,
        alpha=options.alpha,
        temperature_init_value=options.temperature,
        negative_temperature=options.negative_temperature,
        itc_weight=options.itc_weight,
        itm_weight=options.itm_weight,
        lm_weight=options.lm_weight,
    )
    if options.model is not None:
        model = BlipForPreTraining.from_pretrained(options.model, dtype=torch.float32, **fields)
        if options.image_size is not None:
            model.resize_position_embeddings(options.image_size)
    else:
        model = _from_encoders(options, processor.config_token_ids(), fields)
    model.vision_model.freeze_first_layers(options.freeze_vision_layers)
    return model


def _from_encoders(
    options: PretrainOptions, token_ids: dict[str, int], fields: dict[str, Any]
) -> "BlipForPreTraining":
    from ..modeling.pretraining import BlipForPreTraining

    vision_sizes, text_sizes, image_size = {}, {}, resolve_image_size(options)
    if options.vision is None:
        vision_sizes = _encoder_sizes(options, options.vision_width, options.vision_layers)
        vision_sizes |= {"patch_size": options.patch_size, "image_size": image_size}
    if options.text is None:
        text_sizes = _encoder_sizes(options, options.text_width, options.text_layers)
    dropout = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    return BlipForPreTraining.from_vision_text_pretrained(
        options.vision,
        options.text,
        image_size=image_size,
        vision_fields=vision_sizes,
        text_fields={**token_ids, **dropout, **text_sizes},
        image_text_hidden_size=options.feature_width,
        **fields,
    )


def _encoder_sizes(options: PretrainOptions, width: int, num_layers: int) -> dict[str, int | float]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, width // options.head_width),
        "initializer_range": options.initializer_range,
    }


def save_parts(model: "BlipForPreTraining", processor: "BlipProcessor", output_dir: Path) -> None:
    """Saves the captioner and the retrieval model in `captioner/` and `retriever/`, each with the processor."""
    # A copy: fine-tuning of the whole model starts from its own processor, with the default prompt.
    processor = copy.copy(processor)
    processor.caption_settings = PRETRAINING_SETTINGS
    for name, part in (("captioner", model.export_captioner()), ("retriever", model.export_retriever())):
        part.save_pretrained(output_dir / name)
        processor.save_pretrained(output_dir / name)


__all__ = [
    "PretrainOptions",
    "make_model",
    "make_processor",
    "pretrain",
    "read_evaluation_set",
    "read_training_set",
    "resolve_image_size",
    "save_parts",
]
