"""`dispatcher workers`: which processes work on a database, and what each has in hand."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dispatcher.api import shapes, views
from dispatcher.cli import showing
from dispatcher.cli.running import DataDir, opened, read_settings, run
from dispatcher.cli.speaking import Json, fail
from dispatcher.config import Settings
from dispatcher.installation import is_made
from dispatcher.store import workers as store

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def workers(as_json: Json = False, data_dir: DataDir = None) -> None:
    """List the processes of an installation, by their sessions: who they are, and what they have in hand."""
    settings = read_settings(data_dir=data_dir)
    if not is_made(settings):
        fail(f"there is no installation in {settings.data_dir}")
    found = run(_read(settings))
    if as_json:
        showing.as_json(found)
        return
    table = Table("host", "pid", "role", "version", "heartbeat", "deliveries", "tasks", "paces")
    for one in found:
        counts = map(str, (one.deliveries, one.tasks, one.paces))
        table.add_row(Text(one.host), str(one.pid), one.role, Text(one.version), _heartbeat(one), *counts)
    Console().print(table)


async def _read(settings: Settings) -> list[shapes.Worker]:
    async with opened(settings) as installation:
        return [views.worker(one) for one in await store.list_workers(installation.database)]


def _heartbeat(one: shapes.Worker) -> str:
    age = "unknown" if one.heartbeat_age is None else f"{one.heartbeat_age:.0f} s ago"
    return f"{age}, overdue" if one.state == "overdue" else age
