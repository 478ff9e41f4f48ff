# SPDX-License-Identifier: BSD-3-Clause
"""Trainer whose pushes to the Hub carry the model card of the run, and no file that holds paths of this machine."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress
from transformers.utils.hub import hf_api

from .. import __version__
from ..devices import describe_device
from ..hub import PUSHED_FILES, add_remote_code
from ..model_card import TrainingFacts, model_class_of, source_commit, write_model_card
from ..model_kinds import KINDS
from ..remote_code import CODE_FOLDER
from .arguments import BlipTrainingArguments, weight_arguments
from .distributed_trainer import DistributedTrainer


_PUSHED = [*PUSHED_FILES, f"{CODE_FOLDER}/*.py", "adapter_config.json", "adapter_model.safetensors"]


class PushingTrainer(DistributedTrainer):
    """Extends `transformers.Trainer` by the model card and a filter of the pushed files."""

    args: BlipTrainingArguments
    push_in_progress: Any  # `PushInProgress`

    def facts(self, **known: Any) -> TrainingFacts:
        """Returns what this trainer knows of its run for a model card, with other fields of [`TrainingFacts`]."""
        logs = self.state.log_history
        evaluation = next((log for log in reversed(logs) if any(name.startswith("eval_") for name in log)), {})
        seconds = next((log["train_runtime"] for log in reversed(logs) if "train_runtime" in log), None)
        commit = source_commit()
        found = {
            "arguments": weight_arguments(self.args),
            "metrics": {
                name.removeprefix("eval_"): value for name, value in evaluation.items() if name.startswith("eval_")
            },
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "minutes": None if seconds is None else seconds / 60,
            "hardware": describe_device(self.args.device, self.args.world_size),
            "code": f"blip_hf {__version__}" + ("" if commit is None else f", commit {commit[:12]}"),
        }
        return TrainingFacts(**{**found, **known})

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes the model card of the run, and the code of a class that transformers lacks, into `output_dir`.

        Args:
            language, license, tags, tasks (`str`, *optional*):
                Metadata of the card. `tasks` replaces the task of the model's class.
            model_name (`str`, *optional*):
                Name in the title. Defaults to `hub_model_id`, or to the name of `output_dir`.
            finetuned_from (`str`, *optional*):
                Checkpoint that the training started from. Defaults to the one that the model was loaded from.
            dataset, dataset_tags (`str` or `list[str]`, *optional*):
                Training set, and its names on the Hub.
            dataset_args (`str` or `list[str]`, *optional*):
                Not used: a card has the arguments of the run.
        """
        folder = Path(self.args.output_dir)
        if not self.is_world_process_zero():
            return
        if not (folder / "config.json").is_file() or model_class_of(folder) not in KINDS:
            super().create_model_card(
                language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset
            )
            return
        base = finetuned_from or self.model.name_or_path
        given = {"language": language, "license": license, "datasets": dataset_tags, "pipeline_tag": tasks}
        write_model_card(
            folder,
            self.facts(base_models=_as_list(base or None), data=_as_list(dataset)),
            name=self.hub_model_id or model_name,
            tags=_as_list(tags),
            **{name: value for name, value in given.items() if value is not None},
        )
        if KINDS[model_class_of(folder)].needs_code:
            add_remote_code(folder, model_class_of(folder))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Pushes the model, its processor and its card.

        Unlike `transformers.Trainer`, it leaves out `training_args.bin` and the records of a run, which hold local paths.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to return after the push has finished.
            token (`str`, *optional*):
                Token with write access. Defaults to `hub_token`.
            revision (`str`, *optional*):
                Branch. Defaults to `hub_revision`.
            private (`bool`, *optional*):
                Whether a new repository is private. Defaults to `hub_private_repo`.
            **kwargs:
                Arguments of `create_model_card`.

        Returns:
            `CommitInfo`, or a `Future` of it with `blocking=False`; `None` on processes other than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        return self._upload(
            Path(self.args.output_dir),
            commit_message,
            token=token or self.args.hub_token,
            run_as_future=not blocking,
            allow_patterns=_PUSHED,
            revision=revision or self.args.hub_revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes the model of a checkpoint while training continues, and its state if `hub_strategy` says so."""
        strategy, checkpoint = self.args.hub_strategy, Path(checkpoint_folder)
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        is_wanted = strategy != HubStrategy.END and (self.args.hub_always_push or not is_busy)
        if not self.is_world_process_zero() or not is_wanted:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for path in checkpoint.iterdir():
            # A copy: the checkpoint may be removed before the push ends.
            if any(fnmatch(path.name, pattern) for pattern in _PUSHED):
                shutil.copy(path, self.args.output_dir)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._upload(Path(self.args.output_dir), message, run_as_future=True, allow_patterns=_PUSHED)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            jobs.append(self._upload(checkpoint, f"{message}, checkpoint", run_as_future=True, path_in_repo=name))
        if is_busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]  # a list

    def _upload(self, folder: Path, message: str | None, **options: Any) -> Any:
        defaults: dict[str, Any] = {"token": self.args.hub_token, "revision": self.args.hub_revision}
        repo_id: Any = self.hub_model_id
        return hf_api().upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, **{**defaults, **options}
        )


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


__all__ = ["PushingTrainer"]
