"""Tokens and the keys they are signed with, an issuer that publishes them, and time in the test's hands."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import jwt
import jwt.algorithms
import jwt.api_jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from api import ORDERS, SECRET
from temporal_api import logs
from temporal_api.auth import Verifier, jwks
from temporal_api.auth import verifier as verifier_module
from temporal_api.errors import Problem
from temporal_api.settings import from_env

ISSUER, AUDIENCE = "https://issuer.example", "orders"
KEYS = {"RSA": ("RS256", "PS256"), "P-256": ("ES256",), "Ed25519": ("EdDSA", "Ed25519")}
ALGORITHMS = [(kind, algorithm) for kind, algorithms in KEYS.items() for algorithm in algorithms]


def private_key(kind: str, number: int = 0) -> Any:
    """A key of that kind; another number, another key."""
    return _made(kind, number)


@cache
def _made(kind: str, _number: int) -> Any:
    match kind:
        case "RSA":
            return rsa.generate_private_key(65537, 2048)
        case "weak RSA":
            return rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
        case "P-256":
            return ec.generate_private_key(ec.SECP256R1())
        case "P-384":
            return ec.generate_private_key(ec.SECP384R1())
    return ed25519.Ed25519PrivateKey.generate()


def pem(kind: str, number: int = 0) -> str:
    """Its public half."""
    key = private_key(kind, number).public_key()
    return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def jwk(kind: str, number: int = 0, **members: Any) -> dict[str, Any]:
    """Its public half as an issuer publishes it; members override or, when None, leave out."""
    algorithm = {"P-256": "ES256", "P-384": "ES384", "Ed25519": "EdDSA"}.get(kind, "RS256")
    key = jwt.get_algorithm_by_name(algorithm).to_jwk(private_key(kind, number).public_key(), as_dict=True)
    return {k: v for k, v in {**key, "kid": f"{kind}-{number}", "use": "sig", **members}.items() if v is not None}


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token of our issuer says; changes override or, when None, leave out."""
    good = {"sub": "alice", "scope": ORDERS, "exp": int(time.time()) + 600, "iss": ISSUER, "aud": AUDIENCE}
    return {k: v for k, v in {**good, **changes}.items() if v is not None}


def signed(kind: str, algorithm: str, number: int = 0, kid: object = "", **changes: Any) -> str:
    """A token signed by that key; `kid` is the key's own unless given, and none when None."""
    headers = {} if kid is None else {"kid": kid or f"{kind}-{number}"}
    return jwt.encode(claims(**changes), private_key(kind, number), algorithm, headers=headers)


def forged(header: object, payload: object = None, secret: bytes | None = None) -> str:
    """A token put together by hand, signed with HMAC-SHA256 or, without a secret, not at all."""

    def encoded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    payload = claims() if payload is None else payload
    told = b".".join(encoded(json.dumps(part).encode()) for part in (header, payload))
    signature = encoded(hmac.digest(secret, told, hashlib.sha256)) if secret else b""
    return (told + b"." + signature).decode()


def verifier(**environ: str) -> Verifier:
    """A verifier with these settings."""
    return Verifier(from_env(environ))


def of_secret(**environ: str) -> Verifier:
    """A verifier of tokens that `token()` of the shared helpers signs."""
    return verifier(JWT_SECRET=SECRET, **environ)


async def refused(checker: Verifier, bad: str) -> Problem:
    """Why the token is refused."""
    with pytest.raises(Problem) as caught:
        await checker.user(bad)
    return caught.value


async def outcome(checker: Verifier, any_token: str) -> str:
    """Whose token it is, or the code of its refusal."""
    try:
        return (await checker.user(any_token)).sub
    except Problem as problem:
        return problem.code


class Clock:
    """The service's and PyJWT's time, which stands still until it is moved on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = now = time.time()
        clock = self

        class Datetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.fromtimestamp(clock.now, tz)

        for module in (jwks, logs, verifier_module):
            monkeypatch.setattr(module, "time", self)
        monkeypatch.setattr(jwt.api_jwt, "datetime", Datetime)
        self.start = now

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.now

    def monotonic(self) -> float:
        """Seconds since some time."""
        return self.now - self.start


def certificate(key: Any, name: str = "issuer.example", days: int = 1) -> x509.Certificate:
    """The key's own certificate, valid from ten days ago until that many days from now."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )


def server_tls(folder: Path) -> ssl.SSLContext:
    """TLS for a server on this machine, whose certificate is in `certificate.pem`."""
    key = private_key("P-256", 443)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    (folder / "certificate.pem").write_bytes(certificate(key).public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


Answer = tuple[int, dict[str, str | None], bytes]


class Issuer:
    """A real HTTP server with a JWKS, whose requests are counted; it can be slow, broken or away."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.keys: list[Any] = []
        self.documents: dict[str, Any] = {}
        """What is at a path instead of the JWKS."""
        self.answers: dict[str, Answer] = {}
        """What a path answers, whatever it is."""
        self.headers: dict[str, str] = {}
        self.broken: Answer | None = None
        self.hits: list[str] = []
        self.asked = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self.drip = b""
        self.left = threading.Event()
        self._port = 0
        self._tls = tls
        self.start()

    @property
    def environ(self) -> dict[str, str]:
        """The settings of a service that trusts this issuer."""
        return {"JWT_JWKS_URL": self.address("/jwks"), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}

    def address(self, path: str) -> str:
        """Where that path is."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}{path}"

    def verifier(self, **environ: str) -> Verifier:
        """A verifier that trusts this issuer."""
        return verifier(**{**self.environ, **environ})

    def start(self) -> None:
        """Listen, again on the same port."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.hits.append(self.path)
                issuer.headers = dict(self.headers)
                issuer.asked.release()
                issuer.open.wait(30)
                document = issuer.documents.get(self.path, {"keys": issuer.keys})
                good: Answer = (200, {}, json.dumps(document).encode())
                status, headers, body = issuer.broken or issuer.answers.get(self.path, good)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    if value is not None:
                        self.send_header(name, value)
                if issuer.drip.isalpha():  # more of the head, for ever
                    self.flush_headers()
                else:
                    self.end_headers()
                self.wfile.write(body)
                try:
                    while issuer.drip:
                        self.wfile.write(issuer.drip)
                        issuer.left.wait(0.01)
                except OSError:
                    issuer.left.set()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        if self._tls:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Be away: connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    async def is_asked(self) -> None:
        """Return when the next request for the JWKS has come in."""
        await asyncio.to_thread(self.asked.acquire, timeout=10)
