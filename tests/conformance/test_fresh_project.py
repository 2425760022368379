"""The plugin in somebody's new project: an environment that has our wheel, pytest, and what these two require."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

#: what the tests of docs/receiver.md test: a shop that sends, and an endpoint that takes
CONFTEST = """
import base64, hashlib, hmac, http.server, json, threading, time
import httpx
import pytest


class Shop:
    def subscribe(self, url, *, secret):
        self.url, self.secret = url, secret

    def sell(self, what):
        body = json.dumps({"item": what}).encode()
        signature = hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "X-Hub-Signature": f"sha256={signature}",
            "X-Webhook-Event": "order.paid",
            "X-Webhook-Delivery": "one",
        }
        for _ in range(5):
            if httpx.post(self.url, content=body, headers=headers, trust_env=False).is_success:
                return


@pytest.fixture
def shop():
    return Shop()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = base64.b64decode(self.server.secret.removeprefix("whsec_"))
        id_, stamp = self.headers.get("webhook-id", ""), self.headers.get("webhook-timestamp", "0")
        digest = hmac.new(key, f"{id_}.{stamp}.".encode() + body, hashlib.sha256).digest()
        good = f"v1,{base64.b64encode(digest).decode()}" in self.headers.get("webhook-signature", "").split()
        self.send_response(202 if good and abs(time.time() - int(stamp)) < 300 else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(webhook_secret):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.secret = server_secret = webhook_secret
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}/"
        yield server
        server.shutdown()
        thread.join()
"""


def required(names: list[str]) -> Iterator[metadata.Distribution]:
    """These distributions and all that they require, each once."""
    seen: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in names]
    found: dict[str, metadata.Distribution] = {}
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = metadata.distribution(name)
        for text in found[name].requires or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(one.name, wanted) for wanted in ("", *one.extras)]
    yield from found.values()


def install(distribution: metadata.Distribution, into: Path) -> None:
    """Put a distribution that is installed here there, too, by links to its files."""
    for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in {"..", "__pycache__"}}:
        source = Path(str(distribution.locate_file(top)))
        if source.exists() and not (into / top).exists():
            (into / top).symlink_to(source)


def test_the_plugin_works_with_our_wheel_and_pytest_alone(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    environment = tmp_path / "environment"
    venv.create(environment)
    [packages] = environment.glob("lib/python*/site-packages")
    [wheel] = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(packages)], check=True, timeout=60)
    for one in required(["webhook-dispatcher", "pytest"]):
        if one.metadata["Name"] != "webhook-dispatcher":
            install(one, packages)

    project = tmp_path / "project"
    project.mkdir()
    [example] = re.findall(r"```python\n(# test_shop.py\n.*?)```", (ROOT / "docs/receiver.md").read_text(), re.DOTALL)
    (project / "test_shop.py").write_text(example)
    (project / "conftest.py").write_text(CONFTEST)
    python = str(environment / "bin/python")
    command = [python, "-I", "-m", "pytest", "-q", "-W", "error", "--rootdir", "."]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    where = "import dispatcher, sys; print(dispatcher.__file__)"
    found = subprocess.run([python, "-I", "-c", where], capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(environment), "it is the wheel's, not this checkout's"
