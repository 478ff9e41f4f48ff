# SPDX-License-Identifier: BSD-3-Clause
"""The model cards of a run: in its output folder, in the folders of the models inside, and on the Hub if it is pushed."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .run_folder import FREE_OPTIONS, RECORD_NAME
from .run_inputs import path_options


if TYPE_CHECKING:
    from ..model_card import TrainingFacts
    from ..training import BlipTrainer, BlipTrainingArguments
    from .base import TrainingOptions


def write_run_cards(
    options: "TrainingOptions", trainer: "BlipTrainer", metrics: Mapping[str, Any], parts: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """Writes the card of a run into its output folder and into sub-folders of it, with the code that transformers lacks.

    `metrics` are those that the command prints; `eval_...` are of the evaluation. Returns what the card says, for the record.
    """
    from ..training.arguments import weight_arguments

    if not trainer.is_world_process_zero():
        return None
    facts = trainer.facts(
        base_models=_base_models(options),
        data=options.data,
        eval_data=options.eval_data or (),
        eval_split=getattr(options, "eval_split", None),
        arguments=changed_options(options) | weight_arguments(trainer.args),
        metrics={name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")},
    )
    write_cards(Path(trainer.args.output_dir), facts, parts)
    return asdict(facts)


def read_facts(output_dir: Path) -> "TrainingFacts":
    """Reads what the card of a finished run says."""
    from ..model_card import TrainingFacts

    record = json.loads((output_dir / RECORD_NAME).read_text(encoding="utf-8"))
    return TrainingFacts(**record["card"])


def write_cards(folder: Path, facts: "TrainingFacts", parts: tuple[str, ...] = ()) -> None:
    """Writes a card beside a model and beside the models in sub-folders."""
    from ..hub import add_remote_code
    from ..model_card import model_class_of, write_model_card
    from ..model_kinds import KINDS

    for place in (folder, *(folder / part for part in parts)):
        write_model_card(place, facts)
        if KINDS[model_class_of(place)].needs_code:
            add_remote_code(place, model_class_of(place))


def push_run(arguments: "BlipTrainingArguments", repo_id: str | None) -> None:
    """Pushes the finished model with its card, if the arguments ask for pushes."""
    from ..hub import push_folder

    if arguments.push_to_hub and arguments.process_index == 0:
        folder = Path(arguments.output_dir)
        push_folder(
            folder, repo_id or folder.resolve().name, private=arguments.hub_private_repo, token=arguments.hub_token
        )


def _base_models(options: "TrainingOptions") -> list[str]:
    named = [getattr(options, name, None) for name in ("model", "vision", "text")]
    return [name for name in named if name is not None]


def changed_options(options: "TrainingOptions") -> dict[str, Any]:
    """The options that weights depend on and that differ from their defaults, without files."""
    left_out = {*FREE_OPTIONS, *path_options(options)}
    return {
        each.name: getattr(options, each.name)
        for each in fields(options)
        if each.name not in left_out and each.default is not MISSING and getattr(options, each.name) != each.default
    }


__all__ = ["changed_options", "push_run", "read_facts", "write_cards", "write_run_cards"]
