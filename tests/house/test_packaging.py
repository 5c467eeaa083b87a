"""The wheel: complete, light, and working where nothing else is installed."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built in isolation from it."""
    pytest.importorskip("build", reason="the build front end is not installed")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_vectors_and_the_types(wheel):
    """Vectors, schema, inventory and the marker of types travel with both packages; tests and docs stay at home."""
    names = zipfile.ZipFile(wheel).namelist()

    assert {"refattn/py.typed", "refattn/golden/schema.json", "refattn/golden/attention.npz"} <= set(names)
    assert "refattn/contracts/inventory.json" in names
    assert all(name.startswith(("refattn", "theory/")) for name in names)


def test_the_wheel_works_from_elsewhere(wheel, tmp_path):
    """Installed without the checkout, the command lists the mechanisms and checks one of them."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "borrowed.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments):
        command = [str(python), "-m", "refattn", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    where = [str(python), "-c", "import refattn; print(refattn.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert found.stdout.startswith(str(site))
    assert run("golden", "verify").returncode == 0
    done = run("check", "--only", "rat/gated_scan", "--examples", "5", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
