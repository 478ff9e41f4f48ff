# SPDX-License-Identifier: BSD-3-Clause
"""BLEU, ROUGE-L, CIDEr-D, METEOR and SPICE of captions, as COCO's evaluation computes them, through `pycocoevalcap`.

COCO's tokenizer, METEOR and SPICE are Java programs. All else runs without Java.
"""

import importlib
import shutil
import subprocess
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from transformers.utils import logging


logger = logging.get_logger(__name__)

Metric = Literal["bleu", "rouge_l", "cider", "meteor", "spice"]
Tokenizer = Literal["treebank", "ptb"]
Rows = dict[int, list[str]]

METRICS = ("bleu", "rouge_l", "cider", "meteor", "spice")
TOKENIZERS = ("treebank", "ptb")

_DEFAULT_METRICS = ("bleu", "rouge_l", "cider", "meteor")
_JAVA_METRICS = ("meteor", "spice")
_SCORERS = {
    "bleu": ("bleu.bleu", "Bleu"),
    "rouge_l": ("rouge.rouge", "Rouge"),
    "cider": ("cider.cider", "Cider"),
    "meteor": ("meteor.meteor", "Meteor"),
    "spice": ("spice.spice", "Spice"),
}


def caption_metrics(
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    *,
    tokenizer: Tokenizer = "treebank",
    metrics: Sequence[Metric] | None = None,
) -> dict[str, float]:
    """Compares one caption an image with the captions that people wrote.

    All are fractions in [0, 1] but CIDEr, which goes up to 10; papers print them times 100. BLEU and METEOR are those of
    the whole set, the others are means over images. CIDEr (its -D form, as COCO has it) weighs words by how few of the
    images of this very set have them in their references: it is 0 for a single image, and low for a handful.

    Args:
        predictions (mapping of id to `str`):
            A caption for each image.
        references (mapping of id to sequence of `str`):
            One or more right captions for each of the same images.
        tokenizer (`"treebank"` or `"ptb"`, *optional*, defaults to `"treebank"`):
            What makes words of captions. Both lower-case and drop punctuation; `"ptb"` is COCO's own and needs Java,
            `"treebank"` is NLTK's. Of 10,000 captions it gives other words for some 3 of Flickr8k and 25 of COCO, where
            one has several sentences, or `=`, `'n'` and the like.
        metrics (sequence of `str`, *optional*):
            Any of `"bleu"`, `"rouge_l"`, `"cider"`, `"meteor"` and `"spice"`. Defaults to the first three, and METEOR
            where Java is found, which takes some seconds to start. SPICE downloads models when it is first used.

    Returns:
        `dict[str, float]`: `bleu_1` to `bleu_4`, `rouge_l`, `cider`, `meteor`, `spice`, as far as they were asked for.

    Raises:
        ValueError: If a metric or tokenizer is unknown or needs Java that is not there, or if predictions and references
            are not of the same images.
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
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    domains: Mapping[Hashable, str],
    *,
    tokenizer: Tokenizer = "treebank",
    metrics: Sequence[Metric] | None = None,
) -> dict[str, dict[str, float]]:
    """`caption_metrics` of each part of a set on its own, as [NoCaps](https://nocaps.org) reports them.

    CIDEr weighs words within a domain, so that the whole is no mean of the parts.

    Args:
        predictions (mapping of id to `str`):
            A caption for each image.
        references (mapping of id to sequence of `str`):
            Right captions for each of the same images.
        domains (mapping of id to `str`):
            The domain of each.
        tokenizer (`"treebank"` or `"ptb"`, *optional*, defaults to `"treebank"`):
            As of `caption_metrics`.
        metrics (sequence of `str`, *optional*):
            As of `caption_metrics`.

    Returns:
        `dict[str, dict[str, float]]`: the metrics of each domain in alphabetical order, and of `"entire"`.

    Raises:
        ValueError: As of `caption_metrics`, or if an image has no domain.
        ImportError: As of `caption_metrics`.
    """
    _check_images(predictions, references)
    missing = next((image_id for image_id in predictions if image_id not in domains), None)
    if missing is not None:
        raise ValueError(f"The image {missing!r} has no domain. Pass one for each, or use `caption_metrics`.")
    scorers = _scorers(resolve_metrics(metrics, tokenizer))
    scores = {}
    for domain in sorted({domains[image_id] for image_id in predictions}):
        own = [image_id for image_id in predictions if domains[image_id] == domain]
        parts = [{image_id: captions[image_id] for image_id in own} for captions in (predictions, references)]
        scores[domain] = _compare(*parts, scorers, tokenizer)
    return {**scores, "entire": _compare(predictions, references, scorers, tokenizer)}


def resolve_metrics(metrics: Sequence[Metric] | None = None, tokenizer: Tokenizer = "treebank") -> tuple[Metric, ...]:
    """Which metrics `caption_metrics` would compute; it fails here at once where it would fail there.

    Args:
        metrics (sequence of `str`, *optional*):
            As of `caption_metrics`.
        tokenizer (`"treebank"` or `"ptb"`, *optional*, defaults to `"treebank"`):
            As of `caption_metrics`.

    Returns:
        `tuple[str, ...]`: the metrics.

    Raises:
        ValueError: If a metric or tokenizer is unknown, or needs Java that is not there.
        ImportError: If `pycocoevalcap` or `nltk` is not installed.
    """
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer={tokenizer!r} is unknown. Pass one of {', '.join(map(repr, TOKENIZERS))}.")
    chosen = _DEFAULT_METRICS if metrics is None else metrics
    unknown = [metric for metric in chosen if metric not in METRICS]
    if unknown or isinstance(chosen, str):
        raise ValueError(f"metrics={metrics!r} is unknown. Pass a list with any of {', '.join(map(repr, METRICS))}.")
    needing_java = [metric for metric in chosen if metric in _JAVA_METRICS] if metrics is not None else []
    needing_java += ["ptb"] if tokenizer == "ptb" else []
    if needing_java and not _has_java():
        raise ValueError(
            f"{needing_java[0]!r} needs Java, and there is no `java` that runs. Install it, or choose another."
        )
    if metrics is None and not _has_java():
        logger.warning_once("METEOR is left out, as it needs Java and there is no `java` that runs.")
        chosen = [metric for metric in chosen if metric not in _JAVA_METRICS]
    _ptb_tokenizer(), _treebank_tokenizer()
    return tuple(chosen)


def _check_images(predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> None:
    if not predictions:
        raise ValueError("There are no predictions; pass a caption for at least one image.")
    alone = next(iter(predictions.keys() ^ references.keys()), None)
    if alone is not None:
        lacking = "reference" if alone in predictions else "prediction"
        raise ValueError(
            f"The image {alone!r} has no {lacking}; there are {len(predictions)} predictions and {len(references)}"
            " references. Pass both for the same images."
        )
    empty = next((image_id for image_id, captions in references.items() if not captions), None)
    if empty is not None:
        raise ValueError(f"The image {empty!r} has an empty list of references. Pass one at least, or leave it out.")
    loose = next((image_id for image_id, captions in references.items() if isinstance(captions, str)), None)
    if loose is not None:
        raise ValueError(f"The references of the image {loose!r} are a str. Pass a list of them.")


def _has_java() -> bool:
    """Whether Java runs: macOS has a `java` that only says where to get one."""
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], check=False, capture_output=True).returncode == 0


def _tokenize(captions: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Rows:
    """Captions of each image as words with spaces between."""
    # White space of any kind would end a line of the Java program, and METEOR parts captions by bars.
    rows = [[" ".join(caption.replace("|||", " ").split()) for caption in own] for own in captions]
    ptb = _ptb_tokenizer()
    if tokenizer == "ptb":
        records = {number: [{"caption": caption} for caption in own] for number, own in enumerate(rows)}
        return ptb.PTBTokenizer().tokenize(records)
    split, punctuation = _treebank_tokenizer().tokenize, set(ptb.PUNCTUATIONS)

    def words(caption: str) -> str:
        # Brackets stay as -lrb- and -rrb-: COCO's list has them in capitals, its tokenizer in small letters.
        tokens = (token.lower() for token in split(caption, convert_parentheses=True))
        return " ".join(token for token in tokens if token not in punctuation)

    return {number: [words(caption) for caption in own] for number, own in enumerate(rows)}


def _scorers(metrics: Sequence[Metric]) -> dict[Metric, Any]:
    """What computes each metric, as often as it is asked to: METEOR's program starts once."""
    return {
        metric: getattr(_import(f"pycocoevalcap.{_SCORERS[metric][0]}"), _SCORERS[metric][1])() for metric in metrics
    }


def _compare(
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    scorers: Mapping[Metric, Any],
    tokenizer: Tokenizer,
) -> dict[str, float]:
    # Numbers in place of ids, which the Java programs would have to sort and print.
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
    """COCO's tokenizer with its list of punctuation."""
    return _import("pycocoevalcap.tokenizer.ptbtokenizer")


def _treebank_tokenizer() -> Any:
    return _import("nltk.tokenize").TreebankWordTokenizer()


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Metrics of captions need {module.partition('.')[0]}, which is not installed: pip install 'blip_hf[metrics]'"
        ) from error


__all__ = [
    "METRICS",
    "TOKENIZERS",
    "Metric",
    "Tokenizer",
    "caption_metrics",
    "caption_metrics_by_domain",
    "resolve_metrics",
]
