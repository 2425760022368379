"""A request as it came over the wire, whatever stands in its request line."""

from __future__ import annotations

import pytest

from dispatcher.conformance.wire.requests import Received


def received(target: str, *headers: tuple[str, str]) -> Received:
    return Received(
        number=1, at=0.0, clock=0.0, connection=1, remote="127.0.0.1", method="POST", target=target, headers=headers,
        body=b"", raw=b"",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a/b", "/a/b", {}),
        ("/a%2Fb?x=1&x=2&y=", "/a%2Fb", {"x": "2", "y": ""}),
        ("//a/b", "//a/b", {}),
        ("//[", "//[", {}),
        ("/a#f?x=1", "/a", {}),
        ("/to?u=http://b/c", "/to", {"u": "http://b/c"}),
        ("http://host.example/a/b?x=1", "/a/b", {"x": "1"}),
        ("*", "*", {}),
        ("", "", {}),
    ],
)
def test_path_and_query(target: str, path: str, query: dict[str, str]) -> None:
    assert (received(target).path, received(target).query) == (path, query)


def test_headers_by_name() -> None:
    one = received("/", ("X-One", "1"), ("x-one", "2"), ("Other", "3"))
    assert (one.header("X-ONE"), one.values("x-One"), one.header("None")) == ("1", ["1", "2"], None)


def test_nothing_that_may_be_secret_is_shown() -> None:
    assert "s3cret" not in repr(received("/s3cret", ("X-Secret", "s3cret")))
