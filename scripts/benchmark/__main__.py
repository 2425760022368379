"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from rich.console import Console

from scripts.benchmark import machine, plot, rounds
from scripts.benchmark.cases import ALL
from scripts.benchmark.disk import PLACES, real_disk
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.noise import Noise
from scripts.benchmark.report import Report
from scripts.benchmark.scene import FULL, QUICK, Case

#: rounds of each case
ROUNDS, QUICK_ROUNDS = 5, 1
#: signals that end a run
ENDING = (signal.SIGINT, signal.SIGTERM)
#: columns of a report that goes into a file
PLAIN_WIDTH = 140


def main() -> int:
    """Run what is asked for. The exit status is 1 when a case has no figures that can be trusted."""
    arguments = _parser().parse_args()
    for number in ENDING:
        signal.signal(number, _interrupt)
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    errors = Console(stderr=True, width=PLAIN_WIDTH)
    if arguments.stages:
        return _show_stages(console, errors)
    count = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    noise = Noise()
    try:
        disk = real_disk(PLACES)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=disk, ignore_cleanup_errors=True) as folder:
            results = rounds.run(
                arguments.cases,
                rounds=count,
                sizes=QUICK if arguments.quick else FULL,
                folder=Path(folder),
                noise=noise,
                say=lambda text: errors.print(text, style="dim"),
            )
    except BenchmarkFailed as exc:
        errors.print(f"no figures: {exc}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted; all that was started has ended", style="bold red")
        return 130
    report = Report(
        machine=machine.describe(disk),
        results=results,
        noise=noise,
        quick=arguments.quick,
        rounds=count,
        left_out=rounds.left_out(arguments.cases),
    )
    report.show(console)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if arguments.plot:
        arguments.plot.write_text(plot.draw(results))
    return int(any(result.failed for result in results))


def _show_stages(console: Console, errors: Console) -> int:
    from scripts.benchmark import stages  # noqa: PLC0415 - it imports all of the dispatcher; nothing else here does

    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=real_disk(PLACES)) as folder:
            console.print(stages.table(stages.measure(Path(folder))))
    except BenchmarkFailed as exc:
        errors.print(f"no figures: {exc}", style="bold red", markup=False)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    by_hand = ", ".join(case.name for case in ALL.values() if not case.by_default)
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the dispatcher beside its rivals on this machine. See docs/performance.md.",
        epilog=f"cases: {', '.join(ALL)}. Only if named: {by_hand}",
    )
    parser.add_argument("--cases", type=_cases, default=_cases(""), metavar="A,B", help="run only these")
    parser.add_argument("--rounds", type=_positive, metavar="N", help=f"rounds of each case [{ROUNDS}]")
    parser.add_argument("--quick", action="store_true", help=f"small sizes, and {QUICK_ROUNDS} round if none is given")
    parser.add_argument("--stages", action="store_true", help="instead: where the processor time of a delivery goes")
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=_writable, metavar="FILE", help="draw the throughputs there, as SVG")
    return parser


def _cases(text: str) -> list[Case]:
    if not text:
        return [case for case in ALL.values() if case.by_default]
    try:
        return [ALL[name] for name in text.split(",")]
    except KeyError as exc:
        raise argparse.ArgumentTypeError(f"there is no case {exc}; there are {', '.join(ALL)}") from None


def _writable(text: str) -> Path:
    # Asked now: after half an hour it would be too late.
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number from 1 on")
    return int(text)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # What was started is ended on the way out; a second ctrl-C must not cut that short.
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
