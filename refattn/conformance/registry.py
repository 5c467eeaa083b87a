"""Where contracts are found: the modules of a package, each with a ``CONTRACT``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.conformance.contract import Contract

__all__ = ["find_contracts"]


@cache
def find_contracts(package: str = "refattn.contracts") -> Mapping[str, Contract]:
    """Return every contract of ``package`` by slug, in the order of the slugs."""
    root = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.iter_modules(root.__path__))
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    contracts = [module.CONTRACT for module in modules if hasattr(module, "CONTRACT")]
    return {contract.slug: contract for contract in contracts}
