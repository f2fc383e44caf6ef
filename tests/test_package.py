"""The package that users install."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, **options: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stdout + result.stderr
    return str(result.stdout)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and what it depends on, nothing more."""
    place = tmp_path_factory.mktemp("package")
    # Built from a copy of what git tracks, so that nothing lying around gets in.
    source = place / "source"
    run("git", "clone", "-q", CHECKOUT, source)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", place, source)
    (wheel,) = place.glob("*.whl")
    venv.create(place / "venv", with_pip=True)
    python = place / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    return python


def test_it_installs_and_imports_with_pyudev_alone(python: Path) -> None:
    packages = json.loads(run(python, "-m", "pip", "list", "--format", "json"))
    names = {package["name"] for package in packages}
    assert names <= {"pyvfio", "pyudev", "pip", "setuptools", "wheel"}
    run(
        python,
        "-c",
        "import pyvfio, pyvfio.device, pyvfio.pci, pyvfio.iommu, pyvfio.drivers.edu, pyvfio.cli;"
        "[getattr(pyvfio, name) for name in pyvfio.__all__]",
    )


def test_it_is_typed(python: Path) -> None:
    package = Path(run(python, "-c", "import pyvfio; print(pyvfio.__path__[0])").strip())
    assert (package / "py.typed").exists()


def test_the_command_works_and_says_where_the_rest_is(python: Path) -> None:
    command = python.parent / "pyvfio"
    assert json.loads(run(command, "list", "--json")) is not None
    text = run(command, "--help")
    assert "tools/hwtest" in text
    assert "tools/bench" in text


def test_what_needs_the_terminal_library_says_how_to_get_it(python: Path) -> None:
    result = subprocess.run([python.parent / "pyvfio", "list"], capture_output=True, text=True)
    assert result.returncode == 4
    assert "pip install 'pyvfio[cli]'" in result.stderr
