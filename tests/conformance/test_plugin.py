"""The pytest plugin, in a pytest of its own and from within."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dispatcher.conformance.plugin import WebhookReceiver, WebhookSender
from dispatcher.conformance.receiver.policy import Policy
from dispatcher.conformance.signatures.schemes import SCHEMES, Key, parse_public_key
from dispatcher.errors import ConfigError
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]
SECRET = "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQ="
OTHER = "whsec_" + "A" * 32


@pytest.fixture
def sender() -> WebhookSender:
    return WebhookSender(secret=SECRET)


@pytest.fixture
def keen(sender: WebhookSender) -> Iterator[WebhookReceiver]:
    """A receiver that takes every scheme, and looks at times and repeats."""
    keys = (Key(secret=SECRET), Key(public_key=parse_public_key(sender.public_key)))
    policy = Policy(signature_schemes=SCHEMES, keys=keys, tolerance=300, replay="refuse")
    receiver = WebhookReceiver(policy, secret=SECRET)
    receiver.start()
    yield receiver
    receiver.close()


@pytest.mark.parametrize("scheme", [*SCHEMES, ("standard", "standard-ed25519", "websub", "rfc9421")])
def test_the_sender_signs(keen: WebhookReceiver, sender: WebhookSender, scheme: str | tuple[str, ...]) -> None:
    answer = sender.send(f"{keen.url}/hooks?a=b", event="order.paid", payload={"n": 1}, scheme=scheme)
    assert answer.status_code == 202, answer.text
    [entry] = keen.expect(event="order.paid", path="/hooks", text='"n": 1')
    assert entry.judgement is not None
    good = {verdict.scheme for verdict in entry.judgement.verdicts if verdict.is_good}
    # X-Hub-Signature of `github` is what `websub` takes with its method sha1, which is not asked for here
    assert good == ({scheme} if isinstance(scheme, str) else set(scheme))


def test_the_sender_tampers(keen: WebhookReceiver, sender: WebhookSender) -> None:
    url = f"{keen.url}/hooks"
    assert sender.send(url, secret=OTHER).status_code == 401
    assert sender.send(url, tampered_body=b'{"n": 2}').status_code == 401
    assert sender.send(url, is_signed=False).status_code == 401
    assert sender.send(url, headers={"Webhook-Id": "another"}).status_code == 401
    assert sender.send(url, headers={"webhook-signature": None}).status_code == 401
    assert sender.send(url, age=301).status_code == 400
    assert sender.send(url, age=-302).status_code == 400
    assert sender.send(url, delivery="msg_1", payload=b"[]", headers={"X-More": "1"}).status_code == 202
    assert sender.send(url, delivery="msg_1", payload=b"[]", attempt=2).status_code == 409
    assert [entry.status for entry in keen.requests] == [401, 401, 401, 401, 401, 400, 400, 202, 409]
    assert keen.requests[-1].request.header("X-Webhook-Attempt") == "2"
    assert keen.requests[-2].request.body == b"[]"
    keen.forget()
    assert keen.requests == []


def test_the_receiver_answers_by_a_script(keen: WebhookReceiver, sender: WebhookSender) -> None:
    keen.answer("/hooks", "500,ok")
    statuses = [sender.send(f"{keen.url}/hooks", delivery="msg_1").status_code for _ in range(2)]
    assert statuses == [500, 202]
    [entry] = keen.expect(delivery="msg_1")
    assert entry.request.number == 2
    assert len(keen.expect(delivery="msg_1", count=2, is_accepted=None)) == 2
    with pytest.raises(ConfigError, match="fault"):
        keen.answer("/hooks", "nonsense")
    with pytest.raises(ConfigError, match="secret"):
        keen.callback_url()


def test_a_missing_request_fails_the_test(keen: WebhookReceiver, sender: WebhookSender) -> None:
    sender.send(f"{keen.url}/hidden", event="order.paid", delivery="msg_1", secret=OTHER, payload={"a": "hidden"})
    with pytest.raises(AssertionError) as raised:
        keen.expect(event="order.paid", path="/hidden", within=0.01)
    assert str(raised.value) == (
        "0 of 1 requests with event order.paid, a path, a 2xx answer came within 0.01 s; 1 came in all\n"
        "  1 POST order.paid msg_1 401 signature"
    )
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


async def test_an_async_test_awaits(keen: WebhookReceiver) -> None:
    async with httpx.AsyncClient(trust_env=False) as sending:
        keen.answer("*", "201")
        await sending.post(keen.url, content=b"{}", headers={"X-Webhook-Event": "a"})
    assert [entry.status for entry in await keen.expect_async(event="a")] == [201]
    with pytest.raises(AssertionError, match="0 of 1"):
        await keen.expect_async(event="b", within=0.01)


def test_nothing_is_left_behind(keen: WebhookReceiver) -> None:
    keen.close()
    assert not any(thread.name == "webhook-receiver" for thread in threading.enumerate())
    with pytest.raises(RuntimeError, match="not running"):
        _ = keen.requests
    keen.close()


def test_a_start_that_fails_says_why() -> None:
    class Broken(WebhookReceiver):
        async def _run(self) -> None:
            raise ConfigError("no port is free")

    receiver = Broken(Policy(), secret=SECRET)
    with pytest.raises(ConfigError, match="no port is free"):
        receiver.start()
    receiver.close()


def test_nothing_shows_a_secret(keen: WebhookReceiver, sender: WebhookSender) -> None:
    sender.send(f"{keen.url}/hidden")
    shown = f"{keen!r} {sender!r} {keen.requests!r}"
    assert SECRET not in shown
    assert "hidden" not in shown


def test_loading_it_imports_nothing_but_pytest_and_the_standard_library() -> None:
    code = """
import sys
import pytest, _pytest
before = set(sys.modules)
import dispatcher.conformance.plugin
loaded = {name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names}
print(sorted(loaded))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "['dispatcher', 'dispatcher.conformance', 'dispatcher.conformance.plugin']"


TESTS = """
import threading
import pytest


def test_receiving(webhook_receiver, webhook_sender):
    assert webhook_receiver.secret == webhook_sender.secret
    assert webhook_sender.send(webhook_receiver.url + "/hooks", event="order.paid").status_code == 202
    [entry] = webhook_receiver.expect(event="order.paid", within=5)
    assert entry.request.path == "/hooks"


def test_a_late_sender(webhook_receiver, webhook_sender):
    threading.Timer(0.05, webhook_sender.send, (webhook_receiver.url,)).start()
    webhook_receiver.expect(within=5)


def test_failing(webhook_receiver, webhook_sender):
    here = webhook_receiver.url + "/hidden"
    webhook_sender.send(here, event="order.paid", delivery="msg_1", scheme="websub", secret="hidden")
    webhook_receiver.expect(event="order.paid", within=0.01)


def test_what_is_printed(webhook_receiver, webhook_sender, capsys, caplog):
    print("mine")
    webhook_sender.send(webhook_receiver.url + "/hidden", delivery="msg_2")
    webhook_sender.send(webhook_receiver.url + "/hidden", secret="whsec_aGlkZGVu")
    webhook_receiver.expect(delivery="msg_2")
    assert capsys.readouterr() == ("mine\\n", "")
    assert "refused" in caplog.text
    assert "hidden" not in caplog.text


class TestOverriding:
    @pytest.fixture
    def webhook_secret(self):
        return "mine"

    def test_it(self, webhook_receiver, webhook_sender):
        assert webhook_receiver.secret == "mine"
        assert webhook_sender.send(webhook_receiver.url, scheme="websub").status_code == 202
"""


def pytest_of_its_own(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of a directory."""
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    # The entry point is switched off, for the plugin can be loaded once only.
    options = ["-p", "no:webhook_dispatcher", "-p", "dispatcher.conformance.plugin", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--color=no", *options, "."],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


CALLED_BACK = """
def test_called_back(webhook_receiver, webhook_sender):
    url = webhook_receiver.callback_url()
    assert webhook_sender.send(f"{url}x").status_code == 401
    assert webhook_sender.send(url).status_code == 202
"""


def test_callback_urls_as_the_docs_say(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "receiver.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(# conftest.py\n.*?)```", text, re.DOTALL)
    (tmp_path / "conftest.py").write_text(example)
    (tmp_path / "test_it.py").write_text(CALLED_BACK)
    done = pytest_of_its_own(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_fixtures_in_a_pytest_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    done = pytest_of_its_own(tmp_path)
    assert "1 failed, 4 passed" in done.stdout, done.stdout + done.stderr
    assert re.search(r"AssertionError: 0 of 1 requests with event order\.paid, a 2xx answer came within", done.stdout)
    assert "  1 POST order.paid msg_1 401 signature" in done.stdout
    # The line of the test is shown, and not the inside of the plugin.
    assert "> " in done.stdout
    assert "plugin.py" not in done.stdout
    shown = done.stdout.partition("webhook_receiver.expect(event")[2]
    assert "hidden" not in shown
    assert "whsec_" not in done.stdout
