# SPDX-License-Identifier: BSD-3-Clause
"""Rules of the package: dependencies, imported libraries, and imports between modules."""

import ast
import configparser
import functools
import pkgutil
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import transformers

import blip_hf
from tests.support.forkserver import run_apart
from tests.support.paths import ROOT
from tests.support.processes import run_code


SOURCE = ROOT / "src" / "blip_hf"
TESTS = ROOT / "tests"
CORE = {"torch", "transformers", "accelerate", "datasets", "safetensors", "pillow"}

# From the bottom up. A module may import its own layer and lower layers.
LAYERS = (
    (
        "devices",
        "distributed",
        "files",
        "finite",
        "locks",
        "checkpoints",
        "caption_settings",
        "configuration_sizes",
        "converted_field",
        "hub",
        "model_card",
        "model_kinds",
        "ray_pool",
        "remote_code",
    ),
    (
        "cjk",
        "objectives",
        "pair_scores",
        "configuration_blip",
        "image_arrays",
        "image_files",
        "image_utils",
        "image_processing_blip",
        "processing_blip",
    ),
    ("modeling", "data"),
    ("training", "evaluation", "conversion", "captioner", "explanation", "ray_captioner", "auto", "planning"),
    ("tasks",),
    ("bootstrap", "capfilt", "demo", "export", "pages", "serving"),
    ("search",),
    ("app",),
    ("cli", "__main__"),
)
# The libraries that restricted parts may import, besides the standard library.
LIBRARIES = {
    "objectives": {"torch"},
    "pair_scores": {"torch", "numpy"},
    "evaluation.recall": {"torch", "numpy"},
    "modeling": {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "openvino", "onnxruntime"},
}


def module_name(path: Path) -> str:
    """Maps `src/blip_hf/data/scenes.py` to `data.scenes`, and the package itself to the empty string."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported_names(module: str, source: str, *, is_package: bool) -> set[str]:
    """Returns the absolute dotted names that `source` imports; `from a import b` gives `a.b`."""
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


@functools.cache
def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return imported_names(module, path.read_text(), is_package=path.stem == "__init__")


def own_imports_of(module: str) -> set[str]:
    """Returns the modules of the package that `module` imports, without the package itself."""
    own = {
        name.removeprefix("blip_hf").removeprefix(".") for name in imports_of(module) if top_level(name) == "blip_hf"
    }
    # The last part is a module or a name in one.
    return {name if name in MODULES else name.rpartition(".")[0] for name in own} - {module, ""}


def top_level(name: str) -> str:
    return name.split(".")[0]


def is_in(module: str, part: str) -> bool:
    return f"{module}.".startswith(f"{part}.")


def layer_of(module: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) for part in layer if is_in(module, part)), None)


def own_imports() -> Iterator[tuple[str, str]]:
    """Yields each import inside the package as (importing module, imported module); its `__init__` may import all."""
    for module in MODULES:
        for name in sorted(own_imports_of(module)) if module else ():
            yield module, name


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


def test_constraints_pin_the_core_and_all_extras() -> None:
    extras = read_setup_cfg()["options.extras_require"].values()
    wanted = CORE | {requirement_name(line) for extra in extras for line in extra.split()}
    pinned = {requirement_name(line) for line in constraints()}
    assert wanted - pinned - {"blip-hf", "pre-commit"} == set()


def test_the_tests_have_all_optional_packages_that_the_package_uses() -> None:
    extras = read_setup_cfg()["options.extras_require"]
    (nested,) = re.findall(r"blip_hf\[(.*)\]", extras["test"])
    assert set(extras) - {"examples", "report", "test", "dev"} == set(nested.split(","))
    assert "blip_hf[report]" in extras["demo"].split()


def test_the_readme_lists_all_extras() -> None:
    table = (ROOT / "README.md").read_text().partition("| extra | for |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert listed == set(read_setup_cfg()["options.extras_require"])


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    revision = re.search(r"ruff-pre-commit\n\s+rev: v(\S+)", hooks)[1]
    assert f"ruff=={revision}" in constraints()


def test_workflows_pin_actions_by_commit() -> None:
    workflows = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    actions = re.findall(r"uses: (\S+)", workflows)
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


def test_ci_runs_make_test() -> None:
    assert "      - run: .ci/run\n" in (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


def test_importing_the_package_imports_no_heavy_library() -> None:
    loaded = run_code("import sys, blip_hf; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert "blip_hf" in loaded
    assert {"torch", "transformers", "numpy", "PIL", "datasets"} & set(loaded) == set()


def check_auto_classes() -> None:
    for name in blip_hf.__all__:
        getattr(blip_hf, name)
    config = transformers.CONFIG_MAPPING["blip"]
    assert config is transformers.BlipConfig, config
    model = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[config]
    assert model is transformers.BlipForConditionalGeneration, model
    assert "blip_pretraining" not in transformers.CONFIG_MAPPING


def test_using_the_package_does_not_change_the_auto_classes() -> None:
    run_apart(check_auto_classes)  # apart from tests that register


def test_no_module_imports_torchvision() -> None:
    imports = [(module, name) for module in MODULES for name in imports_of(module)]
    assert [pair for pair in imports if top_level(pair[1]) == "torchvision"] == []


def test_each_module_has_a_layer_and_each_layer_modules() -> None:
    assert [module for module in MODULES if module and layer_of(module) is None] == []
    assert [part for layer in LAYERS for part in layer if part not in MODULES] == []


def test_imports_point_down() -> None:
    assert [(module, name) for module, name in own_imports() if layer_of(name) > layer_of(module)] == []


def test_modules_have_no_circular_imports() -> None:
    parts: dict[str, set[str]] = {}
    for module, name in own_imports():
        parts.setdefault(top_level(module), set()).add(top_level(name))
    graph = {part: imported - {part} for part, imported in parts.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_modules_import_from_where_a_name_is_defined() -> None:
    # A name imported from `blip_hf` itself would hide its layer.
    modules = {f"blip_hf.{name}" for name in MODULES} | {"blip_hf.__version__"}
    imports = [(module, name) for module in MODULES if module for name in imports_of(module)]
    assert [pair for pair in imports if re.fullmatch(r"blip_hf(\.\w+)?", pair[1]) and pair[1] not in modules] == []


@pytest.mark.parametrize("part", LIBRARIES)
def test_narrow_parts_import_only_their_libraries(part: str) -> None:
    imported = {top_level(name) for module in MODULES if is_in(module, part) for name in imports_of(module)}
    assert imported - sys.stdlib_module_names - {"blip_hf"} - LIBRARIES[part] == set()


def test_models_import_no_data_and_no_processor() -> None:
    imports = [(module, name) for module, name in own_imports() if is_in(module, "modeling")]
    assert imports
    above = {"data", "image_utils", "processing_blip", "image_processing_blip"}
    assert [pair for pair in imports if top_level(pair[1]) in above] == []


def test_no_test_imports_a_test_module() -> None:
    imports = [
        (path.relative_to(TESTS).as_posix(), name)
        for path in sorted(TESTS.rglob("*.py"))
        for name in imported_names("", path.read_text(), is_package=True)
    ]
    assert ("conftest.py", "tests.support.paths.DATA") in imports
    assert [pair for pair in imports if re.match(r"tests\.(?:(?!support)\w+\.)*test_", pair[1])] == []


def test_folders_of_tests_are_those_of_the_package() -> None:
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - {
        Path("integration"),
        Path("faults"),
    }
    assert {folder.as_posix() for folder in folders if not (SOURCE / folder).is_dir()} == set()


def test_relative_and_absolute_imports_are_both_resolved() -> None:
    names = imported_names(
        "data.videos", "from . import text\nfrom ..cli import main\nimport blip_hf.demo", is_package=False
    )
    assert names == {"blip_hf.data.text", "blip_hf.cli.main", "blip_hf.demo"}


def test_type_checkers_see_the_exported_names() -> None:
    seen = {
        alias.asname: f"blip_hf.{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(MODULES[""].read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert seen.keys() == set(blip_hf.__all__) - {"__version__"}
    assert [name for name, place in seen.items() if pkgutil.resolve_name(place) is not getattr(blip_hf, name)] == []
