# SPDX-License-Identifier: BSD-3-Clause
"""Runs the stages of the loop for each seed."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from transformers import set_seed

from ..capfilt.engine import CapFilt
from ..capfilt.filters import Rule
from ..capfilt.runner import run_capfilt
from ..capfilt.settings import FREE_SETTINGS
from ..configuration_blip import BlipPreTrainingConfig
from ..data.scenes import scene_vocabulary_texts
from ..devices import pick_device
from ..tasks import caption, retrieval
from ..tasks.pretrain import make_model, make_processor, pretrain
from ..training.checkpoint_files import newest_whole, remove_checkpoints
from .config import RULED, LoopSettings, SceneData
from .measure import measure_capfilt, measure_captions, measure_retrieval
from .sets import (
    CHECK,
    EVAL,
    HUMAN,
    WEB,
    read_truth,
    read_web,
    write_file_sets,
    write_scene_sets,
    write_variant,
)
from .stages import Metrics, Report, Stage, run_stage, source_digests


@dataclass(frozen=True)
class SeedResult:
    """Metrics of one seed.

    `models` is by variant; `capfilt` is for the web set, and `check` for held-out images, empty without them.
    """

    seed: int
    models: dict[str, Metrics]
    captioner: Metrics
    filter: Metrics
    capfilt: Metrics
    check: Metrics
    minutes: float


def run_seed(settings: LoopSettings, seed: int, folder: Path, report: Report) -> SeedResult:
    """Runs the stages of one seed that are not done, with a folder per stage."""
    return _SeedLoop(settings, seed, folder, report).run()


class _SeedLoop:
    """The stages of one seed. Each method runs one, with the settings and inputs that it depends on."""

    def __init__(self, settings: LoopSettings, seed: int, folder: Path, report: Report) -> None:
        self.settings = settings
        self.seed = seed
        self.folder = folder
        self.report = report
        self.device = pick_device(settings.device)
        self.rule = Rule(**settings.rule)
        self.stages: list[Stage] = []

    def run(self) -> SeedResult:
        """Runs all stages in the order of the paper."""
        sets = self._sets()
        start = self._start(sets)
        noisy = self._pretrain("noisy", sets, start, None)
        captioner, matcher = self._finetune("captioner", sets, noisy), self._finetune("filter", sets, noisy)
        captioning = self._evaluate("captioner", sets, captioner, self._measure_captioner)
        matching = self._evaluate("filter", sets, matcher, self._measure_filter)
        run = self._capfilt("capfilt", WEB, sets, captioner, matcher)
        capfilt = self._apply_rule("capfilt", sets, run)
        models = {"noisy": self._evaluate("noisy", sets, noisy, self._measure_pretrained)}
        for variant in self.settings.variants[1:]:
            model = self._pretrain(variant, sets, start, run)
            models[variant] = self._evaluate(variant, sets, model, self._measure_pretrained)
        check: Metrics = {}
        if (sets.folder / CHECK).is_dir():
            check = self._apply_rule("check", sets, self._capfilt("check", CHECK, sets, captioner, matcher))
        minutes = sum(stage.minutes for stage in self.stages)
        return SeedResult(self.seed, models, captioning, matching, capfilt, check, minutes)

    def _run(
        self, name: str, settings: dict[str, Any], inputs: list[Stage], action: Callable[[Path], Metrics]
    ) -> Stage:
        stage = run_stage(self.folder / name, {**settings, "seed": self.seed}, inputs, action, self.report)
        self.stages.append(stage)
        return stage

    def _sets(self) -> Stage:
        data = self.settings.data
        if isinstance(data, SceneData):
            return self._run("sets", asdict(data), [], lambda work: write_scene_sets(data, self.seed, work))
        sources = [path for path in (data.web, data.human, data.eval, data.web_labels) if path is not None]
        known = {**asdict(data), "files": {path: source_digests(path) for path in sources}}
        return self._run("sets", known, [], lambda work: write_file_sets(data, self.seed, work))

    def _start(self, sets: Stage) -> Stage:
        """Creates the initial weights and the vocabulary of all pre-trainings."""
        section = {"model": dict(self.settings.model), "pretrain": dict(self.settings.pretrain)}

        def action(work: Path) -> Metrics:
            set_seed(self.seed)
            if self.settings.is_drawn:
                options = self.settings.demo_settings(self.seed).pretrain_options()
                captions = scene_vocabulary_texts()
            else:
                options, _ = self.settings.options("pretrain", {"data": [], "output_dir": str(work)})
                captions = [
                    *read_web(sets.folder / WEB)["caption"].to_pylist(),
                    *datasets.load_from_disk(sets.folder / HUMAN)["caption"],
                ]
            processor = make_processor(options, Dataset.from_dict({"caption": captions}))
            model = make_model(options, processor)
            model.save_pretrained(work)
            processor.save_pretrained(work)
            return {"num_parameters": model.num_parameters()}

        return self._run("start", section, [sets], action)

    def _pretrain(self, variant: str, sets: Stage, start: Stage, run: Stage | None) -> Stage:
        """Collects the pairs of a variant, and pre-trains on them from the initial weights."""
        known: dict[str, Any] = {"with_human": self.settings.with_human}
        if variant in RULED:
            known["rule"] = asdict(self.rule)
        pairs = self._run(
            f"pairs-{variant}",
            known,
            [sets] if run is None else [sets, run],
            lambda work: write_variant(
                variant,
                sets.folder,
                None if run is None else run.folder,
                work,
                rule=self.rule,
                with_human=self.settings.with_human,
                is_drawn=self.settings.is_drawn,
            ),
        )

        def action(work: Path) -> Metrics:
            config = BlipPreTrainingConfig.from_pretrained(start.folder)
            sizes = {
                "feature_width": config.image_text_hidden_size,
                "image_size": config.vision_config.image_size,
            }
            own = self._own(work, start, pairs.folder)
            options, arguments = self.settings.options("pretrain", {**own, **sizes})
            metrics = {**pairs.metrics, **_length(pretrain(options, arguments))}
            remove_checkpoints(work)
            return metrics

        return self._run(f"pretrain-{variant}", dict(self.settings.pretrain), [start, pairs], action)

    def _finetune(self, section: str, sets: Stage, noisy: Stage) -> Stage:
        """Fine-tunes captioner or filter on the human set."""
        task = caption if section == "captioner" else retrieval

        def action(work: Path) -> Metrics:
            options, arguments = self.settings.options(section, self._own(work, noisy, sets.folder / HUMAN))
            metrics = _length(task.finetune(options, arguments))
            remove_checkpoints(work)
            return metrics

        return self._run(section, dict(getattr(self.settings, section)), [sets, noisy], action)

    def _capfilt(self, name: str, images: str, sets: Stage, captioner: Stage, matcher: Stage) -> Stage:
        """Captions images and scores all texts; the rule is applied later."""
        settings = self.settings.capfilt_settings(self.seed)

        def action(work: Path) -> Metrics:
            engine = CapFilt.from_pretrained(captioner.folder, matcher.folder, device=self.device, settings=settings)
            run_capfilt(engine, sets.folder / images, work, allow_outside=True, show_progress=sys.stderr.isatty())
            return {}

        known = {name: value for name, value in asdict(settings).items() if name not in FREE_SETTINGS}
        return self._run(name, known, [sets, captioner, matcher], action)

    def _apply_rule(self, name: str, sets: Stage, run: Stage) -> Metrics:
        """Applies the rule to a run and evaluates the result."""
        known = {"rule": asdict(self.rule)}
        return self._run(
            f"measure-{name}",
            known,
            [sets, run],
            lambda _: measure_capfilt(run.folder, read_truth(sets.folder), self.rule),
        ).metrics

    def _evaluate(self, name: str, sets: Stage, model: Stage, measure: Callable[[Path, Path], Metrics]) -> Metrics:
        """Evaluates a model on held-out images."""
        known = asdict(self.settings.evaluation)
        return self._run(
            f"evaluate-{name}",
            known,
            [sets, model],
            lambda _: {**model.metrics, **measure(model.folder, sets.folder / EVAL)},
        ).metrics

    def _measure_captioner(self, folder: Path, pairs: Path) -> Metrics:
        is_drawn = self.settings.is_drawn
        return measure_captions(folder, pairs, self.settings.evaluation, self.device, is_drawn=is_drawn)

    def _measure_filter(self, folder: Path, pairs: Path) -> Metrics:
        return measure_retrieval(folder, pairs, self.settings.evaluation, self.device)

    def _measure_pretrained(self, folder: Path, pairs: Path) -> Metrics:
        captions = self._measure_captioner(folder / "captioner", pairs)
        return {**captions, **self._measure_filter(folder / "retriever", pairs)}

    def _own(self, work: Path, model: Stage, pairs: Path) -> dict[str, Any]:
        """Options that the loop sets for a training stage, which resumes from a complete checkpoint."""
        remove_checkpoints(work, keep_whole=True)
        checkpoint = newest_whole(work)
        return {
            "model": str(model.folder),
            "data": [str(pairs)],
            "allow_outside": True,  # the loop's own sets name images by full paths
            "output_dir": str(work),
            "seed": self.seed,
            "resume_from_checkpoint": None if checkpoint is None else str(checkpoint),
            "overwrite": checkpoint is None,
        }


def _length(metrics: dict[str, float]) -> Metrics:
    return {"train_loss": metrics["train_loss"], "train_minutes": metrics["train_runtime"] / 60}


__all__ = ["SeedResult", "run_seed"]
