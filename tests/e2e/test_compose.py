"""docker-compose.yml: it is valid, it is careful, and its topology, started as plain processes, delivers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft7Validator

from dispatcher.config import Settings
from tests.conftest import missing
from tests.support import composed, postgres
from tests.support.composed import COMPOSE, Image, MissingVariableError, Service, Topology
from tests.support.server import until

SCHEMA = Path(__file__).parents[1] / "vectors" / "compose-spec.json"
VARIABLES = {
    "POSTGRES_PASSWORD": "p@ss/word: with any 'character?",
    "RECEIVER_SECRET": "whsec_b25seSBmb3IgYSB0cmlhbCBvZiB0aGlz",
}
#: that are run to their end
ONCE = {"init", "certificate"}
SECONDS = {"s": 1, "m": 60}


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    return composed.read(VARIABLES)


# --- what the file says -----------------------------------------------------------------------------------


def test_it_is_a_compose_file() -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    document = yaml.safe_load(COMPOSE.read_text("utf-8"))
    assert [error.message for error in Draft7Validator(schema).iter_errors(document)] == []
    # the schema sees what is wrong
    document["services"]["api"]["restrat"] = "always"
    assert len(list(Draft7Validator(schema).iter_errors(document))) == 1


def test_it_has_what_it_should(services: dict[str, Service]) -> None:
    assert {name: service.replicas for name, service in services.items()} == {
        "db": 1, "init": 1, "api": 1, "worker": 2, "certificate": 1, "receiver": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_a_secret_has_no_default(name: str) -> None:
    with pytest.raises(MissingVariableError, match=r"set it in \.env"):
        composed.read({key: value for key, value in VARIABLES.items() if key != name})
    # an empty one is none
    with pytest.raises(MissingVariableError):
        composed.read(VARIABLES | {name: ""})


def test_no_secret_stands_in_it() -> None:
    for name in VARIABLES:
        found = re.findall(rf"\$\{{{name}[^}}]*\}}", COMPOSE.read_text("utf-8"))
        assert found
        assert all(use.startswith(f"${{{name}:?") for use in found)


def test_the_database_is_out_of_the_receivers_reach(services: dict[str, Service]) -> None:
    document = yaml.safe_load(COMPOSE.read_text("utf-8"))
    assert services["db"].networks == {"inside"}
    assert document["networks"]["inside"] == {"internal": True}
    assert not services["receiver"].networks & services["db"].networks
    assert services["certificate"].raw["network_mode"] == "none"
    # and what is open to this machine is open to nobody else
    ports = [port for service in services.values() for port in service.raw.get("ports", ())]
    assert ports == ["127.0.0.1:8080:8080"]


def test_processes_have_no_more_than_they_need(services: dict[str, Service]) -> None:
    for name, service in services.items():
        raw = service.raw
        assert re.search(r":\d+\.\d+", service.image), "pinned by version"
        assert {"cpus", "memory"} <= raw["deploy"]["resources"]["limits"].keys()
        assert raw["restart"] == ("no" if name in ONCE else "unless-stopped")
        assert (service.healthcheck is None) is (name in ONCE)
        if name != "db":
            assert raw["read_only"] is True
            assert raw["cap_drop"] == ["ALL"]
            assert raw["security_opt"] == ["no-new-privileges:true"]
            assert "DISPATCHER_DEV" not in service.environment
    writers = {name for name, service in services.items() if ("keyring", False) in service.volumes.values()}
    assert writers == {"init"}


def test_a_stop_has_the_time_that_it_takes(services: dict[str, Service]) -> None:
    for service in services.values():
        if service.name in {"api", "worker"}:
            period = service.raw["stop_grace_period"]
            grace = float(service.environment["DISPATCHER_GRACE"])
            assert int(period[:-1]) * SECONDS[period[-1]] >= grace + 10


def test_settings_are_settings(services: dict[str, Service]) -> None:
    known = {f"DISPATCHER_{name.upper()}" for name in Settings.model_fields}
    named = {*Image.read().environment, *(name for service in services.values() for name in service.environment)}
    assert {name for name in named if name.startswith("DISPATCHER_")} <= known


# --- the topology -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    lacks = postgres.lacking()
    if lacks is not None:
        missing(lacks)
    cluster = postgres.Cluster()
    try:
        cluster.start()
        with composed.running(tmp_path_factory.mktemp("composed"), cluster, VARIABLES) as topology:
            yield topology
    finally:
        cluster.remove()


def token_of(topology: Topology) -> str:
    """As the file's first lines say: `docker compose exec api dispatcher token create …`."""
    return topology.execute("api", "token", "create", "--account", "acme", "--scope", "tasks:write").strip()


def test_a_task_arrives_verified(topology: Topology) -> None:
    """Over TLS, by name, signed. The fixture has seen to it that everything is healthy."""
    task = {
        "payload": {"order": 7},
        "callback_url": "https://receiver:8443/orders",
        "secret": VARIABLES["RECEIVER_SECRET"],
    }
    answer = httpx.post(
        f"http://{topology.address('api')}:8080/tasks",
        json=task,
        headers={"Authorization": f"Bearer {token_of(topology)}"},
        trust_env=False,
    )
    assert answer.status_code == 202, answer.text
    delivery = answer.json()["delivery_id"]

    def arrived() -> Any:
        found = httpx.get(
            f"http://{topology.address('receiver')}:8082/requests", params={"delivery": delivery}, trust_env=False
        )
        return found.json()["items"]

    [request] = until(arrived)
    assert request["status"] == 202
    assert "signature" in request["judgement"]["passed"]
    # the keyring is all that there is in its volume: those who may only read it write nothing there
    assert [file.name for file in topology.volume("keyring").iterdir()] == ["keyring.json"]


def test_it_stops_at_sigterm(topology: Topology) -> None:
    """The last test here: nothing runs afterwards."""
    for place, process in topology.processes.items():
        process.terminate()
        assert process.wait(120) == 0, topology.log(*place).read_text()
