"""Reports: the table fits, JSON and JUnit hold everything, replay files run again."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from toy import backends
from toy.contracts.centre import CONTRACT

from refattn.conformance import report
from refattn.conformance.backend import Backend
from refattn.conformance.checks import perform, plan
from refattn.conformance.checks.laws import law_outcome
from refattn.conformance.records import CheckId, Record
from refattn.conformance.replay import Replay, read_replay, write_replay
from refattn.conformance.settings import Settings
from refattn.conformance.storage import StorageError, write_archive
from refattn.conformance.trial import Bench


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Everything that the kit finds in a backend without the mean."""
    settings = Settings(examples=5, replays=tmp_path_factory.mktemp("replays"), shrink_seconds=0.5)
    bench = Bench(Backend(backends.no_mean, "no_mean"), CONTRACT)
    return [perform(check, bench, settings) for check in plan([CONTRACT], ["float64", "float32"])]


def test_the_table_fits_100_columns(records):
    """No line of the table is wider than 100 columns, however long the names."""
    long_name = Record(CheckId("a" * 40, "b" * 60, "scenario", "c", "bfloat16"), "skipped", "d" * 200, backend="e" * 30)

    assert all(len(line) <= 100 for line in report.table_text([*records, long_name]).splitlines())


def test_a_failure_tells_the_whole_story(records):
    """The text of a failure names the rule, the derivation, the shrunk case, the bug and the replay command."""
    text = report.failures_text([r for r in records if r.check.kind == "scenario"])

    for part in (
        "broken: 3 element",
        "limit",
        "  ",
        "smallest case found",
        "matches planted bug: no_mean",
        "refattn replay",
    ):
        assert part in text, part


def test_json_is_strict_and_complete(records):
    """The JSON report parses without NaN and holds a record for every check."""
    content = json.loads(json.dumps(report.as_json(records), allow_nan=False))

    assert len(content["records"]) == len(records)
    assert content["summary"]["failed"] > 0


def test_junit_counts_agree(records):
    """JUnit has a test case a check, and as many failures as the records."""
    suite = ET.fromstring(report.as_junit(records))

    assert len(suite) == len(records) == int(suite.attrib["tests"])
    assert len(suite.findall(".//failure")) == sum(r.status == "failed" for r in records)


def test_markdown_has_a_row_for_each_entry_and_dtype(records):
    """The matrix page has a header, a rule and one row for each entry and dtype."""
    assert len(report.as_markdown(records).splitlines()) == 2 + 2


def test_a_replay_file_fails_again_and_passes_on_a_right_backend(records):
    """The replayed case fails on the wrong backend and passes on the right one, for values and for laws."""
    for kind in ("scenario", "law"):
        record = next(r for r in records if r.check.kind == kind and r.status == "failed")
        replay = read_replay(Path(record.replay), {"centre": CONTRACT})
        for name, status in (("no_mean", "fail"), ("right", "pass")):
            bench = Bench(Backend(getattr(backends, name), name), CONTRACT)
            entry = CONTRACT.entries[0]
            if kind == "law":
                outcome = law_outcome(bench, entry, replay.check.name, replay.case, replay.seed)
            else:
                outcome = bench.try_case(entry, replay.case)
            assert outcome.status == status


def test_a_replay_of_an_unknown_mechanism_is_refused(tmp_path):
    """A replay file that speaks of a mechanism that is not there raises a StorageError."""
    check = CheckId("centre", "centre", "scenario", "plain", "float64")
    case = CONTRACT.entries[0].scenarios["plain"]("normal", "float64", 0)
    path = write_replay(tmp_path, Replay(check, case, "right", 0))

    with pytest.raises(StorageError, match="unknown"):
        read_replay(path, {})


def test_an_archive_without_manifest_is_no_replay(tmp_path):
    """Any other archive is refused."""
    path = tmp_path / "a.npz"
    write_archive(path, {})

    with pytest.raises(StorageError, match="no manifest"):
        read_replay(path, {})
