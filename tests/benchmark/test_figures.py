"""What is made of measurements: ratios within a round, spreads, percentiles, and when a machine is too noisy."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from scripts.benchmark import plot
from scripts.benchmark.counting import Count
from scripts.benchmark.disk import file_system, real_disk
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.figures import OURS, CaseResult, Measurement, Spread, latencies
from scripts.benchmark.noise import LOUD_LOAD, LOUD_SPREAD, Noise, fsync_time
from scripts.benchmark.report import Report


def measured(contender: str, **figures: float) -> Measurement:
    return Measurement(contender=contender, figures=figures)


@pytest.fixture
def result() -> CaseResult:
    """A case in which the second round was half as fast for all."""
    rounds = [
        [measured(OURS, per_s=1000.0, peak_mib=90.0), measured("wrk", per_s=10_000.0)],
        [measured(OURS, per_s=500.0, peak_mib=91.0), measured("wrk", per_s=5_000.0)],
        [measured(OURS, per_s=1100.0, peak_mib=92.0), measured("wrk", per_s=10_000.0)],
    ]
    return CaseResult(name="single", about="a case", rounds=rounds)


def test_ratios_are_taken_within_a_round(result: CaseResult) -> None:
    assert result.spread(OURS, "per_s") == Spread(median=1000.0, low=500.0, high=1100.0)
    assert result.ratios() == {("per_s", "wrk"): Spread(median=0.1, low=0.1, high=0.11)}


def test_what_a_rival_was_not_measured_for_has_no_ratio(result: CaseResult) -> None:
    assert result.ratio("wrk", "peak_mib") is None
    assert result.ratio("nobody", "per_s") is None


@pytest.mark.parametrize(("count", "p50", "p99"), [(1, 1, 1), (2, 2, 2), (100, 51, 100), (200, 101, 199)])
def test_percentiles(count: int, p50: int, p99: int) -> None:
    found = latencies([(count - index) / 1000 for index in range(count)], "x")
    assert found["x_p50_ms"] == pytest.approx(p50)
    assert found["x_p99_ms"] == pytest.approx(p99)


@pytest.mark.parametrize(
    ("load", "spins", "reasons"),
    [
        (LOUD_LOAD, [1.0, 1.0 + LOUD_SPREAD - 0.01], 0),
        (LOUD_LOAD + 0.01, [1.0], 1),
        (0.0, [1.0, 1.0, 1.0 + LOUD_SPREAD + 0.01], 1),
        (9.0, [1.0, 1.0, 2.0], 2),
    ],
)
def test_a_machine_is_too_noisy_beyond_its_limits(load: float, spins: list[float], reasons: int) -> None:
    # Whether the host steals time here is not ours to say.
    found = [reason for reason in Noise(load_before=load, spins=spins).reasons() if "the host took" not in reason]
    assert len(found) == reasons, found


@pytest.mark.parametrize(
    ("accepted", "delivered", "received", "refused", "good"),
    [
        (5, 5, 5, 0, True),
        (5, 5, 6, 1, True),
        (4, 5, 5, 0, False),
        (5, 4, 5, 0, False),
        (5, 5, 4, 0, False),
        (5, 5, 6, 0, False),  # a duplicate
    ],
)
def test_three_counts_must_agree(accepted: int, delivered: int, received: int, refused: int, good: bool) -> None:
    before = Count(accepted=10, delivered=10, received=20)
    after = Count(accepted=10 + accepted, delivered=10 + delivered, received=20 + received)
    if good:
        after.grew_by(5, before, refused=refused)
    else:
        with pytest.raises(BenchmarkFailed, match="answered 202: 5"):
            after.grew_by(5, before, refused=refused)


def test_data_is_kept_on_a_disk(tmp_path: Path) -> None:
    if Path("/dev/shm").is_dir():
        assert file_system(Path("/dev/shm")) == "tmpfs"
        assert real_disk([Path("/dev/shm"), tmp_path / "none", tmp_path]) == tmp_path
        with pytest.raises(BenchmarkFailed, match="TMPDIR"):
            real_disk([Path("/dev/shm")])


def test_a_sync_takes_time(tmp_path: Path) -> None:
    took = fsync_time(tmp_path, times=10)
    assert 0 < took.p50_ms <= took.p99_ms
    assert list(tmp_path.iterdir()) == []


def test_the_plot_shows_every_throughput(result: CaseResult) -> None:
    texts = [element.text for element in ET.fromstring(plot.draw([result])).iter("{http://www.w3.org/2000/svg}text")]
    assert {"single", OURS, "wrk", "1,000", "10,000"} <= set(texts)


def test_the_report_says_what_cannot_be_trusted(result: CaseResult) -> None:
    noise = Noise(load_before=3.0, spins=[1.0])
    left_out: Mapping[str, set[str]] = {"celery": {"redis-server"}}
    report = Report(machine={"cores": "2"}, results=[result], noise=noise, quick=True, rounds=3, left_out=left_out)
    console = Console(record=True, width=140, file=StringIO())
    report.show(console)
    text = console.export_text()
    assert "too noisy: load average before the start 3.00" in text
    assert "left out: celery, since this machine lacks redis-server" in text
    assert "1,000 (500 to 1,100)" in text
    written = report.as_json()
    assert written["cases"]["single"]["ratios"]["per_s"]["wrk"]["median"] == pytest.approx(0.1)
    assert [round_[OURS]["peak_mib"] for round_ in written["cases"]["single"]["rounds"]] == [90.0, 91.0, 92.0]
