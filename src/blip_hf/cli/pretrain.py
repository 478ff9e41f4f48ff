# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf pretrain`: pre-trains BLIP with its three objectives, from scratch or from a ViT and a BERT."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Command, parse_options


if TYPE_CHECKING:
    from ..data.pairs import PairDataset
    from ..modeling.pretraining import BlipForPreTraining
    from ..processing_blip import BlipProcessor
    from ..training import BlipTrainingArguments

SCENES = "scenes"
# Width of an attention head in BERT and ViT of all sizes.
HEAD_WIDTH = 64


@dataclass
class PretrainArguments:
    """What to pre-train on, and what; documented by the help texts."""

    data: list[str] = field(
        metadata={
            "help": "Training pairs: JSON list(s), a folder with metadata.jsonl, the name of a data set, or `scenes` for"
            " drawn pictures, which are taken as they are."
        }
    )
    eval_data: list[str] | None = field(default=None, metadata={"help": "Pairs to evaluate on, as --data."})
    eval_split: str = field(default="validation", metadata={"help": "Split of --eval_data, where it has several."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative picture paths start from."})
    num_scenes: int = field(default=10_000, metadata={"help": "Number of drawn pictures to train on."})
    num_eval_scenes: int = field(default=500, metadata={"help": "Number of further ones to evaluate on."})
    min_scale: float = field(
        default=0.2, metadata={"help": "Least share of a picture's area that a random crop keeps."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "BlipForPreTraining checkpoint, with its processor, to go on from; the sizes below are its own."
        },
    )
    augment: bool = field(
        default=True, metadata={"help": "Crop, flip and warp the pictures of training; a run of one epoch needs none."}
    )
    vision: str | None = field(
        default=None, metadata={"help": "ViT or DeiT checkpoint to start from. Default: random weights."}
    )
    text: str | None = field(
        default=None, metadata={"help": "BERT checkpoint, with its tokenizer, to start from. Default: random weights."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "BERT tokenizer. Default: that of --text, or else one trained on the captions."},
    )
    vocab_size: int = field(default=30_522, metadata={"help": "Upper limit of a vocabulary trained on the captions."})
    image_size: int = field(default=224, metadata={"help": "Side of the pictures in pixels."})
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each channel that --vision was trained with. Default: CLIP's."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each channel likewise. Default: CLIP's."}
    )
    patch_size: int = field(default=16, metadata={"help": "Side of an image patch in pixels, without --vision."})
    vision_width: int = field(default=768, metadata={"help": "Width of the image encoder, without --vision."})
    vision_layers: int = field(default=12, metadata={"help": "Layers of the image encoder, without --vision."})
    text_width: int = field(default=768, metadata={"help": "Width of the text transformer, without --text."})
    text_layers: int = field(default=12, metadata={"help": "Layers of the text transformer, without --text."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the text transformer."})
    feature_width: int = field(default=256, metadata={"help": "Width of the contrastive features."})
    queue_size: int = field(
        default=57_600, metadata={"help": "Pairs in the queue; more than there are pairs to train on is too many."}
    )
    momentum: float = field(default=0.995, metadata={"help": "Decay of the momentum towers."})
    temperature: float = field(default=0.07, metadata={"help": "First value of the contrastive temperature."})
    itc_weight: float = field(default=1.0, metadata={"help": "Weight of image-text contrast in the loss."})
    itm_weight: float = field(default=1.0, metadata={"help": "Weight of image-text matching; 0 leaves it out."})
    lm_weight: float = field(default=1.0, metadata={"help": "Weight of language modelling; 0 leaves it out."})
    alpha: float = field(default=0.4, metadata={"help": "Full share of the momentum towers in contrastive targets."})


def _trainer_arguments() -> type:
    from ..training import BlipTrainingArguments

    return BlipTrainingArguments


COMMAND = Command(
    prog="blip-hf pretrain",
    description="Pre-trains BLIP with its three objectives.",
    options=PretrainArguments,
    usage="--data SOURCE [SOURCE ...]",
    trainer_arguments=_trainer_arguments,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-trains, evaluates and saves.

    The output folder then holds the model and its processor, and in `captioner/` and `retriever/` the two models inside
    as plain transformers opens them.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the name of the command. Those of the process by default.

    Returns:
        `int`: 0.
    """
    parsed = parse_options(COMMAND, sys.argv[1:] if argv is None else argv)
    if parsed is None:
        return 0
    options, training_arguments = parsed
    metrics = run(options, training_arguments)
    if training_arguments.process_index == 0:
        print(json.dumps(metrics))
    return 0


def run(options: PretrainArguments, training_arguments: "BlipTrainingArguments") -> dict[str, float]:
    """Does what the command does.

    Args:
        options (`PretrainArguments`):
            What to pre-train on, and what.
        training_arguments (`BlipTrainingArguments`):
            How.

    Returns:
        `dict[str, float]`: metrics of training, and of evaluation where there is a set for it.

    Raises:
        ValueError: If options contradict each other or a source cannot be read.
    """
    from transformers import set_seed

    from ..data.collators import BlipPretrainingCollator
    from ..training import BlipTrainer

    set_seed(training_arguments.seed)
    train_pairs, train_dataset = read_training_set(options, training_arguments.seed)
    processor = make_processor(options, train_pairs)
    trainer = BlipTrainer(
        make_model(options, processor),
        training_arguments,
        train_dataset=train_dataset,
        eval_dataset=read_evaluation_set(options),
        data_collator=BlipPretrainingCollator(processor),
        processing_class=processor,
    )
    metrics = trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint).metrics
    if options.eval_data is not None:
        metrics |= trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        save_parts(trainer.model, processor, Path(training_arguments.output_dir))
    return metrics


def read_training_set(options: PretrainArguments, seed: int) -> tuple[Any, "PairDataset"]:
    """Reads the training pairs.

    Args:
        options (`PretrainArguments`):
            Options of the command.
        seed (`int`):
            Seed of the augmentation.

    Returns:
        `tuple`: the pairs as they are, and the data set of augmented ones.
    """
    from ..data.pairs import PairDataset
    from ..data.scenes import Scenes
    from ..data.sources import load_pairs
    from ..data.transforms import TrainTransform

    if options.data == [SCENES]:
        # Crops, flips and warps would move what the captions speak of.
        scenes = Scenes(options.num_scenes, image_size=options.image_size)
        return scenes, PairDataset(scenes)
    pairs = load_pairs(_one_or_several(options.data), image_root=options.image_root)
    transform = TrainTransform(options.image_size, min_scale=options.min_scale) if options.augment else None
    return pairs, PairDataset(pairs, transform, seed=seed)


def read_evaluation_set(options: PretrainArguments) -> "PairDataset | None":
    """Reads the pairs to evaluate on.

    Args:
        options (`PretrainArguments`):
            Options of the command.

    Returns:
        `PairDataset`, *optional*: the pairs, or `None` where none were asked for.
    """
    from ..data.pairs import PairDataset
    from ..data.scenes import Scenes
    from ..data.sources import load_pairs

    if options.eval_data is None:
        return None
    if options.eval_data == [SCENES]:
        # Behind those of training.
        start, image_size = options.num_scenes, options.image_size
        return PairDataset(Scenes(options.num_eval_scenes, start=start, image_size=image_size))
    source = _one_or_several(options.eval_data)
    return PairDataset(load_pairs(source, image_root=options.image_root, split=options.eval_split))


def make_processor(options: PretrainArguments, train_pairs: Any) -> "BlipProcessor":
    """Makes the processor, with a tokenizer that is read or trained on the captions.

    Args:
        options (`PretrainArguments`):
            Options of the command.
        train_pairs (`Scenes` or `datasets.Dataset`):
            The training pairs.

    Returns:
        `BlipProcessor`: the processor.
    """
    from transformers import AutoTokenizer

    from ..data.scenes import Scenes, scene_vocabulary_texts
    from ..data.vocabulary import train_wordpiece_tokenizer
    from ..processing_blip import BlipProcessor

    if options.model is not None:
        return BlipProcessor.from_pretrained(options.model)
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
        tokenizer, image_size=options.image_size, image_mean=options.image_mean, image_std=options.image_std
    )


def make_model(options: PretrainArguments, processor: "BlipProcessor") -> "BlipForPreTraining":
    """Makes the model, from checkpoints or random weights.

    Args:
        options (`PretrainArguments`):
            Options of the command.
        processor (`BlipProcessor`):
            Its processor.

    Returns:
        `BlipForPreTraining`: the model, in float32.
    """
    import torch

    from ..modeling.pretraining import BlipForPreTraining

    token_ids = processor.config_token_ids()
    state = {
        "image_text_hidden_size": options.feature_width,
        "queue_size": options.queue_size,
        "momentum": options.momentum,
        "alpha": options.alpha,
        "temperature_init_value": options.temperature,
        "itc_weight": options.itc_weight,
        "itm_weight": options.itm_weight,
        "lm_weight": options.lm_weight,
    }
    if options.model is not None:
        return BlipForPreTraining.from_pretrained(options.model, dtype=torch.float32, **state)
    vision_sizes, text_sizes = {}, {}
    if options.vision is None:
        vision_sizes = _tower_sizes(options.vision_width, options.vision_layers) | {"patch_size": options.patch_size}
        vision_sizes["image_size"] = options.image_size
    if options.text is None:
        text_sizes = _tower_sizes(options.text_width, options.text_layers)
    dropout = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    return BlipForPreTraining.from_vision_text_pretrained(
        options.vision,
        options.text,
        image_size=options.image_size,
        vision_fields=vision_sizes,
        text_fields={**token_ids, **dropout, **text_sizes},
        **state,
    )


def save_parts(model: "BlipForPreTraining", processor: "BlipProcessor", output_dir: Path) -> None:
    """Saves the captioner and the matcher inside a model beside it, each with the processor.

    Args:
        model (`BlipForPreTraining`):
            The model.
        processor (`BlipProcessor`):
            Its processor.
        output_dir (`Path`):
            Where the sub-folders `captioner` and `retriever` go.
    """
    for name, part in (("captioner", model.export_captioner()), ("retriever", model.export_retriever())):
        part.save_pretrained(output_dir / name)
        processor.save_pretrained(output_dir / name)


def _one_or_several(sources: list[str]) -> str | list[str]:
    return sources[0] if len(sources) == 1 else sources


def _tower_sizes(width: int, num_layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
    }


__all__ = ["COMMAND", "PretrainArguments", "main", "run"]
