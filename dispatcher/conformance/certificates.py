"""A certificate authority for one run of a test: good certificates, and each kind of bad one."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dispatcher.errors import ConfigError

__all__ = ["Authority"]

_DAY = datetime.timedelta(days=1)
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


class Authority:
    """A certificate authority whose keys live in memory only, and for this process."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("webhook-dispatcher conformance kit")
        self._certificate = _sign(
            subject=self._name,
            key=self._key,
            issuer=self._name,
            issuer_key=self._key,
            days=(-1, 30),
            extensions=[
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (_usage("key_cert_sign", "crl_sign"), True),
            ],
        )
        #: its own certificate, PEM: whoever trusts it trusts what it issues
        self.pem = _pem(self._certificate).decode("ascii")

    def context(
        self,
        hosts: Sequence[str],
        *,
        expired: bool = False,
        self_signed: bool = False,
        minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ) -> ssl.SSLContext:
        """A server's context, with a fresh certificate for these names and addresses.

        `expired`: it ended yesterday. `self_signed`: its own issuer, so that no authority vouches for it. With a
        `maximum` below TLS 1.2 the server speaks nothing newer, as a careful client never does.

        Raises:
            ConfigError: a host can stand in no certificate.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name("conformance receiver")
        certificate = _sign(
            subject=subject,
            key=key,
            issuer=subject if self_signed else self._name,
            issuer_key=key if self_signed else self._key,
            days=(-9, -1) if expired else (-1, 29),
            extensions=[
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_usage("digital_signature"), True),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
                (x509.SubjectAlternativeName([_alternative(host) for host in hosts]), False),
            ],
        )
        return _server_context(certificate, key, minimum=minimum, maximum=maximum)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except ValueError as exc:
        raise ConfigError("a certificate is for names and addresses of hosts, such as localhost") from exc


def _sign(
    *,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: tuple[int, int],
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    """A certificate. `days`: its first and its last, seen from today. With each extension: whether it is critical."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
        # Python 3.13 and newer ask for both identifiers.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _server_context(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    minimum: ssl.TLSVersion,
    maximum: ssl.TLSVersion,
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
    with warnings.catch_warnings():
        # What is old is warned of, and here it is meant.
        warnings.simplefilter("ignore", DeprecationWarning)
        if maximum in old:
            # OpenSSL 3 signs nothing for these at its usual level: SHA-1 is all they know.
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            minimum = min(minimum, maximum)
        context.minimum_version = minimum
        context.maximum_version = maximum
    context.set_alpn_protocols(["http/1.1"])
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # ssl reads keys from files only; this one is readable by us alone, and gone at once
    with tempfile.NamedTemporaryFile(prefix="conformance-", suffix=".pem") as file:
        file.write(_pem(certificate) + private)
        file.flush()
        context.load_cert_chain(file.name)
    return context
