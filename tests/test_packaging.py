# SPDX-License-Identifier: BSD-3-Clause
"""What is installed, what importing it touches, and which way its arrows point."""

import ast
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blip_hf
from tests.support.paths import ROOT


SOURCE = ROOT / "src" / "blip_hf"
CORE = {"torch", "transformers", "accelerate", "datasets", "safetensors", "pillow"}

# From the bottom up. A module may import its own layer and those below it.
LAYERS = (
    ("caption_settings", "checkpoints", "distributed", "files", "locks", "pages", "image_utils", "data.text"),
    ("objectives", "processing_blip", "image_processing_blip", "configuration_blip"),
    ("modeling", "data"),
    ("training", "evaluation", "captioner", "conversion", "auto"),
    ("demo", "tasks", "capfilt"),
    ("bootstrap",),
    ("cli", "__main__"),
)
# What a part may import from outside the package and the standard library, where design.md narrows it.
NARROWED = {
    "objectives": {"torch"},
    "evaluation.recall": {"torch", "numpy"},
    "modeling": {"torch", "transformers", "huggingface_hub", "safetensors"},
}


def module_name(path: Path) -> str:
    """`src/blip_hf/image_utils.py` is `data.images`, and the package itself the empty string."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported_names(module: str, source: str, *, is_package: bool) -> set[str]:
    """Absolute dotted names that `source` imports; `from a import b` gives `a.b`."""
    own = ["blip_hf", *module.split(".")] if module else ["blip_hf"]
    package = own if is_package else own[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return imported_names(module, path.read_text(), is_package=path.stem == "__init__")


def own_imports_of(module: str) -> set[str]:
    """Modules of the package that `module` imports, as names within it."""
    own = {name.removeprefix("blip_hf").removeprefix(".") for name in imports_of(module) if is_own(name)}
    # The last part may be a module or a name in one.
    return {name if name in MODULES else name.rpartition(".")[0] for name in own} - {module}


def is_own(name: str) -> bool:
    return name.split(".")[0] == "blip_hf"


def layer_of(module: str) -> int:
    """Index of the layer whose longest entry is `module` or a package above it."""
    entries = [
        (len(entry), i) for i, layer in enumerate(LAYERS) for entry in layer if f"{module}.".startswith(f"{entry}.")
    ]
    assert entries, f"{module} stands in no layer: give it one in LAYERS"
    return max(entries)[1]


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def read_setup_cfg() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def requirement_name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_citation_has_the_version_of_the_package() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert cited == blip_hf.__version__


def test_the_core_install_is_six_packages() -> None:
    requirements = read_setup_cfg()["options"]["install_requires"].split()
    assert {requirement_name(requirement) for requirement in requirements} == CORE
    assert len(requirements) == len(CORE)


def test_constraints_pin_one_public_version_of_each_package() -> None:
    # No range, no local version (`+cpu`), no path: each would tie the file to one machine.
    assert [line for line in constraints() if not re.fullmatch(r"[\w.-]+==[\d.]+", line)] == []
    names = [requirement_name(line) for line in constraints()]
    assert len(names) == len(set(names))


def test_constraints_cover_all_that_make_installs() -> None:
    extras = read_setup_cfg()["options.extras_require"]
    wanted = CORE | {requirement_name(line) for key in ("demo", "test") for line in extras[key].split()} - {"blip-hf"}
    assert wanted - {requirement_name(line) for line in constraints()} == set()


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    revision = re.search(r"ruff-pre-commit\n\s+rev: v(\S+)", hooks)[1]
    assert f"ruff=={revision}" in constraints()


def test_workflows_pin_actions_by_commit() -> None:
    workflows = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    actions = re.findall(r"uses: (\S+)", workflows)
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


def test_importing_the_package_imports_no_heavy_library() -> None:
    loaded = run_python("import sys, blip_hf; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert "blip_hf" in loaded
    assert {"torch", "transformers", "numpy", "PIL", "datasets"} & set(loaded) == set()


def test_using_the_package_leaves_the_auto_classes_untouched() -> None:
    run_python(
        "import transformers, blip_hf\n"
        "for name in blip_hf.__all__: getattr(blip_hf, name)\n"
        "config = transformers.CONFIG_MAPPING['blip']\n"
        "assert config is transformers.BlipConfig, config\n"
        "model = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config]\n"
        "assert model is transformers.BlipForConditionalGeneration, model\n"
        "assert 'blip_pretraining' not in transformers.CONFIG_MAPPING\n"
    )


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_torchvision(module: str) -> None:
    assert [name for name in imports_of(module) if name.split(".")[0] == "torchvision"] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_arrows_point_down(module: str) -> None:
    layer = layer_of(module)
    assert sorted(name for name in own_imports_of(module) - {""} if layer_of(name) > layer) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_modules_import_from_where_a_name_is_defined(module: str) -> None:
    # A name taken from the package's front would hide which layer it comes from.
    from_the_front = {name for name in imports_of(module) if re.fullmatch(r"blip_hf(\.\w+)?", name)}
    modules = {f"blip_hf.{name}" for name in MODULES}
    assert from_the_front - modules - {"blip_hf.__version__"} == set()


@pytest.mark.parametrize("part", NARROWED)
def test_narrow_parts_import_only_their_libraries(part: str) -> None:
    members = [module for module in MODULES if f"{module}.".startswith(f"{part}.")]
    imported = {name.split(".")[0] for module in members for name in imports_of(module)}
    assert imported - set(sys.stdlib_module_names) - {"blip_hf"} <= NARROWED[part]


def test_models_know_no_data_and_no_processor() -> None:
    members = [module for module in MODULES if f"{module}.".startswith("modeling.")]
    imported = {name for module in members for name in own_imports_of(module)}
    assert {name for name in imported if re.match(r"data|processing_blip|image_processing_blip", name)} == set()


def test_relative_and_absolute_imports_are_read_alike() -> None:
    names = imported_names(
        "data.videos", "from . import text\nfrom ..cli import main\nimport blip_hf.demo", is_package=False
    )
    assert names == {"blip_hf.data.text", "blip_hf.cli.main", "blip_hf.demo"}


def test_the_lowest_entry_that_names_a_module_decides_its_layer() -> None:
    assert layer_of("image_utils") < layer_of("processing_blip") < layer_of("data.scenes")
