# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the loop: data, options of the command of each stage, and variants to compare."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..capfilt.settings import CapFiltSettings
from ..caption_settings import CaptionSettings
from ..evaluation.defaults import BATCH_SIZE, K_TEST
from .scene_sections import SCENE_SECTIONS


if TYPE_CHECKING:
    pass

Section = Mapping[str, Any]

# Training data of the second model, in addition to the human pairs (paper, tables 1 and 12)
VARIANTS = MappingProxyType(
    {
        "noisy": "all web texts",
        "repeated": "all web texts, repeated to the number of pairs of bootstrapped (table 12)",
        "filtered": "web texts that the filter keeps",
        "captioned": "all web and synthetic texts",
        "bootstrapped": "web and synthetic texts that the filter keeps: CapFilt",
    }
)
# Variants whose pairs depend on the rule
RULED = frozenset({"repeated", "filtered", "bootstrapped"})
TRAINING_SECTIONS = ("pretrain", "captioner", "filter")
# Options that the loop sets itself
OWN_OPTIONS = frozenset(
    {"model", "data", "allow_outside", "eval_data", "output_dir", "seed", "use_cpu", "resume_from_checkpoint"}
)


@dataclass(frozen=True)
class SceneData:
    """Drawn scenes: the web set, the human set and two held-out sets, all disjoint.

    Args:
        num_web (`int`, *optional*, defaults to 6000):
            Images of the web set.
        num_human (`int`, *optional*, defaults to 1000):
            Images with clean captions.
        num_eval (`int`, *optional*, defaults to 300):
            Images to evaluate on, each with a different caption.
        num_check (`int`, *optional*, defaults to 1000):
            Held-out images with the noise of the web set, to evaluate captioner and filter on.
        noise_rate (`float`, *optional*, defaults to 0.45):
            Fraction of web captions that belong to another image.
        image_size (`int`, *optional*, defaults to 64):
            Height and width of the images in pixels.
    """

    num_web: int = 6000
    num_human: int = 1000
    num_eval: int = 300
    num_check: int = 1000
    noise_rate: float = 0.45
    image_size: int = 64


@dataclass(frozen=True)
class FileData:
    """Sources of pairs, as [`~blip_hf.data.readers.load_pairs`] reads them.

    Args:
        web (`str`):
            Noisy pairs.
        human (`str`):
            Clean pairs.
        eval (`str`):
            Pairs to evaluate on.
        image_root (`str`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of each file.
        allow_outside (`bool`, *optional*, defaults to `False`):
            Whether to open images outside this folder.
        human_share (`float`, *optional*, defaults to 1.0):
            Fraction of the images of `human` to use. If below 1, a random subset (seeded), and `web` is used without
            these images.
        web_labels (`str`, *optional*):
            JSON list with 1 for each record of `web` whose caption is correct and 0 for others, to evaluate the filter.
        eval_split (`str`, *optional*, defaults to `"val"`):
            Split of `eval`, if it has several.

    Raises:
        ValueError: If the share is out of range.
    """

    web: str
    human: str
    eval: str
    image_root: str | None = None
    allow_outside: bool = False
    human_share: float = 1.0
    web_labels: str | None = None
    eval_split: str = "val"

    def __post_init__(self) -> None:
        if not 0 < self.human_share <= 1:
            raise ValueError(f"human_share={self.human_share} is not a share of the images; pass a value in (0, 1].")


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of the evaluation of all models.

    Args:
        k_test (`int`, *optional*, defaults to 128):
            Candidates that the matching head re-ranks.
        num_beams, max_length, min_length (`int`, *optional*):
            Settings of captioning, see [`~blip_hf.CaptionSettings`]. Default to those of each captioner.
        batch_size (`int`, *optional*, defaults to 32):
            Images per batch.

    Raises:
        ValueError: If a number is too small.
    """

    k_test: int = K_TEST
    num_beams: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        for name in ("k_test", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is too small. Pass 1 or more.")

    def caption_settings(self, own: CaptionSettings | None) -> CaptionSettings:
        """Settings of a captioner with the settings `own`."""
        return CaptionSettings.resolve(
            own, num_beams=self.num_beams, max_length=self.max_length, min_length=self.min_length
        )


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop. [`LoopSettings.from_mapping`] reads the content of a YAML file.

    Args:
        data (`SceneData` or `FileData`, *optional*):
            Data to train and evaluate on. Defaults to drawn scenes.
        variants (`tuple[str, ...]`, *optional*, defaults to `("noisy", "bootstrapped")`):
            Models to compare, of `VARIANTS`. The noisy one is always included.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0,)`):
            Seeds of weights, batches, sampling and scenes. The loop runs once per seed.
        with_human (`bool`, *optional*, defaults to `True`):
            Whether all models are also pre-trained on the human pairs, as in the paper.
        device (`str`, *optional*):
            `"cpu"` or the kind of accelerator of this machine, such as `"cuda"`. Defaults to the accelerator if there is one.
        model (`Mapping`, *optional*):
            For scenes: sizes of the model, fields of [`~blip_hf.demo.settings.DemoSettings`]. For files, sizes are
            options of `pretrain`.
        pretrain, captioner, filter (`Mapping`, *optional*):
            Options of `blip-hf pretrain`, `blip-hf finetune caption` and `blip-hf finetune retrieval`.
        capfilt (`Mapping`, *optional*):
            Fields of [`~blip_hf.capfilt.settings.CapFiltSettings`].
        rule (`Mapping`, *optional*):
            Fields of [`~blip_hf.capfilt.filters.Rule`] except `sources`, which depend on the variant.
        evaluation (`EvaluationSettings`, *optional*):
            Settings of the evaluation.

    Raises:
        ValueError: If a variant is unknown, a seed is missing, or a section sets an option of the loop itself.
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
        object.__setattr__(self, "variants", tuple(name for name in VARIANTS if name in {"noisy", *self.variants}))
        for section in (*TRAINING_SECTIONS, "model", "capfilt", "rule"):
            if not isinstance(getattr(self, section), Mapping):
                raise ValueError(f"{section} is {getattr(self, section)!r}, expected names with values.")
        for section in TRAINING_SECTIONS:
            own = sorted(OWN_OPTIONS & set(getattr(self, section)))
            if own:
                raise ValueError(f"{section} names {', '.join(own)}, which the loop sets itself. Remove it.")
        if "sources" in self.rule or "seed" in self.capfilt:
            raise ValueError("rule names sources or capfilt names seed, which the loop sets itself. Remove them.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "LoopSettings":
        """Creates settings from the content of a YAML file. For scenes, sections extend the defaults of a small model.

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
        sections: dict[str, Any] = {
            name: dict(section) for name, section in (SCENE_SECTIONS if is_drawn else {}).items()
        }
        for name, value in values.items():
            if isinstance(value, Mapping):
                sections[name] = sections.get(name, {}) | dict(value)
            else:
                sections[name] = tuple(value) if isinstance(value, list) else value
        evaluation = _build(EvaluationSettings, sections.pop("evaluation", {}), "evaluation")
        return cls(_build(SceneData if is_drawn else FileData, data, "data"), evaluation=evaluation, **sections)

    def check(self) -> None:
        """Validates all sections before the first stage starts."""
        from ..capfilt.filters import Rule
        from ..devices import pick_device

        for section in TRAINING_SECTIONS:
            self.options(section, {"model": "unused", "data": ["unused"], "output_dir": "unused"})
        own = _build(CaptionSettings, self._captioner_settings(), "captioner")
        for section, resolve in (
            ("capfilt", self.capfilt_settings(0).resolve),
            ("evaluation", self.evaluation.caption_settings),
        ):
            try:
                resolve(own)
            except ValueError as error:
                raise ValueError(f"{section}: {error}") from error
        if self.device not in (None, "cpu", pick_device().type):
            usable = " or ".join(sorted({"'cpu'", f"'{pick_device().type}'"}))
            raise ValueError(f"device={self.device!r} is not on this machine; pass {usable}, or leave it out.")
        _build(Rule, self.rule, "rule")
        if self.is_drawn:
            self.demo_settings(0)
        elif self.model:
            raise ValueError("model is for drawn scenes only. Move the sizes to pretrain.")

    def _captioner_settings(self) -> dict[str, Any]:
        """The options of the captioner that its checkpoint will carry."""
        names = [item.name for item in fields(CaptionSettings)]
        return {name: self.captioner[name] for name in names if self.captioner.get(name) is not None}

    def capfilt_settings(self, seed: int) -> CapFiltSettings:
        """Settings of the CapFilt runs."""
        return _build(CapFiltSettings, {**self.capfilt, "seed": seed}, "capfilt")

    @property
    def is_drawn(self) -> bool:
        """Whether the data are scenes."""
        return isinstance(self.data, SceneData)

    def demo_settings(self, seed: int) -> Any:
        """Sizes of the small model for scenes."""
        from ..demo.settings import DemoSettings

        assert isinstance(self.data, SceneData)
        own = {"seed": seed, "image_size": self.data.image_size}
        return replace(_build(DemoSettings, self.model, "model"), **own)

    def options(self, section: str, own: Section) -> tuple[Any, Any]:
        """Returns the options and the trainer arguments of a stage."""
        from ..tasks import caption, retrieval
        from ..tasks.pretrain import PretrainOptions
        from ..training import BlipFinetuningArguments, BlipTrainingArguments

        options_class, arguments_class = {
            "pretrain": (PretrainOptions, BlipTrainingArguments),
            "captioner": (caption.FinetuneOptions, BlipFinetuningArguments),
            "filter": (retrieval.FinetuneOptions, BlipFinetuningArguments),
        }[section]
        values = {"save_total_limit": 1, "report_to": "none", "disable_tqdm": not sys.stderr.isatty()}
        values |= {**getattr(self, section), **own, "use_cpu": self.device == "cpu"}
        _refuse_numbers_as_text(values, section)
        names = {option.name for option in fields(options_class)}
        arguments = {name: value for name, value in values.items() if name not in names}
        options = {name: value for name, value in values.items() if name in names}
        return _build(options_class, options, section), _build(arguments_class, arguments, section)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings for JSON."""
        return {option.name: _plain(getattr(self, option.name)) for option in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, (SceneData, FileData, EvaluationSettings)):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else value


def _build(kind: type, values: Section, section: str) -> Any:
    """Creates an instance of a dataclass, or raises with the name of the section."""
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
            raise ValueError(f"{section}: {name} is the text {value!r}; YAML numbers need a point, as in 1.0e-3.")


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
