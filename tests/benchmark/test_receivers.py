"""nginx and our own receiver are one to the cases: they answer and count alike."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from scripts.benchmark.certificates import make_certificate
from scripts.benchmark.receivers import Nginx, Receiver, receiving, timing
from scripts.benchmark.tools import NGINX, has
from tests.conftest import missing

Start = Callable[..., AbstractContextManager[Receiver]]


@pytest.fixture(params=["nginx", "own"])
def start(request: pytest.FixtureRequest) -> Start:
    """What starts a receiver."""
    if request.param == "own":
        return timing
    if not has(NGINX):
        missing("nginx")
    return receiving


def test_they_answer_and_count(start: Start, tmp_path: Path) -> None:
    with start(tmp_path, hosts=3) as receiver, httpx.Client(trust_env=False) as client:
        assert receiver.count() == 0
        assert len(set(receiver.origins)) == 3
        for number, origin in enumerate(receiver.origins):
            assert client.post(f"{origin}/results", content=b'{"n":%d,"x":1}' % number).status_code == 200
        assert receiver.count() == 3
        assert receiver.count() == 3


def test_they_ask_for_a_pause_once(start: Start, tmp_path: Path) -> None:
    with start(tmp_path) as receiver, httpx.Client(trust_env=False) as client:
        url = f"{receiver.origins[0]}/pause/90"
        first = client.post(url, content=b"{}", headers={"X-Webhook-Attempt": "1"})
        assert (first.status_code, first.headers["Retry-After"]) == (503, "90")
        for later in ("2", "11"):
            assert client.post(url, content=b"{}", headers={"X-Webhook-Attempt": later}).status_code == 200
        assert receiver.count() == 3


def test_they_speak_tls(start: Start, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=certificate)
    with start(tmp_path, certificate=certificate) as receiver, httpx.Client(verify=context, trust_env=False) as client:
        assert client.post(f"{receiver.origins[0]}/results", content=b"{}").status_code == 200
        assert receiver.count() == 1


def test_nginx_is_taken_where_it_is(tmp_path: Path) -> None:
    with receiving(tmp_path) as receiver:
        assert isinstance(receiver, Nginx) == has(NGINX)


def test_ours_knows_when_each_came_and_fails_on_request(tmp_path: Path) -> None:
    with timing(tmp_path) as receiver, httpx.Client(trust_env=False) as client:
        origin = receiver.origins[0]
        assert client.post(f"{origin}/results", content=b'{"n":7,"x":1}').status_code == 200
        assert client.post(f"{origin}/fail", content=b'{"n":8,"x":1}').status_code == 500
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{origin}/hang", content=b'{"n":9,"x":1}', timeout=0.2)
        numbers, moments = zip(*receiver.arrivals(), strict=True)
        assert numbers == (7, 8, 9)
        assert sorted(moments) == list(moments)
        assert (receiver.count(), receiver.taken()) == (3, 1)
