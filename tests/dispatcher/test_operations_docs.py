"""docs/operations.md names what there is: metrics, log lines, settings, columns of the database."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg

from dispatcher import metrics
from dispatcher.config import Settings
from dispatcher.models import Outcome, TaskState

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")


def samples() -> set[str]:
    """The names that /metrics shows, those of a histogram's parts among them."""
    return {
        name
        for metric in metrics.registry.collect()
        for name in (
            [f"{metric.name}_total"] if metric.type == "counter"
            else [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")] if metric.type == "histogram"
            else [metric.name]
        )
    }  # fmt: skip


def test_metrics_are_there_with_their_labels() -> None:
    named = set(re.findall(r"\bdispatcher_[a-z_]+", PAGE))
    assert len(named) > 5
    assert named <= samples()
    assert set(re.findall(r'outcome!?="(\w+)"', PAGE)) <= set(Outcome)
    assert set(re.findall(r'state="(\w+)"', PAGE)) <= set(TaskState)


def test_log_lines_are_there() -> None:
    [lines] = re.findall(r"^## What to alert on\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    named = {
        name for cell in re.findall(r"\| log ([^|]*)\|", lines) for name in re.findall(r"`([a-z]+_[a-z_]+)`", cell)
    }
    assert len(named) > 5
    code = "".join(file.read_text("utf-8") for file in (ROOT / "dispatcher").rglob("*.py"))
    assert {name for name in named if not re.search(rf'log\.\w+\(\s*"{name}"', code)} == set()


def test_settings_are_there() -> None:
    known = {f"DISPATCHER_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bDISPATCHER_[A-Z_]+", PAGE)) <= known


async def test_questions_for_the_database_have_answers(postgres_url: str) -> None:
    questions = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert questions
    connection = await asyncpg.connect(postgres_url)
    try:
        for question in questions:
            await connection.fetch(question)
    finally:
        await connection.close()


def test_the_first_steps_are_those_of_the_compose_file() -> None:
    steps = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    assert [line for line in steps.splitlines() if f"#   {line}\n" not in compose] == []
