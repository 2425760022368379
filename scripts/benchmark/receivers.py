"""Where deliveries go: nginx, or a receiver of our own where there is none or arrivals must be timed."""

from __future__ import annotations

import re
import socket
import ssl
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx

from scripts.benchmark import processes
from scripts.benchmark.processes import Child
from scripts.benchmark.tools import NGINX, program

LOOPBACK = "127.0.0.1"

_NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 32768;
pid {folder}/nginx.pid;
error_log {folder}/nginx-errors.log warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {folder}/nginx-bodies;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  map $http_x_webhook_attempt $is_first {{ 1 1; default 0; }}
  server {{
{listens}
{certificate}
    location / {{ return 200; }}
    location = /count {{ stub_status; }}
    location ~ ^/pause/(?<seconds>[0-9]+)$ {{
      if ($is_first = 0) {{ return 200; }}
      add_header Retry-After $seconds always;
      return 503;
    }}
  }}
}}
"""


class Receiver(Protocol):
    """A running receiver."""

    #: its addresses, `http://127.1.0.1:18000`; each is an endpoint of its own
    origins: Sequence[str]
    #: what it is, for the report
    kind: str

    def count(self) -> int:
        """How many requests it has taken, by its own count."""
        ...


class Nginx:
    """nginx with one worker, which answers 200 to any POST."""

    kind = "nginx"

    def __init__(self, origins: Sequence[str], client: httpx.Client) -> None:
        self.origins = origins
        self._client = client
        self._asked = 0

    def count(self) -> int:
        """Requests by its status page, less those for that page."""
        self._asked += 1
        found = re.search(r"\n +\d+ +\d+ +(\d+)", self._client.get(f"{self.origins[0]}/count").text)
        return int(found[1]) - self._asked if found else 0


class OwnReceiver:
    """Ours, which also knows when each delivery came."""

    kind = "our own receiver on uvloop"

    def __init__(self, origins: Sequence[str], client: httpx.Client) -> None:
        self.origins = origins
        self._client = client

    def count(self) -> int:
        """Deliveries that came."""
        return int(self._client.get(f"{self.origins[0]}/count").text)

    def taken(self) -> int:
        """Deliveries that were answered with 200."""
        return int(self._client.get(f"{self.origins[0]}/taken").text)

    def arrivals(self) -> list[tuple[int, float]]:
        """Number and moment (monotonic seconds) of each delivery that came."""
        content = self._client.get(f"{self.origins[0]}/arrivals").content
        half = len(content) // 2
        numbers, moments = array("q"), array("d")
        numbers.frombytes(content[:half])
        moments.frombytes(content[half:])
        return list(zip(numbers, moments, strict=True))


def loopback_hosts(count: int) -> list[str]:
    """So many addresses of this machine; the first is 127.0.0.1 if it is the only one."""
    if count == 1:
        return [LOOPBACK]
    return [f"127.1.{index // 250}.{index % 250 + 1}" for index in range(count)]


@contextmanager
def receiving(folder: Path, *, hosts: int = 1, certificate: Path | None = None) -> Iterator[Receiver]:
    """nginx; our own receiver where nginx is not to be had."""
    nginx = program(NGINX)
    if nginx is None:
        with timing(folder, hosts=hosts, certificate=certificate) as receiver:
            yield receiver
        return
    addresses, port = loopback_hosts(hosts), free_port()
    tls = " ssl" if certificate else ""
    config = folder / "nginx.conf"
    config.write_text(
        _NGINX.format(
            folder=folder,
            listens="\n".join(f"    listen {host}:{port}{tls} backlog=1024;" for host in addresses),
            certificate=f"    ssl_certificate {certificate}; ssl_certificate_key {certificate};" if certificate else "",
        )
    )
    command = [nginx, "-c", str(config), "-e", str(folder / "nginx-errors.log"), "-p", str(folder)]
    origins = [f"{'https' if certificate else 'http'}://{host}:{port}" for host in addresses]
    with processes.running(command, log=folder / "nginx.log") as child, _client(certificate) as client:
        _until_listening(child, addresses[-1], port)
        yield Nginx(origins, client)


@contextmanager
def timing(folder: Path, *, hosts: int = 1, certificate: Path | None = None) -> Iterator[OwnReceiver]:
    """Our own receiver."""
    addresses, port = loopback_hosts(hosts), free_port()
    command = [sys.executable, "-m", "scripts.benchmark.own_receiver", str(port), ",".join(addresses)]
    command += [str(certificate)] if certificate else []
    origins = [f"{'https' if certificate else 'http'}://{host}:{port}" for host in addresses]
    with processes.running(command, log=folder / "receiver.log") as child, _client(certificate) as client:
        if next(child.lines(), None) != "ready":
            raise child.failure("did not start")
        yield OwnReceiver(origins, client)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        port: int = found.getsockname()[1]
        return port


def trust(certificate: Path) -> dict[str, str]:
    """What makes OpenSSL trust this certificate, for the environment of a process."""
    return {"SSL_CERT_FILE": str(certificate)}


def _trusting(certificate: Path | None) -> ssl.SSLContext | bool:
    return True if certificate is None else ssl.create_default_context(cafile=certificate)


def _client(certificate: Path | None) -> httpx.Client:
    return httpx.Client(verify=_trusting(certificate), timeout=30, trust_env=False)


def _until_listening(child: Child, host: str, port: int) -> None:
    def listens() -> bool:
        if child.process.poll() is not None:
            raise child.failure("did not start")
        with socket.socket() as probe:
            return probe.connect_ex((host, port)) == 0

    processes.until(listens, within=processes.START_S, what=f"nginx listens on port {port}")
