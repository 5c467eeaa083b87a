"""The conformance kit: draw, run, bound, compare, shrink, diagnose, report, replay.

The kit knows no mechanism. It reads contracts, judges backends against them and leaves records. Names are imported on
first use, so that a contract can import the kit's types without the kit importing contracts.
"""

import importlib
from typing import Any

_HOMES = {
    "Backend": "backend",
    "Bug": "contract",
    "Case": "contract",
    "CheckId": "records",
    "Claim": "contract",
    "Contract": "contract",
    "Convention": "contract",
    "Entry": "contract",
    "Law": "contract",
    "NotSupportedError": "backend",
    "Record": "records",
    "Settings": "settings",
    "check": "api",
    "find_contracts": "registry",
    "load_backend": "backend",
    "tally": "records",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  # the table above is the list


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
