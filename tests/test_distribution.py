# SPDX-License-Identifier: BSD-3-Clause
"""`python -m build`: the wheel has all files of the package, and runs where nothing else of it is installed."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import blip_hf
from tests.support.paths import ROOT


pytestmark = pytest.mark.slow


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, which is built from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation, which would download setuptools.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_distributions_have_all_files_of_the_package(distributions: tuple[Path, Path]) -> None:
    wheel, sdist = distributions
    package = ROOT / "src" / "blip_hf"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted = {f"blip_hf/{path.relative_to(package).as_posix()}" for path in files}
    assert {"blip_hf/py.typed", "blip_hf/templates/model_card.md.jinja"} <= wanted
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()
    root = f"blip_hf-{blip_hf.__version__}"
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
    assert {f"{root}/src/{name}" for name in wanted} | {f"{root}/LICENSE", f"{root}/README.md"} <= names


def test_the_wheel_runs_the_demo_in_an_empty_environment(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, _ = distributions
    run(sys.executable, "-m", "venv", "env", cwd=tmp_path)
    binaries = tmp_path / "env" / "bin"
    run(binaries / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=tmp_path)
    # The dependencies are those of this environment; its own blip_hf is an editable install, which this does not add.
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    place = run(binaries / "python", "-c", "import blip_hf; print(blip_hf.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(tmp_path)
    assert run(binaries / "blip-hf", "--version", cwd=tmp_path) == f"blip-hf {blip_hf.__version__}\n"
    assert "--steps" in run(binaries / "blip-hf", "demo", "--help", cwd=tmp_path)
    run(binaries / "blip-hf", "demo", "--steps", "2", "--num_scenes", "64", "--output_dir", "demo", cwd=tmp_path)
    assert {"index.html", "README.md", "captioner"} <= {path.name for path in (tmp_path / "demo").iterdir()}
