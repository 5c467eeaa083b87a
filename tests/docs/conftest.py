"""The built site, made once for all tests of a run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return the folder of the site, built by ``mkdocs build --strict`` unless ``REFATTN_SITE`` names a built one."""
    if os.environ.get("REFATTN_SITE"):
        return Path(os.environ["REFATTN_SITE"]).resolve()
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, log = shared / "site", shared / "site.log"
    try:
        (shared / "site.lock").mkdir()
    except FileExistsError:
        wait_for(log)
    else:
        build(folder, log)
    text = log.read_text(encoding="utf-8")
    assert text.startswith("0\n"), f"mkdocs build --strict failed:\n{text[-3000:]}"
    return folder


def build(folder: Path, log: Path) -> None:
    """Build the site; the log begins with the exit code."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    part = log.with_suffix(".part")
    part.write_text(f"{done.returncode}\n{done.stdout}{done.stderr}", encoding="utf-8")
    part.rename(log)


def wait_for(log: Path) -> None:
    """Wait until another worker has built the site."""
    deadline = time.monotonic() + PATIENCE
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
