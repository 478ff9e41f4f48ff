# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training with ITC, ITM and LM (paper, section 4.1), from scratch, from a ViT and a BERT, or from a checkpoint."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..caption_settings import PRETRAINING_SETTINGS, CaptionSettings
from . import base, finetuning
from .loading import add_loading_skips, loading_counts
from .options import option
from .recipe import choose_recipe
from .run_card import push_run, write_run_cards
from .run_folder import finish_run, prepare_run
from .streams import NUM_VOCABULARY_CAPTIONS, make_stream


if TYPE_CHECKING:
    from transformers import TrainerCallback

    from ..data.mixtures import PairMixture
    from ..data.pairs import PairDataset
    from ..data.streams import PairStream
    from ..modeling.pretraining import BlipForPreTraining
    from ..processing_blip import BlipProcessor
    from ..training import BlipTrainingArguments


# Image size of pre-training in pixels (paper, section 4.1).
IMAGE_SIZE = 224
# Sub-folders of the output folder, with the models inside the pre-trained one.
PARTS = ("captioner", "retriever")
# Options that are fields of the configuration, which has their defaults.
CONFIGURED = (
    "queue_size",
    "momentum",
    "contrastive_warmup_steps",
    "alpha",
    "temperature_init_value",
    "negative_temperature",
    "gather_keys",
    "negative_all_rank",
    "itc_weight",
    "itm_weight",
    "lm_weight",
)


@dataclass(kw_only=True)
class PretrainOptions(base.PairTrainingOptions):
    """Options of pre-training.

    `None` stands for the default of [`BlipPreTrainingConfig`], where that has the option; under 10,000 steps, some have other
    values (`docs/short_runs.md`).
    """

    eval_split: str = option("validation", f"Split of --eval_data, {base.SPLIT_HELP}", "NAME")
    min_scale: float = option(0.2, "Minimum share of an image's area in a random crop (salesforce/BLIP)", "SHARE")
    model: str | None = option(
        None,
        "BlipForPreTraining checkpoint with its processor to continue from; the options of sizes and dropout do not apply",
        "CHECKPOINT",
    )
    in_memory: bool = option(
        False, "Encode each pair once and keep it in memory, for a small set without augmentation"
    )
    vision: str | None = option(None, "ViT or DeiT checkpoint to start from (default: random weights)", "CHECKPOINT")
    text: str | None = option(
        None, "BERT checkpoint with its tokenizer to start from (default: random weights)", "CHECKPOINT"
    )
    tokenizer: str | None = option(
        None, "BERT tokenizer (default: that of --text, or one trained on the captions)", "CHECKPOINT"
    )
    vocab_size: int = option(30_522, "Maximum size of a vocabulary trained on the captions", "N")
    image_size: int | None = option(
        None, "Image size in pixels; position embeddings are interpolated (default: that of --model, or 224)", "N"
    )
    image_mean: list[float] | None = option(
        None, "Channel means that --vision was trained with (default: CLIP's)", "MEAN"
    )
    image_std: list[float] | None = option(
        None, "Channel standard deviations that --vision was trained with (default: CLIP's)", "STD"
    )
    patch_size: int = option(16, "Patch size in pixels, without --vision", "N")
    vision_width: int = option(768, "Hidden size of the image encoder, without --vision", "N")
    vision_layers: int = option(12, "Layers of the image encoder, without --vision", "N")
    text_width: int = option(768, "Hidden size of the text transformer, without --text", "N")
    text_layers: int = option(12, "Layers of the text transformer, without --text", "N")
    head_width: int = option(64, "Width of an attention head, for encoders with random weights", "N")
    initializer_range: float = option(
        0.02, "Standard deviation of random weights; narrow encoders need a larger one", "STD"
    )
    dropout: float = option(0.1, "Dropout of the text transformer", "RATE")
    label_smoothing: float = option(
        0.1, "Label smoothing of language modelling, for a text transformer without --model", "RATE"
    )
    feature_width: int = option(256, "Size of the contrastive features", "N")
    queue_size: int | None = option(
        None,
        "Number of pairs in the queue, at most that of training pairs (default: 57600, as salesforce/BLIP; 20 batches under 10,000 steps, 0 under 500)",
        "N",
    )
    momentum: float | None = option(
        None, "Decay of the momentum encoder (default: 0.995, as salesforce/BLIP; 0 under 500 steps)", "RATE"
    )
    contrastive_warmup_steps: int | None = option(
        None,
        "Steps with only the batch as keys and with easier negatives, before momentum and queue are used (default: 0; at most 300 under 10,000 steps)",
        "N",
    )
    temperature: float | None = option(
        None, "Initial contrastive temperature (default: 0.07; 0.05 under 10,000 steps)", "T"
    )
    negative_temperature: float | None = option(
        None,
        "Temperature that hard negatives are drawn at (default: that of the contrastive loss; 0.1 under 10,000 steps; 1: any pairs)",
        "T",
    )
    gather_keys: bool | None = option(None, base.GATHER_KEYS_HELP)
    negative_all_rank: bool | None = option(None, base.NEGATIVE_ALL_RANK_HELP)
    itc_weight: float | None = option(None, "Weight of the contrastive loss (default: 1)", "WEIGHT")
    itm_weight: float | None = option(None, "Weight of image-text matching; 0 skips it (default: 1)", "WEIGHT")
    lm_weight: float | None = option(None, "Weight of language modelling; 0 skips it (default: 1)", "WEIGHT")
    alpha: float | None = option(
        None, "Final share of the momentum encoder in contrastive targets (default: 0.4)", "SHARE"
    )

    @property
    def temperature_init_value(self) -> float | None:
        """`temperature`, under the configuration's name."""
        return self.temperature


def pretrain(
    options: PretrainOptions, arguments: "BlipTrainingArguments", *, callbacks: Sequence["TrainerCallback"] = ()
) -> dict[str, Any]:
    """Pre-trains a model, saves it with its processor, and evaluates it if there is a set for that.

    The output folder also gets `captioner/` and `retriever/`, the two models inside, which plain transformers opens.

    Args:
        options (`PretrainOptions`):
            Model, data and objectives.
        arguments (`BlipTrainingArguments`):
            Arguments of the trainer.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Callbacks that report progress instead of the printed logs.

    Returns:
        `dict[str, Any]`: metrics of training, and of evaluation as `eval_...`; with `dry_run`, a description of the run.

    Raises:
        ValueError: If options contradict each other or a source cannot be read.
    """
    from transformers import PrinterCallback, set_seed

    from ..data.collators import BlipPretrainingCollator
    from ..data.encoded import EncodedPairs
    from ..data.readers.usable import recorded_files
    from ..training import BlipContrastiveTrainer
    from .dry_run import describe_run

    set_seed(arguments.seed)
    with recorded_files() as train_files:
        train_pairs, read_dataset = read_training_set(options, arguments.seed, max_bad_share=arguments.max_bad_share)
    # A stream may ask a server for each shard.
    num_pairs = None if options.is_streamed() and arguments.max_steps > 0 else _count_pairs(train_pairs)
    options = choose_recipe(options, arguments, num_pairs).apply(options, arguments)
    prepare_run(options, arguments)
    train_dataset: Any = read_dataset
    loading_counts(train_files).check(arguments.max_bad_share)
    processor = make_processor(options, train_pairs)
    with recorded_files() as eval_files:
        eval_dataset: Any = read_evaluation_set(options)
    collator = BlipPretrainingCollator(processor)
    is_encoded = options.in_memory and not options.dry_run
    if is_encoded:
        # A caption of a scene is true of all scenes that have the same one.
        is_drawn = options.training_source().is_scenes
        train_dataset = EncodedPairs(train_dataset, collator, equal_captions_share_id=is_drawn)
        eval_dataset = None if eval_dataset is None else EncodedPairs(eval_dataset, collator)
    trainer = BlipContrastiveTrainer(
        make_model(options, processor),
        arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=EncodedPairs.collate if is_encoded else collator,
        processing_class=processor,
        callbacks=list(callbacks),
    )
    if callbacks:
        trainer.pop_callback(PrinterCallback)
    if options.dry_run:
        return describe_run(trainer)
    metrics = add_loading_skips(finetuning.train(trainer, options), train_files)
    trainer.save_model()
    if trainer.is_world_process_zero():
        trained: Any = trainer.model
        save_parts(trained, processor, Path(arguments.output_dir))
    if eval_dataset is not None:
        metrics |= trainer.evaluate()
        skipped = add_loading_skips(eval_dataset.skip_counts(all_processes=True).metrics(), eval_files)
        metrics |= {f"eval_{name}": value for name, value in skipped.items()}
    finish_run(arguments, card=write_run_cards(options, trainer, metrics, PARTS))
    push_run(arguments, trainer.hub_model_id)
    return metrics


def _count_pairs(train_pairs: Any) -> int | None:
    """Returns the number of pairs, or `None` for a stream of unknown length."""
    return train_pairs.num_pairs if hasattr(train_pairs, "num_pairs") else len(train_pairs)


def image_size_of_run(options: PretrainOptions) -> int:
    """Returns the image size: that of the options, or of the checkpoint to continue from, or the paper's."""
    from ..checkpoints import require_checkpoint
    from ..configuration_blip import BlipPreTrainingConfig

    if options.image_size is not None:
        return options.image_size
    if options.model is None:
        return IMAGE_SIZE
    require_checkpoint(options.model)
    return BlipPreTrainingConfig.from_pretrained(options.model).vision_config.image_size


def read_training_set(
    options: PretrainOptions, seed: int, *, max_bad_share: float = 1.0
) -> tuple[Any, "PairDataset | PairStream | PairMixture"]:
    """Returns the training pairs, and the data set of augmented ones. A stream is both.

    Raises:
        ValueError: If pairs are to be kept in memory and augmented or streamed.
    """
    from ..data.pairs import PairDataset

    source = options.training_source()
    if options.in_memory and options.augment and not source.is_scenes:
        raise ValueError("in_memory=True keeps one view of each image, but augment=True makes many. Set one to False.")
    image_size = image_size_of_run(options)
    transform = finetuning.training_transform(options, image_size)
    if options.is_streamed():
        if options.in_memory:
            raise ValueError(
                "in_memory=True reads all pairs, but the training set is a stream. Set one of both to False."
            )
        stream = make_stream(options, transform, image_size, seed=seed, max_bad_share=max_bad_share)
        return stream, stream
    pairs = source.read_pairs(image_size)
    return pairs, PairDataset(pairs, transform, seed=seed)


def read_evaluation_set(options: PretrainOptions) -> "PairDataset | None":
    """Returns the pairs to evaluate on, if the options name any."""
    from ..data.pairs import PairDataset

    source = options.evaluation_source()
    return None if source is None else PairDataset(source.read_pairs(image_size_of_run(options)))


def make_processor(options: PretrainOptions, train_pairs: Any) -> "BlipProcessor":
    """Makes the processor, with a tokenizer that is loaded or trained on the captions."""
    from transformers import AutoTokenizer

    from ..data.vocabulary import train_wordpiece_tokenizer
    from ..processing_blip import BlipProcessor

    if options.model is not None:
        return base.load_processor(options.model, options.image_size)
    source = options.tokenizer or options.text
    if source is not None:
        # The folder of a BLIP model may hold code, which a tokenizer does not need.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    else:
        tokenizer = train_wordpiece_tokenizer(_vocabulary_texts(train_pairs), vocab_size=options.vocab_size)
    return BlipProcessor.from_bert_tokenizer(
        tokenizer,
        image_size=image_size_of_run(options),
        image_mean=options.image_mean,
        image_std=options.image_std,
    )


def _vocabulary_texts(train_pairs: Any) -> list[str]:
    """Returns captions, and the texts of later tasks that captions may not contain: prompt, questions, answers."""
    from ..data.mixtures import PairMixture
    from ..data.scenes import Scenes, scene_vocabulary_texts
    from ..data.streams import PairStream

    if isinstance(train_pairs, PairStream | PairMixture):
        captions = train_pairs.captions(NUM_VOCABULARY_CAPTIONS)
        return [*captions, *scene_vocabulary_texts(), CaptionSettings().prompt.strip()]
    if isinstance(train_pairs, Scenes):
        captions = [*train_pairs.captions(), *scene_vocabulary_texts()]
    else:
        step = -(-len(train_pairs) // NUM_VOCABULARY_CAPTIONS)
        captions = train_pairs.select(range(0, len(train_pairs), step))["caption"]
    return [*captions, CaptionSettings().prompt.strip()]


def make_model(options: PretrainOptions, processor: "BlipProcessor") -> "BlipForPreTraining":
    """Makes the model, from checkpoints or random weights, in float32."""
    import torch

    from ..configuration_blip import BlipPreTrainingConfig
    from ..modeling.pretraining import BlipForPreTraining

    values = base.config_values(BlipPreTrainingConfig, options, CONFIGURED)
    if options.model is not None:
        model = BlipForPreTraining.from_pretrained(options.model, dtype=torch.float32, **values)
        if options.image_size is not None:
            model.resize_position_embeddings(options.image_size)
    else:
        model = _from_encoders(options, processor.config_token_ids(), values)
    model.vision_model.freeze_first_layers(options.freeze_vision_layers)
    return model


def _from_encoders(
    options: PretrainOptions, token_ids: dict[str, int], values: dict[str, Any]
) -> "BlipForPreTraining":
    from ..modeling.pretraining import BlipForPreTraining

    vision_sizes, text_sizes, image_size = {}, {}, image_size_of_run(options)
    if options.vision is None:
        vision_sizes = _encoder_sizes(options, options.vision_width, options.vision_layers)
        vision_sizes |= {"patch_size": options.patch_size, "image_size": image_size}
    if options.text is None:
        text_sizes = _encoder_sizes(options, options.text_width, options.text_layers)
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
        **values,
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
    """Saves the captioner and the retriever inside a model in sub-folders, each with the processor."""
    # A copy: fine-tuning of the whole model starts from its own processor, with the default prompt.
    processor = copy.copy(processor)
    processor.caption_settings = PRETRAINING_SETTINGS
    for name, part in zip(PARTS, (model.export_captioner(), model.export_retriever()), strict=True):
        part.save_pretrained(output_dir / name)
        processor.save_pretrained(output_dir / name)


__all__ = [
    "PretrainOptions",
    "image_size_of_run",
    "make_model",
    "make_processor",
    "pretrain",
    "read_evaluation_set",
    "read_training_set",
    "save_parts",
]
