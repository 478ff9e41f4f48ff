# SPDX-License-Identifier: BSD-3-Clause
"""BLEU, ROUGE-L, CIDEr-D, METEOR and SPICE of captions, computed by `pycocoevalcap` as in the COCO evaluation.

COCO's tokenizer, METEOR and SPICE are Java programs. The rest runs without Java.
"""

import importlib
import shutil
import subprocess
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from transformers.utils import logging

from ..cjk import split_cjk


logger = logging.get_logger(__name__)

ImageId = TypeVar("ImageId", bound=Hashable)
Metric = Literal["bleu", "rouge_l", "cider", "meteor", "spice"]
Tokenizer = Literal["treebank", "ptb"]
Rows = dict[int, list[str]]

METRICS = ("bleu", "rouge_l", "cider", "meteor", "spice")
TOKENIZERS = ("treebank", "ptb")

_DEFAULT_METRICS: tuple[Metric, ...] = ("bleu", "rouge_l", "cider", "meteor")
JAVA_METRICS: tuple[Metric, ...] = ("meteor", "spice")
_SCORERS = {
    "bleu": ("bleu.bleu", "Bleu"),
    "rouge_l": ("rouge.rouge", "Rouge"),
    "cider": ("cider.cider", "Cider"),
    "meteor": ("meteor.meteor", "Meteor"),
    "spice": ("spice.spice", "Spice"),
}


def caption_metrics(
    predictions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    *,
    tokenizer: Tokenizer = "treebank",
    metrics: Sequence[Metric] | None = None,
) -> dict[str, float]:
    """Compares one caption per image with its reference captions.

    BLEU and METEOR are computed over the whole set; the others are means over images. All are fractions in [0, 1], except
    CIDEr(-D), which has a maximum of 10; papers print all of them times 100. CIDEr weighs words by their frequency in the
    references of this set, so it is 0 for a single image and low for a few.

    Args:
        predictions (mapping of id to `str`):
            The caption of each image.
        references (mapping of id to sequence of `str`):
            One or more reference captions of each of these images.
        tokenizer (`"treebank"` or `"ptb"`, *optional*, defaults to `"treebank"`):
            `"ptb"` is COCO's own and needs Java; `"treebank"` is NLTK's. Both lower-case and drop punctuation; each Chinese
            or Japanese character is a word. Their tokens differ for about 25 in 10,000 captions of COCO, and 3 of Flickr8k.
        metrics (sequence of `str`, *optional*):
            Any of `"bleu"`, `"rouge_l"`, `"cider"`, `"meteor"` and `"spice"`. Defaults to the first three, and METEOR if
            Java is installed. SPICE downloads models on first use.

    Returns:
        `dict[str, float]`: the requested ones of `bleu_1` to `bleu_4`, `rouge_l`, `cider`, `meteor` and `spice`.

    Raises:
        ValueError: If a metric or tokenizer is unknown or needs Java that is not installed, or predictions and references
            have different ids.
        ImportError: If `pycocoevalcap` or `nltk` is not installed.

    Example:
        >>> references = {1: ["a dog runs on the beach", "a brown dog"], 2: ["two boats on a lake"]}
        >>> scores = caption_metrics({1: "A dog runs.", 2: "Two boats on a lake."}, references, metrics=["bleu"])
        >>> {name: round(score, 3) for name, score in scores.items()}
        {'bleu_1': 1.0, 'bleu_2': 1.0, 'bleu_3': 1.0, 'bleu_4': 1.0}
    """
    _check_images(predictions, references)
    scorers = _scorers(resolve_metrics(metrics, tokenizer))
    return _compare(predictions, references, scorers, tokenizer)


def caption_metrics_by_domain(
    predictions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    domains: Mapping[ImageId, str],
    *,
    tokenizer: Tokenizer = "treebank",
    metrics: Sequence[Metric] | None = None,
) -> dict[str, dict[str, float]]:
    """Computes `caption_metrics` of each domain in alphabetical order, and of the `"entire"` set, as for NoCaps.

    CIDEr weighs words within a domain, so the value of the entire set is not the mean of the domains.

    Raises:
        ValueError: As `caption_metrics`, or if an image has no domain.
        ImportError: As `caption_metrics`.
    """
    _check_images(predictions, references)
    missing = next((image_id for image_id in predictions if image_id not in domains), None)
    if missing is not None:
        raise ValueError(f"The image {missing!r} has no domain. Pass one for each, or use `caption_metrics`.")
    scorers = _scorers(resolve_metrics(metrics, tokenizer))
    scores = {}
    for domain in sorted({domains[image_id] for image_id in predictions}):
        own = [image_id for image_id in predictions if domains[image_id] == domain]
        predicted = {image_id: predictions[image_id] for image_id in own}
        expected = {image_id: references[image_id] for image_id in own}
        scores[domain] = _compare(predicted, expected, scorers, tokenizer)
    return {**scores, "entire": _compare(predictions, references, scorers, tokenizer)}


def resolve_metrics(metrics: Sequence[Metric] | None = None, tokenizer: Tokenizer = "treebank") -> tuple[Metric, ...]:
    """Returns the metrics that `caption_metrics` would compute, and raises its errors before a long run."""
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer={tokenizer!r} is unknown. Pass one of {', '.join(map(repr, TOKENIZERS))}.")
    chosen: Sequence[Metric] = _DEFAULT_METRICS if metrics is None else metrics
    unknown = [metric for metric in chosen if metric not in METRICS]
    if unknown or isinstance(chosen, str):
        raise ValueError(f"metrics={metrics!r} is unknown. Pass a list with any of {', '.join(map(repr, METRICS))}.")
    needing_java: list[str] = [metric for metric in chosen if metric in JAVA_METRICS] if metrics is not None else []
    needing_java += ["ptb"] if tokenizer == "ptb" else []
    if needing_java and not _has_java():
        raise ValueError(f"{needing_java[0]!r} needs Java, but `java` does not run. Install Java, or choose another.")
    if metrics is None and not _has_java():
        logger.warning_once("METEOR is left out: it needs Java, but `java` does not run.")
        chosen = [metric for metric in chosen if metric not in JAVA_METRICS]
    _ptb_tokenizer(), _treebank_tokenizer()
    return tuple(chosen)


def metric_names(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Returns the keys of `caption_metrics` for the given metrics."""
    names = {"bleu": tuple(f"bleu_{n}" for n in range(1, 5))}
    return tuple(name for metric in metrics for name in names.get(metric, (metric,)))


def _check_images(predictions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> None:
    if not predictions:
        raise ValueError("There are no predictions. Pass a caption of at least one image.")
    alone = next(iter(predictions.keys() ^ references.keys()), None)
    if alone is not None:
        lacking = "reference" if alone in predictions else "prediction"
        raise ValueError(
            f"The image {alone!r} has no {lacking}; there are {len(predictions)} predictions and {len(references)}"
            " references. Pass both for the same images."
        )
    empty = next((image_id for image_id, captions in references.items() if not captions), None)
    if empty is not None:
        raise ValueError(
            f"The image {empty!r} has an empty list of references. Pass at least one, or leave the image out."
        )
    loose = next((image_id for image_id, captions in references.items() if isinstance(captions, str)), None)
    if loose is not None:
        raise ValueError(f"The references of the image {loose!r} are a str. Pass a list of them.")


def _has_java() -> bool:
    """Whether Java runs. The `java` of macOS may only say where to download it."""
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], check=False, capture_output=True).returncode == 0


def _tokenize(captions: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Rows:
    """Returns the captions of each image as space-separated tokens."""
    # The Java programs read one caption per line, and METEOR separates captions by bars.
    rows = [[" ".join(split_cjk(caption.replace("|||", " ")).split()) for caption in own] for own in captions]
    ptb = _ptb_tokenizer()
    if tokenizer == "ptb":
        records = {number: [{"caption": caption} for caption in own] for number, own in enumerate(rows)}
        return ptb.PTBTokenizer().tokenize(records)
    split, punctuation = _treebank_tokenizer().tokenize, set(ptb.PUNCTUATIONS)

    def words(caption: str) -> str:
        # Brackets stay as -lrb- and -rrb-: COCO's list of punctuation has them in upper case, its tokens in lower case.
        tokens = (token.lower() for token in split(caption, convert_parentheses=True))
        return " ".join(token for token in tokens if token not in punctuation)

    return {number: [words(caption) for caption in own] for number, own in enumerate(rows)}


def _scorers(metrics: Sequence[Metric]) -> dict[Metric, Any]:
    """Creates one scorer per metric; the program of METEOR is started once."""
    return {
        metric: getattr(_import(f"pycocoevalcap.{_SCORERS[metric][0]}"), _SCORERS[metric][1])() for metric in metrics
    }


def _compare(
    predictions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    scorers: Mapping[Metric, Any],
    tokenizer: Tokenizer,
) -> dict[str, float]:
    # Numbers replace the ids, because the Java programs sort and print them.
    hypotheses = _tokenize([[caption] for caption in predictions.values()], tokenizer)
    truths = _tokenize([references[image_id] for image_id in predictions], tokenizer)
    scores: dict[str, float] = {}
    for metric, scorer in scorers.items():
        if metric == "bleu":
            values, _ = scorer.compute_score(truths, hypotheses, verbose=0)
            scores.update({f"bleu_{n}": float(value) for n, value in enumerate(values, start=1)})
        else:
            scores[metric] = float(scorer.compute_score(truths, hypotheses)[0])
    return scores


def _ptb_tokenizer() -> Any:
    """Imports COCO's tokenizer with its list of punctuation."""
    return _import("pycocoevalcap.tokenizer.ptbtokenizer")


def _treebank_tokenizer() -> Any:
    return _import("nltk.tokenize").TreebankWordTokenizer()


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Caption metrics need {module.partition('.')[0]}, which is not installed: pip install 'blip_hf[metrics]'"
        ) from error


__all__ = [
    "JAVA_METRICS",
    "METRICS",
    "TOKENIZERS",
    "Metric",
    "Tokenizer",
    "caption_metrics",
    "caption_metrics_by_domain",
    "metric_names",
    "resolve_metrics",
]
