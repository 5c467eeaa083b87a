"""Fixtures shared by all tests: hypothesis profiles and the official vectors beside the project."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ORACLE = Path(__file__).resolve().parents[2] / "shared" / "oracle"

_slow_draws = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("fast", max_examples=15, deadline=None, derandomize=True, suppress_health_check=_slow_draws)
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=_slow_draws)
settings.load_profile("fast")


@pytest.fixture
def oracle():
    """Return a function: sheet name to the sorted paths of its official vectors; skips where they are absent."""

    def paths(sheet: str) -> list[Path]:
        found = sorted((ORACLE / sheet).glob("*.npz"))
        if not found:
            pytest.skip(f"no official vectors for {sheet} beside this checkout")
        return found

    return paths


@pytest.fixture
def oracle_tree():
    """Return a function: sheet name and glob to the sorted paths below it; skips where they are absent."""

    def paths(sheet: str, pattern: str) -> list[Path]:
        found = sorted((ORACLE / sheet).glob(pattern))
        if not found:
            pytest.skip(f"no official vectors for {sheet}/{pattern} beside this checkout")
        return found

    return paths
