"""The package that users install."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    # Nothing of the checkout may be found but what is in the wheel.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and what it depends on, nothing more."""
    place = tmp_path_factory.mktemp("package")
    # Built from a copy, since building leaves things behind.
    source = place / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(
        CHECKOUT / "pyvfio", source / "pyvfio", ignore=shutil.ignore_patterns("__pycache__")
    )
    run(sys.executable, "-m", "build", "--wheel", "--outdir", place, source, cwd=place)
    (wheel,) = place.glob("*.whl")
    venv.create(place / "venv", with_pip=True)
    python = place / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, cwd=place)
    where = run(python, "-c", "import pyvfio; print(pyvfio.__file__)", cwd=place)
    assert Path(where.strip()).is_relative_to(place)
    return python


def test_it_installs_and_imports_with_pyudev_alone(python: Path) -> None:
    packages = json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=python.parent))
    names = {package["name"] for package in packages}
    assert names <= {"pyvfio", "pyudev", "pip", "setuptools", "wheel"}
    run(
        python,
        "-c",
        "import pyvfio, pyvfio.device, pyvfio.pci, pyvfio.iommu, pyvfio.drivers.edu, pyvfio.cli;"
        "[getattr(pyvfio, name) for name in pyvfio.__all__]",
        cwd=python.parent,
    )


def test_it_is_typed(python: Path) -> None:
    code = "import pyvfio; print(pyvfio.__path__[0])"
    package = Path(run(python, "-c", code, cwd=python.parent).strip())
    assert (package / "py.typed").exists()


def test_the_command_works_and_says_where_the_rest_is(python: Path) -> None:
    command = python.parent / "pyvfio"
    assert json.loads(run(command, "list", "--json", cwd=python.parent)) is not None
    text = run(command, "--help", cwd=python.parent)
    assert "tools/hwtest" in text
    assert "tools/bench" in text


def test_what_needs_the_terminal_library_says_how_to_get_it(python: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python.parent / "pyvfio"), "list"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 4
    assert "pip install 'pyvfio[cli]'" in result.stderr
