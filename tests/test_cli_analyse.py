"""The readings on planted checkpoints, from the command line: what was planted is found, and nothing else."""

import json

import pytest
from test_cli import refattn

TEXT = (0, 5, 6, 1, 7, 8, 2, 9, 4, 3, 5, 6, 7, 8, 9, 10, 11, 4, 5, 6)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a function: the name of a planted model to the folder of its checkpoint."""
    root = tmp_path_factory.mktemp("planted")

    def folder(name):
        path = root / name
        if not path.exists():
            done = refattn("model", "plant", name, path)
            assert done.returncode == 0, done.stderr
        return path

    return folder


def analysed(*arguments):
    done = refattn("analyse", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sinks_finds_the_planted_tokens_layers_and_head(planted, tmp_path):
    """The primary sink, two secondary ones and a short-lived one are found where they were planted, and no other."""
    rows = analysed("sinks", planted("sinks"), "--ids", *TEXT, "--out", tmp_path / "sinks.png")

    assert [(row["token"], row["layers"], row["label"]) for row in rows] == [
        (0, "2-30", "bos_sink"),
        (1, "8-15", "secondary"),
        (2, "8-21", "secondary"),
        (3, "14-15", "noise"),
    ]
    assert {row["head"].split(".")[1] for row in rows} == {"0"}
    assert (tmp_path / "sinks.png").stat().st_size > 1000


def test_retrieval_finds_the_planted_head(planted):
    """The copying head scores 1; the head that looks like it without writing is the only other above the threshold."""
    rows = analysed("retrieval", planted("retrieval"), "--length", 64)

    assert (rows[0]["layer"], rows[0]["head"], rows[0]["score"]) == (1, 0, 1.0)
    assert [(row["layer"], row["head"]) for row in rows if row["retrieval"]] == [(1, 0), (1, 1)]


def test_channels_finds_the_planted_component(planted):
    """One component stands out, with the head and the receiver that it was planted between."""
    rows = analysed("channels", planted("channel"))

    assert [(row["mode"], row["component"], row["reader"]) for row in rows] == [("Q", "0.1.7", "2.3")]


@pytest.mark.parametrize(
    ("task", "heads"), [("ioi", {"0.0", "1.0", "2.0", "2.1"}), ("colored_objects", {"0.0", "1.1", "2.0", "2.1"})]
)
def test_circuit_finds_the_planted_heads(planted, task, heads):
    """Path patching through three stages finds the heads of the task and no decoy."""
    folder = planted("lists")
    rows = analysed("circuit", folder, folder / f"{task}.json", "--threshold", 0.05)

    assert {row["head"] for row in rows} == heads


def test_tables_are_for_people(planted):
    """Without ``--json`` the rows are aligned columns under their names."""
    lines = refattn("analyse", "sinks", planted("sinks"), "--ids", *TEXT).stdout.splitlines()

    assert lines[0].split() == ["position", "token", "label", "layers", "lifetime", "head", "score"]
    assert len(lines) == 5


def test_misuse_is_named(planted, tmp_path):
    """A prompt file that is not there exits with 2 and a line."""
    done = refattn("analyse", "circuit", planted("lists"), tmp_path / "none.json")

    assert done.returncode == 2
    assert "there is no file none.json" in done.stderr
