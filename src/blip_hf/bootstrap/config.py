# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the loop: its data, the options of each stage's own command, and what to compare."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..capfilt.settings import CapFiltSettings
from ..caption_settings import CaptionSettings, shortest_length
from .scene_sections import SCENE_SECTIONS


if TYPE_CHECKING:
    from transformers import TrainingArguments

Section = Mapping[str, Any]

# What the second model is trained on, beside the human pairs: all are of the paper's tables 1 and 12.
VARIANTS = MappingProxyType(
    {
        "noisy": "the web's texts as they are",
        "repeated": "the same, repeated to as many pairs as bootstrapped has (table 12)",
        "filtered": "the web's texts that the filter keeps",
        "captioned": "the web's texts and the synthetic ones, none dropped",
        "bootstrapped": "the texts of both that the filter keeps: CapFilt",
    }
)
# Those whose pairs depend on the rule.
RULED = frozenset({"repeated", "filtered", "bootstrapped"})
TRAINING_SECTIONS = ("pretrain", "captioner", "filter")
# What the loop itself says to each stage.
OWN_OPTIONS = frozenset({"model", "data", "eval_data", "output_dir", "seed", "use_cpu", "resume_from_checkpoint"})


@dataclass(frozen=True)
class SceneData:
    """Drawn scenes: the web, the human set and two sets that are never trained on, one after the other in the series.

    Args:
        num_web (`int`, *optional*, defaults to 6000):
            Images of the web.
        num_human (`int`, *optional*, defaults to 1000):
            Images with clean captions.
        num_eval (`int`, *optional*, defaults to 300):
            Images to evaluate on, with a caption each that no other of them has.
        num_check (`int`, *optional*, defaults to 1000):
            Further images with the web's noise, to check captioner and filter on.
        noise_rate (`float`, *optional*, defaults to 0.45):
            Share of the web's captions that are another image's.
        image_size (`int`, *optional*, defaults to 64):
            Side of the images in pixels.
    """

    num_web: int = 6000
    num_human: int = 1000
    num_eval: int = 300
    num_check: int = 1000
    noise_rate: float = 0.45
    image_size: int = 64


@dataclass(frozen=True)
class FileData:
    """Annotation files, as [`~blip_hf.data.readers.pairs.load_pairs`] reads them.

    Args:
        web (`str`):
            Noisy pairs.
        human (`str`):
            Clean pairs.
        eval (`str`):
            Pairs to evaluate on.
        image_root (`str`, *optional*):
            Folder that relative image paths start from. Defaults to that of each file.
        human_share (`float`, *optional*, defaults to 1.0):
            Share of the images of `human` to use. Below 1 it is drawn by the seed, and the web loses these images, so
            that the two have none in common.
        web_labels (`str`, *optional*):
            JSON list that says of each record of `web`, in order, whether its caption is right (1) or not (0), to judge
            the filter by.
        eval_split (`str`, *optional*, defaults to `"val"`):
            Split of `eval`, where it has several.

    Raises:
        ValueError: If the share is none.
    """

    web: str
    human: str
    eval: str
    image_root: str | None = None
    human_share: float = 1.0
    web_labels: str | None = None
    eval_split: str = "val"

    def __post_init__(self) -> None:
        if not 0 < self.human_share <= 1:
            raise ValueError(f"human_share={self.human_share} is not a share of the images; pass a value in (0, 1].")


@dataclass(frozen=True)
class EvaluationSettings:
    """How models are evaluated.

    Args:
        k_test (`int`, *optional*, defaults to 128):
            Candidates that the matching head ranks again.
        num_beams (`int`, *optional*, defaults to 3):
            Beams of captioning.
        max_length (`int`, *optional*, defaults to 20):
            Most tokens of a caption, the prompt's included.
        min_length (`int`, *optional*, defaults to 5):
            Least tokens likewise.
        batch_size (`int`, *optional*, defaults to 32):
            Images of one batch.

    Raises:
        ValueError: If a number is too small.
    """

    k_test: int = 128
    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("k_test", 1), ("num_beams", 1), ("max_length", 1), ("min_length", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is too small. Pass {least} or more.")


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the whole loop. [`LoopSettings.from_mapping`] makes them of a YAML file's content.

    Args:
        data (`SceneData` or `FileData`, *optional*):
            What to train and to evaluate on; drawn scenes by default.
        variants (`tuple[str, ...]`, *optional*, defaults to `("noisy", "bootstrapped")`):
            Models to compare, of `VARIANTS`; the noisy one always comes first, as the rest is made with it.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0,)`):
            The loop is run once for each. A seed decides on weights, batches and sampling, and on which scenes are drawn.
        with_human (`bool`, *optional*, defaults to `True`):
            Whether all models are pre-trained on the human pairs too, as in the paper.
        device (`str`, *optional*):
            `"cpu"` to stay there, or `"cuda"`. By default the GPU is used if there is one.
        model (`Mapping`, *optional*):
            For scenes: sizes of the model, fields of [`~blip_hf.demo.settings.DemoSettings`]. For files the sizes are
            options of `pretrain`.
        pretrain, captioner, filter (`Mapping`, *optional*):
            Options of `blip-hf pretrain`, `blip-hf finetune caption` and `blip-hf finetune retrieval`.
        capfilt (`Mapping`, *optional*):
            Fields of [`~blip_hf.capfilt.settings.CapFiltSettings`].
        rule (`Mapping`, *optional*):
            Fields of [`~blip_hf.capfilt.filters.Rule`] but its `sources`, which the variants decide on.
        evaluation (`EvaluationSettings`, *optional*):
            How models are evaluated.

    Raises:
        ValueError: If a variant is unknown, a seed is missing, or a section says what the loop itself decides.
    """

    data: SceneData | FileData = field(default_factory=SceneData)
    variants: tuple[str, ...] = ("noisy", "bootstrapped")
    seeds: tuple[int, ...] = (0,)
    with_human: bool = True
    device: str | None = None
    model: Section = field(default_factory=dict)
    pretrain: Section = field(default_factory=dict)
    captioner: Section = field(default_factory=dict)
    filter: Section = field(default_factory=dict)
    capfilt: Section = field(default_factory=dict)
    rule: Section = field(default_factory=dict)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        unknown = [variant for variant in self.variants if variant not in VARIANTS]
        if unknown:
            raise ValueError(f"The variant {unknown[0]!r} is unknown; pass some of {', '.join(VARIANTS)}.")
        is_list = isinstance(self.seeds, (list, tuple)) and all(type(seed) is int for seed in self.seeds)
        if not is_list or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds!r}, expected a list of one or several different numbers, as [0, 1].")
        if self.device not in (None, "cpu", "cuda"):
            raise ValueError(f"device={self.device!r} is unknown; pass 'cpu' or 'cuda', or leave it out.")
        object.__setattr__(self, "variants", tuple(name for name in VARIANTS if name in {"noisy", *self.variants}))
        for section in (*TRAINING_SECTIONS, "model", "capfilt", "rule"):
            if not isinstance(getattr(self, section), Mapping):
                raise ValueError(f"{section} is {getattr(self, section)!r}, expected names with values.")
        for section in TRAINING_SECTIONS:
            own = sorted(OWN_OPTIONS & set(getattr(self, section)))
            if own:
                raise ValueError(f"{section} names {', '.join(own)}, which the loop decides on itself. Take it out.")
        if "sources" in self.rule or {"seed", "prompt"} & set(self.capfilt):
            raise ValueError(
                "The loop decides on the sources of the rule and the seed of capfilt, and takes the captioner's prompt."
                " Take them out."
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "LoopSettings":
        """Makes settings of the content of a file. For scenes each section adds to what a small model needs.

        Args:
            values (`Mapping`):
                By the names of the fields, sections as mappings.

        Returns:
            `LoopSettings`: checked, with every section's options.

        Raises:
            ValueError: If a name is unknown or a value does not fit.

        Example:
            >>> settings = LoopSettings.from_mapping({"pretrain": {"max_steps": 50}})
            >>> settings.pretrain["max_steps"], settings.pretrain["queue_size"]
            (50, 256)
        """
        known = {option.name for option in fields(cls)}
        if not isinstance(values, Mapping) or set(values) - known:
            got = ", ".join(sorted(set(values) - known)) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"The settings of the loop name {got}, expected some of {', '.join(sorted(known))}.")
        values = {name: value for name, value in values.items() if value is not None}
        data = values.pop("data", {})
        is_drawn = not (isinstance(data, Mapping) and {"web", "human", "eval"} & set(data))
        sections = {name: dict(section) for name, section in (SCENE_SECTIONS if is_drawn else {}).items()}
        for name, value in values.items():
            if isinstance(value, Mapping):
                sections[name] = sections.get(name, {}) | dict(value)
            else:
                sections[name] = tuple(value) if isinstance(value, list) else value
        evaluation = _build(EvaluationSettings, sections.pop("evaluation", {}), "evaluation")
        return cls(_build(SceneData if is_drawn else FileData, data, "data"), evaluation=evaluation, **sections)

    def check(self) -> None:
        """Builds what every section describes, so that a mistake in the last one is found before the first stage.

        Raises:
            ValueError: If an option is unknown or does not fit.
        """
        import torch

        from ..capfilt.filters import Rule

        for section in TRAINING_SECTIONS:
            self.options(section, {"model": "unused", "data": ["unused"], "output_dir": "unused"})
        self.capfilt_settings(0)
        if self.evaluation.max_length < shortest_length(self.prompt):
            raise ValueError(
                f"evaluation: max_length={self.evaluation.max_length} has no room for a caption behind the prompt"
                f" {self.prompt!r}. Pass {shortest_length(self.prompt)} or more."
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda', but there is no GPU that torch finds. Pass 'cpu', or leave it out.")
        _build(Rule, self.rule, "rule")
        if self.is_drawn:
            self.demo_settings(0)
        elif self.model:
            raise ValueError("model is for drawn scenes; sizes for files are options of pretrain. Move them there.")

    @property
    def prompt(self) -> str:
        """What captions start with, as the captioner learns it."""
        own = self.captioner.get("prompt")
        return CaptionSettings.prompt if own is None else own

    def capfilt_settings(self, seed: int) -> CapFiltSettings:
        """Settings of the CapFilt runs.

        Args:
            seed (`int`):
                The seed.

        Returns:
            [`~blip_hf.capfilt.settings.CapFiltSettings`]: with the captioner's prompt.

        Raises:
            ValueError: If a value is unknown or does not fit.
        """
        return _build(CapFiltSettings, {**self.capfilt, "prompt": self.prompt, "seed": seed}, "capfilt")

    @property
    def is_drawn(self) -> bool:
        """Whether the data are scenes."""
        return isinstance(self.data, SceneData)

    def demo_settings(self, seed: int) -> Any:
        """Sizes of the small model of scenes.

        Args:
            seed (`int`):
                The seed.

        Returns:
            [`~blip_hf.demo.settings.DemoSettings`]: of which only the sizes of the model count.
        """
        from ..demo.settings import DemoSettings

        own = {"seed": seed, "image_size": self.data.image_size}
        return replace(_build(DemoSettings, self.model, "model"), **own)

    def options(self, section: str, own: Section) -> tuple[Any, "TrainingArguments"]:
        """Options of a stage that trains, as its command has them.

        Args:
            section (`str`):
                One of `TRAINING_SECTIONS`.
            own (`Mapping`):
                What the loop decides on.

        Returns:
            `tuple`: options of the task, and arguments of the trainer.

        Raises:
            ValueError: If an option is unknown, or a number is written in a form that YAML takes for text.
        """
        from ..tasks.options import CaptionFinetuneOptions, PretrainOptions, RetrievalFinetuneOptions
        from ..training import BlipFinetuningArguments, BlipTrainingArguments

        options_class, arguments_class = {
            "pretrain": (PretrainOptions, BlipTrainingArguments),
            "captioner": (CaptionFinetuneOptions, BlipFinetuningArguments),
            "filter": (RetrievalFinetuneOptions, BlipFinetuningArguments),
        }[section]
        values = {"save_total_limit": 1, "report_to": "none", "disable_tqdm": not sys.stderr.isatty()}
        values |= {**getattr(self, section), **own, "use_cpu": self.device == "cpu"}
        _refuse_numbers_as_text(values, section)
        names = {option.name for option in fields(options_class)}
        arguments = {name: value for name, value in values.items() if name not in names}
        options = {name: value for name, value in values.items() if name in names}
        return _build(options_class, options, section), _build(arguments_class, arguments, section)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {option.name: _plain(getattr(self, option.name)) for option in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, (SceneData, FileData, EvaluationSettings)):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else value


def _build(kind: type, values: Section, section: str) -> Any:
    """An instance of a dataclass, or an error that names what it does not know."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{section} is {values!r}, expected names with values.")
    known = {option.name for option in fields(kind) if option.init}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{section} names {', '.join(unknown)}, which {kind.__name__} does not know.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{section} does not fit {kind.__name__}: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error


def _refuse_numbers_as_text(values: Section, section: str) -> None:
    for name, value in values.items():
        if isinstance(value, str) and value.replace(".", "").replace("e-", "").isdigit():
            raise ValueError(
                f"{section}: {name} is the text {value!r}; YAML reads a number with a point, as in 1.0e-3."
            )


__all__ = [
    "OWN_OPTIONS",
    "RULED",
    "TRAINING_SECTIONS",
    "VARIANTS",
    "EvaluationSettings",
    "FileData",
    "LoopSettings",
    "SceneData",
]
