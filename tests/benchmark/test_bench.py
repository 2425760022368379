"""The benchmark end to end, as small as it goes, and what it leaves behind when it is interrupted: nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from scripts.benchmark import processes, rounds
from scripts.benchmark.cases import ALL
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.figures import OURS
from scripts.benchmark.load import generate
from scripts.benchmark.noise import Noise
from scripts.benchmark.processes import ROOT
from scripts.benchmark.receivers import timing
from scripts.benchmark.report import Report
from scripts.benchmark.scene import Case, Contender, Figures, Scene, Sizes
from scripts.benchmark.subject import serving
from tests.support.server import until

TINY = Sizes(seconds=0.2, connections=4, warm_up=8, latency_seconds=0.2)
SOAK = Sizes(soak_seconds=8.0, soak_stretches=8, connections=32, warm_up=64)
#: MiB by which the memory of a process differs from one moment to another
UNSTEADY = 8


def test_a_case_end_to_end(tmp_path: Path) -> None:
    """`latency` needs nothing beyond Python: dispatcher, load in a closed and an open loop, our own receiver."""
    noise = Noise()
    (result,) = rounds.run([ALL["latency"]], rounds=1, sizes=TINY, folder=tmp_path, noise=noise, say=lambda _text: None)
    assert result.failed is None
    (measured,) = result.rounds[0]
    assert measured.contender == OURS
    assert measured.figures["per_s"] > 0
    assert 0 < measured.figures["at30_received_p50_ms"] <= measured.figures["at30_received_p99.9_ms"]
    assert measured.figures["peak_mib"] > 10
    assert len(noise.spins) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(600)
def test_memory_stays_as_it_is_under_load(tmp_path: Path) -> None:
    """A short soak: if what is in memory of a delivery stayed there, it would show. The long one is by hand."""
    (result,) = rounds.run([ALL["soak"]], rounds=1, sizes=SOAK, folder=tmp_path, noise=Noise(), say=lambda _text: None)
    assert result.failed is None
    (measured,) = result.rounds[0]
    assert measured.figures["deliveries"] > 1_000
    assert measured.figures["grown_mib"] < UNSTEADY


def test_the_stages_of_a_delivery(tmp_path: Path) -> None:
    """In a process of its own: it configures logs, and runs its own event loop."""
    program = (
        "import sys; from pathlib import Path; from scripts.benchmark import stages\n"
        "for one in stages.measure(Path(sys.argv[1]), count=130): print(one.name, 0 < one.loop_us <= one.all_us * 1.1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == [
        word for name in ("read", "accept", "lease", "send", "settle") for word in (name, "True")
    ]
    assert (tmp_path / "stages.log").read_text().count('"event": "attempt"') == 130


def test_a_figure_that_cannot_be_trusted_is_not_shown(tmp_path: Path) -> None:
    """A contender that fails in its second round takes the first with it; the next case has its turn all the same."""
    turns = itertools.count(1)

    def unsteady(_scene: Scene) -> Figures:
        if next(turns) == 2:
            raise BenchmarkFailed("received: 9 of 10")
        return {"per_s": 1.0}

    cases = [
        Case(name=name, about="", contenders=(Contender(name=OURS, run=unsteady),)) for name in ("unsteady", "steady")
    ]
    first, second = rounds.run(cases, rounds=2, sizes=TINY, folder=tmp_path, noise=Noise(), say=lambda _text: None)
    assert (first.failed, first.rounds) == ("received: 9 of 10", [])
    assert (second.failed, len(second.rounds)) == (None, 2)
    Report(machine={}, results=[first, second], noise=Noise(), quick=True, rounds=2, left_out={}).show(
        console := Console(record=True, file=StringIO())
    )
    assert "unsteady: no figures: received: 9 of 10" in console.export_text()


def test_what_is_not_accepted_ends_it(tmp_path: Path) -> None:
    with timing(tmp_path) as receiver, serving(tmp_path) as dispatcher:
        job = dispatcher.job(items=4, connections=2, urls=[f"{receiver.origins[0]}/results"])
        assert generate(job, log=tmp_path / "load.log").accepted == 4
        broken = dispatcher.job(items=4, connections=2, urls=["ftp://127.0.0.1/results"])
        with pytest.raises(BenchmarkFailed, match="4 of 4 items were not accepted"):
            generate(broken, log=tmp_path / "load.log")


def test_an_interrupted_run_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.benchmark", "--quick", "--cases", "latency"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    bench = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started: set[int] = set()
    try:
        until(lambda: len(_children(bench.pid)) >= 2)
        started = _children(bench.pid)
        bench.send_signal(signal.SIGINT)
        _, said = bench.communicate(timeout=30)
    finally:
        bench.kill()
        bench.wait()
    assert bench.returncode == 130, said.decode()
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []


def _children(pid: int) -> set[int]:
    with contextlib.suppress(OSError):
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return set()


def test_a_process_that_does_not_heed_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    began = time.monotonic()
    with processes.running([sys.executable, "-c", stubborn], log=tmp_path / "x.log", patience=0.2) as child:
        assert next(child.lines()) == "up"
        assert child.usage().peak_mib > 1
    assert child.process.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cases", "single,nope"], "there is no case 'nope'"),
        (["--rounds", "0"], "a number from 1 on"),
        (["--json", "/nowhere/figures.json"], "cannot be written"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_before_it_begins(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "scripts.benchmark", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
