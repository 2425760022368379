"""docker-compose.yml, read, and its services as plain processes of this machine: there is no container engine here.

What a container has of its own, a process has instead: an address in 127.0.0.0/8 that no other service has, a folder
for each volume, and a name server that knows the services by name. Commands, environment, healthchecks and the order of
the start are the file's and the Dockerfile's. The database is the tests' own PostgreSQL.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support import forking
from tests.support.dns import NameServerThread
from tests.support.forking import ROOT, Forked
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, binaries
from tests.support.server import until

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
#: the service that is not a process of ours
DATABASE = "db"


class MissingVariableError(Exception):
    """A variable that has to be set is not; the text is the file's own."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service, as the file has it."""

    name: str
    image: str
    command: list[str]
    #: None: the image's own
    entrypoint: list[str] | None
    environment: dict[str, str]
    #: path in the container -> volume, and whether it may only be read
    volumes: dict[str, tuple[str, bool]]
    networks: set[str]
    #: service -> what has to be true of it
    depends_on: dict[str, str]
    healthcheck: list[str] | None
    replicas: int
    #: all of it, for what is only looked at
    raw: dict[str, Any]


def read(variables: Mapping[str, str]) -> dict[str, Service]:
    """The services, in the order in which they can be started. Raises MissingVariableError."""
    document = _interpolated(yaml.safe_load(COMPOSE.read_text("utf-8")), variables)
    services = {name: _service(name, raw) for name, raw in document["services"].items()}
    ordered: dict[str, Service] = {}
    while left := services.keys() - ordered.keys():
        ready = [name for name in services if name in left and services[name].depends_on.keys() <= ordered.keys()]
        assert ready, f"these wait for each other: {left}"
        ordered |= {name: services[name] for name in ready}
    return ordered


def _service(name: str, raw: dict[str, Any]) -> Service:
    volumes = [volume.split(":") for volume in raw.get("volumes", ())]
    return Service(
        name=name,
        image=raw["image"],
        command=raw["command"],
        entrypoint=raw.get("entrypoint"),
        environment=raw.get("environment", {}),
        volumes={path: (source, mode == ["ro"]) for source, path, *mode in volumes},
        networks=set(raw.get("networks", ())),
        depends_on={other: wish["condition"] for other, wish in raw.get("depends_on", {}).items()},
        healthcheck=raw["healthcheck"]["test"] if "healthcheck" in raw else None,
        replicas=raw.get("deploy", {}).get("replicas", 1),
        raw=raw,
    )


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """The value with its variables filled in, as the Compose Specification has it: `${A:?text}` and `${A:-default}`."""
    if isinstance(value, dict):
        return {key: _interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if found := variables.get(match["name"]):
            return found
        if match["sign"] == "?":
            raise MissingVariableError(match["text"])
        return match["text"]

    filled = re.sub(r"\$\{(?P<name>[A-Z_]+):(?P<sign>[?-])(?P<text>[^}]*)\}", fill, value)
    assert "$" not in filled, f"a way to name variables that is not known here: {value}"
    return filled


@dataclass(frozen=True, kw_only=True)
class Image:
    """What the last stage of the Dockerfile says of its processes."""

    entrypoint: list[str]
    command: list[str]
    environment: dict[str, str]
    healthcheck: list[str]
    user: str

    @classmethod
    def read(cls) -> Image:
        """As it stands in the file."""
        text = DOCKERFILE.read_text("utf-8").replace("\\\n", "")
        last = text.rpartition("\nFROM ")[2]
        said = dict(re.findall(r"^([A-Z]+) +(.*)$", last, re.MULTILINE))
        return cls(
            entrypoint=yaml.safe_load(said["ENTRYPOINT"]),
            command=yaml.safe_load(said["CMD"]),
            environment=dict(pair.split("=", 1) for pair in shlex.split(said["ENV"])),
            healthcheck=["CMD", *yaml.safe_load(said["HEALTHCHECK"].partition(" CMD ")[2])],
            user=said["USER"],
        )


# --- as processes -----------------------------------------------------------------------------------------


class Topology:
    """The services, running. `address` of a service is its first one's."""

    def __init__(self, folder: Path, cluster: Cluster, services: Mapping[str, Service], stack: ExitStack) -> None:
        self._folder = folder
        self._cluster = cluster
        self._services = services
        self._stack = stack
        self._image = Image.read()
        net = f"127.{random.randrange(64, 250)}.{random.randrange(250)}"
        names = [(name, number) for name, service in services.items() for number in range(service.replicas)]
        #: by service and number, as in a network of containers
        self.addresses = {place: f"{net}.{last}" for last, place in enumerate(names, start=1)}
        self.processes: dict[tuple[str, int], Forked] = {}
        self._names = stack.enter_context(NameServerThread({name: [self.address(name)] for name in services}))

    def address(self, name: str) -> str:
        """Where a service is."""
        return self.addresses[name, 0]

    def volume(self, name: str) -> Path:
        """The folder that is a volume."""
        folder = self._folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def log(self, name: str, number: int = 0) -> Path:
        """The file that has what a service printed."""
        return self._folder / f"{name}-{number}.log"

    def start(self) -> None:
        """Start all, each as soon as what it depends on is as it wants."""
        for service in self._services.values():
            for other, condition in service.depends_on.items():
                if condition == "service_healthy":
                    self.wait_until_healthy(other)
                else:
                    # it was run to its end, below
                    assert condition == "service_completed_successfully"
            if service.name == DATABASE:
                self._make_database(service)
            elif service.raw["restart"] == "no":
                self._run(service)
            else:
                for number in range(service.replicas):
                    self._start(service, number)

    def wait_until_healthy(self, name: str) -> None:
        """Until the healthcheck passes of all processes of a service."""
        for number in range(self._services[name].replicas):
            until(lambda number=number: self.is_healthy(name, number), within=PATIENCE, every=0.2)

    def is_healthy(self, name: str, number: int = 0) -> bool:
        """Whether its healthcheck passes; a process that has ended is an error."""
        service = self._services[name]
        assert service.healthcheck is not None
        process = self.processes.get((name, number))
        assert process is None or process.poll() is None, self.log(name, number).read_text()
        kind, *command = service.healthcheck
        assert kind == "CMD"
        done = subprocess.run(
            self._here(service, number, command), env=self._environment(service, number), check=False, timeout=60,
            capture_output=True,
        )  # fmt: skip
        return done.returncode == 0

    def execute(self, name: str, *arguments: str) -> str:
        """Run a command of ours beside a service, as `docker compose exec` does; what it printed."""
        service = self._services[name]
        words, environment = self._here(service, 0, list(arguments)), self._environment(service, 0)
        return forking.run(*words, env=environment, check=True).stdout

    def _make_database(self, service: Service) -> None:
        user, name = service.environment["POSTGRES_USER"], service.environment["POSTGRES_DB"]
        self._cluster.execute(f"CREATE ROLE {user} LOGIN")
        self._cluster.execute(f"CREATE DATABASE {name} OWNER {user} TEMPLATE template0")

    def _run(self, service: Service) -> None:
        words, environment = self._here(service, 0, service.command), self._environment(service, 0)
        with self.log(service.name).open("ab") as log:
            if service.entrypoint is None:
                process: Forked | subprocess.Popen[bytes] = forking.dispatcher(
                    words, env=environment, stdout=log, stderr=log
                )
            else:
                process = subprocess.Popen([*service.entrypoint, *words], env=environment, stdout=log, stderr=log)
            with process:
                assert process.wait(PATIENCE) == 0, self.log(service.name).read_text()

    def _start(self, service: Service, number: int) -> None:
        assert service.entrypoint is None
        assert self._image.entrypoint == ["dispatcher"]
        with self.log(service.name, number).open("ab") as log:
            process = forking.dispatcher(
                self._here(service, number, service.command),
                env=self._environment(service, number),
                stdout=log,
                stderr=log,
            )
        self.processes[service.name, number] = process
        self._stack.callback(process.kill)

    def _here(self, service: Service, number: int, words: list[str]) -> list[str]:
        """Words of the container as they are here."""
        # the socket's folder, which PostgreSQL's programs take for a host
        address = str(self._cluster.folder) if service.name == DATABASE else self.addresses[service.name, number]
        texts = [re.sub(r"127\.0\.0\.1|0\.0\.0\.0", address, word) for word in words]
        for path, (volume, _) in service.volumes.items():
            texts = [re.sub(rf"(?<![\w./-]){path}(?=/|$)", str(self.volume(volume)), text) for text in texts]
        return texts

    def _environment(self, service: Service, number: int) -> dict[str, str]:
        programs = (Path(sys.executable).parent, binaries(), "/usr/local/bin", "/usr/bin", "/bin")
        given = (self._image.environment if service.name != DATABASE else {}) | service.environment
        names, values = given.keys(), self._here(service, number, list(given.values()))
        here = dict(zip(names, values, strict=True)) | {"PATH": os.pathsep.join(map(str, programs))}
        if "DATABASE_URL" in here:
            base, _, database = here["DATABASE_URL"].partition(f"@{DATABASE}/")
            assert database, "the database is reached by its service's name"
            here["DATABASE_URL"] = f"{base}@/{database}?host={self._cluster.folder}"
            here["DISPATCHER_NAMESERVERS"] = self._names.address
        return here


@contextmanager
def running(folder: Path, cluster: Cluster, variables: Mapping[str, str]) -> Iterator[Topology]:
    """All services of the file, started and healthy; they are gone afterwards."""
    with ExitStack() as stack:
        topology = Topology(folder, cluster, read(variables), stack)
        topology.start()
        for name, service in read(variables).items():
            if service.healthcheck is not None:
                topology.wait_until_healthy(name)
        yield topology
