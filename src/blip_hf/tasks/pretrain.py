# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training with the three objectives (paper, section 3.2), from scratch or from a ViT and a BERT."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback, set_seed

from ..caption_settings import PRETRAINING_SETTINGS
from ..checkpoints import require_checkpoint
from ..configuration_blip import BlipPreTrainingConfig
from ..data.collators import BlipPretrainingCollator
from ..data.encoded import EncodedPairs
from ..data.pairs import PairDataset
from ..data.readers.pairs import load_pairs
from ..data.scenes import Scenes, scene_vocabulary_texts
from ..data.transforms import TrainTransform
from ..data.vocabulary import train_wordpiece_tokenizer
from ..modeling.pretraining import BlipForPreTraining
from ..processing_blip import BlipProcessor
from ..training import BlipContrastiveTrainer, BlipTrainingArguments
from .base import load_processor, one_or_several, train_and_save
from .options import SCENES, PretrainOptions


# Side in pixels of the images of pre-training (paper, section 4.1).
IMAGE_SIZE = 224


def pretrain(
    options: PretrainOptions, arguments: BlipTrainingArguments, *, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, float]:
    """Pre-trains a model, evaluates it where there is a set for that, and saves it with its processor.

    Beside it lie `captioner/` and `retriever/`, the two models inside as plain transformers opens them.

    Args:
        options (`PretrainOptions`):
            What to pre-train on, and what.
        arguments (`BlipTrainingArguments`):
            How.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Callbacks that report progress instead of the printed logs.

    Returns:
        `dict[str, float]`: metrics of training, and of evaluation as `eval_...`.

    Raises:
        ValueError: If options contradict each other or a source cannot be read.
    """
    set_seed(arguments.seed)
    train_pairs, train_dataset = read_training_set(options, arguments.seed)
    processor = make_processor(options, train_pairs)
    eval_dataset = read_evaluation_set(options)
    collator = BlipPretrainingCollator(processor)
    if options.in_memory:
        # A caption of a scene is true of all scenes that have the same one.
        train_dataset = EncodedPairs(train_dataset, collator, equal_captions_share_id=isinstance(train_pairs, Scenes))
        eval_dataset = None if eval_dataset is None else EncodedPairs(eval_dataset, collator)
    trainer = BlipContrastiveTrainer(
        make_model(options, processor),
        arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=EncodedPairs.collate if options.in_memory else collator,
        processing_class=processor,
        callbacks=list(callbacks),
    )
    if callbacks:
        trainer.pop_callback(PrinterCallback)
    metrics = train_and_save(trainer)
    if trainer.is_world_process_zero():
        save_parts(trainer.model, processor, Path(arguments.output_dir))
    if options.eval_data is not None:
        metrics |= trainer.evaluate()
    return metrics


def image_size_of_run(options: PretrainOptions) -> int:
    """Side in pixels of the images that a run takes.

    Args:
        options (`PretrainOptions`):
            Options of the command.

    Returns:
        `int`: that of the options, or else of the checkpoint to go on from, or else the paper's.
    """
    if options.image_size is not None:
        return options.image_size
    if options.model is None:
        return IMAGE_SIZE
    require_checkpoint(options.model)
    return BlipPreTrainingConfig.from_pretrained(options.model).vision_config.image_size


def read_training_set(options: PretrainOptions, seed: int) -> tuple[Any, PairDataset]:
    """Reads the training pairs.

    Args:
        options (`PretrainOptions`):
            Options of the command.
        seed (`int`):
            Seed of the augmentation.

    Returns:
        `tuple`: the pairs as they are, and the data set of augmented ones.

    Raises:
        ValueError: If pairs are to be kept in memory and augmented.
    """
    image_size = image_size_of_run(options)
    if options.data == [SCENES]:
        # Crops, flips and warps would move what the captions speak of.
        scenes = Scenes(options.num_scenes, image_size=image_size)
        return scenes, PairDataset(scenes)
    if options.in_memory and options.augment:
        raise ValueError("in_memory keeps one view of each image, and augment wants many. Set one of them to False.")
    pairs = load_pairs(one_or_several(options.data), image_root=options.image_root)
    transform = TrainTransform(image_size, min_scale=options.min_scale) if options.augment else None
    return pairs, PairDataset(pairs, transform, seed=seed)


def read_evaluation_set(options: PretrainOptions) -> PairDataset | None:
    """Reads the pairs to evaluate on.

    Args:
        options (`PretrainOptions`):
            Options of the command.

    Returns:
        `PairDataset`, *optional*: the pairs, or `None` where none were asked for.
    """
    if options.eval_data is None:
        return None
    if options.eval_data == [SCENES]:
        # Behind those of training.
        image_size = image_size_of_run(options)
        return PairDataset(Scenes(options.num_eval_scenes, start=options.num_scenes, image_size=image_size))
    source = one_or_several(options.eval_data)
    return PairDataset(load_pairs(source, image_root=options.image_root, split=options.eval_split))


def make_processor(options: PretrainOptions, train_pairs: Any) -> BlipProcessor:
    """Makes the processor, with a tokenizer that is read or trained on the captions.

    Args:
        options (`PretrainOptions`):
            Options of the command.
        train_pairs (`Scenes` or `datasets.Dataset`):
            The training pairs.

    Returns:
        `BlipProcessor`: the processor.
    """
    if options.model is not None:
        return load_processor(options.model, options.image_size)
    source = options.tokenizer or options.text
    if source is not None:
        tokenizer = AutoTokenizer.from_pretrained(source)
    else:
        # Scenes are also asked about, in words that no caption holds.
        is_drawn = isinstance(train_pairs, Scenes)
        captions = [*train_pairs.captions(), *scene_vocabulary_texts()] if is_drawn else train_pairs["caption"]
        # The prompt of captioning, which captions may not hold.
        tokenizer = train_wordpiece_tokenizer([*captions, "a picture of"], vocab_size=options.vocab_size)
    return BlipProcessor.from_bert_tokenizer(
        tokenizer,
        image_size=image_size_of_run(options),
        image_mean=options.image_mean,
        image_std=options.image_std,
    )


def make_model(options: PretrainOptions, processor: BlipProcessor) -> BlipForPreTraining:
    """Makes the model, from checkpoints or random weights.

    Args:
        options (`PretrainOptions`):
            Options of the command.
        processor (`BlipProcessor`):
            Its processor.

    Returns:
        `BlipForPreTraining`: the model, in float32.
    """
    token_ids = processor.config_token_ids()
    state = {
        "queue_size": options.queue_size,
        "momentum": options.momentum,
        "alpha": options.alpha,
        "temperature_init_value": options.temperature,
        "negative_temperature": options.negative_temperature,
        "itc_weight": options.itc_weight,
        "itm_weight": options.itm_weight,
        "lm_weight": options.lm_weight,
    }
    if options.model is not None:
        model = BlipForPreTraining.from_pretrained(options.model, dtype=torch.float32, **state)
        if options.image_size is not None:
            model.resize_position_embeddings(options.image_size)
    else:
        model = _from_towers(options, token_ids, state)
    model.vision_model.freeze_first_layers(options.freeze_vision_layers)
    return model


def _from_towers(options: PretrainOptions, token_ids: dict[str, int], state: dict[str, Any]) -> BlipForPreTraining:
    vision_sizes, text_sizes, image_size = {}, {}, image_size_of_run(options)
    if options.vision is None:
        vision_sizes = _tower_fields(options, options.vision_width, options.vision_layers)
        vision_sizes |= {"patch_size": options.patch_size, "image_size": image_size}
    if options.text is None:
        text_sizes = _tower_fields(options, options.text_width, options.text_layers)
    regularization = {
        "hidden_dropout_prob": options.dropout,
        "attention_probs_dropout_prob": options.dropout,
        "label_smoothing": options.label_smoothing,
    }
    return BlipForPreTraining.from_vision_text_pretrained(
        options.vision,
        options.text,
        image_size=image_size,
        vision_fields=vision_sizes,
        text_fields={**token_ids, **regularization, **text_sizes},
        image_text_hidden_size=options.feature_width,
        **state,
    )


def save_parts(model: BlipForPreTraining, processor: BlipProcessor, output_dir: Path) -> None:
    """Saves the captioner and the matcher inside a model beside it, each with the processor.

    Args:
        model (`BlipForPreTraining`):
            The model.
        processor (`BlipProcessor`):
            Its processor.
        output_dir (`Path`):
            Where the sub-folders `captioner` and `retriever` go.
    """
    # A copy: fine-tuning of the whole model starts from its own processor, with the default prompt.
    processor = copy.copy(processor)
    processor.caption_settings = PRETRAINING_SETTINGS
    for name, part in (("captioner", model.export_captioner()), ("retriever", model.export_retriever())):
        part.save_pretrained(output_dir / name)
        processor.save_pretrained(output_dir / name)


def _tower_fields(options: PretrainOptions, width: int, num_layers: int) -> dict[str, int | float]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, width // options.head_width),
        "initializer_range": options.initializer_range,
    }


__all__ = [
    "image_size_of_run",
    "make_model",
    "make_processor",
    "pretrain",
    "read_evaluation_set",
    "read_training_set",
    "save_parts",
]
