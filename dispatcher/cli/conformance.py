"""`dispatcher conformance …`: examine a sender, ours or another, or a receiver of webhooks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import tempfile
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dispatcher.cli import inputs
from dispatcher.cli.speaking import fail
from dispatcher.conformance import report as reporting
from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.receiver_examination.attacker import ASYMMETRIC
from dispatcher.conformance.receiver_examination.probe import REQUIREMENTS, Target, probe
from dispatcher.conformance.results import Level, Report
from dispatcher.conformance.sender_examination.checks import CHECKS
from dispatcher.conformance.sender_examination.command_sender import CommandSender
from dispatcher.conformance.sender_examination.examination import chosen, examine
from dispatcher.conformance.sender_examination.neighbourhood import Neighbourhood
from dispatcher.conformance.sender_examination.our_sender import OurSender
from dispatcher.conformance.sender_examination.senders import Sender
from dispatcher.conformance.signatures.schemes import SCHEMES, Key
from dispatcher.errors import ConfigError

app = typer.Typer(
    help="Examine a sender of webhooks, ours or another, or a receiver: against numbered requirements, by the wire.",
    epilog="Exit codes: 0 nothing failed at --strictness or above; 1 something did; 2 it cannot be examined.",
    no_args_is_help=True,
)

#: of an Ed25519 private key
SEED_BYTES = 32

JsonFile = Annotated[Path | None, typer.Option("--json", help="File to write the report to, as JSON.", dir_okay=False)]
JUnitFile = Annotated[Path | None, typer.Option("--junit", help="The same as JUnit XML.", dir_okay=False)]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="The same as a page with timelines.", dir_okay=False)]
Strictness = Annotated[
    Literal["must", "should", "may"], typer.Option(help="What fails the command: a requirement of this level or above.")
]


@app.command("list")
def list_requirements() -> None:
    """List the requirements on a sender, with level and source."""
    table = Table("id", "level", "requirement", "source", box=None, pad_edge=False)
    for check in CHECKS.values():
        one = check.requirement
        table.add_row(one.id, one.level, one.title, one.source.name)
    Console().print(table)


@app.command("run")
def run_examination(
    *,
    profile: Annotated[
        Path | None,
        typer.Option(help="TOML file that says which sender, and how. Without it: this dispatcher.", dir_okay=False),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Requirements to look at: RETRY-01, SIGN-*. Repeatable.")
    ] = None,
    strictness: Strictness = "should",
    json: JsonFile = None,
    junit: JUnitFile = None,
    html: HtmlFile = None,
) -> None:
    """Examine a sender: drive it, watch it at a receiver of our own, and report."""
    try:
        report = asyncio.run(_examine(_profile(profile), only or [], at=profile.parent if profile else None))
    except ConfigError as exc:
        fail(str(exc))
    _finish(report, Level(strictness.upper()), json=json, junit=junit, html=html)


@app.command("receiver")
def probe_receiver(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the receiver takes webhooks.", show_default=False)],
    *,
    scheme: Annotated[
        list[str] | None, typer.Option(help=f"What it verifies: {', '.join(SCHEMES)} [standard]. Repeatable.")
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the secret, on one line; - is stdin, or a question on the terminal.", show_default=False
        ),
    ] = None,
    seed_file: Annotated[
        Path | None, typer.Option(help="File with an Ed25519 private key: 32 bytes in base64.", show_default=False)
    ] = None,
    header: Annotated[list[str] | None, typer.Option(help="A further header, `Name: value`. Repeatable.")] = None,
    event: Annotated[str, typer.Option(help="The event type that is sent.")] = "probe.sent",
    payload: Annotated[
        Path | None, typer.Option(help="File with a JSON object that the receiver takes.", dir_okay=False)
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Seconds that a timestamp may be off.")] = 300.0,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds after which the receiver gives up a request that stalls.",
            show_default="that is not looked at",
        ),
    ] = 0.0,
    authority: Annotated[
        Path | None,
        typer.Option(help="PEM file with the authorities to trust instead of the system's.", dir_okay=False),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Do not check the certificate.")] = False,
    strictness: Strictness = "should",
    json: JsonFile = None,
    junit: JUnitFile = None,
    html: HtmlFile = None,
) -> None:
    """Examine a receiver: send it good, tampered, stale, repeated and malformed requests, and see what it lets through.

    It takes the good ones for real, so give it a receiver that may be played with.
    """
    try:
        inputs.check_stdin(secret_file, seed_file)
        target = Target(
            url=url,
            schemes=_schemes(scheme, secret_file, seed_file),
            key=Key(
                secret="" if secret_file is None else inputs.read_secret(secret_file, "--secret-file"),
                seed=_seed(seed_file),
            ),
            headers=tuple(_header(text) for text in header or ()),
            event=event,
            payload=None if payload is None else _payload(payload),
            tolerance=tolerance,
            patience=patience,
            authority=None if authority is None else str(authority),
            is_verified=not insecure,
        )
        with _progress(len(REQUIREMENTS)) as advance:
            report = asyncio.run(probe(target, on_result=advance))
    except ConfigError as exc:
        fail(str(exc))
    _finish(report, Level(strictness.upper()), json=json, junit=junit, html=html)


def _schemes(wanted: Sequence[str] | None, secret_file: Path | None, seed_file: Path | None) -> tuple[str, ...]:
    """What is signed by, each with what it takes. Raises ConfigError."""
    schemes = tuple(wanted or ("standard",))
    for scheme in schemes:
        if scheme not in SCHEMES:
            raise ConfigError(f"--scheme is one of: {', '.join(SCHEMES)}")
        option, file = ("--seed-file", seed_file) if scheme in ASYMMETRIC else ("--secret-file", secret_file)
        if file is None:
            raise ConfigError(f"--scheme {scheme} needs {option}")
    return schemes


def _seed(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        seed = base64.b64decode(inputs.read_secret(file, "--seed-file"), validate=True)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigError("--seed-file: it must have 32 bytes in base64")
    return seed


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ConfigError("--header must be written as `Name: value`")
    return name.strip(), value.strip()


def _payload(file: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(inputs.read_file(file, "--payload"), type=dict[str, object])
    except msgspec.DecodeError:
        raise ConfigError("--payload: the file must have a JSON object") from None


def _profile(path: Path | None) -> dict[str, Any]:
    """What a profile says. Raises ConfigError."""
    if path is None:
        return {}
    try:
        profile = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"--profile: the file cannot be read ({exc.strerror})") from exc
    except UnicodeDecodeError:
        raise ConfigError("--profile: the file is no TOML: it is not in UTF-8") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"--profile: the file is no TOML: {exc}") from exc
    unknown = sorted(profile.keys() - {"command", "only"})
    if unknown:
        raise ConfigError(f"--profile: {unknown[0]} is not a key; there are `command` and `only`")
    for key, value in profile.items():
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value) or not value:
            raise ConfigError(f"--profile: {key} must be a list of strings")
    return profile


async def _examine(profile: dict[str, Any], only: Sequence[str], *, at: Path | None) -> Report:
    wanted = [*only] or profile.get("only", [])
    names = {check.requirement.scenario for check in chosen(wanted)}
    authority = Authority()
    with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
        certificate = Path(directory) / "authority.pem"
        certificate.write_text(authority.pem)
        async with _neighbourhood(authority) as next_door:
            sender: Sender
            if "command" in profile:
                sender = CommandSender(profile["command"], authority=certificate, neighbourhood=next_door, cwd=at)
            else:
                sender = OurSender(authority=certificate, neighbourhood=next_door)
            with _progress(len(names)) as on_played:
                async with sender:
                    return await examine(sender, authority, neighbourhood=next_door, only=wanted, on_played=on_played)


@contextlib.asynccontextmanager
async def _neighbourhood(authority: Authority) -> AsyncIterator[Neighbourhood | None]:
    """What a sender as in production meets. Not every system has the addresses: the report then says what it lacked."""
    async with contextlib.AsyncExitStack() as stack:
        next_door: Neighbourhood | None = None
        with contextlib.suppress(ConfigError):
            next_door = await stack.enter_async_context(Neighbourhood(authority))
        yield next_door


class _progress:  # noqa: N801 - a context manager that reads as a sentence
    """A bar on stderr, on a terminal; calls count what is done."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("examining", total=total)

    def __enter__(self) -> Callable[[object], None]:
        self._progress.start()
        return lambda _done: self._progress.advance(self._task)

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()


def _finish(report: Report, strictness: Level, *, json: Path | None, junit: Path | None, html: Path | None) -> NoReturn:
    """Show the report, write it where it is wanted, and end with its exit code."""
    # On the terminal first: what was examined is not lost with a file that cannot be written.
    reporting.to_terminal(report, Console())
    forms: dict[str, tuple[Path | None, Callable[[Report], str]]] = {
        "--json": (json, reporting.to_json),
        "--junit": (junit, partial(reporting.to_junit, strictness=strictness)),
        "--html": (html, reporting.to_html),
    }
    for option, (path, form) in forms.items():
        if path is not None:
            try:
                # whatever the system's own encoding is: they say that they are in UTF-8
                path.write_text(form(report), "utf-8")
            except OSError as exc:
                fail(f"{option} cannot be written to {path}: {exc.strerror}")
    raise typer.Exit(report.exit_code(strictness))
