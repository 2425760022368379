"""A command that stands for a sender: it may answer anything, and leave things behind."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from dispatcher.conformance.sender_examination import command_sender
from dispatcher.conformance.sender_examination.command_sender import CommandSender
from dispatcher.conformance.sender_examination.senders import Wish
from dispatcher.errors import ConfigError

#: answers each call with what stands for it, whatever was asked
ANSWERS = """
import json, sys
answers = json.loads(sys.argv[1])
for line in sys.stdin:
    call = json.loads(line)
    for answer in answers.get(call["call"], [{}]):
        print(answer if isinstance(answer, str) else json.dumps({"id": call["id"], "result": answer}), flush=True)
"""


def command(**answers: object) -> list[str]:
    return [sys.executable, "-c", ANSWERS, json.dumps(answers)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_what_a_command_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that it forgot has its pipes, too: waiting for their end would never end."""
    monkeypatch.setattr(command_sender, "END_WITHIN", 1.0)
    forgotten = tmp_path / "pid"
    script = f'sleep 60 & echo $! > {forgotten}; exec "$0" "$@"'
    async with asyncio.timeout(30):
        async with CommandSender(["sh", "-c", script, *command(hello=[{"name": "careless"}])]) as sender:
            assert sender.name == "careless"
            pid = int(forgotten.read_text())
            assert is_running(pid)
            began = time.monotonic()
        assert time.monotonic() - began < 20
    for _ in range(100):
        if not is_running(pid):
            break
        await asyncio.sleep(0.05)
    assert not is_running(pid)


async def test_lines_that_are_no_answers_are_passed_over() -> None:
    noise = ["null", "[1]", '{"id": [1]}', '{"id": {}}', "[" * 100_000, "not JSON", '{"id": 99}']
    async with asyncio.timeout(30), CommandSender(command(hello=[*noise, {"name": "noisy"}])) as sender:
        assert sender.name == "noisy"
        assert not await sender.is_active("a")


@pytest.mark.parametrize("abilities", ["subscribe", [["subscribe"]], {"subscribe": True}, 1, None, ["fly"]])
async def test_abilities_that_are_none_are_told(abilities: object) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(ConfigError, match=r"abilities|ability"):
            async with CommandSender(command(hello=[{"abilities": abilities}])):
                pass


@pytest.mark.parametrize("key", [1, "", "whpk_", "whpk_AAAA", ["whpk_"]])
async def test_a_public_key_that_is_none_is_told(key: object) -> None:
    wish = Wish(url="http://127.0.0.1:9/", event="a", secret="s", schemes=("standard-ed25519",))
    async with asyncio.timeout(30), CommandSender(command(subscribe=[{"id": "1", "public_key": key}])) as sender:
        with pytest.raises(ConfigError, match="a public key is"):
            await sender.subscribe(wish)
