"""What is public is what ``__all__`` says, and it is documented."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = [
    path
    for path in sorted((ROOT / "refattn").rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py") and "contracts" not in path.parts
]
REFERENCES = [path for path in LIBRARY if path.parts[-2] in ("primitives", "layers")]


def module_of(path):
    return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", REFERENCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_all_names_exist(path):
    """Every name in ``__all__`` is there, and none is private."""
    module = module_of(path)

    assert all(hasattr(module, name) and not name.startswith("_") for name in module.__all__)


def imported_from_references():
    """Yield who imports which name from which reference, across rooms."""
    for path in sorted((ROOT / "refattn").rglob("*.py")):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        for node in nodes:
            parts = (node.module or "").split(".")
            if parts[:2] in (["refattn", "primitives"], ["refattn", "layers"]) and parts[1] not in path.parts:
                yield from ((path, node.module, alias.name) for alias in node.names)


def test_other_rooms_import_only_public_names():
    """What another room imports from a reference is in that reference's ``__all__``."""
    for path, module, name in imported_from_references():
        assert name in importlib.import_module(module).__all__, f"{path.name} imports {module}.{name}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_public_name_is_documented(path):
    """Each public function says what it does; where parameters are listed, all are."""
    module = module_of(path)
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        doc = inspect.getdoc(thing) or ""
        assert doc, f"{module.__name__}.{name}"
        if path in REFERENCES and inspect.isfunction(thing) and thing.__module__ == module.__name__:
            missing = [p for p in inspect.signature(thing).parameters if p not in doc]
            assert not missing or "Parameters\n---" not in doc, f"{module.__name__}.{name}: {missing}"


@pytest.mark.parametrize("path", REFERENCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_stay_short(path):
    """No function of a reference is longer than 60 lines without its docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_every_mechanism_is_in_every_room():
    """A slug that has a contract has a reference, a portable twin, vectors, an example, a page and tests."""
    from refattn.conformance.registry import find_contracts

    for slug, contract in find_contracts().items():
        rooms = {
            "reference": f"refattn/{contract.family}/{slug}*",
            "portable": f"refattn/backends/portable/{slug}*",
            "golden": f"refattn/golden/{slug}.npz",
            "example": f"examples/{slug}.py",
            "page": f"docs/mechanisms/{slug}.md",
            "tests": f"tests/**/test_{slug}*.py",
        }
        missing = [room for room, pattern in rooms.items() if not any(ROOT.glob(pattern))]
        assert not missing, f"{slug} is missing in {missing}"
