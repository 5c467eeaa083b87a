"""The command line end to end, in a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
FAST = ("--only", "attention/attention/scenario/causal_br", "--examples", "3", "--jobs", "1")

RIGHT = """
import numpy as np
CONVENTIONS = {}
def attention(q, k, v, *, causal=False, align="top_left", scale=None):
    b, h, sq, d = q.shape
    k, v = (np.repeat(x, h // x.shape[1], axis=1) for x in (k, v))
    s = q @ np.swapaxes(k, -1, -2) * q.dtype.type(SCALE)
    if causal:
        offset = OFFSET
        s = np.where(np.arange(k.shape[2]) <= np.arange(sq)[:, None] + offset, s, -np.inf)
    m = np.max(s, axis=-1, keepdims=True)
    e = np.exp(s - np.where(np.isfinite(m), m, 0))
    l = e.sum(axis=-1, keepdims=True)
    return (e @ v / np.where(l > 0, l, 1)).astype(q.dtype)
"""


def refattn(*arguments, cwd=None):
    command = [sys.executable, "-m", "refattn", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd or ROOT, env=environment)


def kernel(
    folder,
    scale="(scale if scale is not None else d ** -0.5)",
    offset="(k.shape[2] - sq) if align == 'bottom_right' else 0",
):
    path = folder / "kernel.py"
    path.write_text(RIGHT.replace("SCALE", scale).replace("OFFSET", offset))
    return path


def test_list_names_every_mechanism_with_what_it_has():
    """``list --json`` gives the laws, bugs, goldens and backends of each mechanism."""
    done = refattn("list", "--json")
    rows = {row["mechanism"]: row for row in json.loads(done.stdout)}

    assert done.returncode == 0
    assert {"attention", "rat", "biformer", "tc_llava"} <= set(rows)
    for row in rows.values():
        assert all(row[kind] for kind in ("laws", "bugs", "goldens"))
        assert "portable:numpy" in row["backends"]


def test_list_is_a_table_for_people():
    """``list`` prints a line for each mechanism within 100 columns."""
    lines = refattn("list").stdout.splitlines()

    assert any(line.startswith("attention") for line in lines)
    assert max(map(len, lines)) <= 100


def test_a_right_kernel_passes(tmp_path):
    """A correct third-party kernel passes with exit code 0, and leaves no replay files."""
    done = refattn("check", kernel(tmp_path), *FAST, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
    assert not (tmp_path / "refattn-replay").exists()


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [({"offset": "0"}, "causal_top_left"), ({"scale": "1.0"}, "no_scale"), ({"scale": "1.0 / d"}, "scale_inv_d")],
)
def test_a_wrong_kernel_fails_and_the_mistake_is_named(tmp_path, changes, mistake):
    """A planted mistake in a third-party kernel gives exit code 1, its name, and a replay that fails again."""
    done = refattn("check", kernel(tmp_path, **changes), *FAST, cwd=tmp_path)

    assert done.returncode == 1
    assert f"matches planted bug: {mistake}" in done.stdout
    replay = next((tmp_path / "refattn-replay").glob("*.npz"))
    assert refattn("replay", replay, cwd=tmp_path).returncode == 1
    assert refattn("replay", replay, "--backend", kernel(tmp_path), cwd=tmp_path).returncode == 0


def test_json_junit_and_markdown_agree(tmp_path):
    """The three reports of one run count the same checks."""
    done = refattn("check", kernel(tmp_path), *FAST, "--json", "--junit", "a.xml", "--markdown", "a.md", cwd=tmp_path)
    content = json.loads(done.stdout)

    assert len(content["records"]) == int(ET.parse(tmp_path / "a.xml").getroot().attrib["tests"])
    assert (tmp_path / "a.md").read_text().startswith("| backend |")


def test_expected_failures_are_counted_and_strict(tmp_path):
    """A listed failure gives exit code 0; an entry that matches nothing gives 1."""
    path = kernel(tmp_path, offset="0")
    (tmp_path / "expected.toml").write_text("[expected]\n'*/causal_br@*' = 'top-left only, issue 7'\n")
    listed = refattn("check", path, *FAST, "--expected-failures", "expected.toml", cwd=tmp_path)
    stale = refattn("check", kernel(tmp_path), *FAST, "--expected-failures", "expected.toml", cwd=tmp_path)

    assert listed.returncode == 0, listed.stdout
    assert "expected" in listed.stdout
    assert stale.returncode == 1
    assert "matches no failing check" in stale.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--only", "no_such_mechanism"),
        ("check", "--dtype", "float8"),
        ("check", "--examples", "0"),
        ("check", "--expected-failures", "no-such-file.toml"),
        ("replay", "no-such-file.npz"),
        ("golden", "export"),
        ("show", "no_such_name"),
        ("audit", "--only", "no_such_mechanism"),
        ("no-such-command",),
        (),
    ],
)
def test_misuse_gives_exit_code_2_and_a_reason(arguments):
    """What makes no sense is refused on standard error, without a traceback."""
    done = refattn(*arguments)

    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_a_backend_without_anything_asked_for_is_no_success(tmp_path):
    """A backend that offers nothing gives exit code 1, not silence."""
    (tmp_path / "empty.py").write_text("")
    done = refattn("check", tmp_path / "empty.py", *FAST)

    assert done.returncode == 1
    assert "offers nothing" in done.stderr


def test_several_backends_are_checked_in_one_run(tmp_path):
    """One that cannot be imported is reported in its row, and the others are checked."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('no device')")
    done = refattn("check", tmp_path / "broken.py", kernel(tmp_path), *FAST)

    assert done.returncode == 1
    assert "cannot be loaded: RuntimeError: no device" in done.stdout
    assert "2 passed" in done.stdout


def test_one_flipped_bit_fails_the_verification(tmp_path):
    """Exported vectors verify; with one bit flipped they do not."""
    assert refattn("golden", "export", tmp_path, "--only", "tc_llava").returncode == 0
    assert refattn("golden", "verify", tmp_path, "--only", "tc_llava").returncode == 0
    content = bytearray((tmp_path / "tc_llava.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "tc_llava.npz").write_bytes(bytes(content))

    assert refattn("golden", "verify", tmp_path, "--only", "tc_llava").returncode == 1


def test_show_explains_a_bug_with_its_source():
    """``show`` prints what a planted bug is, the right way, and the lines that hold the mistake."""
    done = refattn("show", "gqa_tile")

    assert done.returncode == 0
    assert "def " in done.stdout
    assert "h % Hkv" in done.stdout


def test_the_pytest_plugin_turns_checks_into_tests(tmp_path):
    """``pytest --refattn-backend`` gives a test for each check, and its failures show the report."""
    path = kernel(tmp_path, offset="0")
    load = [] if _plugin_is_installed() else ["-p", "refattn.conformance.pytest_plugin"]
    options = ["--refattn-backend", str(path), "--refattn-only", FAST[1], "--refattn-dtype", "float64"]
    command = [sys.executable, "-m", "pytest", *load, "-p", "no:cacheprovider", *options, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    assert "1 failed" in done.stdout, done.stdout + done.stderr
    assert "matches planted bug: causal_top_left" in done.stdout


def _plugin_is_installed():
    from importlib.metadata import entry_points

    return any(point.name == "refattn" for point in entry_points(group="pytest11"))


@TORCH
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_real_kernel_passes(dtype):
    """PyTorch's own attention passes through its ten-line adapter."""
    done = refattn(
        "check",
        ROOT / "examples/adapters/torch_sdpa.py",
        "--only",
        "attention/attention",
        "--dtype",
        dtype,
        "--examples",
        "5",
    )

    assert done.returncode == 0, done.stdout[-3000:]


@TORCH
@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [("return ", "return 0 * ", "zeros")],
)
def test_a_broken_copy_of_a_real_kernel_fails(tmp_path, old, new, mistake):
    """A copy of the adapter that returns zeros fails, and the mistake is named."""
    text = (ROOT / "examples/adapters/torch_sdpa.py").read_text()
    head, _, tail = text.rpartition(old)
    (tmp_path / "altered.py").write_text(head + new + tail)
    done = refattn(
        "check",
        tmp_path / "altered.py",
        "--only",
        "attention/attention/scenario/gqa",
        "--dtype",
        "float64",
        cwd=tmp_path,
    )

    assert done.returncode == 1
    assert mistake in done.stdout
