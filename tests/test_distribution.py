"""What `pip install kshot` brings: the wheel holds each file of the package, and works where nothing else is."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path
from shutil import copy2

import pytest

pytest.importorskip("setuptools", "77", reason="setuptools 77 or newer is not installed")

ROOT = Path(__file__).resolve().parents[1]
NOT_IN_THE_SDIST = (".ci/", ".gitignore")
MADE = ("PKG-INFO", "setup.cfg", "kshot.egg-info/")
"""What setuptools adds to an sdist."""


def call(*words: str | Path, folder: Path) -> str:
    """Run a command outside of this checkout; AssertionError with its output if it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository, new ones that git would add included."""
    if not (ROOT / ".git").exists():
        pytest.skip("these files are no checkout of git")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file() and not (ROOT / name).is_symlink())


@pytest.fixture(scope="module")
def checkout(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    call(sys.executable, "-c", build, folder=checkout)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sdist, as `pip install` makes it."""
    folder, unpacked = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    call(sys.executable, "-c", build, folder=next(unpacked.iterdir()))
    (path,) = folder.iterdir()
    return path


def test_the_sdist_holds_the_repository(sdist, tracked):
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    assert sorted(name for name in names if not name.startswith(MADE)) == [
        name for name in tracked if not name.startswith(NOT_IN_THE_SDIST)
    ]


def test_the_wheel_holds_the_package_and_nothing_else(wheel, tracked):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"kshot/py.typed", "kshot/__init__.pyi", "kshot/app/recipes/sinusoid.yaml"} <= set(names)
    assert sorted(name for name in names if ".dist-info/" not in name) == [
        name for name in tracked if name.startswith("kshot/")
    ]


def test_the_metadata_say_what_the_project_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
        assert path.replace("METADATA", "licenses/LICENSE") in archive.namelist()
        commands = archive.read(path.replace("METADATA", "entry_points.txt")).decode().split("\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "kshot = kshot.app.cli:main" in commands
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata.get_payload().startswith("# kshot\n")
    citation = (ROOT / "CITATION.cff").read_text().split("\n")
    assert f"version: {metadata['Version']}" in citation


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a new environment that has kshot and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    call(*install(programs), "--no-compile", wheel, folder=folder)
    return programs


def install(programs: Path) -> Sequence[str | Path]:
    return [programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]


@pytest.mark.slow
def test_sdist_and_wheel_build_in_isolation(checkout, wheel, tracked, tmp_path):
    pytest.importorskip("build", reason="build is not installed")
    call(sys.executable, "-m", "build", "--outdir", tmp_path, folder=checkout)  # the wheel from the sdist
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        wheel.name,
        wheel.name.replace("-py3-none-any.whl", ".tar.gz"),
    ]
    isolated = zipfile.ZipFile(tmp_path / wheel.name).namelist()
    assert sorted(isolated) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_a_clean_environment_runs_the_first_recipe(installed, tmp_path):
    kshot = installed / "kshot"
    assert "sinusoid" in call(kshot, "recipes", folder=tmp_path)
    assert "met" in call(kshot, "run", "sinusoid", "--out", tmp_path / "run", folder=tmp_path)
    assert (tmp_path / "run" / "report.html").exists()
    assert call(kshot, "doctor", tmp_path / "run", folder=tmp_path)
    where = call(installed / "python", "-c", "import kshot; print(kshot.__file__)", folder=tmp_path)
    assert not Path(where).is_relative_to(ROOT)


@pytest.mark.slow
def test_the_extras_resolve(installed, wheel, tmp_path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    call(*install(installed), "--dry-run", f"{wheel}[{','.join(extras)}]", folder=tmp_path)
