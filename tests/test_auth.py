"""Who gets in: tokens are verified with real keys, and no route is left open."""

import base64
import json
import logging
import re
import time
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from litestar import Controller, get
from litestar.routes import HTTPRoute

from api import ORDERS, SECRET, WORKFLOWS, assert_problem, bearer, eventually, order, service, token
from temporal_api import app as app_module
from temporal_api import logs
from temporal_api.app import create_app
from temporal_api.auth import CurrentUser, User
from temporal_api.auth import verifier as verifier_module
from temporal_api.dev import sign
from temporal_api.dev.server import DevServer
from temporal_api.settings import Settings, from_env
from tokens import (
    ALGORITHMS,
    AUDIENCE,
    ISSUER,
    KEYS,
    Clock,
    Issuer,
    claims,
    forged,
    jwk,
    of_secret,
    outcome,
    pem,
    private_key,
    refused,
    signed,
    verifier,
)

pytestmark = pytest.mark.anyio

EVERY_SCOPE = f"{ORDERS} {WORKFLOWS} orders:admin workflows:admin"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every token that is really verified, in order."""
    seen: list[str] = []
    decode = jwt.decode

    def noted(checked: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(checked)
        return decode(checked, *args, **kwargs)

    monkeypatch.setattr(jwt, "decode", noted)
    return seen


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
                assert await outcome(by_jwks, bad) in ("invalid_token", "auth_unavailable")  # which knows no kid "oct"


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
    issuer.keys = [jwk("weak RSA"), jwk("P-256")]
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


# What is remembered


async def test_a_token_is_verified_once_and_then_remembered(decodes: list[str], clock: Clock) -> None:
    """For a minute; its signature is not computed again at every request."""
    checker, good = of_secret(), token()

    first = await checker.user(good)
    clock.now += verifier_module.REMEMBERED_SECONDS - 1
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
    monkeypatch.setattr(verifier_module, "REMEMBERED_TOKENS", 3)
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


SCOPES: list[tuple[dict[str, str], dict[str, Any], set[str]]] = [
    ({}, {"scope": "a b"}, {"a", "b"}),
    ({}, {"scope": "  a   a\tb "}, {"a", "b"}),
    ({}, {"scope": ["a", "b c", "", 7, None]}, {"a", "b c"}),
    ({}, {"scp": "a"}, {"a"}),
    ({}, {"scp": ["a"], "scope": "b"}, {"a", "b"}),
    *(({}, {"scope": nothing, "scp": nothing}, set()) for nothing in ([], "", None, 7, True, {"a": True})),
    ({"CLAIM": "scp"}, {"scp": "a", "scope": "b"}, {"a"}),
    ({"CLAIM": "scp, roles"}, {"scp": "a", "roles": ["b"], "scope": "c"}, {"a", "b"}),
    ({"CLAIM": "realm_access.roles"}, {"realm_access": {"roles": ["a"]}}, {"a"}),
    ({"CLAIM": "realm_access.roles"}, {"realm_access.roles": "a b"}, {"a", "b"}),
    ({"CLAIM": "realm_access.roles"}, {"realm_access.roles": "a", "realm_access": {"roles": ["b"]}}, {"a"}),
    ({"CLAIM": "https://shop.example/scopes"}, {"https://shop.example/scopes": ["a"]}, {"a"}),
    ({"CLAIM": "a.b.c.d"}, {"a.b": {"c.d": "x"}}, {"x"}),
    ({"CLAIM": "a.b.c.d"}, {"a": {"b.c": {"d": "x"}}}, {"x"}),
    ({"CLAIM": "a.b.c.d"}, {"a.b": {"no": 1}, "a": {"b": {"c": {"d": "x"}}}}, {"x"}),
    ({"CLAIM": "a.b.c"}, {"a": {"b.c": "x", "b": {"c": "y"}}}, {"x"}),
    ({"CLAIM": "realm_access.roles"}, {"realm_access": ["roles"]}, set()),
    ({"CLAIM": "realm_access.roles"}, {"realm_access": "roles"}, set()),
    ({"CLAIM": "realm_access.roles.x"}, {"realm_access": {"roles": ["a"]}}, set()),
    ({"PREFIX": "api/"}, {"scope": "api/a b api/ other/c"}, {"a"}),
    ({"PREFIX": "api/, urn:x:"}, {"scope": ["api/a", "urn:x:b", "c"]}, {"a", "b"}),
]


@pytest.mark.parametrize(
    ("settings", "said", "scopes"), SCOPES, ids=lambda value: str(sorted(value) if isinstance(value, set) else value)
)
async def test_scopes(settings: dict[str, str], said: dict[str, Any], scopes: set[str]) -> None:
    """Strings or lists, in all the claims that are set, whose dots reach into objects or are a name's own."""
    checker = of_secret(**{f"JWT_SCOPES_{name}": value for name, value in settings.items()})

    assert scopes == (await checker.user(token(**{"scope": None, **said}))).scopes


# Several issuers, and who is who


TWO = "https://one.example|one.example, https://two.example | https://two.example/v2"


@pytest.mark.parametrize(
    ("iss", "sub", "name"),
    [
        ("https://one.example", "bob", "bob"),
        ("one.example", "bob", "bob"),
        ("https://two.example", "bob", "https://two.example bob"),
        ("https://two.example/v2", "bob", "https://two.example bob"),
        ("https://two.example", "x" * 235, "https://two.example " + "x" * 235),
        ("https://two.example", "x" * 236, "invalid_token"),
        ("https://one.example", "https://two.example bob", "invalid_token"),
        ("https://two.example", "https://two.example bob", "https://two.example https://two.example bob"),
        ("https://three.example", "bob", "invalid_token"),
        ("https://one.example|one.example", "bob", "invalid_token"),
        (TWO, "bob", "invalid_token"),
        (None, "bob", "invalid_token"),
    ],
)
async def test_a_subject_is_its_issuer_s(iss: str | None, sub: str, name: str) -> None:
    """Names of one provider share subjects; of the second on, a caller is issuer and subject, and nobody's namesake."""
    assert name == await outcome(of_secret(JWT_ISSUER=TWO), token(sub, iss=iss))


async def test_namesakes_own_nothing_of_each_other(dev_server: DevServer) -> None:
    """Two issuers' bobs are two callers: of orders, lists and idempotency keys; two names of one issuer are one."""
    async with service(TEMPORAL_ADDRESS=dev_server.address, JWT_ISSUER=TWO) as http:
        one, same, two = (
            {**bearer("bob", iss=iss), "Idempotency-Key": "k"}
            for iss in ("https://one.example", "one.example", "https://two.example")
        )
        body = order()
        placed = [(await http.post("/api/v1/orders", headers=who, json=body)).json()["id"] for who in (one, same, two)]
        assert placed[0] == placed[1] != placed[2]
        path = f"/api/v1/orders/{placed[0]}"
        assert 200 == (await http.get(path, headers=same)).status_code
        assert_problem(await http.get(path, headers=two), 404, "order_not_found")

        async def listed() -> set[str]:
            return {item["id"] for item in (await http.get("/api/v1/orders", headers=two)).json()["items"]}

        assert {placed[2]} == await eventually(listed)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"JWT_ISSUER": TWO, "JWT_AUDIENCE": "a,b", "JWT_SCOPES_PREFIX": "api/,x/"},
        {"JWT_SCOPES_CLAIM": "resource_access.orders.api.roles,scp", "JWT_ALGORITHMS": "HS256"},
    ],
    ids=str,
)
async def test_the_service_takes_the_tokens_it_signs(environ: dict[str, str]) -> None:
    """`temporal-api token` follows the settings, so that what it prints is accepted, with the scopes asked for."""
    settings = from_env({"JWT_SECRET": SECRET, **environ})

    user = await of_secret(**environ).user(sign(settings, "bob", "a b", 60))

    assert ("bob", {"a", "b"}) == (user.sub, user.scopes)


AUDIENCES: list[tuple[dict[str, Any], str]] = [
    ({"aud": "web"}, "alice"),
    ({"aud": "orders"}, "alice"),
    ({"aud": ["x", "web"]}, "alice"),
    ({"client_id": "web"}, "alice"),
    ({"azp": "web"}, "alice"),
    ({"client_id": "x", "azp": "web"}, "alice"),
    ({"client_id": "web", "azp": None}, "alice"),
    ({"aud": None, "azp": "web"}, "alice"),
    ({"aud": None, "azp": "x"}, "invalid_token"),
    ({"aud": "x", "client_id": "web", "azp": "web"}, "invalid_token"),
    ({"aud": [], "client_id": "web"}, "invalid_token"),
    ({"aud": "", "azp": "web"}, "invalid_token"),
    ({"aud": "orders, web"}, "invalid_token"),
    ({"client_id": ["web"]}, "invalid_token"),
    ({"client_id": {"web": 1}}, "invalid_token"),
    ({}, "invalid_token"),
]


@pytest.mark.parametrize(("said", "expected"), AUDIENCES, ids=str)
async def test_audiences(said: dict[str, Any], expected: str) -> None:
    """One of JWT_AUDIENCE is in `aud`; only where that is missing, `client_id` or `azp` stands in for it."""
    given = forged({"alg": "HS256"}, {**claims(aud=None), **said}, SECRET.encode())

    assert expected == await outcome(of_secret(JWT_AUDIENCE="orders, web"), given)


# Rotation


async def test_a_secret_is_replaced_with_nobody_locked_out() -> None:
    """The previous one still verifies and never signs; gone from the settings, it opens nothing."""
    old, new = "old-" * 8, "new-" * 8
    by = {secret: jwt.encode(claims(), secret, "HS256") for secret in (old, new)}
    between = {"JWT_SECRET": new, "JWT_SECRET_PREVIOUS": old}

    assert ["alice", "alice"] == [await outcome(verifier(**between), by[secret]) for secret in (old, new)]
    assert ["invalid_token", "alice"] == [await outcome(verifier(JWT_SECRET=new), by[secret]) for secret in (old, new)]
    assert "alice" == await outcome(verifier(JWT_SECRET=new), sign(from_env(between), "alice", "a", 60))


@pytest.mark.parametrize("kinds", [["RSA", "RSA"], ["RSA", "P-256", "Ed25519"]], ids=str)
async def test_every_public_key_is_trusted(kinds: list[str]) -> None:
    """Of one kind or of several: old and new sign side by side; with one taken out, that one is refused."""
    keys = list(enumerate(kinds))
    checker = verifier(JWT_PUBLIC_KEY="".join(pem(kind, number) for number, kind in keys))
    rest = verifier(JWT_PUBLIC_KEY="".join(pem(kind, number) for number, kind in keys[1:]))

    for number, kind in keys:
        good = signed(kind, KEYS[kind][0], number)
        assert "alice" == await outcome(checker, good)
        assert ("alice" if number else "invalid_token") == await outcome(rest, good)
    assert "invalid_token" == await outcome(checker, signed("RSA", "RS256", 9))


# The operator's log


REFUSED: list[tuple[Any, tuple[str, ...]]] = [
    (lambda: token(iss="https://issuer.example/"), ("'https://issuer.example/'", "'https://issuer.example'")),
    (lambda: token(iss=ISSUER, aud="somebody"), ("'somebody'", "'orders'", "'web'", "JWT_AUDIENCE")),
    (lambda: token(iss=ISSUER, azp="somebody"), ("'somebody'", "client_id", "'web'")),
    (lambda: signed("RSA", "RS256"), ("'RS256'", "HS256", "JWT_ALGORITHMS")),
    (lambda: forged({"alg": "HS256", "kid": "key-7"}, secret=b"x" * 32), ("'HS256'", "'key-7'", "signature")),
    (lambda: forged({"alg": "HS256"}, claims(sub=7), SECRET.encode()), ("sub claim is not a string",)),
    (lambda: forged({"alg": "HS256", "kid": 7}, secret=SECRET.encode()), ("kid is a string",)),
    (lambda: token(iss=ISSUER, exp=int(time.time()) - 60), ("expired", "JWT_LEEWAY_SECONDS")),
    (lambda: "opaque", ("not a JWT",)),
]


@pytest.mark.parametrize(("bad", "words"), REFUSED, ids=[words[-1] for _, words in REFUSED])
async def test_a_refusal_s_reason_is_the_operator_s(
    caplog: pytest.LogCaptureFixture, bad: Any, words: tuple[str, ...]
) -> None:
    """What was found and what was expected is in the log, at warning, and never in the answer."""
    problem = await refused(of_secret(JWT_ISSUER=ISSUER, JWT_AUDIENCE="orders,web"), bad())

    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert all(word in line.getMessage() for word in words), line.getMessage()
    told = problem.message + str(problem.headers) + str(problem.details)
    assert not any(value in told for value in ("issuer.example", "somebody", "'web'", "RS256", "key-7", "JWT_"))


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (lambda: forged({"alg": "HS256"}, claims(sub=7), SECRET.encode()), "its sub claim is not a string"),
        (lambda: forged({"alg": "HS256"}, claims(jti=7), SECRET.encode()), "its jti claim is not a string"),
        (lambda: forged({"alg": "HS256", "kid": 7}, secret=SECRET.encode()), "kid is a string"),
        (lambda: forged({"alg": "HS256"}, claims(exp="soon"), SECRET.encode()), "exp, nbf and iat are numbers"),
        (lambda: "opaque", "it is not a JWT"),
        (lambda: "e30.a.b.c.d", "it is encrypted"),
        (lambda: token()[:-20].rpartition(".")[0] + ".x", "a part of it was lost"),
        (lambda: token()[:-3], "its signature is not that of a trusted key"),
    ],
    ids=["sub", "jti", "kid", "exp", "opaque", "JWE", "cut", "signature"],
)
async def test_a_refusal_names_its_cause(bad: Any, cause: str) -> None:
    """A caller who sends something else than a good token learns what is wrong with it."""
    assert cause in (await refused(of_secret(), bad())).message


async def test_a_flood_of_bad_tokens_is_a_line_a_second(
    caplog: pytest.LogCaptureFixture, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for each reason, whatever the tokens say; how many were left out is told with the next."""
    monkeypatch.setattr(logging.getLogger("temporal_api.auth.verifier"), "filters", [logs.seldom(1)])
    checker = of_secret(JWT_ISSUER=ISSUER)
    for second in range(3):
        for n in range(200):
            await refused(checker, token(iss=f"https://{n}.example\n\x1b[31m" + "x" * 10_000))
            await refused(checker, f"opaque{n}")
        clock.now += 1.001
        assert 2 * (second + 1) == len(caplog.records)

    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() and len(line) < 600 for line in lines)
    assert [2, 2] == [sum("(and 199 like it before)" in line for line in lines[at::2]) for at in (0, 1)]


async def test_a_token_without_scopes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """It is good and may do nothing: the log says where its scopes were looked for, and which claims there are."""
    assert frozenset() == (await of_secret(JWT_SCOPES_PREFIX="api/").user(token(roles=["a"]))).scopes
    (line,) = caplog.messages
    assert all(word in line for word in ("JWT_SCOPES_CLAIM has scope, scp", "JWT_SCOPES_PREFIX api/", "'roles'"))


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
        (["Bearer Bearer"], "invalid_token"),
        (["Bearer Bearer Bearer {token}"], "invalid_token"),
        (["Bearer {encrypted}"], "invalid_token"),
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
        "encrypted": "e30.a.b.c.d",
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


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  ", "Bearer Bearer", "bearer  Bearer "])
async def test_the_scheme_is_read_as_http_has_it(http: httpx.AsyncClient, scheme: str) -> None:
    """RFC 9110 11.1: in any case, with any number of spaces; once more where a token was pasted with its own."""
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


class Choosy(Controller):
    """A resource whose author forgot, or emptied, the scope."""

    path = "/choosy"

    @get("/right", scope=("a", "b"))
    async def right(self, user: CurrentUser) -> dict[str, str]:
        """A choice of two."""
        return {"sub": user.sub}


@pytest.mark.parametrize("scope", [{}, {"scope": ""}, {"scope": ()}])
def test_a_handler_that_names_no_scope_is_refused(monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any]) -> None:
    """Forgetting it stops the start, and never opens a door."""

    @get("/forgot", **scope)
    async def forgot() -> None:
        """No scope."""

    monkeypatch.setattr(app_module, "CONTROLLERS", [forgot])
    with pytest.raises(TypeError, match="needs a scope"):
        create_app(from_env({"JWT_SECRET": SECRET}))


async def test_any_of_several_scopes_lets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that names several is open to each; a token with none of them is told all."""
    monkeypatch.setattr(app_module, "CONTROLLERS", [Choosy])
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1") as client:
        for scope in ("a", "b", "a b"):
            response = await client.get("/api/v1/choosy/right", headers=bearer(scope=scope))
            assert (200, {"sub": "alice"}) == (response.status_code, response.json())
        response = await client.get("/api/v1/choosy/right", headers=bearer(scope="c"))
        assert "The token needs the scope a or b." == assert_problem(response, 403, "insufficient_scope")["message"]
