"""JWT_PUBLIC_KEY in every form that keys come in, and what is said of what is none."""

import base64
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from temporal_api.app import create_app
from temporal_api.settings import SettingsError, from_env
from tokens import KEYS, certificate, outcome, pem, private_key, signed, verifier

pytestmark = pytest.mark.anyio


def der(kind: str) -> bytes:
    """The public key alone, in binary."""
    encoded: bytes = private_key(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def certified(kind: str, encoding: Encoding = Encoding.PEM) -> bytes:
    """A certificate of the key; of one that cannot sign it by a hash (Ed25519) the bare key does."""
    if kind == "Ed25519":
        return pem(kind).encode() if encoding is Encoding.PEM else der(kind)
    return certificate(private_key(kind)).public_bytes(encoding)


def b64(data: bytes) -> str:
    """Base64, in one line."""
    return base64.b64encode(data).decode()


TEXTS: dict[str, Callable[[str], str]] = {
    "PEM": pem,
    "PEM with white space": lambda kind: f"\n {pem(kind)}\r\n",
    "PEM with CRLF": lambda kind: pem(kind).replace("\n", "\r\n"),
    "PEM with literal \\n": lambda kind: pem(kind).replace("\n", "\\n"),
    "PEM with literal \\r\\n": lambda kind: pem(kind).replace("\n", "\\r\\n"),
    "PEM with literal \\n, escaped twice": lambda kind: pem(kind).replace("\n", "\\\\n"),
    "PEM in one line": lambda kind: pem(kind).replace("\n", " "),
    "PEM with non-breaking spaces": lambda kind: pem(kind).replace("\n", "\u00a0\n"),
    "PEM after a BOM": lambda kind: f"\ufeff{pem(kind)}",
    "PEM with text around": lambda kind: f"Issuer: x\n{pem(kind)}-- \nbye",
    "certificate": lambda kind: certified(kind).decode(),
    "certificate with literal \\n": lambda kind: certified(kind).decode().replace("\n", "\\n"),
    "base64 of PEM": lambda kind: b64(pem(kind).encode()),
    "base64 of a certificate": lambda kind: b64(certified(kind)),
    "base64 of DER": lambda kind: b64(der(kind)),
    "base64 of a certificate in DER": lambda kind: b64(certified(kind, Encoding.DER)),
    "base64url of DER": lambda kind: base64.urlsafe_b64encode(der(kind)).decode().rstrip("="),
    "base64 in lines": lambda kind: base64.encodebytes(der(kind)).decode(),
}
FILES: dict[str, Callable[[str], bytes]] = {
    **{name: lambda kind, text=text: text(kind).encode() for name, text in TEXTS.items()},  # type: ignore[misc]
    "PEM with a BOM": lambda kind: b"\xef\xbb\xbf" + pem(kind).encode(),
    "PEM in UTF-16": lambda kind: pem(kind).encode("utf-16"),
    "base64 with a BOM": lambda kind: b"\xef\xbb\xbf" + b64(der(kind)).encode(),
    "DER": der,
    "certificate in DER": lambda kind: certified(kind, Encoding.DER),
}


async def is_trusted(value: str, kind: str) -> bool:
    """Whether a service with that setting takes what the key signed, and nothing of another key."""
    checker = verifier(JWT_PUBLIC_KEY=value)
    algorithm = KEYS[kind][0]
    own, other = [await outcome(checker, signed(kind, algorithm, number)) for number in (0, 7)]
    return (own, other) == ("alice", "invalid_token")


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_every_form_of_a_key(text: Callable[[str], str], kind: str) -> None:
    """As it was copied, pasted, escaped or encoded: the same key."""
    assert await is_trusted(text(kind), kind)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
async def test_every_form_of_a_file(tmp_path: Path, content: Callable[[str], bytes], kind: str) -> None:
    """A file may hold each of them, and binary; a line break after its name is no part of it."""
    file = tmp_path / "key"
    file.write_bytes(content(kind))

    assert await is_trusted(f"{file}\n", kind)


async def test_rsa_s_own_pem() -> None:
    """PKCS#1 (`BEGIN RSA PUBLIC KEY`), which older tools write."""
    key = private_key("RSA").public_key()

    assert await is_trusted(key.public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode(), "RSA")
    assert await is_trusted(b64(key.public_bytes(Encoding.DER, PublicFormat.PKCS1)), "RSA")


async def test_every_block_is_a_trusted_key(tmp_path: Path) -> None:
    """Keys and certificates, in a text with literal line breaks and in a file: what each of them signed is taken."""
    mixed = pem("Ed25519") + certified("RSA").decode() + pem("RSA", 1) + pem("P-256")
    (tmp_path / "keys.pem").write_text(mixed)
    for value in (mixed, mixed.replace("\n", "\\n"), b64(mixed.encode()), str(tmp_path / "keys.pem")):
        checker = verifier(JWT_PUBLIC_KEY=value)
        for kind, number in (("Ed25519", 0), ("RSA", 0), ("RSA", 1), ("P-256", 0)):
            assert "alice" == await outcome(checker, signed(kind, KEYS[kind][0], number)), (kind, number)
        assert "invalid_token" == await outcome(checker, signed("RSA", "RS256", 7))


async def test_an_expired_certificate_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Its key is trusted all the same; one that is valid is not worth a word."""
    for days, warnings in ((1, 0), (-1, 1)):
        value = certificate(private_key("RSA"), days=days).public_bytes(Encoding.PEM).decode()
        assert await is_trusted(value, "RSA")
        assert warnings == sum("JWT_PUBLIC_KEY: one of its certificates expired on 20" in m for m in caplog.messages)


async def test_a_key_that_goes_unused_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Where JWT_ALGORITHMS leaves one of several keys out, the log says so: it is never silently unused."""
    checker = verifier(JWT_PUBLIC_KEY=pem("RSA") + pem("P-256"), JWT_ALGORITHMS="ES256")

    assert "alice" == await outcome(checker, signed("P-256", "ES256"))
    assert "invalid_token" == await outcome(checker, signed("RSA", "RS256"))
    assert "JWT_PUBLIC_KEY: one of its keys is not used" in caplog.text


def public(key: Any) -> str:
    """Its public half in PEM."""
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def private(encoding: Encoding, password: bytes | None = None) -> bytes:
    """An RSA key's private half."""
    locked = BestAvailableEncryption(password) if password else NoEncryption()
    encoded: bytes = private_key("RSA").private_bytes(encoding, PrivateFormat.PKCS8, locked)
    return encoded


KINDS = "an RSA, P-256, P-384, P-521 or Ed25519 key is needed"
UNFIT: dict[str, tuple[Callable[[], str], str]] = {
    "nowhere": (lambda: "/nowhere/hunter2.pem", "a path with no file there"),
    "a folder": (lambda: "/", "the path of a folder"),
    "too long": (lambda: "hunter2" * 1000, "base64 of neither"),
    "binary": (lambda: sys.executable, "a file, but it holds neither"),
    "no PEM": (lambda: os.__file__, "a file, but it holds neither"),
    "an address": (lambda: "https://issuer.example/hunter2", "an address, which JWT_JWKS_URL takes"),
    "a JWK": (lambda: '{"kty": "RSA", "n": "hunter2"}', "JSON"),
    "OpenSSH": (lambda: "ssh-ed25519 AAAAC3hunter2 a@b", "in the form of OpenSSH"),
    "a word": (lambda: "hunter2", "neither a key nor the name of a file"),
    "a private key": (lambda: private(Encoding.PEM).decode(), "a private key; expected its public half"),
    "a locked one": (lambda: private(Encoding.PEM, b"hunter2").decode(), "a private key; expected its public half"),
    "a private key in base64": (lambda: b64(private(Encoding.DER)), "base64 of DER, a private key"),
    "a locked one in base64": (lambda: b64(private(Encoding.DER, b"hunter2")), "base64 of DER, a private key"),
    "a private key beside": (lambda: pem("RSA") + private(Encoding.PEM).decode(), "a private key"),
    "a request": (lambda: "-----BEGIN CERTIFICATE REQUEST-----x-----END CERTIFICATE REQUEST-----", "REQUEST in PEM"),
    "junk": (
        lambda: "-----BEGIN PUBLIC KEY-----\nhunter2!\n-----END PUBLIC KEY-----",
        "PUBLIC KEY in PEM, but what it holds is not base64",
    ),
    "PEM with other letters": (
        lambda: pem("RSA").replace("M", "М"),  # noqa: RUF001 - Cyrillic
        "PUBLIC KEY in PEM, but what it holds is not base64",
    ),
    "an empty file": (lambda: str(Path(pytest.__file__).with_name("py.typed")), "a file, but it holds nothing"),
    "a junk certificate": (lambda: "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", "can be read"),
    "base64 of junk": (lambda: b64(b"\x30" + b"hunter2" * 20), "base64 of DER, but no public key"),
    "cut short": (lambda: pem("RSA")[:-30], "does not end"),
    "RSA of 1024 bits": (lambda: public(rsa.generate_private_key(65537, 1024)), "2048 bits or more"),  # noqa: S505
    "a weak one beside": (lambda: pem("RSA") + pem("weak RSA"), "2048 bits or more"),
    "secp256k1": (lambda: public(ec.generate_private_key(ec.SECP256K1())), KINDS),
    "Ed448": (lambda: public(ed448.Ed448PrivateKey.generate()), KINDS),
    "X25519": (lambda: public(x25519.X25519PrivateKey.generate()), KINDS),
}


@pytest.mark.parametrize(("value", "seen"), UNFIT.values(), ids=UNFIT)
def test_an_unfit_key_is_refused(value: Callable[[], str], seen: str) -> None:
    """At the start and not at the first token: one line that says which form was seen, and never the key."""
    with pytest.raises(SettingsError) as caught:
        create_app(from_env({"JWT_PUBLIC_KEY": value()}))

    told = str(caught.value)
    assert told.startswith("JWT_PUBLIC_KEY: ")
    assert seen in told
    assert "hunter2" not in told
    assert told.isprintable()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Secret mounted with the wrong mode: the reason is told, the path is not."""

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "hunter2"
    file.touch()
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(SettingsError) as caught:
        verifier(JWT_PUBLIC_KEY=str(file))

    assert "JWT_PUBLIC_KEY: cannot read the file it names: Permission denied" == str(caught.value)
