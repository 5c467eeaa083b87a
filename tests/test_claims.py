"""The page of claims says what the examples say now."""

import json
from pathlib import Path

import pytest
import run_all
from claims import Claim

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILED = json.loads((DOCS / "claims.json").read_text(encoding="utf-8"))


def test_every_example_has_its_claims_on_file():
    """No example is missing on the page, and none is there that is gone."""
    assert sorted(FILED) == run_all.examples([])


def test_the_page_is_what_the_file_says():
    """``docs/claims.md`` is the rendering of ``docs/claims.json``."""
    outcomes = [run_all.Outcome(slug, tuple(Claim(**c) for c in said["claims"]), 0.0) for slug, said in FILED.items()]

    assert (DOCS / "claims.md").read_text(encoding="utf-8") == run_all.as_markdown(outcomes)


@pytest.mark.parametrize("slug", sorted(FILED))
def test_the_claims_on_file_are_those_that_the_example_makes(slug):
    """A quick run, at other sizes and so with other numbers, makes no claim that is not on file."""
    filed = {claim["name"] for claim in FILED[slug]["claims"]}
    said = run_all.run(slug, quick=True)

    assert said.error == ""
    assert said.claims
    assert {claim.name for claim in said.claims} <= filed
