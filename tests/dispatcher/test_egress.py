"""The egress guard: every range with the addresses just inside and just outside of it."""

# ruff: noqa: RUF001 - look-alike digits and dots are what is tested

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import egress
from dispatcher.egress import EgressPolicy, Target, Verdict, admit, classify, parse, vet
from dispatcher.errors import ConfigError, EgressRefused

#: (address, verdict): first and last of every range, and its neighbours
IPV4 = [
    ("0.0.0.0", Verdict.UNSPECIFIED),
    ("0.255.255.255", Verdict.UNSPECIFIED),
    ("1.0.0.0", Verdict.PUBLIC),
    ("9.255.255.255", Verdict.PUBLIC),
    ("10.0.0.0", Verdict.PRIVATE),
    ("10.255.255.255", Verdict.PRIVATE),
    ("11.0.0.0", Verdict.PUBLIC),
    ("100.63.255.255", Verdict.PUBLIC),
    ("100.64.0.0", Verdict.PRIVATE),
    ("100.100.100.200", Verdict.METADATA),
    ("100.127.255.255", Verdict.PRIVATE),
    ("100.128.0.0", Verdict.PUBLIC),
    ("126.255.255.255", Verdict.PUBLIC),
    ("127.0.0.0", Verdict.LOOPBACK),
    ("127.0.0.1", Verdict.LOOPBACK),
    ("127.255.255.255", Verdict.LOOPBACK),
    ("128.0.0.0", Verdict.PUBLIC),
    ("168.63.129.15", Verdict.PUBLIC),
    ("168.63.129.16", Verdict.METADATA),
    ("168.63.129.17", Verdict.PUBLIC),
    ("169.253.255.255", Verdict.PUBLIC),
    ("169.254.0.0", Verdict.LINK_LOCAL),
    ("169.254.169.253", Verdict.LINK_LOCAL),
    ("169.254.169.254", Verdict.METADATA),
    ("169.254.170.2", Verdict.METADATA),
    ("169.254.255.255", Verdict.LINK_LOCAL),
    ("169.255.0.0", Verdict.PUBLIC),
    ("172.15.255.255", Verdict.PUBLIC),
    ("172.16.0.0", Verdict.PRIVATE),
    ("172.31.255.255", Verdict.PRIVATE),
    ("172.32.0.0", Verdict.PUBLIC),
    ("191.255.255.255", Verdict.PUBLIC),
    ("192.0.0.0", Verdict.RESERVED),
    ("192.0.0.9", Verdict.RESERVED),
    ("192.0.0.255", Verdict.RESERVED),
    ("192.0.1.0", Verdict.PUBLIC),
    ("192.0.1.255", Verdict.PUBLIC),
    ("192.0.2.0", Verdict.RESERVED),
    ("192.0.2.255", Verdict.RESERVED),
    ("192.0.3.0", Verdict.PUBLIC),
    ("192.31.195.255", Verdict.PUBLIC),
    ("192.31.196.0", Verdict.RESERVED),
    ("192.31.197.0", Verdict.PUBLIC),
    ("192.52.192.255", Verdict.PUBLIC),
    ("192.52.193.0", Verdict.RESERVED),
    ("192.52.194.0", Verdict.PUBLIC),
    ("192.88.98.255", Verdict.PUBLIC),
    ("192.88.99.1", Verdict.TRANSITION),
    ("192.88.100.0", Verdict.PUBLIC),
    ("192.167.255.255", Verdict.PUBLIC),
    ("192.168.0.0", Verdict.PRIVATE),
    ("192.168.255.255", Verdict.PRIVATE),
    ("192.169.0.0", Verdict.PUBLIC),
    ("192.175.47.255", Verdict.PUBLIC),
    ("192.175.48.0", Verdict.RESERVED),
    ("192.175.49.0", Verdict.PUBLIC),
    ("198.17.255.255", Verdict.PUBLIC),
    ("198.18.0.0", Verdict.RESERVED),
    ("198.19.255.255", Verdict.RESERVED),
    ("198.20.0.0", Verdict.PUBLIC),
    ("198.51.99.255", Verdict.PUBLIC),
    ("198.51.100.0", Verdict.RESERVED),
    ("198.51.101.0", Verdict.PUBLIC),
    ("203.0.112.255", Verdict.PUBLIC),
    ("203.0.113.0", Verdict.RESERVED),
    ("203.0.114.0", Verdict.PUBLIC),
    ("223.255.255.255", Verdict.PUBLIC),
    ("224.0.0.0", Verdict.MULTICAST),
    ("239.255.255.255", Verdict.MULTICAST),
    ("240.0.0.0", Verdict.RESERVED),
    ("255.255.255.254", Verdict.RESERVED),
    ("255.255.255.255", Verdict.MULTICAST),
]

IPV6 = [
    ("::", Verdict.UNSPECIFIED),
    ("::1", Verdict.LOOPBACK),
    ("::2", Verdict.TRANSITION),
    ("::8.8.8.8", Verdict.TRANSITION),
    ("::127.0.0.1", Verdict.TRANSITION),
    ("::1:0:0", Verdict.RESERVED),
    ("::fffe:ffff:ffff", Verdict.RESERVED),
    ("::ffff:0.0.0.0", Verdict.TRANSITION),
    ("::ffff:8.8.8.8", Verdict.TRANSITION),
    ("::ffff:127.0.0.1", Verdict.TRANSITION),
    ("::ffff:169.254.169.254", Verdict.TRANSITION),
    ("::ffff:255.255.255.255", Verdict.TRANSITION),
    ("::ffff:0:7f00:1", Verdict.TRANSITION),
    ("::1:0:0:0:0", Verdict.RESERVED),
    ("64:ff9a::7f00:1", Verdict.RESERVED),
    ("64:ff9b::7f00:1", Verdict.TRANSITION),
    ("64:ff9b::808:808", Verdict.TRANSITION),
    ("64:ff9b::1:7f00:1", Verdict.RESERVED),
    ("64:ff9b:1::", Verdict.TRANSITION),
    ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Verdict.TRANSITION),
    ("64:ff9b:2::", Verdict.RESERVED),
    ("100::1", Verdict.RESERVED),
    ("100:0:0:1::1", Verdict.RESERVED),
    ("100:0:0:2::1", Verdict.RESERVED),
    ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.RESERVED),
    ("2000::", Verdict.PUBLIC),
    ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.PUBLIC),
    ("2001::", Verdict.TRANSITION),
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Verdict.TRANSITION),
    ("2001:1::1", Verdict.RESERVED),
    ("2001:2::1", Verdict.RESERVED),
    ("2001:10::1", Verdict.RESERVED),
    ("2001:20::1", Verdict.RESERVED),
    ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.RESERVED),
    ("2001:200::", Verdict.PUBLIC),
    ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.PUBLIC),
    ("2001:db8::", Verdict.RESERVED),
    ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.RESERVED),
    ("2001:db9::", Verdict.PUBLIC),
    ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.PUBLIC),
    ("2002::", Verdict.TRANSITION),
    ("2002:7f00:1::1", Verdict.TRANSITION),
    ("2002:808:808::1", Verdict.TRANSITION),
    ("2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.TRANSITION),
    ("2003::", Verdict.PUBLIC),
    ("2606:4700:4700::1111", Verdict.PUBLIC),
    ("2620:4f:7fff:ffff::1", Verdict.PUBLIC),
    ("2620:4f:8000::1", Verdict.RESERVED),
    ("2620:4f:8001::1", Verdict.PUBLIC),
    ("2606:4700::5efd:7f00:1", Verdict.PUBLIC),
    ("2606:4700::5efe:7f00:1", Verdict.TRANSITION),
    ("2606:4700::200:5efe:808:808", Verdict.TRANSITION),
    ("2606:4700::100:5efe:7f00:1", Verdict.PUBLIC),
    ("2606:4700::5eff:7f00:1", Verdict.PUBLIC),
    ("3ffd:ffff::1", Verdict.PUBLIC),
    ("3ffe::1", Verdict.RESERVED),
    ("3fff::1", Verdict.RESERVED),
    ("3fff:fff:ffff::1", Verdict.RESERVED),
    ("3fff:1000::1", Verdict.PUBLIC),
    ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.PUBLIC),
    ("4000::", Verdict.RESERVED),
    ("5f00::1", Verdict.RESERVED),
    ("fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.RESERVED),
    ("fc00::", Verdict.PRIVATE),
    ("fd00:ec2::253", Verdict.PRIVATE),
    ("fd00:ec2::254", Verdict.METADATA),
    ("fd20:ce::254", Verdict.METADATA),
    ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.PRIVATE),
    ("fe00::", Verdict.RESERVED),
    ("fe80::1", Verdict.LINK_LOCAL),
    ("fe80::1%eth0", Verdict.LINK_LOCAL),
    ("fe80::5efe:8.8.8.8", Verdict.LINK_LOCAL),
    ("2606:4700:4700::1111%eth0", Verdict.LINK_LOCAL),
    ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict.LINK_LOCAL),
    ("fec0::1", Verdict.PRIVATE),
    ("feff::1", Verdict.PRIVATE),
    ("ff00::", Verdict.MULTICAST),
    ("ff02::1", Verdict.MULTICAST),
]


@pytest.mark.parametrize(("text", "verdict"), IPV4 + IPV6)
def test_classify(text: str, verdict: Verdict) -> None:
    assert classify(ip_address(text)) is verdict


@given(st.ip_addresses())
def test_public_is_never_wider_than_what_python_calls_global(address: IPv4Address | IPv6Address) -> None:
    if classify(address) is Verdict.PUBLIC:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_no_ipv4_is_public_inside_ipv6(address: IPv4Address) -> None:
    number = int(address)
    for embedded in (
        number,
        0xFFFF << 32 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80,
        0x20010000 << 96 | number << 64 | 0x1234,
        0x2606470000000000 << 64 | 0x5EFE << 32 | number,
    ):
        assert classify(IPv6Address(embedded)) is not Verdict.PUBLIC


#: url -> (origin, host, port, path)
READ = [
    ("https://example.com", "https://example.com", "example.com", 443, "/"),
    ("HTTPS://EXAMPLE.com./", "https://example.com", "example.com", 443, "/"),
    ("https://example.com:443/x", "https://example.com", "example.com", 443, "/x"),
    ("https://example.com:8443/x", "https://example.com:8443", "example.com", 8443, "/x"),
    ("http://example.com:443/", "http://example.com:443", "example.com", 443, "/"),
    ("http://example.com:80/", "http://example.com", "example.com", 80, "/"),
    ("https://example.com?q=1", "https://example.com", "example.com", 443, "/?q=1"),
    ("https://h.example/a%2Fb/..%2f?x=%7E", "https://h.example", "h.example", 443, "/a%2Fb/..%2f?x=%7E"),
    ("https://h.example/../a/./b//c?d=/?&&", "https://h.example", "h.example", 443, "/../a/./b//c?d=/?&&"),
    ("https://h.example/@user:8080/%", "https://h.example", "h.example", 443, "/@user:8080/%"),
    ("https://8.8.8.8/", "https://8.8.8.8", "8.8.8.8", 443, "/"),
    ("https://[2606:4700::0:1111]:8443/", "https://[2606:4700::1111]:8443", "2606:4700::1111", 8443, "/"),
    ("https://bücher.example/", "https://xn--bcher-kva.example", "xn--bcher-kva.example", 443, "/"),
    ("https://BÜCHER.example/", "https://xn--bcher-kva.example", "xn--bcher-kva.example", 443, "/"),
    ("https://straße.example/", "https://xn--strae-oqa.example", "xn--strae-oqa.example", 443, "/"),
    ("https://my_host.example/", "https://my_host.example", "my_host.example", 443, "/"),
    ("https://localhost/", "https://localhost", "localhost", 443, "/"),
    ("https://1.example/", "https://1.example", "1.example", 443, "/"),
    ("https://example.0xg/", "https://example.0xg", "example.0xg", 443, "/"),
    (f"https://{'a' * 63}.example/", f"https://{'a' * 63}.example", f"{'a' * 63}.example", 443, "/"),
    ("https://example.com:65535/", "https://example.com:65535", "example.com", 65535, "/"),
    ("https://example.com:00443/", "https://example.com", "example.com", 443, "/"),
]


@pytest.mark.parametrize(("url", "origin", "host", "port", "path"), READ)
def test_parse(url: str, origin: str, host: str, port: int, path: str) -> None:
    target = parse(url)
    assert (target.origin, target.host, target.port, target.path) == (origin, host, port, path)
    assert target.authority == origin.partition("://")[2]


UNREADABLE = [
    "",
    "https:/example.com/",
    "https:example.com",
    "//example.com/",
    "/path",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "unix://socket/",
    "https://",
    "https:///path",
    "https://:443/",
    "https://user@example.com/",
    "https://user:pw@example.com/",
    "https://@example.com/",
    "https://example.com#@evil.example/",
    "https://example.com/#frag",
    "https://example.com/#",
    "https://example.com\\@evil.example/",
    "https://example.com/a\\b",
    "https://example.com/a b",
    " https://example.com/",
    "https://example.com/\r\nX: y",
    "https://example.com/\t",
    "https://exam\nple.com/",
    "https://example.com/\x00",
    "https://example.com/\x7f",
    "https://example.com/\x85",
    "https://example.com/\xa0",
    "https://example.com/ä",
    "https://example.com/\u2028",
    "https://example.com:/",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:999999/",
    "https://example.com:-1/",
    "https://example.com:+443/",
    "https://example.com:４４３/",
    "https://example.com:443:443/",
    "https://example.com:https/",
    # numbers that some parsers read as addresses
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0x/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://127.0.0.1./",
    "https://127.0.0.01/",
    "https://127.0.0.1.1/",
    "https://127.0.0.256/",
    "https://127.0.0.0x1/",
    "https://1.2.3.4.0X10/",
    "https://example.123/",
    "https://example.123./",
    "https://１２７.0.0.1/",
    "https://①②⑦.0.0.1/",
    "https://127。0。0。1/",
    "https://127．0．0．1/",
    "https://%31%32%37.0.0.1/",
    "https://ex%61mple.com/",
    "https://ｅxample.com/",
    "https://example.com\u200b/",
    "https://exa\u00admple.com/",
    # brackets
    "https://[::1/",
    "https://::1/",
    "https://[::1]x/",
    "https://x[::1]/",
    "https://[]/",
    "https://[127.0.0.1]/",
    "https://[example.com]/",
    "https://[fe80::1%eth0]/",
    "https://[fe80::1%25eth0]/",
    "https://[v1.fe80::1]/",
    "https://[::1]]/",
    "https://[1:2:3:4:5:6:7:8:9]/",
    # names
    "https://./",
    "https://example.com../",
    "https://example..com/",
    "https://.example.com/",
    "https://-example.com/",
    "https://example-.com/",
    f"https://{'a' * 64}.example/",
    f"https://{'a.' * 126}example/",
    "https://exa!mple.com/",
    "https://exa*mple.com/",
    "https://exa,mple.com/",
    "https://a'b.example/",
]


@pytest.mark.parametrize("url", UNREADABLE)
def test_parse_refuses(url: str) -> None:
    with pytest.raises(EgressRefused):
        parse(url)


@given(st.text(max_size=40), st.text(max_size=40))
def test_parse_refuses_or_reads_in_one_way(host: str, path: str) -> None:
    try:
        target = parse(f"https://{host}/{path}")
    except EgressRefused:
        return
    assert target.host.isascii()
    assert target.host == target.host.lower()
    assert f"https://{host}/{path}".endswith(target.path)
    assert parse(f"{target.origin}{target.path}") == target


def test_the_path_is_a_credential() -> None:
    target = parse("https://api.example.com/results/42/eyJhbGciOi.token?key=s3cret")
    for shown in (repr(target), str(target), f"{target}", repr([target]), target.origin, target.authority):
        assert "eyJ" not in shown
        assert "s3cret" not in shown
    for url in ("https://example.com:99999/s3cret", "ftp://s3cret/", "https://s3cret@example.com/", "s3cret"):
        with pytest.raises(EgressRefused) as caught:
            parse(url)
        assert "s3cret" not in str(caught.value)


def of(url: str, policy: EgressPolicy) -> bool:
    try:
        admit(parse(url), policy)
    except EgressRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("url", "policy", "admitted"),
    [
        ("https://example.com/", EgressPolicy(), True),
        ("https://example.com:8443/", EgressPolicy(), True),
        ("https://example.com:8444/", EgressPolicy(), False),
        ("https://example.com:8444/", EgressPolicy(ports=None), True),
        ("https://example.com/", EgressPolicy(ports=frozenset()), False),
        ("http://example.com/", EgressPolicy(ports=None), False),
        ("http://example.com/", EgressPolicy(allow_http=True), False),
        ("http://example.com:443/", EgressPolicy(allow_http=True), True),
        ("https://localhost/", EgressPolicy(), False),  # it is loopback by RFC 6761, whatever DNS says
        ("https://a.LocalHost./", EgressPolicy(), False),
        ("https://localhost.example/", EgressPolicy(), True),
        ("https://mylocalhost/", EgressPolicy(), True),
        ("http://localhost:8080/", EgressPolicy.dev(), True),
        ("https://localhost/", EgressPolicy(allow_hosts=frozenset({"localhost"})), True),
        ("https://localhost/", EgressPolicy(allow_networks=(IPv4Network("127.0.0.0/8"),)), True),
        ("https://127.0.0.1/", EgressPolicy(), False),
        ("https://[::1]/", EgressPolicy(), False),
        ("https://[::ffff:127.0.0.1]/", EgressPolicy.dev(), False),
        ("https://8.8.8.8/", EgressPolicy(), True),
        ("http://127.0.0.1:8080/", EgressPolicy.dev(), True),
        ("http://[::1]:8080/", EgressPolicy.dev(), True),
        ("http://10.0.0.1/", EgressPolicy.dev(), False),
        ("http://169.254.169.254/", EgressPolicy.dev(), False),
        ("https://10.0.0.1/", EgressPolicy(allow_networks=(IPv4Network("10.0.0.0/24"),)), True),
        ("https://10.0.1.0/", EgressPolicy(allow_networks=(IPv4Network("10.0.0.0/24"),)), False),
        ("https://10.0.0.1/", EgressPolicy(allow_hosts=frozenset({"10.0.0.1"})), True),
        ("https://10.0.0.2/", EgressPolicy(allow_hosts=frozenset({"10.0.0.1"})), False),
        ("https://[fd00::1]/", EgressPolicy(allow_hosts=frozenset({"[FD00:0::1]"})), True),
        ("https://8.8.8.8/", EgressPolicy(deny_networks=(IPv4Network("8.8.8.0/24"),)), False),
        ("https://8.8.9.8/", EgressPolicy(deny_networks=(IPv4Network("8.8.8.0/24"),)), True),
        ("https://example.com/", EgressPolicy(deny_hosts=frozenset({"Example.COM."})), False),
        ("https://www.example.com/", EgressPolicy(deny_hosts=frozenset({"example.com"})), True),
        ("https://www.example.com/", EgressPolicy(deny_hosts=frozenset({"*.example.com"})), False),
        ("https://a.b.example.com/", EgressPolicy(deny_hosts=frozenset({"*.Example.com"})), False),
        ("https://example.com/", EgressPolicy(deny_hosts=frozenset({"*.example.com"})), True),
        ("https://badexample.com/", EgressPolicy(deny_hosts=frozenset({"*.example.com"})), True),
        ("https://xn--bcher-kva.example/", EgressPolicy(deny_hosts=frozenset({"bücher.example"})), False),
        ("https://8.8.8.8/", EgressPolicy(deny_hosts=frozenset({"8.8.8.8"})), False),
        (
            "https://example.com/",
            EgressPolicy(allow_hosts=frozenset({"example.com"}), deny_hosts=frozenset({"example.com"})),
            False,
        ),
    ],
)
def test_admit(url: str, policy: EgressPolicy, *, admitted: bool) -> None:
    assert of(url, policy) is admitted


NAMED = parse("https://hook.example/")
TEN = IPv4Network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("addresses", "policy", "vetted"),
    [
        ([], EgressPolicy(), False),
        (["8.8.8.8"], EgressPolicy(), True),
        (["8.8.8.8", "2606:4700::1111"], EgressPolicy(), True),
        (["8.8.8.8", "127.0.0.1"], EgressPolicy(), False),
        (["8.8.8.8", "::1"], EgressPolicy(), False),
        (["8.8.8.8", "10.0.0.1"], EgressPolicy.dev(), False),
        (["127.0.0.1", "::1"], EgressPolicy.dev(), True),
        (["10.0.0.1"], EgressPolicy(allow_networks=(TEN,)), True),
        (["10.0.0.1", "192.168.0.1"], EgressPolicy(allow_networks=(TEN,)), False),
        (
            ["10.0.0.1"],
            EgressPolicy(allow_networks=(TEN,), deny_networks=(IPv4Network("10.0.0.0/24"),)),
            False,
        ),
        (
            ["10.0.1.0"],
            EgressPolicy(allow_networks=(TEN,), deny_networks=(IPv4Network("10.0.0.0/24"),)),
            True,
        ),
        (["8.8.8.8"], EgressPolicy(deny_networks=(IPv4Network("0.0.0.0/0"),)), False),
        (["10.0.0.1", "127.0.0.1"], EgressPolicy(allow_hosts=frozenset({"hook.example"})), True),
        (["10.0.0.1"], EgressPolicy(allow_hosts=frozenset({"*.example"})), True),
        (["10.0.0.1"], EgressPolicy(allow_hosts=frozenset({"other.example"})), False),
        (["10.0.0.1"], EgressPolicy(allow_hosts=frozenset({"hook.example"}), deny_networks=(TEN,)), False),
        (["169.254.169.254"], EgressPolicy(allow_hosts=frozenset({"hook.example"})), False),
        (["0.0.0.0"], EgressPolicy(allow_hosts=frozenset({"hook.example"})), False),
        (["224.0.0.1"], EgressPolicy(allow_hosts=frozenset({"hook.example"})), False),
        (["169.254.169.254"], EgressPolicy(allow_networks=(IPv4Network("0.0.0.0/0"),)), False),
        (["100.100.100.200"], EgressPolicy(allow_networks=(IPv4Network("100.64.0.0/10"),)), False),
        (["100.100.100.201"], EgressPolicy(allow_networks=(IPv4Network("100.64.0.0/10"),)), True),
        (["::ffff:10.0.0.1"], EgressPolicy(allow_networks=(IPv6Network("::/0"), TEN)), False),
        (["64:ff9b::808:808"], EgressPolicy(), False),
        (["64:ff9b::808:808"], EgressPolicy(allow_networks=(IPv6Network("64:ff9b::/96"),)), True),
        (["64:ff9b::7f00:1"], EgressPolicy(allow_networks=(IPv6Network("64:ff9b::/96"),)), False),
        (["64:ff9b::a9fe:a9fe"], EgressPolicy(allow_networks=(IPv6Network("::/0"),)), False),
        (
            ["64:ff9b::808:808"],
            EgressPolicy(allow_networks=(IPv6Network("64:ff9b::/96"),), deny_networks=(IPv4Network("8.8.8.8/32"),)),
            False,
        ),
        (["2002:808:808::1"], EgressPolicy(allow_networks=(IPv6Network("2002::/16"),)), False),
    ],
)
def test_vet(addresses: list[str], policy: EgressPolicy, *, vetted: bool) -> None:
    answers = tuple(ip_address(address) for address in addresses)
    if vetted:
        assert vet(answers, NAMED, policy) == answers
        return
    with pytest.raises(EgressRefused):
        vet(answers, NAMED, policy)


def test_refusals_by_address_or_host_read_alike() -> None:
    policy = EgressPolicy(deny_hosts=frozenset({"denied.example"}))
    texts = set()
    for url in ("https://10.0.0.1/", "https://169.254.169.254/", "https://[::1]/", "https://denied.example/"):
        with pytest.raises(EgressRefused) as caught:
            admit(parse(url), policy)
        texts.add(caught.value.detail)
    for answers in ((), (ip_address("10.0.0.1"),)):
        with pytest.raises(EgressRefused) as caught:
            vet(answers, NAMED, policy)
        texts.add(caught.value.detail)
    assert texts == {egress.REFUSED}


HOSTS = ["example.com", "a.example.com", "localhost", "a.localhost", "127.0.0.1", "[::1]", "10.0.0.1", "8.8.8.8"]
POLICIES = st.builds(
    EgressPolicy,
    ports=st.sampled_from([None, frozenset({443}), frozenset({80, 443})]),
    allow_http=st.booleans(),
    allow_loopback=st.booleans(),
    allow_networks=st.sampled_from([(), (TEN,)]),
    allow_hosts=st.sampled_from([frozenset(), frozenset({"localhost"}), frozenset({"10.0.0.1"})]),
    deny_networks=st.sampled_from([(), (TEN,), (IPv4Network("8.8.8.0/24"),)]),
    deny_hosts=st.sampled_from([frozenset(), frozenset({"*.example.com"}), frozenset({"localhost"})]),
)


@given(st.lists(POLICIES, min_size=1, max_size=3))
def test_what_one_policy_admits_is_never_asked_of_another(policies: list[EgressPolicy]) -> None:
    urls = [f"{scheme}://{host}/" for scheme in ("http", "https") for host in HOSTS]
    found = [[of(url, policy) for url in urls] for policy in policies for _ in range(2)]
    # an equal policy of which nothing is remembered
    assert found == [[of(url, replace(policy)) for url in urls] for policy in policies for _ in range(2)]


@pytest.mark.parametrize("pattern", ["", "*", "*.", "**.example", "exa mple", "a.*.example", "1.2.3", "10.0.0.0/8"])
def test_a_pattern_that_matches_nothing_is_a_config_error(pattern: str) -> None:
    with pytest.raises(ConfigError):
        EgressPolicy(deny_hosts=frozenset({pattern}))


def test_records_are_values() -> None:
    assert msgspec.structs.replace(NAMED, port=8443).origin == "https://hook.example:8443"
    assert Target(scheme="https", host="::1", port=443, path="/", literal=ip_address("::1")).authority == "[::1]"
    assert ip_network("10.0.0.0/8") in EgressPolicy(allow_networks=(TEN,)).allow_networks
