"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THEORY = sorted((ROOT / "theory").rglob("*.py"))
FILES = sorted((ROOT / "refattn").rglob("*.py"))
ROOMS = ("layers", "interventions", "interpretability", "efficiency", "benchmarks", "transformer")

# room -> the parts of the project and the third parties that it may import
MAY_IMPORT = {
    "primitives": ({"primitives"}, {"numpy", "scipy"}),
    **{room: ({"primitives", "transformer", room}, {"numpy", "scipy"}) for room in ROOMS},
    "backends": ({"backends"}, {"numpy", "scipy", "array_api_compat", "array_api_extra", "jax", "torch"}),
    "conformance": (
        {"conformance", "backends", "cli"},
        {"numpy", "hypothesis", "ml_dtypes", "pytest"},
    ),
    "contracts": ({"contracts", "conformance", "primitives", *ROOMS}, {"numpy", "scipy", "hypothesis"}),
}


def imports(path):
    """Yield the full name and the imported names of each import in a file, those for type checkers left out."""
    tree = ast.parse(path.read_text())
    for node in walk_at_run_time(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, tuple(alias.name for alias in node.names)


def walk_at_run_time(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from walk_at_run_time(child)


def in_room(path):
    parts = path.relative_to(ROOT / "refattn").parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", [p for p in FILES if in_room(p) in MAY_IMPORT], ids=lambda p: str(p.relative_to(ROOT)))
def test_each_room_imports_only_what_it_may(path):
    """No file imports a room or a package that its own room may not."""
    rooms, packages = MAY_IMPORT[in_room(path)]
    for module, names in imports(path):
        top, *rest = module.split(".")
        if top == "refattn":
            assert not rest or rest[0] in rooms or in_backend_types(path, names), f"{path.name} imports {module}"
        elif top not in sys.stdlib_module_names:
            lazy = LAZY_IN.get(in_room(path), ()) if module not in dict(at_import(path)) else ()
            assert top in (*packages, *lazy), f"{path.name} imports {module}"


# a picture, a text or a ring of processes: imported where it is made, never at the top of a file
LAZY_IN = {
    **dict.fromkeys(("transformer", "interpretability", "interventions"), ("matplotlib", "tokenizers")),
    "efficiency": ("torch",),
}


def in_backend_types(path, names):
    """Backends may share the weight and result NamedTuples of a reference: classes, no functions."""
    return in_room(path) == "backends" and bool(names) and all(name[0].isupper() for name in names)


@pytest.mark.parametrize("path", THEORY, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_theory_imports_only_what_it_may(path):
    """The theory imports references, NumPy and SciPy; figures and bars where they are needed, and no cluster."""
    for module, _names in imports(path):
        top, *rest = module.split(".")
        if top == "refattn":
            assert not rest or rest[0] in ("primitives", *ROOMS), f"{path.name} imports {module}"
        elif top not in sys.stdlib_module_names:
            assert top in ("theory", "numpy", "scipy", *LAZY), f"{path.name} imports {module}"
    for module, _names in at_import(path):
        assert module.split(".")[0] not in LAZY, f"{path.name} imports {module} at its top"


LAZY = ("matplotlib", "tqdm", "pandas", "threadpoolctl")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_the_theory(path):
    """The theory stands on the package, never the other way round."""
    assert not [module for module, _names in imports(path) if module and module.split(".")[0] == "theory"]


def at_import(path):
    """Yield what a module imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, tuple(alias.name for alias in node.names)


def test_the_kit_names_no_mechanism():
    """No file of the kit holds the slug of a mechanism as a word."""
    from refattn.conformance.registry import find_contracts

    slugs = set(find_contracts()) - {"attention"}  # the word for what all mechanisms are
    for path in (ROOT / "refattn" / "conformance").rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & slugs, path


@pytest.mark.parametrize(
    "statement",
    [
        "import refattn",
        "import refattn.primitives.attention, refattn.layers.rat, refattn.layers.biformer",
        "import theory, theory.experiment, theory.sweep, theory.cli",
    ],
)
def test_references_and_engine_import_light(statement):
    """Importing the package, a reference or the theory's engine loads no framework, no hypothesis, no matplotlib."""
    heavy = ("hypothesis", "matplotlib", "torch", "jax", "tqdm", "ml_dtypes", "array_api_compat", "pytest", "pandas")
    heavy += ("distributed", "threadpoolctl")
    code = f"import sys; {statement}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "[]"


def test_there_is_no_utils():
    """No file is called utils, helpers, misc or common: a thing that has a place has a name."""
    assert not [p for p in FILES + THEORY if p.stem in ("utils", "helpers", "misc", "common")]


def test_imports_have_no_circles():
    """The modules of the project import each other without a circle at run time."""
    graph = {module_name(path): set() for path in FILES + THEORY}
    for path in FILES + THEORY:
        for module, names in top_level_imports(path):
            inside = {f"{module}.{name}" for name in names} & set(graph)
            targets = inside if len(inside) == len(names) > 0 else {module, *inside} & set(graph)
            graph[module_name(path)] |= targets - {module_name(path), "refattn", "theory"}
    done, active = set(), []

    def visit(module):
        assert module not in active, " -> ".join([*active, module])
        if module not in done:
            active.append(module)
            for target in graph[module]:
                visit(target)
            active.pop()
            done.add(module)

    for module in graph:
        visit(module)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def top_level_imports(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("refattn", "theory")):
            yield node.module, tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names if alias.name.startswith(("refattn", "theory")))
