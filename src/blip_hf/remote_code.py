# SPDX-License-Identifier: BSD-3-Clause
"""The code of model classes that transformers lacks, beside their weights, for `trust_remote_code=True`.

transformers loads modules that lie in one folder. The modules of the package are copied into it, with their relative imports
changed: `modeling/text.py` becomes `remote_code/modeling_text.py`.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from .files import write_json


_PACKAGE = __package__
_SOURCE = Path(__file__).parent
CODE_FOLDER = "remote_code"
# The module that a relative import names, as in `from ..objectives import matching_loss`.
_RELATIVE_IMPORT = re.compile(r"^(\s*from )(\.+)([\w.]+)( import )", re.MULTILINE)
_LICENSE = "# SPDX-License-Identifier: BSD-3-Clause\n"


def write_remote_code(folder: Path, model_class: Any, *, auto_class: str = "AutoModel") -> list[Path]:
    """Copies the code of a model class into the folder of its checkpoint, and names it in `config.json`.

    `AutoModel.from_pretrained(folder, trust_remote_code=True)` opens the folder, without this package.

    Args:
        folder (`Path`):
            Folder with the `config.json` of the model.
        model_class (`type`):
            Class of this package.
        auto_class (`str`, *optional*, defaults to `"AutoModel"`):
            Auto class of transformers that loads the model. `AutoConfig` loads its configuration.

    Returns:
        `list[Path]`: the written modules.
    """
    sources = _modules_of(_module_name(model_class))
    (folder / CODE_FOLDER).mkdir(exist_ok=True)
    paths = [folder / CODE_FOLDER / f"{_flat_name(module)}.py" for module in sources]
    for path, (module, source) in zip(paths, sources.items(), strict=True):
        path.write_text(_with_origin(source, module), encoding="utf-8")
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": _reference(model_class.config_class), auto_class: _reference(model_class)}
    write_json(config, config_path, indent=2)
    return paths


def _modules_of(module: str) -> dict[str, str]:
    """A module and those that it imports from the package, by name, with their imports changed."""
    sources: dict[str, str] = {}
    remaining = [module]
    while remaining:
        module = remaining.pop()
        if module in sources:
            continue
        path = _SOURCE.joinpath(*module.split(".")).with_suffix(".py")
        text = path.read_text(encoding="utf-8")
        remaining += [_resolve(module, match) for match in _RELATIVE_IMPORT.finditer(text)]
        sources[module] = _RELATIVE_IMPORT.sub(partial(_flatten, module), text)
    return dict(sorted(sources.items()))


def _resolve(module: str, match: re.Match[str]) -> str:
    """The module that a relative import inside `module` names."""
    parents = module.split(".")[: -len(match[2])]
    return ".".join([*parents, match[3]])


def _flatten(module: str, match: re.Match[str]) -> str:
    return f"{match[1]}.{_flat_name(_resolve(module, match))}{match[4]}"


def _flat_name(module: str) -> str:
    return module.replace(".", "_")


def _module_name(own_class: type) -> str:
    return own_class.__module__.removeprefix(f"{_PACKAGE}.")


def _reference(own_class: Any) -> str:
    return f"{CODE_FOLDER}/{_flat_name(_module_name(own_class))}.{own_class.__name__}"


def _with_origin(source: str, module: str) -> str:
    if "# Copied from" in source:
        return source  # a copy of a copy
    return source.replace(_LICENSE, f"{_LICENSE}# Copied from {module.replace('.', '/')}.py of blip_hf.\n", 1)


__all__ = ["CODE_FOLDER", "write_remote_code"]
