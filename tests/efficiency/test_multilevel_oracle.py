"""Multi-level training's operators against the authors' own mappers, on GPT-2 and on BERT."""

import json
import re

import numpy as np

from refattn.efficiency.multilevel import coalesce, decoalesce, interpolate
from refattn.efficiency.multilevel_maps import apply_depth, apply_width, decoalescing_maps, depth_map, width_maps
from refattn.efficiency.multilevel_parameters import level_maps, mix
from refattn.transformer.adamw import pack
from refattn.transformer.checkpoint import load_pretrained
from refattn.transformer.forward import forward
from refattn.transformer.safetensors import write_safetensors

TOLERANCE = 1e-14
BERT_ROLES = {
    "bert.embeddings.(word|position|token_type)_embeddings.weight": "embedding",
    "bert.embeddings.LayerNorm.(weight|bias)": "vector",
    "attention.(self.query|self.key|self.value|output.dense).weight": "layer_matrix",
    "attention.(self.query|self.key|self.value|output.dense).bias": "layer_vector",
    "(attention.)?output.LayerNorm.(weight|bias)": "layer_vector",
    "intermediate.dense.weight": "mlp_in",
    "intermediate.dense.bias": "mlp_vector",
    "output.dense.weight": "mlp_out",
    "output.dense.bias": "layer_vector",
    "cls.predictions.transform.dense.weight": "matrix",
    "cls.predictions.transform.(dense.bias|LayerNorm.weight|LayerNorm.bias)": "vector",
    "cls.predictions.bias": "constant",
}


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=0, atol=TOLERANCE)


def mapper_cases(oracle, arch):
    """Yield the cases of one architecture with their operator, heads, layers and schemes."""
    for case in map(np.load, oracle("06-multilevel-training")):
        if "arch" in case.files and case["arch"] == arch and case["op"] != "forward_backward":
            schemes = {name: json.loads(str(case[name])) for name in ("width_scheme", "depth_scheme")}
            for what in ("width", "depth"):  # the code ignores a scheme where nothing shrinks
                if case[f"src_{what}"] == case[f"tgt_{what}"]:
                    schemes[f"{what}_scheme"] = None
            sizes = {
                "n_heads": int(case["tgt_width"]) // int(case["head_size"]),
                "n_layers": int(case["tgt_depth"]),
            }
            yield case, schemes, sizes


def parameters(case, prefix):
    return {name.removeprefix(prefix): case[name] for name in case.files if name.startswith(prefix)}


def gpt2(case, prefix, folder):
    """Return the model whose tensors stand under a prefix, by way of a checkpoint."""
    tensors = parameters(case, prefix)
    width, context = tensors["transformer.wte.weight"].shape, len(tensors["transformer.wpe.weight"])
    config = {
        "model_type": "gpt2",
        "n_embd": width[1],
        "vocab_size": width[0],
        "n_positions": context,
        "n_head": width[1] // int(case["head_size"]),
        "n_layer": sum(name.endswith("ln_1.weight") for name in tensors),
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return load_pretrained(folder)


def same_model(left, right):
    close(pack(left.weights, tied=True), pack(right.weights, tied=True))


def test_the_maps_are_those_of_the_official_code(oracle):
    """F, the map of the MLP and R of every case, and T and G where the case has them."""
    for arch in ("gpt2", "bert"):
        for case, schemes, _ in mapper_cases(oracle, arch):
            if case["op"] == "interpolate":
                continue
            widths, depths = ([int(case[f"{end}_{what}"]) for end in ("src", "tgt")] for what in ("width", "depth"))
            maps = width_maps(
                max(widths), min(widths), head_size=int(case["head_size"]), scheme=schemes["width_scheme"]
            )
            depth = depth_map(max(depths), min(depths), schemes["depth_scheme"])
            for name in ("embed", "qk", "v"):
                close(maps.residual, case[f"map_{name}_F"])
            close(maps.mlp, case["map_inter_F"])
            close(depth, case["map_R"])
            if "map_G" in case.files:
                copied, back = decoalescing_maps(maps, depth)
                close(copied.residual, case["map_embed_T"])
                close(copied.mlp, case["map_inter_T"])
                close(back, case["map_G"])


def test_gpt2_agrees_with_the_official_mapper(oracle, tmp_path):
    """Every parameter after coalescing, de-coalescing and interpolating, and the logits before and after."""
    seen = set()
    for number, (case, schemes, sizes) in enumerate(mapper_cases(oracle, "gpt2")):
        source, expected = (gpt2(case, f"{name}::", tmp_path / f"{number}-{name}") for name in ("src", "out"))
        narrower = case["src_width"] != case["tgt_width"]
        operator = str(case["op"])
        if operator == "coalesce":
            found = coalesce(source, **schemes, **sizes, embedding_factor=2.0 if narrower else None)
        elif operator == "decoalesce":
            found = decoalesce(source, **schemes, **sizes, embedding_factor=0.5 if narrower else None)
        else:
            found = interpolate(gpt2(case, "tgt::", tmp_path / f"{number}-tgt"), source, float(case["alpha"]))

        same_model(found, expected)
        for model, name in ((source, "src_logits"), (found, "out_logits")):
            np.testing.assert_allclose(forward(model, case["tokens"]).logits, case[name], rtol=0, atol=1e-12)
        seen.add(operator)
    assert {"coalesce", "decoalesce"} <= seen


def bert_role(name):
    rest = re.sub(r"bert\.encoder\.layer\.", "", name)
    return next(role for pattern, role in BERT_ROLES.items() if re.fullmatch(pattern, rest))


def by_layer(tensors):
    """Stack the layers' tensors and turn matrices to (in, out)."""
    found = {}
    for name, tensor in tensors.items():
        matched = re.fullmatch(r"bert\.encoder\.layer\.(\d+)\.(.*)", name)
        turned = tensor.T if tensor.ndim == 2 and "embeddings" not in name else tensor
        if matched is None:
            found[name] = turned
        else:
            found.setdefault(f"bert.encoder.layer.{matched[2]}", {})[int(matched[1])] = turned
    return {name: np.stack([x[i] for i in range(len(x))]) if isinstance(x, dict) else x for name, x in found.items()}


def test_bert_agrees_with_the_official_mapper(oracle):
    """The same maps, told what each of BERT's parameters reads and writes, give every parameter of BERT."""
    for case, schemes, sizes in mapper_cases(oracle, "bert"):
        source, expected = (by_layer(parameters(case, f"{name}::")) for name in ("src", "out"))
        roles = {name: bert_role(name) for name in source}
        if case["op"] == "interpolate":
            target = by_layer(parameters(case, "tgt::"))
            found = {name: mix(name, target[name], source[name], alpha=float(case["alpha"])) for name in source}
        else:
            maps = level_maps(
                (int(case["src_width"]) // int(case["head_size"]), int(case["src_depth"])),
                (sizes["n_heads"], sizes["n_layers"]),
                (schemes["width_scheme"], schemes["depth_scheme"]),
                head_size=int(case["head_size"]),
                mlp_share=4 * int(case["head_size"]),
                factor=None,
                grows=case["op"] == "decoalesce",
            )
            wide = apply_width(source, roles, maps.width, embedding_factor=maps.embedding_factor)
            found = apply_depth(wide, roles, maps.depth)

        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name])
