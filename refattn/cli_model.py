"""The command line of checkpoints: ``refattn model info | generate | attention | plant PATH``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from refattn.transformer.weights import Transformer

    Command = Callable[[argparse.Namespace], int]

__all__ = ["add_model_commands", "add_path", "add_prompt", "load", "prompt_ids"]


def add_model_commands(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands; ``add(name, command, text)`` makes a parser that knows ``--json``."""
    info = add("info", _info, "say what a checkpoint is: family, sizes, parameters")
    add_path(info)
    generate = add("generate", _generate, "continue a prompt, greedy or drawn")
    add_path(generate)
    add_prompt(generate)
    generate.add_argument("--new", type=int, default=32, metavar="N", help="tokens to add at most (32)")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw among the K most likely")
    generate.add_argument("--top-p", type=float, metavar="P", help="draw among the fewest that sum to P")
    generate.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    generate.add_argument("--stop", type=int, action="append", default=[], metavar="ID", help="end here (repeatable)")
    generate.add_argument("--no-cache", action="store_true", help="run the whole sequence at every step")
    plant = add("plant", _plant, "write a model built by hand, whose truth is known, as a checkpoint")
    plant.add_argument("name", choices=tuple(_PLANTS), help="what is planted")
    plant.add_argument("path", type=Path, help="the folder to write")
    attention = add("attention", _attention, "draw the attention of a prompt")
    add_path(attention)
    add_prompt(attention)
    attention.add_argument("--layer", type=int, default=0, help="which layer (0)")
    attention.add_argument("--head", type=int, action="append", default=[], help="which heads (repeatable); all")
    attention.add_argument("--out", type=Path, default=Path("attention.png"), help="the figure (attention.png)")


def add_path(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and the dtype to compute in."""
    parser.add_argument("path", type=Path, help="a folder with config.json and safetensors")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="compute in (float64)")


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """Add the two ways to give a prompt."""
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--ids", type=int, nargs="+", metavar="ID", help="token ids")
    prompt.add_argument("--text", help="text, for a checkpoint with tokenizer.json")


def load(options: argparse.Namespace) -> Transformer:
    """Load the checkpoint that was named."""
    from refattn.transformer.checkpoint import load_pretrained

    require(options.path.is_dir(), f"path={str(options.path)!r} is no folder")
    return load_pretrained(options.path, dtype=np.dtype(options.dtype))


def prompt_ids(options: argparse.Namespace, model: Transformer) -> tuple[np.ndarray, Any]:
    """Return the prompt as ids (1, T), and the tokenizer if there is one."""
    from refattn.transformer.tokens import load_tokenizer

    tokenizer = None
    if options.text is not None:
        tokenizer = load_tokenizer(options.path, model.config.vocab_size)
        return np.array([tokenizer.encode(options.text).ids], int), tokenizer
    return np.array([options.ids], int), tokenizer


def _print(options: argparse.Namespace, values: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        print("\n".join(f"{name + ':':<14}{_plain(value)}" for name, value in values.items()))


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _info(options: argparse.Namespace) -> int:
    from refattn.transformer.checkpoint import read_config, read_tensors

    require(options.path.is_dir(), f"path={str(options.path)!r} is no folder")
    config = read_config(options.path)
    tensors = read_tensors(options.path)
    values: dict[str, Any] = {
        "family": config.family,
        "layers": config.n_layers,
        "d_model": config.d_model,
        "heads": config.n_heads,
        "kv heads": config.n_kv_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "vocabulary": config.vocab_size,
        "context": config.n_ctx,
        "norm": f"{config.norm} (eps {config.norm_eps:g})",
        "activation": config.act + (", gated" if config.gated else ""),
        "positions": config.positions if config.rope is None else _rope_text(config.rope),
        "windows": "none" if not any(config.window) else [w or "full" for w in config.window],
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "stored": ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()})),
        "tokenizer": "yes" if (options.path / "tokenizer.json").is_file() else "no",
    }
    _print(options, values)
    return 0


def _rope_text(rope: Any) -> str:
    scaling = dict(rope.scaling).get("type", "none")
    return f"rope (theta {rope.theta:g}, {rope.dim} dimensions, scaling {scaling})"


def _generate(options: argparse.Namespace) -> int:
    from refattn.transformer.generation import generate

    model = load(options)
    ids, tokenizer = prompt_ids(options, model)
    result = generate(
        model,
        ids,
        options.new,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        rng=np.random.default_rng(options.seed),
        stop_ids=options.stop,
        use_cache=not options.no_cache,
    )[0].tolist()
    values: dict[str, Any] = {"prompt": ids[0].tolist(), "new": result[ids.shape[1] :]}
    if tokenizer is not None:
        values["text"] = tokenizer.decode(result)
    _print(options, values)
    return 0


def _plant(options: argparse.Namespace) -> int:
    from refattn.transformer.checkpoint import save_pretrained

    model, written = _PLANTS[options.name](options.path)
    save_pretrained(model, options.path)
    _print(options, {"written": [str(options.path), *written]})
    return 0


def _sinks(_folder: Path) -> tuple[Transformer, list[str]]:
    from refattn.transformer.planted.sink_model import build_sink_model

    return build_sink_model(), []


def _retrieval(_folder: Path) -> tuple[Transformer, list[str]]:
    from refattn.transformer.planted.retrieval_model import build_retrieval_model

    return build_retrieval_model(), []


def _channel(_folder: Path) -> tuple[Transformer, list[str]]:
    from refattn.transformer.planted.channel_model import build_channel_model

    return build_channel_model(), []


def _lists(folder: Path) -> tuple[Transformer, list[str]]:
    """Return the list model; write prompts of both of its tasks beside it."""
    from refattn.interpretability.circuit_reuse_list import TASKS, write_list_prompts
    from refattn.transformer.planted.list_model import build_list_model

    model, layout = build_list_model()
    folder.mkdir(parents=True, exist_ok=True)
    files = {task: folder / f"{task}.json" for task in TASKS}
    for task, path in files.items():
        write_list_prompts(path, layout, task, 40, np.random.default_rng(0))
    return model, [str(path) for path in files.values()]


_PLANTS = {"sinks": _sinks, "retrieval": _retrieval, "channel": _channel, "lists": _lists}


def _attention(options: argparse.Namespace) -> int:
    from refattn.transformer.forward import forward
    from refattn.transformer.plot import plot_attention

    model = load(options)
    ids, tokenizer = prompt_ids(options, model)
    layers, heads = model.config.n_layers, options.head or list(range(model.config.n_heads))
    require(0 <= options.layer < layers, f"layer={options.layer} must lie in 0..{layers - 1}")
    for head in heads:
        require(0 <= head < model.config.n_heads, f"head={head} must lie in 0..{model.config.n_heads - 1}")
    name = f"blocks.{options.layer}.attn.hook_pattern"
    pattern = forward(model, ids, names=name).activations[name][0, heads]  # (heads, T, T)
    labels = [str(n) for n in ids[0]] if tokenizer is None else _words(tokenizer, ids[0])
    plot_attention(pattern, tokens=labels, titles=[f"{options.layer}.{head}" for head in heads]).savefig(options.out)
    strongest = {f"{options.layer}.{head}": int(pattern[i, -1].argmax()) for i, head in enumerate(heads)}
    _print(options, {"figure": str(options.out), "last token looks at": [f"{h}->{k}" for h, k in strongest.items()]})
    return 0


def _words(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([int(n)]) or str(n) for n in ids]
