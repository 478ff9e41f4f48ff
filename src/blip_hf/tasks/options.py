# SPDX-License-Identifier: BSD-3-Clause
"""Options of pre-training, and a pair of dataclasses a task for fine-tuning and evaluation; documented by their help texts.

Imports nothing heavy, so that `--help` is quick.
"""

from dataclasses import dataclass, field


SCENES = "scenes"
FILES_HELP = "annotation file(s) as published or in BLIP's form, or `scenes`."
PAIRS_HELP = "annotation file(s) as published or in BLIP's form, a folder, the name of a data set, or `scenes`."
SPLIT_HELP = "of a source that has several: a file of Karpathy, a folder, a data set."


@dataclass
class PretrainOptions:
    """What to pre-train on, and what; documented by the help texts."""

    data: list[str] = field(
        metadata={
            "help": "Training pairs: JSON list(s), a folder with metadata.jsonl, the name of a data set, or `scenes` for"
            " drawn images, which are taken as they are."
        }
    )
    eval_data: list[str] | None = field(default=None, metadata={"help": "Pairs to evaluate on, as --data."})
    eval_split: str = field(default="validation", metadata={"help": "Split of --eval_data, where it has several."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    num_scenes: int = field(default=10_000, metadata={"help": "Number of drawn images to train on."})
    num_eval_scenes: int = field(default=500, metadata={"help": "Number of further ones to evaluate on."})
    min_scale: float = field(
        default=0.2, metadata={"help": "Least share of an image's area that a random crop keeps."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "BlipForPreTraining checkpoint, with its processor, to go on from. Widths, layers, patches, feature width"
            " and dropout are its own, whatever is said below."
        },
    )
    augment: bool = field(
        default=True, metadata={"help": "Crop, flip and warp the images of training; a run of one epoch needs none."}
    )
    in_memory: bool = field(
        default=False,
        metadata={"help": "Encode each pair once and keep it in memory, for a small set that is not augmented."},
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
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the images in pixels; position embeddings are resized. Default: that of --model, or 224."
        },
    )
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
    freeze_vision_layers: int = field(
        default=0, metadata={"help": "First layers of the image encoder to leave as --vision or --model has them."}
    )
    head_width: int = field(default=64, metadata={"help": "Width of an attention head of random towers."})
    initializer_range: float = field(
        default=0.02, metadata={"help": "Standard deviation of random weights; narrow towers learn from wider ones."}
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the text transformer."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing of language modelling."})
    feature_width: int = field(default=256, metadata={"help": "Width of the contrastive features."})
    queue_size: int = field(
        default=57_600, metadata={"help": "Pairs in the queue; more than there are pairs to train on is too many."}
    )
    momentum: float = field(default=0.995, metadata={"help": "Decay of the momentum towers."})
    temperature: float = field(default=0.07, metadata={"help": "First value of the contrastive temperature."})
    negative_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature to draw negatives of the matching by. Default: that of the contrast; 1: any pairs."
        },
    )
    itc_weight: float = field(default=1.0, metadata={"help": "Weight of image-text contrast in the loss."})
    itm_weight: float = field(default=1.0, metadata={"help": "Weight of image-text matching; 0 leaves it out."})
    lm_weight: float = field(default=1.0, metadata={"help": "Weight of language modelling; 0 leaves it out."})
    alpha: float = field(default=0.4, metadata={"help": "Full share of the momentum towers in contrastive targets."})


@dataclass
class FinetuneOptions:
    """What every fine-tuning takes."""

    model: str = field(
        metadata={
            "help": "Checkpoint with its processor to start from: of the task itself, or of BLIP's pre-training."
        }
    )
    data: list[str] = field(metadata={"help": f"Training set: {FILES_HELP}"})
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Set to evaluate on after training, as --data, or `scenes`."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the images in pixels; position embeddings are resized. Default: the checkpoint's."},
    )
    augment: bool = field(default=True, metadata={"help": "Crop, flip and warp the images of training."})
    min_scale: float = field(
        default=0.5, metadata={"help": "Least share of an image's area that a random crop keeps (salesforce/BLIP)."}
    )
    drop_path: float | None = field(
        default=None, metadata={"help": "Drop-path rate of the image encoder. Default: the checkpoint's."}
    )
    freeze_vision_layers: int = field(
        default=0, metadata={"help": "First layers of the image encoder to leave as the checkpoint has them."}
    )
    num_scenes: int = field(default=10_000, metadata={"help": "Number of drawn images to train on."})
    num_eval_scenes: int = field(default=500, metadata={"help": "Number of further ones to evaluate on."})


@dataclass
class EvaluateOptions:
    """What every evaluation takes."""

    model: str = field(metadata={"help": "Checkpoint with its processor."})
    data: list[str] = field(metadata={"help": f"Set to evaluate on: {FILES_HELP}"})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    batch_size: int = field(default=32, metadata={"help": "Images of one batch."})
    device: str | None = field(default=None, metadata={"help": "Where to run. Default: CUDA where there is one."})
    dtype: str = field(default="float32", metadata={"help": "Type of the weights: float32, bfloat16 or float16."})
    first_scene: int = field(default=10_000, metadata={"help": "Number of the first drawn image."})
    num_scenes: int = field(default=500, metadata={"help": "Number of drawn images to evaluate on."})
    output: str | None = field(default=None, metadata={"help": "File for the answers of the model, one a record."})
    no_progress: bool = field(default=False, metadata={"help": "Show no progress bar."})


@dataclass
class PairFinetuneOptions(FinetuneOptions):
    """Fine-tuning on image-text pairs, which come from more sources than other records and may have splits."""

    data: list[str] = field(metadata={"help": f"Training set: {PAIRS_HELP}"})
    split: str = field(default="train", metadata={"help": f"Split of --data, {SPLIT_HELP}"})
    eval_split: str = field(default="val", metadata={"help": f"Split of --eval_data, {SPLIT_HELP}"})


@dataclass
class PairEvaluateOptions(EvaluateOptions):
    """Evaluation on image-text pairs likewise."""

    data: list[str] = field(metadata={"help": f"Set to evaluate on: {PAIRS_HELP}"})
    split: str = field(default="test", metadata={"help": f"Split of --data, {SPLIT_HELP}"})


@dataclass
class CaptionLengths:
    """How captions are written."""

    prompt: str = field(default="a picture of ", metadata={"help": "What each caption starts with."})
    num_beams: int = field(default=3, metadata={"help": "Beams (salesforce/BLIP)."})
    max_length: int = field(
        default=20, metadata={"help": "Most tokens of a caption, the prompt's included (salesforce/BLIP)."}
    )
    min_length: int = field(default=5, metadata={"help": "Least tokens likewise (salesforce/BLIP)."})


@dataclass
class CaptionMetrics:
    """How captions are compared with people's."""

    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Of bleu, rouge_l, cider, meteor and spice. Default: the first three, and meteor with Java."
        },
    )
    tokenizer_of_metrics: str = field(
        default="treebank", metadata={"help": "Theirs: treebank, or ptb, the official one, which needs Java."}
    )


@dataclass
class CaptionFinetuneOptions(CaptionMetrics, CaptionLengths, PairFinetuneOptions):
    """Fine-tuning of a captioner."""


@dataclass
class CaptionEvaluateOptions(CaptionMetrics, CaptionLengths, PairEvaluateOptions):
    """Evaluation of a captioner."""

    repetition_penalty: float = field(default=1.0, metadata={"help": "Above 1 a word is less likely to come twice."})


@dataclass
class RetrievalFinetuneOptions(PairFinetuneOptions):
    """Fine-tuning of a matcher."""

    queue_size: int = field(default=57_600, metadata={"help": "Pairs in the queue (salesforce/BLIP)."})
    momentum: float = field(default=0.995, metadata={"help": "Decay of the momentum towers (salesforce/BLIP)."})
    alpha: float = field(default=0.4, metadata={"help": "Full share of the momentum towers in contrastive targets."})
    negative_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature to draw negatives of the matching by. Default: that of the contrast; 1: any pairs."
        },
    )
    negative_all_rank: bool = field(
        default=False, metadata={"help": "Draw hard negatives from all processes, as for COCO (salesforce/BLIP)."}
    )
    k_test: int = field(default=128, metadata={"help": "Candidates that the matching head ranks again."})


@dataclass
class RetrievalEvaluateOptions(PairEvaluateOptions):
    """Two-stage evaluation of a matcher."""

    k_test: int = field(
        default=128,
        metadata={"help": "Candidates that the matching head ranks again (salesforce/BLIP: COCO 256, Flickr30k 128)."},
    )


@dataclass
class Answering:
    """How questions are answered."""

    answer_list: str | None = field(
        default=None,
        metadata={"help": "JSON list of answers to rank. Default: answers are written word by word."},
    )
    num_candidates: int = field(
        default=128, metadata={"help": "Answers of the list that are ranked in full (salesforce/BLIP)."}
    )
    answer_sets: bool = field(
        default=False,
        metadata={
            "help": "A list of answers is one answer of several words, as in DAQUAR, not several people's votes."
        },
    )
    blind: bool = field(
        default=False, metadata={"help": "Show a grey image with each question: the baseline that does not look."}
    )


@dataclass
class VqaFinetuneOptions(Answering, FinetuneOptions):
    """Fine-tuning of a model that answers questions."""

    annotations: str | None = field(default=None, metadata={"help": "Answers of --data, where it is VQA v2's file."})
    eval_annotations: str | None = field(default=None, metadata={"help": "Answers of --eval_data likewise."})


@dataclass
class VqaEvaluateOptions(Answering, EvaluateOptions):
    """Evaluation of a model that answers questions."""

    annotations: str | None = field(default=None, metadata={"help": "Answers of --data, where it is VQA v2's file."})


@dataclass
class Nlvr2FinetuneOptions(FinetuneOptions):
    """Fine-tuning of a model that judges sentences about two images."""


@dataclass
class Nlvr2EvaluateOptions(EvaluateOptions):
    """Evaluation of a model that judges sentences about two images."""


__all__ = [
    "SCENES",
    "CaptionEvaluateOptions",
    "CaptionFinetuneOptions",
    "EvaluateOptions",
    "FinetuneOptions",
    "Nlvr2EvaluateOptions",
    "Nlvr2FinetuneOptions",
    "PairEvaluateOptions",
    "PairFinetuneOptions",
    "PretrainOptions",
    "RetrievalEvaluateOptions",
    "RetrievalFinetuneOptions",
    "VqaEvaluateOptions",
    "VqaFinetuneOptions",
]
