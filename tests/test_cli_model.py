"""The commands on checkpoints, in a process of their own."""

import json

import numpy as np
import pytest
from random_models import model, tokens
from test_cli import refattn

from refattn.transformer.checkpoint import save_pretrained
from refattn.transformer.generation import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a saved checkpoint."""
    path = tmp_path_factory.mktemp("llama")
    save_pretrained(model("llama"), path)
    return path


def test_info_says_what_a_checkpoint_is(folder):
    """Family, sizes and the number of parameters stand in the table and in JSON."""
    done = refattn("model", "info", folder, "--json")
    values = json.loads(done.stdout)

    assert (values["family"], values["layers"], values["kv heads"]) == ("llama", 2, 2)
    assert values["parameters"] == sum(t.size for t in weights(model("llama").weights))
    assert "parameters:" in refattn("model", "info", folder).stdout


def weights(tree):
    for value in tree:
        if isinstance(value, tuple):
            yield from weights(value)
        elif value is not None and np.any(value):
            yield value


@pytest.mark.parametrize("cache", [[], ["--no-cache"]])
def test_generate_prints_the_tokens(folder, cache):
    """Greedy continuation is that of the library, with the cache and without."""
    ids = tokens((1, 5))
    done = refattn("model", "generate", folder, "--ids", *ids[0], "--new", 7, "--json", *cache)

    assert json.loads(done.stdout)["new"] == generate(model("llama"), ids, 7)[0, 5:].tolist()


def test_generate_draws_by_its_seed(folder):
    """The same seed prints the same tokens."""
    command = ("model", "generate", folder, "--ids", 1, 2, "--temperature", 3, "--top-k", 20, "--top-p", 0.99)
    first, again, other = (refattn(*command, "--seed", seed).stdout for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_attention_draws_a_figure(folder, tmp_path):
    """The figure is written, and the line says where the last token looks."""
    out = tmp_path / "a.png"
    done = refattn("model", "attention", folder, "--ids", 3, 1, 4, "--layer", 1, "--head", 2, "--out", out)

    assert out.stat().st_size > 1000
    assert "1.2->" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "FOLDER", "--ids", "99"], "token id 99 outside vocabulary of 29"),
        (["generate", "FOLDER", "--text", "hello"], "has no tokenizer.json; give token ids"),
        (["info", "nowhere"], "path='nowhere' is no folder"),
        (["attention", "FOLDER", "--ids", "1", "--layer", "5"], "layer=5 must lie in 0..1"),
        (["attention", "FOLDER", "--ids", "1", "--head", "5"], "head=5 must lie in 0..3"),
    ],
)
def test_misuse_is_named(folder, arguments, message):
    """Bad input prints one line and exits with 2."""
    done = refattn("model", *[str(folder) if a == "FOLDER" else a for a in arguments])

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
