"""The egress guard for real: a server without --dev, in a network of its own where public and private addresses answer.

Every private listener counts its connections. Whatever a URL, a name server or a redirect says, they stay at none.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import trustme

from tests.conftest import missing
from tests.support import netns
from tests.support.dns import AAAA, A, Found, Lookup, NameServerThread
from tests.support.server import Server, until

PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::1"
PRIVATE = ("10.0.0.5", "192.168.7.7", "100.64.0.9", "169.254.169.254", "fd00::5")
LOOPBACK = ("127.0.0.1", "::1")
PORTS = (80, 443, 8443)
REFUSED = "this address is not one we send to"
ENDED = {"delivered", "exhausted", "rejected", "expired", "cancelled"}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request that reached a public address."""

    address: str
    sni: str | None
    host: str
    path: str
    body: bytes


class PublicServer(ThreadingHTTPServer):
    """An https server on one public address. It closes each connection, so that each request is dialled anew."""

    daemon_threads = True

    def __init__(self, address: str, port: int, context: ssl.SSLContext, seen: list[Seen]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.seen = seen
        self.names: dict[Any, str | None] = {}
        context.sni_callback = lambda connection, name, _context: self.names.update({connection: name})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A handshake that our certificate ended is part of the test."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: PublicServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = self.request.getsockname()[0]
        self.server.seen.append(
            Seen(
                address=address,
                sni=self.server.names.get(self.request),
                host=self.headers["Host"],
                path=self.path,
                body=body,
            )
        )
        if self.path.startswith("/redirect/"):
            self.send_response(int(self.path.split("/")[2]))
            self.send_header("Location", body.decode().strip('"'))
        else:
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the signature is the library's
        pass


class Trap:
    """Listens on every private address and port, and counts whoever connects."""

    def __init__(self) -> None:
        self.connections: list[tuple[str, int]] = []
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._sockets = [
            socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            for address in (*PRIVATE, *LOOPBACK)
            for port in PORTS
        ]

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(0.05):
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                self.connections.append(listener.getsockname()[:2])
                listener.accept()[0].close()

    def __enter__(self) -> Self:
        for listener in self._sockets:
            self._selector.register(listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join(5)
        for listener in self._sockets:
            listener.close()
        self._selector.close()


@dataclass(kw_only=True)
class World:
    """The server under test and all that is around it."""

    client: httpx.Client
    names: NameServerThread
    trap: Trap
    seen: list[Seen] = field(default_factory=list)

    def post(self, url: str, payload: str = '"x"') -> httpx.Response:
        body = f'{{"payload": {payload}, "callback_url": "{url}"}}'
        return self.client.post("/tasks", content=body.encode())

    def accept(self, url: str, payload: str = '"x"') -> str:
        """Post a task; returns its delivery's id."""
        answer = self.post(url, payload)
        assert answer.status_code == 202, (url, answer.text)
        return str(answer.json()["delivery_id"])

    def ended(self, delivery: str) -> dict[str, Any]:
        """The delivery once it has ended."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.client.get(f"/deliveries/{delivery}").json()
            return found if found["state"] in ENDED else None

        result: dict[str, Any] = until(look)
        return result


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server without --dev inside a network of its own."""
    if reason := netns.why_not():
        missing(reason)
    folder = tmp_path_factory.mktemp("egress")
    with netns.own_network([PUBLIC, PUBLIC6, *PRIVATE]), _world(folder) as made:
        yield made


@contextmanager
def _world(folder: Path) -> Iterator[World]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate = ca.issue_cert("*.public.test", PUBLIC, PUBLIC6)
    seen: list[Seen] = []
    with ExitStack() as stack:
        for address in (PUBLIC, PUBLIC6):
            for port in (443, 8443):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                certificate.configure_cert(context)
                stack.enter_context(PublicServer(address, port, context, seen))
        trap = stack.enter_context(Trap())
        names = stack.enter_context(NameServerThread(ZONE))
        names.server.ttl = 0
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        settings = {
            "nameservers": names.address,
            "retry_schedule": "[0.05, 0.05, 0.05]",
            "send_timeout": "3",
        }
        server = stack.enter_context(Server(folder / "data", dev=False, settings=settings, real_start=True))
        scopes = ("--scope", "tasks:write", "--scope", "deliveries:read")
        server.token = server.cli("token", "create", "--account", "a", *scopes).stdout.strip()
        client = stack.enter_context(server.client())
        yield World(client=client, names=names, trap=trap, seen=seen)


def _each_time(*answers: list[str]) -> Lookup:
    """Another answer at each look-up; the last one for good. Both families are asked once per look-up."""
    turn = {A: count(), AAAA: count()}

    def look_up(_name: str, kind: int) -> Found:
        return answers[min(next(turn[kind]), len(answers) - 1)]

    return look_up


#: names that must never be connected to, each for another reason
BAD_NAMES: dict[str, Found | Lookup] = {
    "private.bad.test": ["10.0.0.5"],
    "lan.bad.test": ["192.168.7.7"],
    "shared.bad.test": ["100.64.0.9"],
    "metadata.bad.test": ["169.254.169.254"],
    "loopback.bad.test": ["127.0.0.1"],
    "loopback6.bad.test": ["::1"],
    "unspecified.bad.test": ["0.0.0.0"],
    "unspecified6.bad.test": ["::"],
    "unique-local.bad.test": ["fd00::5"],
    "public-first.bad.test": [PUBLIC, "10.0.0.5"],
    "private-first.bad.test": ["10.0.0.5", PUBLIC],
    "other-family.bad.test": [PUBLIC, "::1"],
    "other-family4.bad.test": ["127.0.0.1", PUBLIC6],
    "many.bad.test": [*[f"93.184.216.{n}" for n in range(1, 20)], "10.0.0.5"],
    "mapped.bad.test": ["::ffff:10.0.0.5"],
    "mapped-public.bad.test": [f"::ffff:{PUBLIC}"],
    "compatible.bad.test": ["::10.0.0.5"],
    "nat64.bad.test": ["64:ff9b::10.0.0.5"],
    "sixtofour.bad.test": ["2002:a00:5::1"],
    "isatap.bad.test": ["2606:2800:220:1:0:5efe:a00:5"],
}
ZONE: dict[str, Found | Lookup] = BAD_NAMES | {
    "*.public.test": [PUBLIC],
    "six.public.test": [PUBLIC6],
    "wrong.test": [PUBLIC],
    # safe at the first look-up, and private at any second one
    "then-private.public.test": _each_time([PUBLIC], ["10.0.0.5"], ["127.0.0.1"]),
    "then-public.public.test": _each_time(["10.0.0.5"], [PUBLIC]),
    "ever-new.public.test": _each_time(*[[PUBLIC], ["10.0.0.5"]] * 50),
}


@pytest.mark.parametrize(
    ("url", "address", "sni", "host"),
    [
        ("https://hook.public.test/a%2Fb?c=d", PUBLIC, "hook.public.test", "hook.public.test"),
        ("https://HOOK.Public.test./a", PUBLIC, "hook.public.test", "hook.public.test"),
        ("https://hook.public.test:8443/a", PUBLIC, "hook.public.test", "hook.public.test:8443"),
        ("https://six.public.test/a", PUBLIC6, "six.public.test", "six.public.test"),
        (f"https://{PUBLIC}/a", PUBLIC, None, PUBLIC),
        (f"https://[{PUBLIC6}]/a", PUBLIC6, None, f"[{PUBLIC6}]"),
    ],
)
def test_a_public_address_is_delivered_to_by_its_name(
    world: World, url: str, address: str, sni: str | None, host: str
) -> None:
    before = len(world.seen)
    delivery = world.ended(world.accept(url, '{"n" : 1e400}'))
    assert delivery["state"] == "delivered", delivery
    [request] = world.seen[before:]
    path = url.partition("//")[2].partition("/")[2]
    assert request == Seen(address=address, sni=sni, host=host, path=f"/{path}", body=b'{"n" : 1e400}')


def test_the_certificate_is_checked_against_the_name(world: World) -> None:
    before = len(world.seen)
    delivery = world.ended(world.accept("https://wrong.test/a"))
    assert delivery["state"] == "exhausted"
    assert {attempt["outcome"] for attempt in delivery["attempts"]} == {"tls_error"}
    assert len(world.seen) == before


@pytest.mark.parametrize(
    "host",
    [
        *PRIVATE[:4],
        "[fd00::5]",
        "127.0.0.1",
        "127.255.255.254",
        "[::1]",
        "0.0.0.0",
        "[::]",
        "[::ffff:10.0.0.5]",
        f"[::ffff:{PUBLIC}]",
        "[::10.0.0.5]",
        "[64:ff9b::10.0.0.5]",
        "[2002:a00:5::1]",
        "[2606:2800:220:1:0:5efe:a00:5]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "10.5",
        "012.0.0.5",
        "167772165",
        "0xa000005",
        "0x0a.0.0.5",
        "10.0.0.5.",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "\uff11\uff10.0.0.5",
        f"user@{PUBLIC}",
        f"{PUBLIC}:80",
        f"{PUBLIC}:444",
        f"{PUBLIC}:0443x",
    ],
)
def test_what_is_not_public_is_refused_when_it_comes_in(world: World, host: str) -> None:
    answer = world.post(f"https://{host}/s3cr3t-p4th")
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/egress"), answer.text
    assert [error["field"] for error in answer.json()["errors"]] == ["/callback_url"]
    assert "s3cr3t" not in answer.text
    assert host not in answer.text


def test_plain_http_is_refused(world: World) -> None:
    assert world.post(f"http://{PUBLIC}/").json()["type"] == "/problems/egress"


def test_names_that_lead_inside_are_never_connected_to(world: World) -> None:
    public_before = len(world.seen)
    deliveries = {host: world.accept(f"https://{host}/s3cr3t-p4th") for host in BAD_NAMES}
    errors = set()
    for host, delivery_id in deliveries.items():
        delivery = world.ended(delivery_id)
        outcomes = [attempt["outcome"] for attempt in delivery["attempts"]]
        assert (delivery["state"], delivery["reason"], outcomes) == ("rejected", "egress", ["egress_refused"] * 3), host
        errors |= {attempt["error"] for attempt in delivery["attempts"]}
    assert errors == {REFUSED}, "refusals must read alike"
    assert world.trap.connections == []
    assert len(world.seen) == public_before


def test_a_name_that_changes_between_look_ups_gains_nothing(world: World) -> None:
    public_before = len(world.seen)
    first = world.ended(world.accept("https://then-private.public.test/1"))
    assert first["state"] == "delivered"
    assert world.names.asked("then-private.public.test") == {"then-private.public.test": 2}, "one look-up, two families"
    time.sleep(1.1)  # an answer is kept for a second at least
    second = world.ended(world.accept("https://then-private.public.test/2"))
    assert (second["state"], second["reason"]) == ("rejected", "egress")
    assert len(world.seen) == public_before + 1
    assert world.trap.connections == []


def test_one_refusal_does_not_end_a_delivery(world: World) -> None:
    # Its address is put right while the first answer is still kept: the tries go on until it is asked again.
    server_side = world.accept("https://then-public.public.test/1")
    delivery = world.ended(server_side)
    outcomes = [attempt["outcome"] for attempt in delivery["attempts"]]
    assert outcomes[0] == "egress_refused"
    assert delivery["state"] in {"delivered", "rejected"}
    time.sleep(1.1)
    assert world.ended(world.accept("https://then-public.public.test/2"))["state"] == "delivered"
    assert world.trap.connections == []


def test_a_name_that_is_new_at_each_look_up_never_leads_inside(world: World) -> None:
    before = len(world.seen)
    ends = []
    for n in range(3):
        ends.append(world.ended(world.accept(f"https://ever-new.public.test/{n}"))["state"])
        time.sleep(1.05)
    delivered = [request for request in world.seen[before:] if request.host == "ever-new.public.test"]
    assert ends == ["delivered", "rejected", "delivered"]
    assert len(delivered) == 2
    assert {request.address for request in delivered} == {PUBLIC}
    assert world.trap.connections == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(world: World, status: int) -> None:
    inside = ["https://10.0.0.5/", "http://169.254.169.254/latest/meta-data", "https://[::1]/", "//127.0.0.1/"]
    outside = ["https://hook.public.test/elsewhere"]
    ids = [world.accept(f"https://hook.public.test/redirect/{status}", f'"{to}"') for to in inside + outside]
    for delivery_id in ids:
        delivery = world.ended(delivery_id)
        assert delivery["state"] == "exhausted"
        assert [attempt["status"] for attempt in delivery["attempts"]] == [status] * 4
    assert world.trap.connections == []
    assert not [request for request in world.seen if request.path == "/elsewhere"]


def test_the_trap_and_the_network_work(world: World) -> None:
    """Last in this module, since it springs the trap: the private listeners would have counted a connection."""
    assert world.trap.connections == []
    listeners: list[Callable[[], socket.socket]] = [
        lambda address=address, port=port: socket.create_connection((address, port), 5)  # type: ignore[misc]
        for address in (*PRIVATE, *LOOPBACK)
        for port in PORTS
    ]
    for connect in listeners:
        with closing(connect()):
            pass
    until(lambda: len(world.trap.connections) == len(listeners))
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 9), 5)
