# SPDX-License-Identifier: BSD-3-Clause
"""Writes the model card of a checkpoint from the run that trained it: `templates/model_card.md.jinja`."""

import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .checkpoints import is_model_id
from .files import atomic_write
from .model_kinds import KINDS, ModelKind


CARD_NAME = "README.md"
_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
# How transformers describes a model in the card that it writes itself.
_CARD_OF_TRANSFORMERS = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
_CHECKPOINT_LINE = re.compile(r'^checkpoint = ".*"$', re.MULTILINE)
# Metrics that measure the machine, or count records.
_NOT_A_METRIC = re.compile(r".*(runtime|per_second|num_\w+)|epoch")
_LIMITS = (
    "The model repeats its training data, including their errors and biases. Do not use it to identify people, or where a"
    " wrong output causes harm.",
    "A matching score is a probability only if the training pairs resemble your data. A cosine is not a probability.",
)
_LIMIT_OF_SCENES = "The model has seen drawn scenes only, so it does not describe photos."


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a card says about a training. Paths are shortened by [`public_name`] when the card is written.

    Args:
        base_models (sequence of `str`):
            Checkpoints that the training started from, as the user named them.
        data, eval_data (sequences of `str`):
            Sources of the training set and of the evaluation set, as the user named them.
        eval_split (`str`, *optional*):
            Split of the evaluation set.
        arguments (mapping):
            Arguments that the weights depend on.
        metrics (mapping):
            Metrics of the evaluation by name, without a prefix.
        steps (`int`, *optional*):
            Optimizer steps.
        epochs, minutes (`float`, *optional*):
            Length of the training.
        hardware (`str`, *optional*):
            What the training ran on.
        code (`str`, *optional*):
            Version and commit of `blip_hf`.
    """

    base_models: Sequence[str] = ()
    data: Sequence[str] = ()
    eval_data: Sequence[str] = ()
    eval_split: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    hardware: str | None = None
    code: str | None = None


def write_model_card(
    folder: Path, facts: TrainingFacts | None = None, *, name: str | None = None, **metadata: Any
) -> Path:
    """Writes `README.md` beside a saved model.

    Args:
        folder (`Path`):
            Folder with the `config.json` of the model.
        facts ([`TrainingFacts`], *optional*):
            The training. Without them the card says what the model is and how to use it.
        name (`str`, *optional*):
            Name in the title and in the snippet, such as that of a repository. Defaults to the name of the folder.
        **metadata:
            Fields of `huggingface_hub.ModelCardData`, such as `license="mit"`; `tags` are added to those of the model.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: If the folder holds no BLIP model.
    """
    path, model_class = folder / CARD_NAME, model_class_of(folder)
    if model_class not in KINDS:
        raise ValueError(f"{folder} holds a model of class {model_class}, expected one of {', '.join(KINDS)}.")
    card = make_model_card(
        model_class, name or folder.resolve().name, facts or TrainingFacts(), prompt=_prompt_of(folder), **metadata
    )
    with atomic_write(path) as beside:
        beside.write_text(str(card), encoding="utf-8")
    return path


def make_model_card(
    model_class: str, name: str, facts: TrainingFacts, *, prompt: str = "", **metadata: Any
) -> ModelCard:
    """Makes the card of a model.

    Args:
        model_class (`str`):
            Name of its class, such as `"BlipForConditionalGeneration"`.
        name (`str`):
            Name in the title and in the snippet.
        facts ([`TrainingFacts`]):
            The training.
        prompt (`str`, *optional*, defaults to `""`):
            Prompt of a captioner.
        **metadata:
            Fields of `huggingface_hub.ModelCardData`, as in [`write_model_card`].
    """
    kind = KINDS[model_class]
    eval_names = [public_name(source) for source in facts.eval_data]
    metrics = {name: value for name, value in facts.metrics.items() if _is_metric(name, value)}
    return ModelCard.from_template(
        _card_data(kind, name, facts, metrics, metadata),
        template_path=str(_TEMPLATE),
        title=name,
        description=kind.description,
        snippet=kind.snippet(model_class, name, prompt),
        needs_code=kind.needs_code,
        model_class=model_class,
        training=[(label, _cell(value)) for label, value in _training_rows(facts) if value is not None],
        arguments=[(label, _cell(value)) for label, value in facts.arguments.items() if value is not None],
        eval_data=_cell(eval_names or "an unnamed evaluation set"),
        metrics=[(label, _cell(value)) for label, value in metrics.items()],
        limits=[*_LIMITS, *([_LIMIT_OF_SCENES] if _is_all_scenes(facts.data) else [])],
    )


def _card_data(
    kind: ModelKind, name: str, facts: TrainingFacts, metrics: Mapping[str, float], given: Mapping[str, Any]
) -> ModelCardData:
    bases = [name for name in facts.base_models if is_model_id(name)]
    names = [source.removeprefix("hf://datasets/") for source in facts.data if source.startswith("hf://datasets/")]
    known = {
        "base_model": bases or None,
        "datasets": names or None,
        "eval_results": _eval_results(kind, facts, metrics) or None,
        "library_name": "transformers",
        "model_name": name if metrics else None,
        "pipeline_tag": kind.task,
    }
    tags = ["blip", "blip_hf", *kind.tags, *given.get("tags", ())]
    return ModelCardData(**{**known, **given, "tags": tags})


def _eval_results(kind: ModelKind, facts: TrainingFacts, metrics: Mapping[str, float]) -> list[EvalResult]:
    data = ", ".join(public_name(source) for source in facts.eval_data) or "unnamed evaluation set"
    return [
        EvalResult(
            task_type=kind.task,
            dataset_type=re.sub(r"[^\w./-]+", "-", data).strip("-"),
            dataset_name=data,
            dataset_split=None if _is_all_scenes(facts.eval_data) else facts.eval_split,
            metric_type=metric,
            metric_name=metric,
            metric_value=float(f"{value:.6g}"),
        )
        for metric, value in metrics.items()
    ]


def _training_rows(facts: TrainingFacts) -> list[tuple[str, Any]]:
    if facts == TrainingFacts():
        return []
    return [
        ("base model", [public_name(name) for name in facts.base_models] or "none: random weights"),
        ("data", [public_name(source) for source in facts.data] or None),
        ("optimizer steps", facts.steps),
        ("epochs", facts.epochs),
        ("minutes", facts.minutes),
        ("hardware", facts.hardware),
        ("code", facts.code),
    ]


def public_name(source: str) -> str:
    """The name of a source without folders of this machine and without secrets of an address.

    Example:
        >>> public_name("/home/me/coco/train.json"), public_name("coco/train.json"), public_name("scenes:200")
        ('train.json', 'coco/train.json', 'scenes:200')
        >>> public_name("https://me:secret@example.org/train.tar?signature=1")
        'https://example.org/train.tar'
    """
    if "://" in source:
        parts = urlsplit(source)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    path = PureWindowsPath(source)  # also splits at slashes
    is_private = path.root or path.drive or source.startswith("~") or ".." in path.parts
    return path.name if is_private else source


def model_class_of(folder: Path) -> str:
    """The name of the class that saved a model.

    Raises:
        ValueError: If the folder holds no model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json. Pass the folder of a saved model.")
    saved = json.loads(path.read_text(encoding="utf-8")).get("architectures")
    return saved[0] if saved else "unknown"


def rename_checkpoint(card: str, name: str) -> str:
    """Replaces the name of the checkpoint in the snippet of a card, and keeps everything else.

    Example:
        >>> rename_checkpoint('checkpoint = "caption"', "me/captioner")
        'checkpoint = "me/captioner"'
    """
    return _CHECKPOINT_LINE.sub(f'checkpoint = "{name}"', card)


def is_card_of_transformers(card: str) -> bool:
    """Whether transformers wrote a card by itself, so that nothing of a user is lost if it is replaced."""
    return _CARD_OF_TRANSFORMERS in card


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from, or `None` for an installed one."""
    package = Path(__file__).parent
    try:
        for command in (["ls-files", "--error-unmatch", "__init__.py"], ["rev-parse", "HEAD"]):
            output = subprocess.run(
                ["git", *command], cwd=package, capture_output=True, text=True, check=True, timeout=10
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return output.stdout.strip()


def _prompt_of(folder: Path) -> str:
    path = folder / "processor_config.json"
    if not path.is_file():
        return ""
    return json.loads(path.read_text(encoding="utf-8")).get("caption_settings", {}).get("prompt", "")


def _is_metric(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return is_number and not _NOT_A_METRIC.fullmatch(name)


def _is_all_scenes(data: Sequence[str]) -> bool:
    return bool(data) and all(source.partition(":")[0] == "scenes" for source in data)


def _cell(value: Any) -> str:
    """A value in a cell of a Markdown table."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


__all__ = [
    "CARD_NAME",
    "TrainingFacts",
    "is_card_of_transformers",
    "make_model_card",
    "model_class_of",
    "public_name",
    "rename_checkpoint",
    "source_commit",
    "write_model_card",
]
