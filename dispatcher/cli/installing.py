"""`dispatcher init`: makes what an installation needs, and ends."""

from __future__ import annotations

from pathlib import Path

import typer

from dispatcher.cli.running import DataDir, opened, read_settings, run
from dispatcher.store import migrations

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def init(data_dir: DataDir = None) -> None:
    """Make the keyring and the tables, or bring the tables up to date.

    Every server does so when it starts. This is for the moment before: to upgrade the database first, or where servers
    may read the keyring and not write it.
    """
    settings = read_settings(data_dir=data_dir)

    async def install() -> Path | None:
        async with opened(settings) as installation:
            return installation.keyring.path

    typer.echo(f"installation ready: tables as of {migrations.HEAD}, keyring in {run(install())}")
