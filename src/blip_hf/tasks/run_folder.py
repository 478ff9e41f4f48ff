# SPDX-License-Identifier: BSD-3-Clause
"""The output folder of a training: the same command resumes there, another one is refused, `overwrite` starts again."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .run_inputs import digest_inputs, find_input_changes, path_options


if TYPE_CHECKING:
    from ..training import BlipTrainingArguments
    from .base import TrainingOptions

# The command of the run, written when training starts.
RECORD_NAME = "training_run.json"
# Options that change no weight, so that a resumed run may have others.
FREE_OPTIONS = (
    "dry_run",
    "eval_data",
    "eval_split",
    "metrics",
    "num_eval_scenes",
    "overwrite",
    "tokenizer_of_metrics",
)


def prepare_run(options: "TrainingOptions", arguments: "BlipTrainingArguments") -> None:
    """Sets `resume_from_checkpoint` if the output folder holds an interrupted run of the same command. Writes nothing.

    Raises:
        ValueError: If the folder holds a run of another command, a finished run, or checkpoints of an unknown run.
    """
    if options.dry_run:
        return
    if _is_restart():
        options.overwrite = False
    if options.overwrite and arguments.resume_from_checkpoint:
        raise ValueError(
            "overwrite removes the checkpoints that resume_from_checkpoint would resume from. Pass only one of them."
        )
    checkpoint = _decided_once(arguments, lambda: _choose_checkpoint(options, arguments))
    if checkpoint is not None:
        arguments.resume_from_checkpoint = checkpoint


def start_run(options: "TrainingOptions", arguments: "BlipTrainingArguments") -> None:
    """Writes the record of the run before its first step; with `overwrite`, removes the checkpoints of the run before it."""
    from ..files import write_json
    from ..training.checkpoint_files import remove_checkpoints

    def start() -> None:
        if options.overwrite:
            remove_checkpoints(arguments.output_dir)
        write_json({"is_finished": False, "command": _command(options, arguments)}, _record_path(arguments))

    _decided_once(arguments, start)


def finish_run(arguments: "BlipTrainingArguments", card: dict[str, Any] | None = None) -> None:
    """Notes that the run is finished, so that the same command does not repeat it, and what its model card says."""
    from ..files import write_json

    if arguments.process_index == 0:
        record = _read_record(arguments) or {}
        write_json({**record, "is_finished": True, "card": card}, _record_path(arguments))


def _choose_checkpoint(options: "TrainingOptions", arguments: "BlipTrainingArguments") -> str | None:
    """Returns the checkpoint that an interrupted run of the same command continues from."""
    from transformers.utils import logging

    from ..training.checkpoint_files import find_checkpoints, newest_whole

    if options.overwrite:
        return None
    logger, folder = logging.get_logger(__name__), arguments.output_dir
    record = _read_record(arguments)
    differences = [] if record is None else _differences(record.get("command", {}), _command(options, arguments))
    if arguments.resume_from_checkpoint:
        if differences:
            logger.warning(f"The run in {folder} resumes with other settings or data: {'; '.join(differences)}.")
        return None
    if differences:
        raise ValueError(
            f"{folder} holds a run with other settings or data: {'; '.join(differences)}. Repeat its command to resume it, pass"
            " --overwrite to start again, another --output_dir, or --resume_from_checkpoint True to continue with the new ones."
        )
    if record is None:
        checkpoints = find_checkpoints(folder)
        if checkpoints:
            raise ValueError(
                f"{folder} holds checkpoints of an unknown run, such as {checkpoints[-1].name}. Pass --overwrite to remove"
                " them, --resume_from_checkpoint True to continue from the newest one, or another --output_dir."
            )
        return None
    if record["is_finished"]:
        raise ValueError(
            f"{folder} holds the finished run of this command. Pass --overwrite to repeat it, or another --output_dir."
        )
    checkpoint = newest_whole(folder)
    source = "the beginning: no checkpoint was saved" if checkpoint is None else checkpoint.name
    logger.warning(f"Resuming the interrupted run in {folder} from {source}. Pass --overwrite to start again.")
    return None if checkpoint is None else str(checkpoint)


def _is_restart() -> bool:
    """Whether a launcher has started this command before, so that `overwrite` would remove what that process saved."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _record_path(arguments: "BlipTrainingArguments") -> Path:
    return Path(arguments.output_dir, RECORD_NAME)


def _read_record(arguments: "BlipTrainingArguments") -> dict[str, Any] | None:
    path = _record_path(arguments)
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, so this command cannot be compared with that of the run. Remove the file and pass"
            " --resume_from_checkpoint True to continue, or --overwrite to start again."
        ) from error


def _command(options: "TrainingOptions", arguments: "BlipTrainingArguments") -> dict[str, Any]:
    """Returns what the weights of a run depend on, as JSON has it."""
    from ..training.arguments import WEIGHT_ARGUMENTS

    task = type(options).__module__.rpartition(".")[2]
    given = {name: value for name, value in asdict(options).items() if name not in FREE_OPTIONS}
    paths = sorted(path_options(options) & given.keys())
    given |= {name: _resolved(given[name]) for name in paths}
    given |= {name: getattr(arguments, name) for name in WEIGHT_ARGUMENTS}
    given["digests"] = digest_inputs(options, paths)
    return json.loads(json.dumps({"task": task, **given}, default=str))


def _resolved(value: Any) -> Any:
    """Returns paths that exist as absolute ones, so that they do not depend on the working directory."""
    if isinstance(value, list):
        return [_resolved(each) for each in value]
    return os.path.realpath(value) if isinstance(value, str) and value and os.path.exists(value) else value


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    names = [name for name in new if name in old and name != "digests"]
    return [change for name in names for change in find_input_changes(name, old, new)]


def _decided_once(arguments: "BlipTrainingArguments", decide: Callable[[], Any]) -> Any:
    """Calls a function in the first process, and returns its result, or raises its error, in all of them."""
    from torch import distributed

    from ..distributed import rank, world_size

    _ = arguments.device  # starts the process group
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[1] = error
    if world_size() > 1:
        distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


__all__ = ["FREE_OPTIONS", "RECORD_NAME", "finish_run", "prepare_run", "start_run"]
