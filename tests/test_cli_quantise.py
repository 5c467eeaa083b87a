"""The command ``refattn quantise``, from checkpoint to checkpoint."""

import json
import os
import subprocess
import sys

import pytest
from random_models import model, tokens
from test_cli import ROOT, refattn

from refattn.cli import main
from refattn.transformer.checkpoint import load_pretrained, save_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a saved checkpoint with token ids beside it: ids.txt, short.txt, empty.txt."""
    path = tmp_path_factory.mktemp("llama")
    save_pretrained(model("llama"), path)
    for name, count in (("ids", 300), ("short", 5), ("empty", 0)):
        (path / f"{name}.txt").write_text(" ".join(map(str, tokens(count))), encoding="utf-8")
    return path


def quantised(folder, out, *arguments):
    command = ("quantise", folder, "--ids", folder / "ids.txt", "--length", 10, "--out", out, *arguments)
    done = refattn(*command)
    assert done.returncode == 0, done.stderr
    return done


def test_table_of_losses_and_a_checkpoint(folder, tmp_path):
    """Without a terminal there is no bar, only a table: a line for each matrix, the drift after each block."""
    done = quantised(folder, tmp_path / "out", "--bits", 2)
    lines = done.stdout.splitlines()

    assert done.stderr == ""
    assert lines[0].split() == ["layer", "matrix", "rows", "columns", "loss", "error", "drift"]
    assert [line.split()[1] for line in lines[1:8]] == ["W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out"]
    assert [len(line.split()) for line in lines[1:15]] == 2 * [6, 6, 6, 6, 6, 6, 7]
    assert lines[-1].startswith(f"wrote {tmp_path / 'out'}: config.json, model.safetensors, quantised.safetensors")
    assert load_pretrained(tmp_path / "out").config == model("llama").config
    again = refattn("quantise", tmp_path / "out", "--bits", 2, "--ids", folder / "ids.txt", "--out", tmp_path / "two")
    assert again.returncode == 2
    assert "is already quantised: its config.json has refattn_quantisation" in again.stderr


def test_json_says_how_and_at_what_cost(folder, tmp_path):
    """The recipe stands in the output and in the checkpoint, losses are numbers."""
    options = ("--bits", 4, "--method", "gptq", "--sequences", 7, "--seed", 3, "--grid", "mmse", "--dtype", "float32")
    values = json.loads(quantised(folder, tmp_path, *options, "--json").stdout)
    recipe = values["recipe"]

    assert {name: recipe[name] for name in ("bits", "method", "grid", "sequences", "length", "seed")} == {
        "bits": 4,
        "method": "gptq",
        "grid": "mmse",
        "sequences": 7,
        "length": 10,
        "seed": 3,
    }
    assert json.loads((tmp_path / "config.json").read_text())["refattn_quantisation"] == recipe
    assert all(0 < row["error"] < 1 for row in values["losses"])
    assert len(values["drift"]) == 2


def test_a_terminal_shows_how_far_it_is(folder, tmp_path):
    """On a terminal a bar counts the matrices."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))  # a bar of no columns is not drawn
    command = ["quantise", folder, "--bits", "2", "--ids", folder / "ids.txt", "--length", "10", "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "refattn", *map(str, command)],
        stderr=terminal,
        stdout=subprocess.DEVNULL,
        check=False,
        cwd=ROOT,
    )
    shown = os.read(screen, 100_000).decode()

    assert done.returncode == 0
    assert "0/14" in shown
    assert "matrix" in shown


def test_text_goes_through_the_tokenizer(folder, tmp_path):
    """With tokenizer.json, which goes along, calibration is text; an empty one is refused."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    source = tmp_path / "source"
    save_pretrained(model("llama"), source)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate("abcdefgh")}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 5, encoding="utf-8")
    command = ["quantise", source, "--bits", 4, "--calibration", text, "--length", 8, "--out", tmp_path / "out"]

    assert main(list(map(str, command))) == 0
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
    text.write_text(" \n", encoding="utf-8")
    assert main(list(map(str, [*command[:-1], tmp_path / "other"]))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "0", "--ids", "ids.txt"], "bits=0 must be an integer in 1..16"),
        (["--bits", "2", "--method", "awq", "--ids", "ids.txt"], "method='awq' is not one of 'rtn', 'gptq'"),
        (["--bits", "2", "--grid", "fine", "--ids", "ids.txt"], "grid='fine' is not one of"),
        (["--bits", "2", "--ids", "none.txt"], "none.txt': there is no such file"),
        (["--bits", "2", "--ids", "empty.txt"], "calibration is empty: it has 0 tokens"),
        (["--bits", "2", "--ids", "short.txt"], "has 5 tokens, expected at least one sequence of length=32"),
        (["--bits", "2", "--ids", "ids.txt", "--sequences", "0"], "sequences=0 must be at least 1"),
        (["--bits", "2", "--calibration", "ids.txt"], "has no tokenizer.json; give token ids"),
        (["--bits", "2", "--calibration", "none.txt"], "there is no such file"),
        (["--bits", "2", "--ids", "ids.txt", "--out", "."], "is not empty: name a folder to be made"),
    ],
)
def test_misuse_is_named(folder, tmp_path, monkeypatch, capsys, arguments, message):
    """Bad input prints one line, exits with 2 and writes nothing."""
    monkeypatch.chdir(folder)
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]

    assert main(["quantise", str(folder), *arguments, *out]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
