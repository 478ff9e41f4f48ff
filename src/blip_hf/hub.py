# SPDX-License-Identifier: BSD-3-Clause
"""Pushes the folder of a model to the Hub: its files, its card, and the code of a class that transformers lacks."""

import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from . import __version__
from .model_card import CARD_NAME, is_card_of_transformers, model_class_of, rename_checkpoint, write_model_card
from .model_kinds import KINDS
from .remote_code import CODE_FOLDER, write_remote_code


# What `from_pretrained` reads, and what people read. Everything else of a run stays on this machine.
PUSHED_FILES = (
    CARD_NAME,
    "LICENSE*",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_TEXTS = (".json", ".md", ".py", ".txt")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")


class PushError(ValueError):
    """A push to the Hub that cannot start, or that the Hub refused."""


@dataclass(frozen=True)
class Upload:
    """The files of a push, by their names in the repository, and the names in the folder that stay here."""

    files: dict[str, bytes | Path]
    left_out: list[str]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def push_folder(
    folder: Path, repo_id: str, *, private: bool | None = None, token: str | None = None, include: Sequence[str] = ()
) -> str:
    """Pushes a saved model to a repository of the Hub, which is created if it does not exist.

    Args:
        folder (`Path`):
            Folder of the model. It is not changed.
        repo_id (`str`):
            Repository, such as `"owner/name"`.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to the setting of its owner.
        token (`str`, *optional*):
            Token with write access. Defaults to that of `HF_TOKEN` or of `hf auth login`.
        include (sequence of `str`, *optional*):
            Patterns of further files, see [`plan_upload`].

    Returns:
        `str`: address of the commit.

    Raises:
        PushError: If the folder is no model, a file names a token or a folder of this machine, or the Hub refuses.
    """
    upload = plan_upload(folder, repo_id, include=include)
    token = token or get_token()
    if token is None:
        raise PushError("Found no token of the Hub. Run `hf auth login`, or set HF_TOKEN to one with write access.")
    api = HfApi(library_name="blip_hf", library_version=__version__, token=token)
    with _explaining(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in upload.files.items()],
            commit_message="Upload model",
        )
    return commit.commit_url


def plan_upload(folder: Path, repo_id: str, *, include: Sequence[str] = ()) -> Upload:
    """Returns the files that a push takes, without a request to the Hub.

    Args:
        folder (`Path`):
            Folder of the model.
        repo_id (`str`):
            Repository, which the snippet of the card names.
        include (sequence of `str`, *optional*):
            Patterns of files in the folder besides [`PUSHED_FILES`], such as `"adapter/*"`.

    Raises:
        PushError: If the folder is no model, or a file names a token or a folder of this machine.
    """
    try:
        validate_repo_id(repo_id)
        model_class = model_class_of(folder)
    except HFValidationError as error:
        raise PushError(f"{repo_id!r} is not the name of a repository. Pass owner/name.") from error
    except ValueError as error:
        raise PushError(str(error)) from error
    if model_class not in KINDS:
        raise PushError(f"{folder} holds a model of class {model_class}, expected one of {', '.join(KINDS)}.")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not name.startswith(f"{CODE_FOLDER}/")]
    pushed = [name for name in names if any(fnmatch(name, pattern) for pattern in (*PUSHED_FILES, *include))]
    pushed = [name for name in pushed if "/" not in name or any(fnmatch(name, pattern) for pattern in include)]
    if not any(name.endswith(".safetensors") for name in pushed):
        raise PushError(f"{folder} holds no model.safetensors. Pass the folder of a saved model.")
    files: dict[str, bytes | Path] = {name: folder / name for name in pushed}
    files |= _completed_files(folder, repo_id)
    _refuse_secrets(files, folder)
    return Upload(files, left_out=sorted(set(names) - set(pushed)))


def complete_model_folder(folder: Path, repo_id: str, *, source: str = "") -> None:
    """Adds what a pushed folder needs: the card, unless a user wrote one, and the code of a class that transformers lacks.

    Args:
        folder (`Path`):
            Folder of a saved model.
        repo_id (`str`):
            Repository, which the snippet of the card names.
        source (`str`, *optional*):
            Where the model was loaded from: a folder there has the card of its training.
    """
    model_class = model_class_of(folder)
    if model_class not in KINDS:
        return  # an encoder alone, or a class of the user
    card, own_card = folder / CARD_NAME, Path(source, CARD_NAME) if source else None
    if not card.is_file() or is_card_of_transformers(card.read_text(encoding="utf-8")):
        if own_card is not None and own_card.is_file():
            shutil.copy(own_card, card)
        else:
            write_model_card(folder, name=repo_id)
    card.write_text(rename_checkpoint(card.read_text(encoding="utf-8"), repo_id), encoding="utf-8")
    if KINDS[model_class].needs_code:
        add_remote_code(folder, model_class)


def add_remote_code(folder: Path, model_class: str) -> None:
    """Adds the code of a class of this package, by its name, to the folder of its checkpoint."""
    write_remote_code(folder, getattr(importlib.import_module(__package__), model_class))


def _completed_files(folder: Path, repo_id: str) -> dict[str, bytes]:
    """The files that [`complete_model_folder`] changes or adds, made in a copy."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in (CARD_NAME, "config.json", "processor_config.json"):
            if (folder / part).is_file():
                shutil.copy(folder / part, copy)
        complete_model_folder(copy, repo_id)
        paths = [copy / CARD_NAME, copy / "config.json", *(copy / CODE_FOLDER).glob("*.py")]
        return {path.relative_to(copy).as_posix(): path.read_bytes() for path in sorted(paths)}


def _refuse_secrets(files: dict[str, bytes | Path], folder: Path) -> None:
    """Raises for a text that names a token of the Hub, or a folder of this machine."""
    private = [str(path) for path in {Path.home(), Path.cwd(), folder.resolve()} if path != Path("/")]
    for name, content in files.items():
        if not name.endswith(_TEXTS):
            continue
        text = (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8", "replace")
        if _TOKEN.search(text):
            raise PushError(f"{name} holds a token of the Hub. Remove it, and revoke the token.")
        found = next((f"{path}/" for path in private if f"{path}/" in text), None)
        if found is not None:
            raise PushError(f"{name} names the folder {found} of this machine. Remove it from the file.")


@contextmanager
def _explaining(repo_id: str) -> Iterator[None]:
    """Says what to do about an error of the Hub."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PushError("HF_HUB_OFFLINE is set, so nothing was sent. Unset it to push.") from error
    except HfHubHTTPError as error:
        status, owner = error.response.status_code, repo_id.partition("/")[0]
        remedies = {
            401: "The Hub does not accept the token. Run `hf auth login`, or set HF_TOKEN to one with write access.",
            403: f"The token may not write to {repo_id}. Use a token with write access to {owner}.",
            404: f"The Hub has no {repo_id} that this token may write to. Create it, or check the owner {owner}.",
        }
        reason = " ".join((error.server_message or str(error)).split())
        raise PushError(
            f"{remedies.get(status, f'The Hub refused {repo_id} ({status}).')} It said: {reason}"
        ) from error
    except HTTPError as error:
        raise PushError(
            f"{constants.ENDPOINT} does not answer: {error}. Check the network, or HF_ENDPOINT."
        ) from error


__all__ = ["PUSHED_FILES", "PushError", "Upload", "complete_model_folder", "plan_upload", "push_folder"]
