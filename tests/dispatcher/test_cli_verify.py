"""`dispatcher subscriptions verify`: captured requests, whole and broken, and what is said about their signatures."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from dispatcher.cli import captured
from dispatcher.cli.captured import Captured, CaptureError
from subscriptions.secrets import Secret, SigningKey
from subscriptions.signatures import Scheme, sign
from tests.support import forking
from tests.support.server import Server

ROOT = Path(__file__).parents[2]
#: GitHub Docs, "Validating webhook deliveries", "Testing the webhook payload validation"
GITHUB_SECRET = "It's a Secret to Everybody"
GITHUB_BODY = b"Hello, World!"
GITHUB_256 = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"
OTHER = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
SEED = bytes(range(32))
KEY = SigningKey(secret=Secret(SECRET), seed=SEED)
PUBLIC = KEY.public_key or ""
#: every byte, and what would be a line end or the end of a head
BODY = bytes(range(256)) + b"\r\n\r\n\n{}"
URL = "https://hooks.example.com/in?a=1"
NOW = 1_800_000_000
AT = "2027-01-15T08:00:00Z"


def verify(*options: str, stdin: bytes = b"", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command. What it prints never has a secret."""
    done = forking.run("subscriptions", "verify", *options, input=stdin, cwd=cwd)
    for secret in (SECRET, OTHER, GITHUB_SECRET, SECRET.removeprefix("whsec_")):
        assert secret not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def signed(*schemes: Scheme, body: bytes = BODY, at: int = NOW, url: str = URL) -> list[tuple[str, str]]:
    """The headers of a request that is signed so."""
    headers = sign(
        schemes,
        keys=[KEY],
        delivery_id="msg_1",
        timestamp=at,
        body=body,
        content_type="application/json",
        target_uri=url,
        key_id="k",
    )
    return [
        ("Content-Type", "application/json"),
        ("X-Webhook-Delivery", "msg_1"),
        ("X-Webhook-Timestamp", str(at)),
        *headers,
    ]


def raw(
    headers: Sequence[tuple[str, str]], body: bytes = BODY, *, end: bytes = b"\r\n", target: str = "/in?a=1"
) -> bytes:
    """A request as it goes over a socket."""
    lines = [f"POST {target} HTTP/1.1", "Host: hooks.example.com", *(f"{name}: {value}" for name, value in headers)]
    return end.join(line.encode("latin-1") for line in [*lines, "", ""]) + body


def sized(headers: Sequence[tuple[str, str]], body: bytes = BODY) -> list[tuple[str, str]]:
    return [*headers, ("Content-Length", str(len(body)))]


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\r\n")
    return file


# --- reading what was captured ----------------------------------------------------------------------------


def chunked(*chunks: bytes, end: bytes = b"\r\n", trailers: bytes = b"") -> bytes:
    parts = [b"%X;ext=1%b%b%b" % (len(chunk), end, chunk, end) for chunk in chunks]
    return b"".join(parts) + b"0" + end + trailers + end


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize(
    ("framing", "after", "remarks"),
    [
        ([("Content-Length", str(len(BODY)))], BODY, 0),
        ([("Content-Length", str(len(BODY)))], BODY + b"\n", 1),
        ([("content-length", str(len(BODY))), ("Content-Length", str(len(BODY)))], BODY, 0),
        ([], BODY, 1),
        ([("Transfer-Encoding", "chunked")], chunked(BODY), 0),
        ([("transfer-encoding", "Chunked")], chunked(BODY[:1], BODY[1:100], BODY[100:], trailers=b"X-T: 1\r\n"), 0),
        ([("Transfer-Encoding", "chunked")], chunked(BODY, end=b"\n"), 0),
        ([("Transfer-Encoding", "chunked"), ("Content-Length", "3")], chunked(BODY) + b"next", 1),
    ],
)
def test_a_raw_request_is_read_to_the_byte(
    end: bytes, framing: list[tuple[str, str]], after: bytes, remarks: int
) -> None:
    found = captured.read(raw([("X-A", "\t one "), *framing], after, end=end))
    assert found.method == "POST"
    assert found.urls == (URL, URL.replace("https", "http"))
    assert found.body == BODY
    assert (found.header("x-a"), found.has("X-B")) == ("one", False)
    assert len(found.remarks) == remarks, found.remarks


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no empty line"),
        (b"POST / HTTP/1.1", "no empty line"),
        (b"POST / HTTP/1.1\r\nHost: a\r\n", "no empty line"),
        (b"hello\r\n\r\n", "not a request line"),
        (b"POST /\r\n\r\n", "not a request line"),
        (b"POST / HTTP/2\r\n\r\n", "not a request line"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "not a request line"),
        (b"POST / HTTP/1.1\r\nnot a header\r\n\r\n", "Line 2 is not a header"),
        (b"POST / HTTP/1.1\r\nA : 1\r\n\r\n", "Line 2 is not a header"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", "has 2 of 3 bytes"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3x\r\n\r\nabc", "not a number"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", "they differ"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "not just `chunked`"),
        (b'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{"a":1}', "is not in chunks"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "ends within the chunks"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", "ends within a chunk"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", "longer than it says"),
        (b"{", "not a JSON object"),
        (b"{}", "`headers` is"),
        (b'{"headers": {}}', "Give the body once"),
        (b'{"headers": {}, "body": "a", "body_base64": "YQ=="}', "Give the body once"),
        (b'{"headers": {}, "body": {"a": 1}}', "`body` is not a text"),
        (b'{"headers": {}, "body_base64": "YQ"}', "not padded base64"),
        (b'{"headers": {}, "body_base64": 7}', "not padded base64"),
        (b'{"headers": {"A": 1}, "body": ""}', "`headers` is"),
        (b'{"headers": [["A"]], "body": ""}', "`headers` is"),
        (b'{"headers": {"A b": "1"}, "body": ""}', "`headers` is"),
        (b'{"headers": {}, "body": "", "url": "/in"}', "absolute http"),
        (b'{"headers": {}, "body": "", "method": "PO ST"}', "`method`"),
        (b'{"headers": {}, "body": "", "status": 200}', "other members"),
        (b'{"headers": {}, "body": "\\ud800"}', "not a JSON object"),
    ],
)
def test_what_is_no_whole_request_says_what_is_missing(content: bytes, says: str) -> None:
    with pytest.raises(CaptureError, match=says.replace("`", ".")):
        captured.read(content)


@pytest.mark.parametrize("headers", [{"A": "1", "B": ["2", "3"]}, [["A", "1"], ["B", "2"], ["B", "3"]]])
@pytest.mark.parametrize("body", [{"body": "ä"}, {"body_base64": base64.b64encode("ä".encode()).decode()}])
def test_a_request_as_json(headers: Any, body: dict[str, str]) -> None:
    found = captured.read(json.dumps({"url": URL, "method": "PUT", "headers": headers, **body}).encode())
    expected = Captured(method="PUT", urls=(URL,), headers=(("A", "1"), ("B", "2"), ("B", "3")), body="ä".encode())
    assert found == expected


def test_folded_lines_and_an_absolute_target() -> None:
    found = captured.read(b"\r\nPOST http://a.example/x HTTP/1.0\r\nA: 1\r\n  2\r\nB: 3\r\n\r\n")
    assert (found.urls, found.headers) == (("http://a.example/x",), (("A", "1 2"), ("B", "3")))


# --- judging it -------------------------------------------------------------------------------------------

EXCLUSIVE = [
    (Scheme.WEBSUB, Scheme.STANDARD, Scheme.STANDARD_ED25519, Scheme.TIMESTAMPED, Scheme.RFC9421),
    (Scheme.GITHUB, Scheme.RFC9421_ED25519),
    (Scheme.SERVICESTACK,),
]


@pytest.mark.parametrize("schemes", EXCLUSIVE, ids=lambda schemes: schemes[0])
@pytest.mark.parametrize("form", ["raw", "json"])
def test_auto_finds_every_scheme_that_is_there(
    schemes: tuple[Scheme, ...], form: str, tmp_path: Path, secret_file: Path
) -> None:
    headers = signed(*schemes)
    file = tmp_path / "request"
    if form == "raw":
        file.write_bytes(raw(sized(headers)))
    else:
        body = base64.b64encode(BODY).decode()
        file.write_text(json.dumps({"url": URL, "headers": dict(headers), "body_base64": body}))
    options = ["--request", str(file), "--secret-file", str(secret_file), "--public-key", PUBLIC, "--at", AT]

    done = verify(*options, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["ok"], shown["method"], shown["body_bytes"], shown["remarks"]) == (True, "POST", len(BODY), [])
    assert {one["scheme"]: one["ok"] for one in shown["schemes"]} == dict.fromkeys(map(str, schemes), True)


def test_a_changed_body_an_old_request_and_another_secret(tmp_path: Path, secret_file: Path) -> None:
    headers = sized(signed(Scheme.WEBSUB, Scheme.STANDARD))
    file, other = tmp_path / "request", tmp_path / "other"
    file.write_bytes(raw(headers))
    other.write_text(OTHER)
    options = ["--request", str(file), "--secret-file", str(secret_file)]

    old = verify(*options)  # now is far from then
    assert old.returncode == 1
    assert "websub            right" in old.stdout
    assert "standard          WRONG        The signature is right, but webhook-timestamp is" in old.stdout
    assert verify(*options, "--tolerance", "off").returncode == 0
    assert verify(*options, "--at", "2027-01-15T08:05:00Z").returncode == 0
    assert verify(*options, "--at", "2027-01-15T08:05:01Z").returncode == 1
    assert verify(*options, "--at", "2027-01-15T08:05:01Z", "--tolerance", "301").returncode == 0

    wrong = verify("--request", str(file), "--secret-file", str(other), "--at", AT)
    assert wrong.returncode == 1
    assert wrong.stdout.count("WRONG") == 2
    both = verify(*options, "--secret-file", str(other), "--at", AT)
    assert both.returncode == 0  # one of the two is right, as in a rotation

    file.write_bytes(raw(headers, BODY[:-1] + b" "))
    changed = verify(*options, "--at", AT, "--json")
    assert changed.returncode == 1
    assert [one["ok"] for one in json.loads(changed.stdout)["schemes"]] == [False, False]


def test_githubs_own_example_from_stdin(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(GITHUB_SECRET)
    content = raw(sized([("X-Hub-Signature-256", GITHUB_256)], GITHUB_BODY), GITHUB_BODY)
    options = ["--request", "-", "--secret-file", str(file)]
    alone = verify(*options, stdin=content)
    # GitHub sends both; the older header is missing in its example
    assert (alone.returncode, "The header X-Hub-Signature is missing" in alone.stdout) == (1, True)
    content = raw(sized([("X-Hub-Signature", GITHUB_256)], GITHUB_BODY), GITHUB_BODY)
    assert verify(*options, "--scheme", "websub", stdin=content).returncode == 0


def test_a_request_that_another_library_signed(tmp_path: Path, secret_file: Path) -> None:
    moment = datetime.fromtimestamp(NOW, UTC)
    body = '{"a": "ä"}'
    request = {
        "headers": {
            "Webhook-Id": "msg_2",
            "Webhook-Timestamp": str(NOW),
            "Webhook-Signature": standardwebhooks.Webhook(SECRET).sign("msg_2", moment, body),
        },
        "body": body,
    }
    done = verify(
        *("--request", "-", "--secret-file", str(secret_file), "--at", AT), stdin=json.dumps(request).encode()
    )
    assert (done.returncode, done.stdout) == (
        0,
        "standard          right        webhook-signature is right (v1).\n",
    )


def test_what_cannot_be_checked_is_neither_right_nor_wrong(tmp_path: Path, secret_file: Path) -> None:
    both = raw(sized(signed(Scheme.WEBSUB, Scheme.STANDARD_ED25519)))
    done = verify("--request", "-", "--secret-file", str(secret_file), "--at", AT, "--json", stdin=both)
    assert done.returncode == 0
    assert [one["ok"] for one in json.loads(done.stdout)["schemes"]] == [True, None]
    named = verify("--request", "-", "--secret-file", str(secret_file), "--scheme", "standard-ed25519", stdin=both)
    assert (named.returncode, named.stdout) == (2, "")
    assert "--public-key" in named.stderr
    only = raw(sized(signed(Scheme.STANDARD_ED25519)))
    nothing = verify("--request", "-", "--secret-file", str(secret_file), stdin=only)
    assert (nothing.returncode, "nothing could be checked" in nothing.stderr) == (1, True)
    public = verify("--request", "-", "--public-key", PUBLIC, "--at", AT, stdin=only)
    assert public.returncode == 0
    unsigned = verify("--request", "-", "--public-key", PUBLIC, stdin=raw(sized([])))
    assert (unsigned.returncode, "none of the signature headers" in unsigned.stderr) == (1, True)


def test_the_url_that_was_called(secret_file: Path) -> None:
    inner = raw(sized(signed(Scheme.RFC9421)), target="/behind/a/proxy")
    options = ["--request", "-", "--secret-file", str(secret_file), "--at", AT]
    assert verify(*options, stdin=inner).returncode == 1
    assert verify(*options, "--url", URL, stdin=inner).returncode == 0
    plain = raw(sized(signed(Scheme.RFC9421, url=URL.replace("https", "http"))))
    assert verify(*options, stdin=plain).returncode == 0
    old = verify("--request", "-", "--secret-file", str(secret_file), stdin=plain)
    assert (old.returncode, "The signature is right, but" in old.stdout) == (1, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scheme", "md5"], "--scheme is auto, or one of"),
        (["--at", "yesterday"], "--at is a time"),
        (["--at", "2027-01-15T08:00:00"], "--at is a time"),
        (["--tolerance", "-1"], "--tolerance is a number"),
        (["--tolerance", "nan"], "--tolerance is a number"),
        (["--url", "hooks.example.com"], "--url is an absolute"),
        (["--public-key", "whpk_AAAA"], "A public key is"),
        (["--secret-file", "/nonexistent"], "the secret cannot be read"),
        (["--secret-file", "-"], "only one of the files can be -"),
    ],
)
def test_wrong_usage(options: list[str], says: str, secret_file: Path) -> None:
    content = raw(sized(signed(Scheme.STANDARD_ED25519)))
    done = verify("--request", "-", "--secret-file", str(secret_file), *options, stdin=content)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_secret_is_not_taken_from_the_command_line() -> None:
    assert verify("--request", "-", "--secret", "x").returncode == 2
    missing = verify("--request", "-", stdin=raw([]))
    assert (missing.returncode, "the secret is missing" in missing.stderr) == (2, True)


# --- what the dispatcher sends ----------------------------------------------------------------------------


@pytest.fixture
def socket_dump() -> Iterator[tuple[str, list[bytes]]]:
    """A socket that keeps the bytes of one request, and answers 200."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            content = b""
            while b"\r\n\r\n" not in content or b'"last"' not in content:
                content += connection.recv(65536)
            kept.append(content)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", kept
    thread.join(10)
    listener.close()


def test_a_delivery_off_the_wire_is_right(
    server: Server, socket_dump: tuple[str, list[bytes]], secret_file: Path, tmp_path: Path
) -> None:
    url, kept = socket_dump
    schemes = ["websub", "standard", "standard-ed25519", "timestamped", "rfc9421"]
    wish = {
        "name": "captured",
        "events": ["captured.*"],
        "config": {"url": f"{url}/in", "secret": SECRET},
        "schemes": schemes,
    }
    with server.client() as client:
        made = client.post("/webhooks/subscriptions", json=wish).json()
        published = client.post("/events", json={"type": "captured.one", "payload": {"ü": "last"}})
        assert published.status_code == 202
        deadline = time.monotonic() + 10
        while not kept and time.monotonic() < deadline:
            client.get("/ledger")
    file = tmp_path / "capture"
    file.write_bytes(kept[0])
    options = ["--request", str(file), "--secret-file", str(secret_file)]
    done = verify(*options, "--public-key", made["config"]["public_key"], "--json")
    shown = json.loads(done.stdout)
    assert {one["scheme"]: one["ok"] for one in shown["schemes"]} == dict.fromkeys(schemes, True)
    assert done.returncode == 0
