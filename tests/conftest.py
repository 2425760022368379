"""What all tests share. A tool that is missing skips a test, but under CI nothing is skipped."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
import trustme

from tests.support import compiling, forking, new_databases, postgres
from tests.support.receiver import Receiver
from tests.support.server import Server
from tests.support.stores import Home

#: set by scripts/test under CI: what is missing fails
REQUIRE = os.environ.get("TESTS_REQUIRE_ALL") == "1"

#: by hand: tests take minutes that otherwise take part of it
LONG = os.environ.get("TESTS_LONG") == "1"

#: the kinds of database that what is tested on each is tested on; by hand TESTS_DATABASE names the only one
DATABASES = new_databases.DATABASES
#: for tests of what is in SQLite's file, or done to it
of_the_file = pytest.mark.skipif("sqlite" not in DATABASES, reason="its subject is SQLite's file")


def missing(what: str) -> None:
    """Skip this test because of what is missing; fail instead under CI."""
    if REQUIRE:
        pytest.fail(f"missing on this machine: {what}")
    pytest.skip(f"missing on this machine: {what}")


# What is imported and collected is there to the end: the collector is not to look through it again and again, neither
# while it grows nor later.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on, tests leave things behind."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name == "DATABASE_URL" or name.startswith("DISPATCHER_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _tracebacks_are_plain() -> None:
    """As they are in production. Drawing rich ones, structlog's default, takes longer than most tests."""
    *others, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*others, plain])


@pytest.fixture(scope="session", autouse=True)
def _one_authority_is_enough(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For us, and for whatever we start. To load those of the whole world takes longer than most tests."""
    folder = tmp_path_factory.mktemp("authorities")
    trustme.CA().cert_pem.write_to_path(str(folder / "ca.pem"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        patch.setenv("SSL_CERT_DIR", str(folder / "none"))
        # httpx asks this one where it is not to look at the environment
        patch.setattr("certifi.where", lambda: str(folder / "ca.pem"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _statements_are_compiled_once() -> Iterator[None]:
    with compiling.once():
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_that_was_started_is_left() -> Iterator[None]:
    with forking.ending_with_us(), postgres.ending_with_us():
        yield


@pytest.fixture(scope="module", autouse=True)
def _databases_are_given_back() -> Iterator[None]:
    """After all servers of a module have ended: it was set up before them."""
    with new_databases.given_back():
        yield


@pytest.fixture(scope="module", autouse=True)
def _leaks_are_found_where_they_are_made() -> Iterator[None]:
    """What a module left open fails that module, not whichever test runs when the collector comes by."""
    yield
    gc.collect()


def _cluster() -> postgres.Cluster:
    lacks = postgres.lacking()
    if lacks is not None:
        missing(lacks)
    return postgres.shared()


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A database of PostgreSQL with our tables in it."""
    cluster = _cluster()
    name = cluster.take()
    yield cluster.url(name)
    cluster.give_back(name)


@pytest.fixture
def own_postgres_url() -> Iterator[str]:
    """The same, for a test that makes or drops tables."""
    cluster = _cluster()
    name = cluster.create(template=cluster.template)
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def bare_postgres_url() -> Iterator[str]:
    """A database of PostgreSQL with nothing in it."""
    cluster = _cluster()
    name = cluster.create()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture(scope="module", params=DATABASES)
def a_database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The URL of a database for the server of a module, on each kind of database; none for a file."""
    if request.param == "sqlite":
        yield None
        return
    cluster = _cluster()
    name = cluster.take()
    yield cluster.url(name)
    cluster.give_back(name)


@pytest.fixture(params=DATABASES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A place for an installation, on each kind of database."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    return Home(data_dir=tmp_path / "data", database_url=url)


@pytest.fixture(params=DATABASES)
def bare_home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """The same, where the database has no tables yet."""
    url = request.getfixturevalue("bare_postgres_url") if request.param == "postgresql" else None
    return Home(data_dir=tmp_path / "data", database_url=url)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 200."""
    with Receiver() as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts dispatchers that are gone when the test is."""
    servers: list[Server] = []

    def start(name: str = "data", **options: object) -> Server:
        server = Server(tmp_path / name, **options)  # type: ignore[arg-type]  # passed through
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        if server.running:
            server.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One dispatcher in --dev mode, with fast retries, for all tests of a module."""
    settings = {"retry_schedule": "[0.05, 0.1, 0.2]", "send_timeout": "2"}
    with Server(tmp_path_factory.mktemp("server") / "data", settings=settings) as running:
        yield running
