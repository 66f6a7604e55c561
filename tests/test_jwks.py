"""An issuer's keys: asked at start and sparingly, renewed in time, kept while the issuer is away."""

import asyncio
import gzip
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from api import assert_problem, eventually, service
from temporal_api import __version__
from temporal_api.auth import jwks
from temporal_api.auth.verifier import REMEMBERED_SECONDS
from temporal_api.dev.server import DevServer
from tokens import (
    ISSUER,
    KEYS,
    Answer,
    Clock,
    Issuer,
    claims,
    forged,
    jwk,
    outcome,
    private_key,
    refused,
    server_tls,
    signed,
)

pytestmark = pytest.mark.anyio


# The JWKS


async def test_key_ids_are_matched_exactly(issuer: Issuer) -> None:
    """A key id that is none of the issuer's is none of ours, however it is written."""
    for kid in ("rsa-0", "RSA-0 ", "", "null"):
        headers = {"kid": kid}
        assert "invalid_token" == await outcome(
            issuer.verifier(), jwt.encode(claims(), private_key("RSA"), "RS256", headers=headers)
        )
    assert "invalid_token" == await outcome(issuer.verifier(), forged({"alg": "RS256", "kid": 1}))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([jwk("RSA")], "alice"),
        ([jwk("RSA", kid=None)], "alice"),
        ([jwk("RSA", kid=None), jwk("P-256")], "alice"),
        ([jwk("RSA", 1, kid=None), jwk("RSA", kid=None)], "alice"),
        ([jwk("RSA"), jwk("RSA", 1, use="enc"), jwk("weak RSA")], "alice"),
        ([jwk("RSA"), jwk("RSA", 1)], "invalid_token"),
        ([jwk("RSA", 1)], "invalid_token"),
        ([jwk("P-256")], "invalid_token"),
    ],
    ids=[
        "one key",
        "one without kid",
        "another with",
        "two without",
        "one that signs",
        "two keys",
        "another's key",
        "another kind",
    ],
)
async def test_a_token_without_key_id(issuer: Issuer, keys: list[Any], expected: str) -> None:
    """It is checked with the keys that have none either, or with the one signing key there is (RFC 7515 4.1.4)."""
    issuer.keys = keys

    assert expected == await outcome(issuer.verifier(), signed("RSA", "RS256", kid=None))


async def test_a_token_without_key_id_is_told_so(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """Where the issuer has several keys, the caller learns that the id is missing, the operator which there are."""
    problem = await refused(issuer.verifier(), signed("RSA", "RS256", kid=None))

    assert "it has no kid" in problem.message
    assert "'RSA-0', 'P-256-0', 'Ed25519-0'" in caplog.text


@pytest.mark.parametrize(
    "members", [{"key_ops": ["verify"]}, {"use": None}, {"d": "AQAB"}, {"alg": None}, {"x5c": ["x"], "x5t": 7}], ids=str
)
async def test_what_else_a_jwk_says_is_no_matter(issuer: Issuer, members: dict[str, Any]) -> None:
    """Optional members may be there or not, and certificates beside the key, or even its private half, are not read."""
    issuer.keys = [jwk("RSA", **members)]

    assert "alice" == await outcome(issuer.verifier(), signed("RSA", "RS256"))


@pytest.mark.parametrize("alg", ["EdDSA", "Ed25519", None])
@pytest.mark.parametrize("accepted", ["", "EdDSA", "Ed25519"])
@pytest.mark.parametrize("algorithm", KEYS["Ed25519"])
async def test_eddsa_and_ed25519_are_one(issuer: Issuer, alg: str | None, accepted: str, algorithm: str) -> None:
    """RFC 9864's name and RFC 8037's: in a token, in a JWK and in JWT_ALGORITHMS, in any mixture."""
    issuer.keys = [jwk("Ed25519", alg=alg)]

    assert "alice" == await outcome(issuer.verifier(JWT_ALGORITHMS=accepted), signed("Ed25519", algorithm))


async def test_the_issuer_sees_who_asks(issuer: Issuer) -> None:
    """Firewalls refuse Python's own User-Agent; and JSON is what is asked for, in both names that a JWKS has."""
    assert "alice" == await outcome(issuer.verifier(), signed("RSA", "RS256"))

    assert f"temporal-api/{__version__}" == issuer.headers["User-Agent"]
    assert "application/json, application/jwk-set+json" == issuer.headers["Accept"]


@pytest.mark.parametrize(("spaces", "expected"), [(0, "alice"), (5_000_000, "auth_unavailable")], ids=["small", "bomb"])
async def test_a_compressed_jwks_is_read(issuer: Issuer, spaces: int, expected: str) -> None:
    """Some stores of files send gzip unasked; what it unpacks to has the same bound."""
    packed = gzip.compress(b" " * spaces + json.dumps({"keys": issuer.keys}).encode())
    issuer.broken = (200, {"Content-Encoding": "gzip"}, packed)

    assert expected == await outcome(issuer.verifier(), signed("RSA", "RS256"))


@pytest.mark.parametrize(
    ("host", "environ"),
    [
        ("127.0.0.1", {"all_proxy": "socks5://127.0.0.1:1"}),
        ("127.0.0.1", {"http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1,[::1],10.0.0.0/8,.svc"}),
        ("issuer.test", {"http_proxy": "http://127.0.0.1:{port}", "all_proxy": "socks5://127.0.0.1:1"}),
        ("issuer.test", {"http_proxy": "127.0.0.1:{port}"}),
    ],
)
async def test_the_environment_s_proxy_is_used(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, host: str, environ: dict[str, str]
) -> None:
    """Only where it is for that address: what a shell says of others does no harm."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(port=issuer.address("").rpartition(":")[2]))
    trusting = issuer.verifier(JWT_JWKS_URL=issuer.address("/jwks").replace("127.0.0.1", host))

    assert "alice" == await outcome(trusting, signed("RSA", "RS256"))


# Discovery


async def test_a_discovery_document_is_followed(issuer: Issuer) -> None:
    """Where JWT_JWKS_URL is OpenID's discovery document, the JWKS that it names is read."""
    path = "/.well-known/openid-configuration"
    issuer.documents[path] = {"issuer": ISSUER, "jwks_uri": issuer.address("/jwks"), "token_endpoint": "x"}

    assert "alice" == await outcome(issuer.verifier(JWT_JWKS_URL=issuer.address(path)), signed("RSA", "RS256"))
    assert [path, "/jwks"] == issuer.hits


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({"issuer": ISSUER + "/"}, f"'{ISSUER}/', JWT_ISSUER has '{ISSUER}'"),
        ({"issuer": None}, "None, JWT_ISSUER has"),
        ({"issuer": [ISSUER]}, "JWT_ISSUER has"),
        ({"jwks_uri": None}, "no http or https address"),
        ({"jwks_uri": ["/jwks"]}, "no http or https address"),
        ({"jwks_uri": "/jwks"}, "no http or https address"),
        ({"jwks_uri": "file:///jwks"}, "no http or https address"),
        ({"jwks_uri": "{}/discovery"}, "neither a JWKS nor a discovery document"),
        ({"jwks_uri": "{}/moved"}, "redirects are not followed, this one to '{}/jwks'"),
        ({"jwks_uri": "{}/none"}, "404"),
    ],
    ids=str,
)
async def test_a_discovery_document_that_is_not_followed(
    issuer: Issuer, caplog: pytest.LogCaptureFixture, document: dict[str, Any], cause: str
) -> None:
    """Another issuer's, or one that leads elsewhere than to a JWKS, gives no keys; the log says why."""
    here = issuer.address("")
    filled = {k: v.format(here) if isinstance(v, str) else v for k, v in document.items()}
    issuer.documents["/discovery"] = {"issuer": ISSUER, "jwks_uri": f"{here}/jwks", **filled}
    issuer.answers["/moved"] = (302, {"Location": "/jwks"}, b"")
    issuer.answers["/none"] = (404, {}, b"")

    checker = issuer.verifier(JWT_JWKS_URL=f"{here}/discovery")

    assert "auth_unavailable" == await outcome(checker, signed("RSA", "RS256"))
    assert "/jwks" not in issuer.hits
    (line,) = [line for line in caplog.messages if line.startswith("JWT_JWKS_URL: ")]
    assert cause.format(here) in line


async def test_https_never_leads_to_http(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A discovery document had safely names a JWKS that anyone on the way could replace: not taken."""
    secure = Issuer(tls=server_tls(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    try:
        checker = issuer.verifier(JWT_JWKS_URL=secure.address("/discovery"))
        secure.keys = issuer.keys
        for jwks_uri, expected in ((issuer.address("/jwks"), "auth_unavailable"), (secure.address("/jwks"), "alice")):
            secure.documents["/discovery"] = {"issuer": ISSUER, "jwks_uri": jwks_uri}
            checker = issuer.verifier(JWT_JWKS_URL=secure.address("/discovery"))
            assert expected == await outcome(checker, signed("RSA", "RS256"))
    finally:
        secure.stop()
    assert [] == issuer.hits
    assert "leads from https to http" in caplog.text


# When it is asked


async def test_it_is_asked_at_start_and_until_keys_are_there(issuer: Issuer, dev_server: DevServer) -> None:
    """Before anybody needs them, and with nobody asking; until then health and ready say what is missing."""
    issuer.broken = (404, {}, b"")
    async with service(JWT_SECRET="", TEMPORAL_ADDRESS=dev_server.address, **issuer.environ) as client:
        await issuer.is_asked()
        health, ready = await client.get("/health"), await client.get("/health/ready")
        assert (503, "unhealthy", "unhealthy: no keys yet") == (
            health.status_code,
            health.json()["status"],
            health.json()["services"]["auth"],
        )
        assert (503, {"status": "not_ready", "reason": "auth unhealthy: no keys yet"}) == (
            ready.status_code,
            ready.json(),
        )
        issuer.broken = None

        async def is_ready() -> bool:
            return (await client.get("/health/ready")).status_code == 200

        await eventually(is_ready)
        assert "healthy" == (await client.get("/health")).json()["services"]["auth"]
        issuer.stop()  # keys that were had are good enough
        try:
            assert await is_ready()
        finally:
            issuer.start()


async def test_a_token_that_refuses_itself_asks_nobody(issuer: Issuer) -> None:
    """Of another issuer, over, or not yet valid: 401 with no key needed, so that its caller does not try it again."""
    checker, now = issuer.verifier(), int(time.time())
    for changes, code in (
        ({"iss": "https://other.example"}, "invalid_token"),
        ({"iss": None}, "invalid_token"),
        ({"exp": now - 60}, "expired_token"),
        ({"nbf": now + 60}, "invalid_token"),
        ({"sub": None}, "invalid_token"),
    ):
        assert code == await outcome(checker, signed("RSA", "RS256", kid="gone", **changes)), changes
    assert [] == issuer.hits


async def test_an_issuer_without_keys_is_asked_soon_and_then_less(issuer: Issuer, clock: Clock) -> None:
    """After 1, 2, 4, ... at most 30 s; Retry-After says when, and a try before it costs the issuer nothing."""
    checker, good = issuer.verifier(), signed("RSA", "RS256")
    issuer.broken = (503, {}, b"")

    for tries, seconds in enumerate((1, 2, 4, 8, 16, 30, 30), 1):
        for _ in range(3):
            problem = await refused(checker, good)
            assert ("auth_unavailable", str(seconds)) == (problem.code, problem.headers["Retry-After"])
        clock.now += seconds - 0.1
        assert "1" == (await refused(checker, good)).headers["Retry-After"]
        assert tries == len(issuer.hits)
        clock.now += 0.1
    issuer.broken = None
    assert "alice" == await outcome(checker, good)


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

    assert {"auth_unavailable"} == await flood()
    assert 1 == len(issuer.hits)
    clock.now += jwks.COOLDOWN_SECONDS
    assert {"invalid_token", "auth_unavailable"} == await flood()
    assert 2 == len(issuer.hits)


async def test_known_keys_work_while_the_issuer_is_away(issuer: Issuer, clock: Clock) -> None:
    """For as long as that takes: known keys go on, new ones get a 503 that says try again, and are had later."""
    checker = issuer.verifier()
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))
    issuer.stop()
    issuer.keys.append(jwk("RSA", 1))

    for _ in range(5):
        clock.now += jwks.REFRESH_SECONDS
        assert "bob" == await outcome(checker, signed("RSA", "RS256", sub="bob", exp=int(clock.now) + 600))
        assert "auth_unavailable" == await outcome(checker, signed("RSA", "RS256", 1, exp=int(clock.now) + 600))

    issuer.start()
    clock.now += jwks.COOLDOWN_SECONDS
    assert "carol" == await outcome(checker, signed("RSA", "RS256", 1, sub="carol", exp=int(clock.now) + 600))


async def test_known_keys_do_not_wait_for_an_issuer_that_hangs(issuer: Issuer, clock: Clock) -> None:
    """Once it has failed, its known keys are used at once while it is asked again."""
    checker = issuer.verifier()
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))
    clock.now += jwks.REFRESH_SECONDS
    issuer.broken = (500, {}, b"")
    assert "bob" == await outcome(checker, signed("RSA", "RS256", sub="bob"))
    issuer.open.clear()
    clock.now += jwks.COOLDOWN_SECONDS

    async with asyncio.timeout(jwks.TIMEOUT_SECONDS / 2):
        assert "carol" == await outcome(checker, signed("RSA", "RS256", sub="carol"))
    await issuer.is_asked()
    issuer.open.set()


async def test_a_new_key_is_picked_up(issuer: Issuer, clock: Clock) -> None:
    """Rotation: a new key's first token is accepted once the cool-down is over, as it is told; old keys go on."""
    checker, new = issuer.verifier(), signed("RSA", "RS256", 1, sub="bob")
    assert "alice" == await outcome(checker, signed("RSA", "RS256"))
    issuer.keys.append(jwk("RSA", 1))

    clock.now += 10
    problem = await refused(checker, new)
    assert ("auth_unavailable", "20") == (problem.code, problem.headers["Retry-After"])
    clock.now += 20
    assert "bob" == await outcome(checker, new)
    assert "carol" == await outcome(checker, signed("RSA", "RS256", sub="carol"))
    assert 2 == len(issuer.hits)


@pytest.mark.parametrize("kid", ["same", None])
async def test_a_new_key_under_the_old_id_is_picked_up(issuer: Issuer, clock: Clock, kid: str | None) -> None:
    """An issuer that replaces its one key without a new id: once the cool-down is over, its tokens are accepted."""
    issuer.keys = [jwk("RSA", kid=kid)]
    checker, new = issuer.verifier(), signed("RSA", "RS256", 1, kid=kid)
    assert "alice" == await outcome(checker, signed("RSA", "RS256", kid=kid))
    issuer.keys = [jwk("RSA", 1, kid=kid)]

    assert "invalid_token" == await outcome(checker, new)
    clock.now += jwks.COOLDOWN_SECONDS
    assert "alice" == await outcome(checker, new)
    assert 2 == len(issuer.hits)


async def test_a_key_that_was_taken_out_stops_working(issuer: Issuer, clock: Clock) -> None:
    """Within five minutes, for a token that is in use all the time and for one that was never seen."""
    checker, used, new = issuer.verifier(), *(signed("RSA", "RS256", sub=s) for s in ("alice", "bob"))
    assert "alice" == await outcome(checker, used)
    issuer.keys = [jwk("P-256")]

    clock.now += jwks.REFRESH_SECONDS - 1
    assert "alice" == await outcome(checker, used)
    clock.now += REMEMBERED_SECONDS
    assert "invalid_token" == await outcome(checker, used)
    assert "auth_unavailable" == await outcome(checker, new)  # the issuer was asked a moment ago
    assert 300 == jwks.REFRESH_SECONDS + REMEMBERED_SECONDS


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
    "no key that signs": (200, {}, json.dumps({"keys": [jwk("RSA", use="enc"), jwk("weak RSA")]}).encode()),
    "no key of our algorithms": (200, {}, json.dumps({"keys": [jwk("P-384"), jwk("RSA", alg="RS512")]}).encode()),
    "a text for a key": (200, {}, b'{"keys": ["RSA"]}'),
    "a list for an algorithm": (200, {}, b'{"keys": [{"kty": "RSA", "alg": ["RS256"]}]}'),
    "not UTF-8": (200, {}, b"\xff\xfe"),
    "deep": (200, {}, b"[" * 100_000),
    "cut short": (200, {"Content-Length": "1000"}, b'{"keys": ['),
    "redirect": (302, {"Location": "/elsewhere"}, b""),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_whatever_the_issuer_answers_known_keys_stay(
    issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture, broken: Answer
) -> None:
    """What is no JWKS is an issuer that is away: 503 for new keys, known ones go on. The log names the setting."""
    fresh, knowing = issuer.verifier(), issuer.verifier()
    assert "alice" == await outcome(knowing, signed("RSA", "RS256"))
    issuer.broken = broken
    clock.now += jwks.REFRESH_SECONDS

    assert "auth_unavailable" == await outcome(fresh, signed("RSA", "RS256"))
    assert "bob" == await outcome(knowing, signed("RSA", "RS256", sub="bob"))
    assert ["/jwks"] * 3 == issuer.hits
    assert "JWT_JWKS_URL: no keys can be had from there" in caplog.text


@pytest.mark.parametrize("drip", [b" ", b" " * 1_000_000, b"x"], ids=["slowly", "fast", "in its head"])
async def test_an_issuer_that_never_ends_is_given_up(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    """An answer that comes for ever is cut, in time or in size, and its connection closed: nothing is left behind."""
    monkeypatch.setattr(jwks, "TIMEOUT_SECONDS", 2 if len(drip) == 1 else 30)  # a busy machine needs one to ask
    issuer.drip, issuer.broken = drip, (200, {"Content-Length": None}, b"")

    async with asyncio.timeout(20):
        problem = await refused(issuer.verifier(), signed("RSA", "RS256"))

    assert ("auth_unavailable", {"Retry-After": "1"}) == (problem.code, problem.headers)
    assert await asyncio.to_thread(issuer.left.wait, 20)


async def test_an_issuer_that_says_nothing_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the request and never answers is away, after the deadline."""
    monkeypatch.setattr(jwks, "TIMEOUT_SECONDS", 0.3)
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


async def test_a_jwks_that_hangs_holds_up_nobody_else(issuer: Issuer, clock: Clock) -> None:
    """While one caller waits for the issuer, others are served by the same process; then that one is, too."""
    known, new = ({"Authorization": f"Bearer {signed(kind, KEYS[kind][0])}"} for kind in ("RSA", "P-256"))
    issuer.keys = [jwk("RSA")]
    async with service(JWT_SECRET="", TEMPORAL_ADDRESS="127.0.0.1:1", **issuer.environ) as client:
        assert_problem(await client.get("/api/v1/workflows/x", headers=known), 403, "insufficient_scope")
        await issuer.is_asked()
        issuer.keys.append(jwk("P-256"))
        issuer.open.clear()
        clock.now += jwks.COOLDOWN_SECONDS
        waiting = asyncio.create_task(client.get("/api/v1/workflows/x", headers=new))
        await issuer.is_asked()

        for _ in range(3):
            assert 200 == (await client.get("/health/live")).status_code
            assert_problem(await client.get("/api/v1/workflows/x", headers=known), 403, "insufficient_scope")
        assert not waiting.done()
        issuer.open.set()
        assert_problem(await waiting, 403, "insufficient_scope")


async def test_all_routes_share_one_verifier(issuer: Issuer) -> None:
    """The issuer is asked once, for the whole service and not for each of its routes."""
    good = signed("RSA", "RS256", scope="none")
    async with service(JWT_SECRET="", TEMPORAL_ADDRESS="127.0.0.1:1", **issuer.environ) as client:
        for path in ("/orders", "/orders/x/cancel", "/workflows", "/workflows/x/signal"):
            response = await client.post(f"/api/v1{path}", headers={"Authorization": f"Bearer {good}"})
            assert_problem(response, 403, "insufficient_scope")

    assert ["/jwks"] == issuer.hits


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
