"""Who gets in: tokens are verified with real keys, a JWKS is asked sparingly, and no route is left open."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import jwt.algorithms
import jwt.api_jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from litestar import Controller, get
from litestar.routes import HTTPRoute

from api import ORDERS, SECRET, WORKFLOWS, assert_problem, bearer, service, token
from temporal_api import app as app_module
from temporal_api import auth
from temporal_api.app import create_app
from temporal_api.auth import CurrentUser, User, Verifier
from temporal_api.errors import Problem
from temporal_api.settings import Settings, from_env

pytestmark = pytest.mark.anyio

ISSUER, AUDIENCE = "https://issuer.example", "orders"
KEYS = {"RSA": ("RS256", "PS256"), "P-256": ("ES256",), "Ed25519": ("EdDSA",)}
ALGORITHMS = [(kind, algorithm) for kind, algorithms in KEYS.items() for algorithm in algorithms]
EVERY_SCOPE = f"{ORDERS} {WORKFLOWS} orders:admin workflows:admin"


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """A key of that kind; another number, another key."""
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

        monkeypatch.setattr(auth, "time", self)
        monkeypatch.setattr(jwt.api_jwt, "datetime", Datetime)
        self.start = now

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.now

    def monotonic(self) -> float:
        """Seconds since some time."""
        return self.now - self.start


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time, in the test's hands."""
    return Clock(monkeypatch)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every token that is really verified, in order."""
    seen: list[str] = []
    decode = jwt.decode

    def noted(checked: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(checked)
        return decode(checked, *args, **kwargs)

    monkeypatch.setattr(auth.jwt, "decode", noted)
    return seen


Answer = tuple[int, dict[str, str | None], bytes]


class Issuer:
    """A real HTTP server with a JWKS, whose requests are counted; it can be slow, broken or away."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.broken: Answer | None = None
        self.hits: list[str] = []
        self.asked = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self.drip = b""
        self.left = threading.Event()
        self._port = 0
        self.start()

    @property
    def environ(self) -> dict[str, str]:
        """The settings of a service that trusts this issuer."""
        url = f"http://127.0.0.1:{self._port}/jwks"
        return {"JWT_JWKS_URL": url, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}

    def verifier(self) -> Verifier:
        """A verifier that trusts this issuer."""
        return verifier(**self.environ)

    def start(self) -> None:
        """Listen, again on the same port."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.hits.append(self.path)
                issuer.asked.release()
                issuer.open.wait(30)
                good: Answer = (200, {}, json.dumps({"keys": issuer.keys}).encode())
                status, headers, body = issuer.broken or good
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    if value is not None:
                        self.send_header(name, value)
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
        assert await asyncio.to_thread(self.asked.acquire, timeout=60)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """An issuer with one key of each kind."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    issuer = Issuer()
    issuer.keys = [jwk(kind) for kind in KEYS]
    yield issuer
    issuer.open.set()
    issuer.drip = b""
    issuer.stop()


# Keys and algorithms


@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
async def test_a_public_key_verifies_its_algorithms(kind: str, algorithm: str) -> None:
    """A PEM key accepts what its private half signed, and nothing of another key of the same kind."""
    checker = verifier(JWT_PUBLIC_KEY=pem(kind))

    assert User("alice", frozenset(ORDERS.split()), claims()["exp"]) == await checker.user(signed(kind, algorithm))
    assert "invalid_token" == (await refused(checker, signed(kind, algorithm, number=1))).code


@pytest.mark.parametrize("named", [True, False], ids=["alg", "no-alg"])
@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
async def test_a_jwks_verifies_every_default_algorithm(issuer: Issuer, kind: str, algorithm: str, named: bool) -> None:
    """Whether or not the issuer names the algorithm beside the key, which RFC 7517 leaves open."""
    issuer.keys = [jwk(kind, alg=algorithm if named else None)]

    assert "alice" == await outcome(issuer.verifier(), signed(kind, algorithm))


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_a_secret_verifies_only_the_algorithms_that_are_set(algorithm: str) -> None:
    """HS256 unless told otherwise; a right signature by another algorithm is a wrong one."""
    good = jwt.encode(claims(), SECRET * 2, algorithm)

    assert "alice" == await outcome(verifier(JWT_SECRET=SECRET * 2, JWT_ALGORITHMS=algorithm), good)
    expected = "alice" if algorithm == "HS256" else "invalid_token"
    assert expected == await outcome(verifier(JWT_SECRET=SECRET * 2), good)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, ["HS256"], {"HS256": 1}, 1, "hs256", "HS257"])
@pytest.mark.parametrize("key", ["secret", "PEM", "JWKS"])
async def test_a_token_never_chooses_how_it_is_checked(issuer: Issuer, key: str, algorithm: object) -> None:
    """`none` in every spelling, and what is no algorithm at all, is refused with each kind of key."""
    checker = {
        "secret": of_secret,
        "PEM": lambda: verifier(JWT_PUBLIC_KEY=pem("RSA")),
        "JWKS": issuer.verifier,
    }[key]()

    for secret in (None, SECRET.encode()):
        header = {"alg": algorithm, "kid": "RSA-0"} if algorithm is not None else {"kid": "RSA-0"}
        assert "invalid_token" == (await refused(checker, forged(header, secret=secret))).code
    assert [] == issuer.hits


@pytest.mark.parametrize("kind", KEYS)
async def test_a_public_key_is_no_secret(issuer: Issuer, kind: str) -> None:
    """The classic confusion: HS256 signed with what everyone can read, in all its forms."""
    issuer.keys = [jwk(kind), {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(b"k" * 32).decode()}]
    public = private_key(kind).public_key()
    readable = [
        pem(kind).encode(),
        pem(kind).strip().encode(),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(jwk(kind)).encode(),
        b"k" * 32,
    ]
    by_pem, by_jwks = verifier(JWT_PUBLIC_KEY=pem(kind)), issuer.verifier()

    assert "alice" == await outcome(by_pem, signed(kind, KEYS[kind][0]))
    assert "alice" == await outcome(by_jwks, signed(kind, KEYS[kind][0]))
    for secret in readable:
        for kid in (f"{kind}-0", "oct"):
            for algorithm in ("HS256", KEYS[kind][0]):
                bad = forged({"alg": algorithm, "kid": kid}, secret=secret)
                assert "invalid_token" == (await refused(by_pem, bad)).code
                assert "invalid_token" == (await refused(by_jwks, bad)).code


@pytest.mark.parametrize(
    "members",
    [
        {"alg": "RS256"},  # not PS256
        {"alg": "PS512"},
        {"use": "enc"},
        {"kid": "another"},
        {"kid": None},
        {"kid": ["RSA-0"]},
        {"kty": "oct", "k": "a2V5"},
        {"alg": "HS256"},
        {"n": "AQAB"},
    ],
    ids=str,
)
async def test_a_jwk_is_used_for_what_it_says(issuer: Issuer, members: dict[str, Any]) -> None:
    """A key for another algorithm, use or id opens nothing, and spoils no other key of the set."""
    issuer.keys = [jwk("RSA", **members), jwk("P-256")]
    checker = issuer.verifier()

    assert "invalid_token" == (await refused(checker, signed("RSA", "PS256"))).code
    assert "alice" == await outcome(checker, signed("P-256", "ES256"))


async def test_a_weak_key_of_the_issuer_is_refused(issuer: Issuer) -> None:
    """RSA below 2048 bits is as unsafe in a JWKS as in a PEM file."""
    issuer.keys = [jwk("weak RSA")]
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weak = signed("weak RSA", "RS256")

    assert "invalid_token" == (await refused(issuer.verifier(), weak)).code


async def test_a_key_inside_the_token_is_not_looked_at(issuer: Issuer) -> None:
    """`jwk`, `jku` and `x5u` headers are an attacker's; nothing is fetched for them."""
    checker, url = issuer.verifier(), issuer.environ["JWT_JWKS_URL"] + "/evil"
    headers = {"kid": "RSA-0", "jwk": jwk("RSA", 1), "jku": url, "x5u": url}
    bad = jwt.encode(claims(), private_key("RSA", 1), "RS256", headers=headers)

    assert "invalid_token" == (await refused(checker, bad)).code
    assert ["/jwks"] == issuer.hits


@pytest.mark.parametrize("headers", [{"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}], ids=str)
async def test_headers_that_must_be_understood_are(headers: dict[str, Any]) -> None:
    """RFC 7515 4.1.11: a token with an extension that is not known here is refused, its signature right or not."""
    bad = forged({"alg": "HS256", **headers}, secret=SECRET.encode())

    assert "invalid_token" == (await refused(of_secret(), bad)).code


# The JWKS


async def test_key_ids_are_matched_exactly(issuer: Issuer) -> None:
    """A token without a key id goes with a key without one, and with no other."""
    checker = issuer.verifier()
    assert "invalid_token" == (await refused(checker, signed("RSA", "RS256", kid=None))).code
    assert "invalid_token" == (await refused(checker, signed("RSA", "RS256", kid="rsa-0"))).code
    assert "invalid_token" == (await refused(checker, forged({"alg": "RS256", "kid": 1}))).code

    issuer.keys = [jwk("RSA", kid=None)]
    assert "alice" == await outcome(issuer.verifier(), signed("RSA", "RS256", kid=None))


async def test_many_first_tokens_ask_once(issuer: Issuer) -> None:
    """However many callers come at once to a service that has just started, the issuer is asked once."""
    checker = issuer.verifier()
    tokens = [signed("P-256", "ES256", sub=f"user-{n}") for n in range(100)]

    assert [f"user-{n}" for n in range(100)] == await asyncio.gather(*(outcome(checker, t) for t in tokens))
    assert 1 == len(issuer.hits)


async def test_unknown_key_ids_ask_once_a_cooldown(issuer: Issuer, clock: Clock) -> None:
    """A flood of tokens with invented key ids is not passed on to the issuer."""
    checker = issuer.verifier()
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))

    async def flood() -> set[str]:
        bad = [signed("P-256", "ES256", kid=f"invented-{n}") for n in range(50)]
        return {*await asyncio.gather(*(outcome(checker, t) for t in bad)), *[await outcome(checker, t) for t in bad]}

    assert {"invalid_token"} == await flood()
    assert 1 == len(issuer.hits)
    clock.now += auth.JWKS_COOLDOWN_SECONDS
    assert {"invalid_token"} == await flood()
    assert 2 == len(issuer.hits)


async def test_an_issuer_that_is_away_is_asked_once_a_cooldown(issuer: Issuer, clock: Clock) -> None:
    """Nor is it beaten while it is down; when it is back, the service recovers by itself."""
    checker, good = issuer.verifier(), signed("RSA", "RS256")
    issuer.broken = (503, {}, b"")

    assert ["auth_unavailable"] * 20 == [await outcome(checker, good) for _ in range(20)]
    assert 1 == len(issuer.hits)
    issuer.broken = None
    clock.now += auth.JWKS_COOLDOWN_SECONDS
    assert "alice" == await outcome(checker, good)
    assert 2 == len(issuer.hits)


async def test_known_keys_work_while_the_issuer_is_away(issuer: Issuer, clock: Clock) -> None:
    """For as long as that takes: known keys go on, new ones get a 503 that says try again, and are had later."""
    checker = issuer.verifier()
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))
    issuer.stop()
    issuer.keys.append(jwk("RSA", 1))

    for _ in range(5):
        clock.now += auth.JWKS_REFRESH_SECONDS
        assert "bob" == await outcome(checker, signed("RSA", "RS256", sub="bob", exp=int(clock.now) + 600))
        assert "auth_unavailable" == await outcome(checker, signed("RSA", "RS256", 1, exp=int(clock.now) + 600))

    issuer.start()
    clock.now += auth.JWKS_COOLDOWN_SECONDS
    assert "carol" == await outcome(checker, signed("RSA", "RS256", 1, sub="carol", exp=int(clock.now) + 600))


async def test_known_keys_do_not_wait_for_an_issuer_that_hangs(issuer: Issuer, clock: Clock) -> None:
    """Once it has failed, its known keys are used at once while it is asked again."""
    checker = issuer.verifier()
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))
    clock.now += auth.JWKS_REFRESH_SECONDS
    issuer.broken = (500, {}, b"")
    assert "bob" == await outcome(checker, signed("RSA", "RS256", sub="bob"))
    issuer.open.clear()
    clock.now += auth.JWKS_COOLDOWN_SECONDS

    async with asyncio.timeout(auth.JWKS_TIMEOUT_SECONDS / 2):
        assert "carol" == await outcome(checker, signed("RSA", "RS256", sub="carol"))
    await issuer.is_asked()
    issuer.open.set()


async def test_a_new_key_is_picked_up(issuer: Issuer, clock: Clock) -> None:
    """Rotation: the first token of a new key is accepted once the cool-down is over, old keys go on."""
    checker, new = issuer.verifier(), signed("RSA", "RS256", 1, sub="bob")
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))
    issuer.keys.append(jwk("RSA", 1))

    assert "invalid_token" == await outcome(checker, new)
    clock.now += auth.JWKS_COOLDOWN_SECONDS
    assert "bob" == await outcome(checker, new)
    assert "carol" == await outcome(checker, signed("RSA", "RS256", sub="carol"))
    assert 2 == len(issuer.hits)


async def test_a_key_that_was_taken_out_stops_working(issuer: Issuer, clock: Clock) -> None:
    """Within five minutes, for a token that is in use all the time and for one that was never seen."""
    checker, used, new = issuer.verifier(), *(signed("RSA", "RS256", sub=s) for s in ("alice", "bob"))
    assert "alice" == await outcome(checker, used)
    issuer.keys = [jwk("P-256")]

    clock.now += auth.JWKS_REFRESH_SECONDS - 1
    assert "alice" == await outcome(checker, used)
    clock.now += auth.REMEMBERED_SECONDS
    assert "invalid_token" == await outcome(checker, used)
    assert "invalid_token" == await outcome(checker, new)
    assert 300 == auth.JWKS_REFRESH_SECONDS + auth.REMEMBERED_SECONDS


async def test_a_key_that_was_taken_out_stops_working_after_a_quiet_time(issuer: Issuer, clock: Clock) -> None:
    """Keys that nobody asked for in hours are asked for again before one of them is trusted."""
    checker = issuer.verifier()
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))
    issuer.keys = [jwk("P-256")]

    clock.now += 36_000
    bad = [signed("RSA", "RS256", sub=f"user-{n}", exp=int(clock.now) + 600) for n in range(10)]
    assert ["invalid_token"] * 10 == await asyncio.gather(*(outcome(checker, t) for t in bad))
    assert 2 == len(issuer.hits)


BROKEN: dict[str, Answer] = {
    "500": (500, {}, b"{}"),
    "404": (404, {}, b"{}"),
    "204": (204, {}, b""),
    "html": (200, {"Content-Type": "text/html"}, b"<h1>login</h1>"),
    "not an object": (200, {}, b"[]"),
    "no keys": (200, {}, b"{}"),
    "empty": (200, {}, b'{"keys": []}'),
    "keys of a wrong kind": (200, {}, b'{"keys": "RSA"}'),
    "no usable key": (200, {}, b'{"keys": [{}, 1, {"kty": "RSA", "kid": "RSA-0"}]}'),
    "a list for an algorithm": (200, {}, b'{"keys": [{"kty": "RSA", "alg": ["RS256"]}]}'),
    "not UTF-8": (200, {}, b"\xff\xfe"),
    "deep": (200, {}, b"[" * 100_000),
    "cut short": (200, {"Content-Length": "1000"}, b'{"keys": ['),
    "redirect": (302, {"Location": "/elsewhere"}, b""),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_whatever_the_issuer_answers_known_keys_stay(issuer: Issuer, clock: Clock, broken: Answer) -> None:
    """What is no JWKS is an issuer that is away: 503 for new keys, known ones go on. Redirects are not followed."""
    fresh, knowing = issuer.verifier(), issuer.verifier()
    assert "alice" == await outcome(knowing, signed("RSA", "RS256"))
    issuer.broken = broken
    clock.now += auth.JWKS_REFRESH_SECONDS

    assert "auth_unavailable" == await outcome(fresh, signed("RSA", "RS256"))
    assert "bob" == await outcome(knowing, signed("RSA", "RS256", sub="bob"))
    assert ["/jwks"] * 3 == issuer.hits


@pytest.mark.parametrize("drip", [b" ", b" " * 1_000_000], ids=["slowly", "fast"])
async def test_an_issuer_that_never_ends_is_given_up(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    """A body that comes for ever is cut, in time or in size, and its connection closed: nothing is left behind."""
    monkeypatch.setattr(auth, "JWKS_TIMEOUT_SECONDS", 0.3 if drip == b" " else 120)
    issuer.drip, issuer.broken = drip, (200, {"Content-Length": None}, b"")

    async with asyncio.timeout(60):
        problem = await refused(issuer.verifier(), signed("RSA", "RS256"))

    assert ("auth_unavailable", {"Retry-After": "5"}) == (problem.code, problem.headers)
    assert await asyncio.to_thread(issuer.left.wait, 60)


async def test_an_issuer_that_says_nothing_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the request and never answers is away, after the deadline."""
    monkeypatch.setattr(auth, "JWKS_TIMEOUT_SECONDS", 0.3)
    issuer.open.clear()

    assert "auth_unavailable" == await outcome(issuer.verifier(), signed("RSA", "RS256"))


async def test_a_caller_that_leaves_takes_nobody_along(issuer: Issuer) -> None:
    """The fetch is shared: the first caller's end does not end it for the others."""
    issuer.open.clear()
    checker = issuer.verifier()
    first = asyncio.create_task(checker.user(signed("RSA", "RS256")))
    await issuer.is_asked()
    second = asyncio.create_task(outcome(checker, signed("RSA", "RS256", sub="bob")))
    first.cancel()
    await asyncio.wait([first])
    issuer.open.set()

    assert "bob" == await second
    assert first.cancelled()
    assert 1 == len(issuer.hits)


async def test_a_jwks_that_hangs_holds_up_nobody_else(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one caller waits for the issuer, others are served by the same process; then that one is, too."""
    known, new = ({"Authorization": f"Bearer {signed(kind, KEYS[kind][0])}"} for kind in ("RSA", "P-256"))
    issuer.keys = [jwk("RSA")]
    async with service(JWT_SECRET="", TEMPORAL_ADDRESS="127.0.0.1:1", **issuer.environ) as client:
        assert_problem(await client.get("/api/v1/workflows/x", headers=known), 403, "insufficient_scope")
        await issuer.is_asked()
        issuer.keys.append(jwk("P-256"))
        issuer.open.clear()
        monkeypatch.setattr(auth, "JWKS_COOLDOWN_SECONDS", 0)
        waiting = asyncio.create_task(client.get("/api/v1/workflows/x", headers=new))
        await issuer.is_asked()

        for _ in range(3):
            assert 200 == (await client.get("/health/live")).status_code
            assert_problem(await client.get("/api/v1/workflows/x", headers=known), 403, "insufficient_scope")
        assert not waiting.done()
        issuer.open.set()
        assert_problem(await waiting, 403, "insufficient_scope")


async def test_all_routes_share_one_verifier(issuer: Issuer, decodes: list[str]) -> None:
    """A token is verified once, and the issuer asked once, for the whole service and not for each of its routes."""
    good = signed("RSA", "RS256", scope="none")
    async with service(JWT_SECRET="", TEMPORAL_ADDRESS="127.0.0.1:1", **issuer.environ) as client:
        for path in ("/orders", "/orders/x/cancel", "/workflows", "/workflows/x/signal"):
            response = await client.post(f"/api/v1{path}", headers={"Authorization": f"Bearer {good}"})
            assert_problem(response, 403, "insufficient_scope")

    assert ([good], ["/jwks"]) == (decodes, issuer.hits)


async def test_a_jwks_that_cannot_be_had_is_a_503(issuer: Issuer) -> None:
    """The service starts without its issuer and says when to try again; a bad token is a 401 all the same."""
    issuer.stop()
    try:
        async with service(JWT_SECRET="", TEMPORAL_ADDRESS="127.0.0.1:1", **issuer.environ) as client:
            headers = {"Authorization": f"Bearer {signed('RSA', 'RS256')}"}
            body = assert_problem(await client.get("/api/v1/orders/x", headers=headers), 503, "auth_unavailable")
            assert body["details"] == {"retryable": True}
            assert_problem(await client.get("/api/v1/orders/x"), 401, "invalid_token")  # HS256, the default header's
    finally:
        issuer.start()


# What is remembered


async def test_a_token_is_verified_once_and_then_remembered(decodes: list[str], clock: Clock) -> None:
    """For a minute; its signature is not computed again at every request."""
    checker, good = of_secret(), token()

    first = await checker.user(good)
    clock.now += auth.REMEMBERED_SECONDS - 1
    assert first is await checker.user(good)
    assert [good] == decodes
    clock.now += 1
    assert first == await checker.user(good)
    assert [good, good] == decodes


@pytest.mark.parametrize("leeway", [0, 30])
async def test_a_token_is_never_remembered_past_its_end(clock: Clock, leeway: int) -> None:
    """However lately it was verified, a token that is over is refused, at the very second."""
    checker, good = of_secret(JWT_LEEWAY_SECONDS=str(leeway)), token(exp=int(clock.now) + 10)
    clock.now = int(clock.now) + 9.9
    assert "alice" == await outcome(checker, good)

    clock.now += leeway
    assert "alice" == await outcome(checker, good)
    clock.now += 0.2
    assert "expired_token" == await outcome(checker, good)


async def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, decodes: list[str]) -> None:
    """The oldest token is forgotten for the newest; a refused one takes no place."""
    checker, tokens = of_secret(), [token(f"user-{n}") for n in range(4)]
    room = len(tokens[0]) + auth.TOKEN_BYTES + auth.SCOPE_BYTES * 4
    monkeypatch.setattr(auth, "REMEMBERED_BYTES", 3 * room)
    for good in tokens:
        await checker.user(good)
        await refused(checker, good + "x")
    decodes.clear()

    assert ["user-3", "user-2", "user-1", "user-0", "user-3"] == [
        await outcome(checker, tokens[n]) for n in (3, 2, 1, 0, 3)
    ]
    assert [tokens[0]] == decodes


# Claims


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp": 60}, "alice"),
        ({"exp": -29}, "alice"),
        ({"exp": -30}, "expired_token"),
        ({"exp": None}, "invalid_token"),
        ({"exp": "soon"}, "invalid_token"),
        ({"exp": []}, "invalid_token"),
        ({"exp": True}, "expired_token"),
        ({"exp": float("inf")}, "invalid_token"),
        ({"exp": float("nan")}, "invalid_token"),
        ({"exp": 10**400}, "invalid_token"),
        ({"nbf": 30}, "alice"),
        ({"nbf": 31}, "invalid_token"),
        ({"nbf": "later"}, "invalid_token"),
        ({"iat": 30}, "alice"),
        ({"iat": 31}, "invalid_token"),
        ({"iat": "now"}, "invalid_token"),
        ({"sub": None}, "invalid_token"),
        ({"sub": ""}, "invalid_token"),
        ({"sub": 7}, "invalid_token"),
        ({"sub": ["alice"]}, "invalid_token"),
        ({"sub": "a\nb"}, "invalid_token"),
        ({"sub": "a\x00"}, "invalid_token"),
        ({"sub": "a\udcff"}, "invalid_token"),
        ({"sub": "x" * 256}, "invalid_token"),
        ({"sub": "x" * 255}, "x" * 255),
        ({"sub": "auth0|Zoë 1"}, "auth0|Zoë 1"),
        ({"iss": None}, "invalid_token"),
        ({"iss": ISSUER + "/"}, "invalid_token"),
        ({"iss": [ISSUER]}, "invalid_token"),
        ({"iss": {}}, "invalid_token"),
        ({"aud": None}, "invalid_token"),
        ({"aud": ""}, "invalid_token"),
        ({"aud": []}, "invalid_token"),
        ({"aud": "other"}, "invalid_token"),
        ({"aud": "orders,other"}, "invalid_token"),
        ({"aud": ["other"]}, "invalid_token"),
        ({"aud": ["other", AUDIENCE]}, "alice"),
        ({"aud": [AUDIENCE, 7]}, "invalid_token"),
        ({"aud": {AUDIENCE: 1}}, "invalid_token"),
        ({"jti": ["7"]}, "invalid_token"),
    ],
    ids=lambda value: f"{value!s:.40}" if isinstance(value, dict) else "",
)
async def test_claims(clock: Clock, changes: dict[str, Any], expected: str) -> None:
    """What a token says is believed when it is whole, ours and in time, with half a minute's leeway."""
    clock.now = int(clock.now)
    changes = {k: clock.now + v if type(v) is int and abs(v) < 100 and k != "sub" else v for k, v in changes.items()}
    checker = of_secret(JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE)

    assert expected == await outcome(checker, forged({"alg": "HS256"}, claims(**changes), SECRET.encode()))


@pytest.mark.parametrize(
    "payload", [[], "alice", 7, {"deep": json.loads("[" * 500 + "]" * 500)}], ids=["list", "text", "number", "deep"]
)
async def test_a_payload_that_is_no_set_of_claims(payload: object) -> None:
    """Signed or not: what is not a JSON object, or has no claims that are needed, is refused."""
    assert "invalid_token" == (await refused(of_secret(), forged({"alg": "HS256"}, payload, SECRET.encode()))).code


async def test_issuer_and_audience_count_when_they_are_set() -> None:
    """Without JWT_ISSUER and JWT_AUDIENCE they are not ours to judge."""
    assert "alice" == await outcome(of_secret(), token(iss="anyone", aud=["anything"]))


@pytest.mark.parametrize(
    ("path", "said", "scopes"),
    [
        ("scope", {"scope": "a b"}, {"a", "b"}),
        ("scope", {"scope": "  a   a\tb "}, {"a", "b"}),
        ("scope", {"scope": ["a", "b c", 7, None]}, {"a", "b c"}),
        ("scope", {"scope": []}, set()),
        ("scope", {"scope": ""}, set()),
        ("scope", {"scope": None}, set()),
        ("scope", {"scope": 7}, set()),
        ("scope", {"scope": {"a": True}}, set()),
        ("scope", {"scp": "a"}, set()),
        ("scp", {"scp": "a", "scope": "b"}, {"a"}),
        ("realm_access.roles", {"realm_access": {"roles": ["a"]}}, {"a"}),
        ("realm_access.roles", {"realm_access.roles": "a b"}, {"a", "b"}),
        ("https://shop.example/scopes", {"https://shop.example/scopes": ["a"]}, {"a"}),
        ("realm_access.roles", {"realm_access": ["roles"]}, set()),
        ("realm_access.roles", {"realm_access": "roles"}, set()),
        ("realm_access.roles.x", {"realm_access": {"roles": ["a"]}}, set()),
    ],
)
async def test_scopes(path: str, said: dict[str, Any], scopes: set[str]) -> None:
    """A string or a list, in the claim that is set, whose dots reach into objects or are the claim's own."""
    good = token(**{"scope": None, **said})

    assert scopes == (await of_secret(JWT_SCOPES_CLAIM=path).user(good)).scopes


# Over HTTP


CHALLENGE = re.compile(r'Bearer realm="temporal_api"(, (error|error_description|scope)="[ !#-\[\]-~]*")*')


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ([], "missing_token"),
        (["Bearer"], "missing_token"),
        (["Basic YWxpY2U6aHVudGVyMg=="], "missing_token"),
        (["Digest {token}"], "missing_token"),
        (["{token}"], "missing_token"),
        (["Bearer={token}"], "missing_token"),
        (["Bearer {token}", "Bearer {token}"], "missing_token"),
        (["Bearer {token}", "Basic YWxpY2U6aHVudGVyMg=="], "missing_token"),
        (["Bearer {token}, Bearer {token}"], "invalid_token"),
        (["Bearer Bearer {token}"], "invalid_token"),
        (["Bearer {token}x"], "invalid_token"),
        (["Bearer x"], "invalid_token"),
        (["Bearer ..."], "invalid_token"),
        (["Bearer e30.e30."], "invalid_token"),
        (["Bearer \xff\xfe"], "invalid_token"),
        (['Bearer "\\'], "invalid_token"),
        (["Bearer " + "." * 10_000], "invalid_token"),
        (["Bearer " + "x" * 30_000], "invalid_token"),
        (["Bearer {giant}"], "invalid_token"),
        (["Bearer {old}"], "expired_token"),
    ],
    ids=lambda value: " & ".join(f"{line:.30}" for line in value) if isinstance(value, list) else "",
)
async def test_a_401_says_what_is_missing(http: httpx.AsyncClient, authorization: list[str], code: str) -> None:
    """With a challenge by RFC 6750, which names an error only when a token was sent."""
    tokens = {
        "token": token(),
        "old": token(exp=int(time.time()) - 60),
        "giant": token("x" * 255, padding="x" * 20_000),
    }
    headers = [
        (b"Authorization", re.sub(r"\{(\w+)\}", lambda m: tokens[m[1]], line).encode("latin-1"))
        for line in authorization
    ]

    response = await http.get("/api/v1/orders/x", headers=headers)

    body = assert_problem(response, 401, code)
    challenge = response.headers["www-authenticate"]
    assert CHALLENGE.fullmatch(challenge), challenge
    assert ("error=" in challenge) == (code != "missing_token")
    if code != "missing_token":
        assert 'error="invalid_token"' in challenge
        assert f'error_description="{body["message"]}"' in challenge
    assert token() not in response.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_the_scheme_is_read_as_http_has_it(http: httpx.AsyncClient, scheme: str) -> None:
    """RFC 9110 11.1: in any case, with any number of spaces."""
    response = await http.get("/api/v1/workflows/x", headers={"Authorization": f"{scheme} {token()}"})

    assert_problem(response, 404, "workflow_not_found")


async def test_a_token_anywhere_else_is_none(http: httpx.AsyncClient) -> None:
    """RFC 6750's query parameter ends in logs, and cookies are sent by any page: neither counts."""
    response = await http.get(
        "/api/v1/workflows/x", params={"access_token": token()}, headers={"Cookie": f"t={token()}"}
    )

    assert_problem(response, 401, "missing_token")


async def test_a_bad_token_is_told_before_anything_else(http: httpx.AsyncClient) -> None:
    """Nobody without a token learns what is wrong with a body, or makes the service read one."""
    for content in (b"{", b"x" * 3_000_000):
        assert_problem(await http.post("/api/v1/orders", content=content), 401, "missing_token")


def routes(settings: Settings) -> dict[tuple[str, str], Any]:
    """Every method of every path under /api/v1, and its handler."""
    return {
        (method, route.path): route.route_handler_map[method][0]
        for route in create_app(settings).routes
        if isinstance(route, HTTPRoute) and route.path.startswith("/api/v1")
        for method in route.methods
    }


async def test_no_route_is_open(http: httpx.AsyncClient, settings: Settings) -> None:
    """Every method of every path under /api/v1 is 401 without a token and 403 with one that has no scope of ours."""
    every = routes(settings)
    powerless = bearer(scope="orders workflows:* *")
    for method, template in every:
        path = re.sub(r"\{[^}]*\}", "x", template)
        assert_problem(await http.request(method, path), 401, "missing_token")
        response = await http.request(method, path, headers=powerless)
        if method == "OPTIONS":  # which methods there are is no secret from who has a token
            assert 204 == response.status_code
            continue
        assert_problem(response, 403, "insufficient_scope")
        assert CHALLENGE.fullmatch(response.headers["www-authenticate"])

    assert {("POST", "/api/v1/orders"), ("GET", "/api/v1/workflows/{workflow_id:str}")} < every.keys()


async def test_every_handler_names_its_scope(settings: Settings) -> None:
    """One of the six, so that a misspelt one does not lock everyone out unseen."""
    known = set(EVERY_SCOPE.split())
    for (method, path), handler in routes(settings).items():
        if method == "OPTIONS":
            continue
        named = handler.opt["scope"]
        assert {named} if isinstance(named, str) else {*named} <= known, (method, path)


class Careless(Controller):
    """A resource whose author forgot, or emptied, the scope."""

    path = "/careless"
    ran = False

    @get("/forgot")
    async def forgot(self) -> None:
        """No scope at all."""
        Careless.ran = True

    @get("/empty", scope="")
    async def empty(self) -> None:
        """An empty one."""
        Careless.ran = True

    @get("/none", scope=())
    async def none(self) -> None:
        """A choice of none."""
        Careless.ran = True

    @get("/right", scope=("a", "b"))
    async def right(self, user: CurrentUser) -> dict[str, str]:
        """A choice of two."""
        return {"sub": user.sub}


async def test_a_handler_that_names_no_scope_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting it fails closed, for every token; naming several lets any one of them in."""
    monkeypatch.setattr(app_module, "CONTROLLERS", [Careless])
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1") as client:
        for path in ("forgot", "empty", "none"):
            response = await client.get(f"/api/v1/careless/{path}", headers=bearer(scope=[*EVERY_SCOPE.split(), ""]))
            assert_problem(response, 403, "insufficient_scope")
            assert CHALLENGE.fullmatch(response.headers["www-authenticate"])
        for scope in ("a", "b", "a b"):
            response = await client.get("/api/v1/careless/right", headers=bearer(scope=scope))
            assert (200, {"sub": "alice"}) == (response.status_code, response.json())
        response = await client.get("/api/v1/careless/right", headers=bearer(scope="c"))
        assert "The token needs the scope a or b." == assert_problem(response, 403, "insufficient_scope")["message"]
    assert not Careless.ran
