"""Settings: what each variable means, and that a wrong or unsafe one stops the start in one line."""

import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from temporalio.service import TLSConfig

from commands import one_line
from temporal_api.app import create_app
from temporal_api.settings import (
    ASYMMETRIC_ALGORITHMS,
    HMAC_ALGORITHMS,
    ResourceSettings,
    Settings,
    SettingsError,
    from_env,
)
from tokens import certificate

SECRET = "hunter2-" * 4
JWKS = {"JWT_JWKS_URL": "https://issuer.example/jwks", "JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "orders"}
_OWN = ec.generate_private_key(ec.SECP256R1())
CERTIFICATE = certificate(_OWN).public_bytes(Encoding.PEM).decode()
KEY = _OWN.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

FIELDS = {field.encode_name: field for field in msgspec.structs.fields(Settings) if field.encode_name.strip()}
TEMPORAL = ("ADDRESS", "NAMESPACE", "API_KEY", "TLS", "TLS_SERVER_NAME", "PROFILE", "CONFIG_FILE")
NAMES = sorted({*FIELDS, *(f"TEMPORAL_{name}" for name in TEMPORAL)} - {"JWT_SECRET"})


def pem(key: Any) -> str:
    """The public half as PEM text."""
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@cache
def rsa_pem(bits: int = 2048) -> str:
    """An RSA public key."""
    return pem(rsa.generate_private_key(65537, bits))


def read(**environ: str) -> Settings:
    """The settings of a service that has a secret, unless it is given as empty."""
    return from_env({"JWT_SECRET": SECRET, **environ})


def refusal(environ: Mapping[str, str]) -> str:
    """What is said of settings that must not start; `hunter2` stands for all that is secret."""
    with pytest.raises(SettingsError) as caught:
        create_app(from_env(environ))
    told = str(caught.value)

    assert 1 == len(told.splitlines()), told
    assert "hunter2" not in told
    return told


def test_the_defaults_are_those_of_the_contract() -> None:
    """Every setting of the service, and what it is when nothing is said."""
    assert {
        "HOST": "127.0.0.1",
        "PORT": 8000,
        "METRICS_PORT": None,
        "ROOT_PATH": "",
        "JWT_JWKS_URL": None,
        "JWT_PUBLIC_KEY": None,
        "JWT_SECRET": None,
        "JWT_SECRET_PREVIOUS": None,
        "JWT_ALGORITHMS": (),
        "JWT_ISSUER": (),
        "JWT_AUDIENCE": (),
        "JWT_SCOPES_CLAIM": ("scope", "scp"),
        "JWT_SCOPES_PREFIX": (),
        "JWT_LEEWAY_SECONDS": 30,
        "SECRET_KEY": None,
        "ALLOWED_ORIGINS": (),
        "FORWARDED_ALLOW_IPS": "127.0.0.1",
        "LOG_LEVEL": "info",
        "LOG_FORMAT": "json",
        "ALLOWED_WORKFLOW_TYPES": (),
        "ALLOWED_TASK_QUEUES": (),
        "PAYLOAD_ENCRYPTION_KEYS": (),
        "RPC_TIMEOUT_SECONDS": 10,
        "MAX_WAIT_SECONDS": 50,
        "MAX_OPEN_WAITS": 200,
        "MAX_CONNECTIONS": 1000,
        "REQUEST_TIMEOUT_SECONDS": 15,
        "MAX_OPEN_WAITS_PER_USER": 50,
        "MAX_REQUESTS": 200,
        "SHUTDOWN_DELAY_SECONDS": 0,
        "MAX_BODY_BYTES": 2_097_152,
        "MAX_MEMORY_BYTES": 268_435_456,
        "OTEL_EXPORTER_OTLP_ENDPOINT": None,
    } == {name: field.default for name, field in FIELDS.items()}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),  # noqa: S104
        ("PORT", "0", 0),
        ("PORT", "65535", 65535),
        ("JWT_ALGORITHMS", "HS256, HS256", ("HS256", "HS256")),
        ("JWT_SECRET", f" {SECRET}\r\n", SECRET),
        *(
            ("JWT_SECRET", f"{mark}{SECRET}{mark}\n", SECRET)
            for mark in ("\ufeff", "\u00a0", "\u200b", "\t", "\ufeff ")
        ),
        ("JWT_SECRET_PREVIOUS", f"{SECRET}\n", SECRET),
        ("SECRET_KEY", f"{SECRET}\n", SECRET),
        ("SECRET_KEY", "ß" * 16, "ß" * 16),  # 32 bytes
        ("JWT_ISSUER", "null", ("null",)),
        ("JWT_ISSUER", "a | b, c\n", ("a | b", "c")),
        ("JWT_AUDIENCE", "a, b", ("a", "b")),
        ("JWT_SCOPES_CLAIM", "realm_access.roles", ("realm_access.roles",)),
        ("JWT_SCOPES_PREFIX", "orders-api/,urn:x:", ("orders-api/", "urn:x:")),
        ("JWT_LEEWAY_SECONDS", "0", 0),
        ("JWT_LEEWAY_SECONDS", "2.5", 2.5),
        ("ROOT_PATH", "/temporal", "/temporal"),
        ("ROOT_PATH", "/a/b-1.2_c~/", "/a/b-1.2_c~"),
        ("ROOT_PATH", "/", ""),
        ("ALLOWED_ORIGINS", "https://shop.example", ("https://shop.example",)),
        *(
            ("ALLOWED_ORIGINS", origin, (origin,))
            for origin in (
                "capacitor://localhost",
                "ionic://localhost",
                "tauri://localhost",
                "app://obsidian.md",
                "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
                "safari-web-extension://1E7CA7DB-0B5E-4F1C-9C1C-7F1D6B1A2C3D",
            )
        ),
        (
            "ALLOWED_ORIGINS",
            " http://localhost:3000 , ,https://shop.example:8443,",
            ("http://localhost:3000", "https://shop.example:8443"),
        ),
        ("FORWARDED_ALLOW_IPS", "*", "*"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.0/8, ::1", "10.0.0.0/8, ::1"),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("LOG_FORMAT", "Console", "console"),
        ("ALLOWED_WORKFLOW_TYPES", "a, b c", ("a", "b c")),
        ("ALLOWED_TASK_QUEUES", "q", ("q",)),
        ("RPC_TIMEOUT_SECONDS", "0.5", 0.5),
        ("MAX_WAIT_SECONDS", "0", 0),
        ("MAX_OPEN_WAITS", "0", 0),
        ("MAX_OPEN_WAITS_PER_USER", "1", 1),
        ("MAX_REQUESTS", "1", 1),
        ("MAX_MEMORY_BYTES", "8388608", 8_388_608),
        ("SHUTDOWN_DELAY_SECONDS", "1.5", 1.5),
        ("MAX_BODY_BYTES", "1024", 1024),
    ],
)
def test_a_setting_is_read(name: str, text: str, value: object) -> None:
    """A variable's text becomes the setting's value."""
    assert value == getattr(read(**{name: text}), name.lower())


@pytest.mark.parametrize("plural", ["orders", "gift_cards"])
def test_every_resource_has_settings(plural: str) -> None:
    """Each business resource has a task queue and a timeout of its own, with the same defaults."""
    prefix = plural.upper()
    environ = {f"{prefix}_TASK_QUEUE": " queue one\r\n", f"{prefix}_EXECUTION_TIMEOUT_SECONDS": "1"}

    assert ResourceSettings("declared", 7200) == read().resource(plural, "declared")
    assert ResourceSettings(plural, 7200) == read().resource(plural)
    assert ResourceSettings("queue one", 1) == read(**environ).resource(plural)
    assert ResourceSettings("others", 7200) == read(**environ).resource("others")
    assert read() == read(**dict.fromkeys(environ, ""))


def test_an_empty_variable_counts_as_unset() -> None:
    """Compose files and charts pass empty variables: all of them together change nothing, Temporal's included."""
    assert read() == read(**dict.fromkeys(NAMES, ""))


OTHER_QUOTES = ("\u201c\u201d", "\u2018\u2019", "\u201e\u201c", "\u201a\u2018", "\u00ab\u00bb", "``")


@pytest.mark.parametrize("name", [*NAMES, "ORDERS_TASK_QUEUE"])
def test_a_value_is_taken_out_of_its_wrapping(name: str) -> None:
    """White space around it is no part of it; alone, or with quotes that stayed on, it stops the start."""
    for blank in (" ", "\n", "\t \r\n", "\u00a0", "\ufeff", "\u200b\n"):
        assert refusal({"JWT_SECRET": SECRET, name: blank}).startswith(f"{name}: white space alone")
    for value in ("hunter2" * 5, ""):
        for wrapped in (f'"{value}"', f"'{value}'", f" '{value}'\n", *(f"{a}{value}{b}" for a, b in OTHER_QUOTES)):
            assert refusal({"JWT_SECRET": SECRET, name: wrapped}).startswith(f"{name}: is in quotes")


def test_white_space_around_temporal_s_settings_is_no_part_of_them() -> None:
    """As a Secret made with `echo` has it: the address, the namespace, the API key and headers."""
    environ = {"ADDRESS": "t:7233", "NAMESPACE": "shop", "API_KEY": "hunter2", "GRPC_META_X_TENANT": "a"}

    assert read(**{f"TEMPORAL_{k}": v for k, v in environ.items()}) == read(
        **{f"TEMPORAL_{k}": f" {v}\r\n" for k, v in environ.items()}
    )


def test_other_variables_are_nobody_s_business() -> None:
    """What else is in the environment is not read, whatever its bytes."""
    assert read() == read(LS_COLORS="\udcff", TEMPORALLY="x", port="1")


def test_settings_say_nothing_and_never_change() -> None:
    """A settings struct in a log line tells no secret, and nobody alters it under way."""
    settings = read()

    assert "Settings(...)" == repr(settings) == f"{settings}"
    with pytest.raises(AttributeError):
        settings.jwt_secret = None  # type: ignore[misc]


WHOLE = "a whole number"
SEALED = "hunter2".ljust(43, "A") + "="
KEYS = "expected id:base64,id:base64, each key 32 random bytes in base64"
ORIGINS = "expected origins such as https://shop.example"
HTTP = "expected an http or https address"
EXACTLY_ONE = "set exactly one, found "


@pytest.mark.parametrize(
    ("environ", "name", "right"),
    [
        *(({"PORT": text}, "PORT", WHOLE) for text in ("http", "-1", "65536", "80.5", "0x50", "null", "8_000")),
        *(
            ({name: text}, name, "a number")
            for name, texts in {
                "JWT_LEEWAY_SECONDS": ("-1", "601", "nan", "inf", "30s"),
                "RPC_TIMEOUT_SECONDS": ("0", "-1", "1e-9", "nan", "inf", "86401", "10s"),
                "MAX_WAIT_SECONDS": ("-1", "nan", "86401", "1m"),
                "SHUTDOWN_DELAY_SECONDS": ("-1", "nan", "86401", "1m"),
            }.items()
            for text in texts
        ),
        *(
            ({"ORDERS_EXECUTION_TIMEOUT_SECONDS": text}, "ORDERS_EXECUTION_TIMEOUT_SECONDS", WHOLE)
            for text in ("0", "1.5", "99999999999999", "forever")
        ),
        *(
            ({"PAYLOAD_ENCRYPTION_KEYS": text}, "PAYLOAD_ENCRYPTION_KEYS", KEYS)
            for text in (
                SEALED,
                f":{SEALED}",
                f"a:{SEALED},hunter2",
                f"a b:{SEALED}",
                f"a:{SEALED[1:]}",
                f"a:-{SEALED[1:]}",
            )
        ),
        (
            {"PAYLOAD_ENCRYPTION_KEYS": f"a:{SEALED},a:B{SEALED[1:]}"},
            "PAYLOAD_ENCRYPTION_KEYS",
            "two keys have the same id",
        ),
        *(({"MAX_OPEN_WAITS": text}, "MAX_OPEN_WAITS", WHOLE) for text in ("-1", "1.5", "many")),
        ({"MAX_BODY_BYTES": "1023"}, "MAX_BODY_BYTES", ">= 1024"),
        ({"MAX_BODY_BYTES": "2MB"}, "MAX_BODY_BYTES", WHOLE),
        *(
            ({"FORWARDED_ALLOW_IPS": text}, "FORWARDED_ALLOW_IPS", "expected addresses and networks")
            for text in ("proxy", "10.0.0.1/8", "10.0.0.1:80", "127.0.0.1,*", "127.0.0.1,")
        ),
        *(({"METRICS_PORT": text}, "METRICS_PORT", WHOLE) for text in ("0", "5s", "65536", "9464/tcp")),
        ({"ORDERS_TASK_QUEUE": "q" * 1001}, "ORDERS_TASK_QUEUE", "length <= 1000"),
        ({"MAX_REQUESTS": "0"}, "MAX_REQUESTS", ">= 1"),
        ({"MAX_MEMORY_BYTES": "1023"}, "MAX_MEMORY_BYTES", ">= 1024"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL", "expected debug, info, warning or error"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT", "expected json or console"),
        *(
            ({"ALLOWED_ORIGINS": text}, "ALLOWED_ORIGINS", ORIGINS)
            for text in (
                "*",
                "null",
                "shop.example",
                "https://*.example",
                "https://shop.example/",
                "https://shop.example,*",
                "https://Shop.example",
                "https://user:hunter2@shop.example",
                "https://a b",
                "ftp://shop.example",
                "file://localhost",
                "data://x",
                "ws://shop.example",
                "wss://shop.example",
                "capacitor://*",
                "capacitor://localhost/",
                "Capacitor://localhost",
                "ionic:",
            )
        ),
        *(
            ({"ROOT_PATH": text}, "ROOT_PATH", "expected a path such as /temporal")
            for text in (
                "temporal",
                "//",
                "/a//b",
                "/a?b=1",
                "/a#b",
                "/a b",
                "/a/../b",
                "/.",
                "/%61",
                "/<b>",
                "https://a/b",
            )
        ),
        # Which key, and that it is strong enough
        ({"JWT_SECRET": ""}, "JWT_JWKS_URL, JWT_PUBLIC_KEY or JWT_SECRET", EXACTLY_ONE + "none"),
        ({"JWT_SECRET": " " * 40}, "JWT_SECRET", "white space alone"),
        ({"JWT_SECRET": f'"{SECRET}"'}, "JWT_SECRET", "is in quotes"),
        ({"JWT_AUDIENCE": 'a,"b"'}, "JWT_AUDIENCE", "is in quotes"),
        ({"JWT_AUDIENCE": " , "}, "JWT_AUDIENCE", "commas alone"),
        *(({name: '["a", "b"]'}, name, "is in brackets") for name in ("JWT_AUDIENCE", "ALLOWED_TASK_QUEUES")),
        (JWKS, "JWT_JWKS_URL, JWT_PUBLIC_KEY or JWT_SECRET", EXACTLY_ONE + "JWT_JWKS_URL and JWT_SECRET"),
        ({"JWT_SECRET": "hunter2"}, "JWT_SECRET", "expected 32 random bytes or more"),
        ({"JWT_SECRET": "hunter2-" * 4, "JWT_ALGORITHMS": "HS384"}, "JWT_SECRET", "expected 48 random bytes or more"),
        ({"JWT_SECRET": "hunter2-" * 7, "JWT_ALGORITHMS": "HS256,HS512"}, "JWT_SECRET", "expected 64 random bytes"),
        ({"JWT_SECRET": SECRET + "\udcff"}, "JWT_SECRET", "expected text in UTF-8"),
        ({"JWT_ISSUER": "\udcff"}, "JWT_ISSUER", "expected text in UTF-8"),
        ({"JWT_SECRET_PREVIOUS": "hunter2"}, "JWT_SECRET_PREVIOUS", "expected 32 random bytes or more"),
        (
            {"JWT_SECRET": SECRET * 2, "JWT_SECRET_PREVIOUS": SECRET, "JWT_ALGORITHMS": "HS384"},
            "JWT_SECRET_PREVIOUS",
            "expected 48 random bytes or more",
        ),
        ({**JWKS, "JWT_SECRET": "", "JWT_SECRET_PREVIOUS": SECRET}, "JWT_SECRET_PREVIOUS", "goes with JWT_SECRET only"),
        ({"SECRET_KEY": "hunter2"}, "SECRET_KEY", "expected 32 random bytes or more"),
        *(
            ({"JWT_SECRET": SECRET, name: f"{public}hunter2".ljust(40, "x")}, name, "is a key in PEM or JSON, or an ad")
            for name in ("JWT_SECRET", "JWT_SECRET_PREVIOUS", "SECRET_KEY")
            for public in (
                "-----BEGIN PUBLIC KEY-----",
                "LS0tLS1CRUdJTiBQ",
                "ssh-rsa AAAA",
                '{"kty": "RSA"',
                "https://",
            )
        ),
        *(
            ({"JWT_ISSUER": text}, "JWT_ISSUER", "separated by commas or |")
            for text in ("a b", "a\nb", "a||b", "|", "a|", 'a|"b"')
        ),
        *(({"JWT_ISSUER": text}, "JWT_ISSUER", "the same name twice") for text in ("a,a", "a|b,c|a", "a|a")),
        # A JWKS
        *(
            ({**JWKS, "JWT_SECRET": "", "JWT_JWKS_URL": url}, "JWT_JWKS_URL", HTTP)
            for url in (
                "issuer.example/jwks",
                "file:///etc/passwd",
                "data:application/json,{}",
                "ftp://issuer.example",
                "http://",
                "http://?x",
                "http://[half",
                "http://issuer.example:port/",
                "http://issuer.example:99999/",
                "http://issuer.example:0/",
                "http://issuer.example/a b",
                "http://issuer.example\n/",
                "http://issuer.example/é",
                "https://user:hunter2@issuer.example/",
            )
        ),
        ({**JWKS, "JWT_SECRET": "", "JWT_ISSUER": ""}, "JWT_ISSUER", "required with JWT_JWKS_URL"),
        ({**JWKS, "JWT_SECRET": "", "JWT_AUDIENCE": ""}, "JWT_AUDIENCE", "required with JWT_JWKS_URL"),
        # Temporal
        *(
            ({"TEMPORAL_ADDRESS": text}, "TEMPORAL_ADDRESS", "expected host:port, such as localhost:7233")
            for text in (
                "temporal",
                ":7233",
                "temporal:",
                "temporal:0",
                "temporal:65536",
                "temporal:²",
                "http://temporal:7233",
                "temporal:7233/",
                "::1:7233",
                "[::1:7233",
                "two words:7233",
                "user@temporal:7233",
                '"temporal:7233',
                "`temporal:7233",
                "<temporal>:7233",
                "${TEMPORAL}:7233",
                "10.0.0.256:7233",
                "10.0.0.1.5:7233",
                "[10.0.0.1]:7233",
                "[1::2::3]:7233",
            )
        ),
        *(({"TEMPORAL_NAMESPACE": text}, "TEMPORAL_NAMESPACE", "a name in ASCII") for text in ("a\nb", "é")),
        *(
            ({"TEMPORAL_TLS_SERVER_NAME": text}, "TEMPORAL_TLS_SERVER_NAME", "expected a host's name")
            for text in ("https://temporal", "temporal:7233", "two words", "*.example", "tëmporal", ".")
        ),
        ({"TEMPORAL_TLS": "maybe"}, "TEMPORAL_TLS", "expected true or false"),
        ({"TEMPORAL_API_KEY": "hunter2\nb"}, "TEMPORAL_API_KEY", "no line break"),
        ({"TEMPORAL_API_KEY": "hunter2-é"}, "TEMPORAL_API_KEY", "visible ASCII"),
        ({"TEMPORAL_GRPC_META_X_TENANT": "hunter2\r\nb"}, "TEMPORAL_GRPC_META_X_TENANT", "a header can carry"),
        ({"TEMPORAL_GRPC_META_X_BIN": "hunter2"}, "TEMPORAL_GRPC_META_X_BIN", "a header can carry"),
        ({"TEMPORAL_CONFIG_FILE": "/hunter2"}, "TEMPORAL_CONFIG_FILE", "there is no such file"),
        ({"TEMPORAL_CONFIG_FILE": "hunter2" * 1000}, "TEMPORAL_CONFIG_FILE", "there is no such file"),
        ({"TEMPORAL_TLS_SERVER_CA_CERT_PATH": "/hunter2"}, "TEMPORAL_TLS_SERVER_CA_CERT_PATH", "cannot read"),
        # A key where its file's name belongs
        ({"TEMPORAL_TLS_CLIENT_KEY_PATH": KEY}, "TEMPORAL_TLS_CLIENT_KEY_PATH", "cannot read"),
        ({"TEMPORAL_TLS_CLIENT_KEY_PATH": "/"}, "TEMPORAL_TLS_CLIENT_KEY_PATH", "Is a directory"),
        # It opens, and cannot be read.
        ({"TEMPORAL_TLS_CLIENT_KEY_PATH": "/proc/self/mem"}, "TEMPORAL_TLS_CLIENT_KEY_PATH", "cannot read"),
        ({"TEMPORAL_TLS_SERVER_CA_CERT_DATA": "hunter2"}, "TEMPORAL_TLS_SERVER_CA_CERT_DATA", "a certificate in PEM"),
        (
            {"TEMPORAL_TLS_CLIENT_CERT_DATA": KEY, "TEMPORAL_TLS_CLIENT_KEY_DATA": CERTIFICATE},
            "TEMPORAL_TLS_CLIENT_CERT_DATA",
            "expected a certificate in PEM",
        ),
        (
            {
                "TEMPORAL_TLS_CLIENT_CERT_DATA": CERTIFICATE,
                "TEMPORAL_TLS_CLIENT_KEY_DATA": KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"),
            },
            "TEMPORAL_TLS_CLIENT_KEY_DATA",
            "expected an unencrypted private key in PEM",
        ),
        ({"TEMPORAL_TLS_CLIENT_CERT_DATA": CERTIFICATE}, "TEMPORAL_TLS_CLIENT_KEY_PATH", "required with a client"),
        ({"TEMPORAL_TLS_CLIENT_KEY_DATA": KEY}, "TEMPORAL_TLS_CLIENT_CERT_PATH", "required with a client key"),
        (
            {"TEMPORAL_TLS_CLIENT_CERT_DATA": CERTIFICATE, "TEMPORAL_TLS_CLIENT_CERT_PATH": "/hunter2"},
            "TEMPORAL_TLS_CLIENT_CERT_PATH",
            "Cannot specify both",
        ),
    ],
    ids=lambda value: "&".join(f"{k}={v:.20}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused(environ: dict[str, str], name: str, right: str) -> None:
    """One line that begins with the variable and says what would be right, never the secret itself."""
    told = refusal({"JWT_SECRET": SECRET, **environ})

    assert told.startswith(f"{name}: "), told
    assert right in told


@pytest.mark.parametrize("key", ["secret", "PEM", "JWKS"])
@pytest.mark.parametrize("algorithm", ["none", "hs256", "", *HMAC_ALGORITHMS, *ASYMMETRIC_ALGORITHMS])
def test_algorithms_of_a_secret_and_of_public_keys_never_mix(key: str, algorithm: str) -> None:
    """Each kind of key takes its own algorithms and no other: nothing to confuse them by. Empty is the default."""
    environ = {"secret": {"JWT_SECRET": SECRET * 2}, "PEM": {"JWT_PUBLIC_KEY": rsa_pem()}, "JWKS": JWKS}[key]
    fitting = HMAC_ALGORITHMS if key == "secret" else ASYMMETRIC_ALGORITHMS

    if algorithm in fitting or not algorithm:
        assert ((algorithm,) if algorithm else ()) == from_env({**environ, "JWT_ALGORITHMS": algorithm}).jwt_algorithms
    else:
        for algorithms in (algorithm, f"{fitting[0]},{algorithm}", f"{algorithm}\n,{fitting[0]}"):
            told = refusal({**environ, "JWT_ALGORITHMS": algorithms})
            assert told.startswith(f"JWT_ALGORITHMS: {algorithm!r} does not go with JWT_"), told
            assert ", ".join(fitting) in told


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (rsa_pem, "ES256,EdDSA"),
        (lambda: pem(ec.generate_private_key(ec.SECP256R1())), "ES384"),
        (lambda: pem(ec.generate_private_key(ec.SECP384R1())), ""),  # P-384 is not among the defaults
        (lambda: pem(ed25519.Ed25519PrivateKey.generate()), "RS256"),
    ],
    ids=["rsa", "p256", "p384", "ed25519"],
)
def test_algorithms_that_the_public_key_cannot_do_are_refused(key: Any, algorithms: str) -> None:
    """A service that could accept no token at all does not start."""
    told = refusal({"JWT_PUBLIC_KEY": key(), "JWT_ALGORITHMS": algorithms})

    assert told.startswith("JWT_ALGORITHMS: none of them goes with this JWT_PUBLIC_KEY"), told


def test_only_what_checks_tokens_needs_a_key() -> None:
    """The worker and `setup` start without one; their other settings are checked all the same."""
    assert from_env({}, keys_needed=False).jwt_secret is None
    with pytest.raises(SettingsError, match=r"^PORT: "):
        from_env({"PORT": "x"}, keys_needed=False)


def test_issuers_are_named_and_grouped() -> None:
    """Names of the first group stand alone; those of a later one share its first name, which goes before subjects."""
    assert {"a": "", "b": "", "c": "c", "d": "c", "e": "e"} == read(JWT_ISSUER="a|b, c | d,e").issuers
    assert {} == read().issuers


def test_encryption_keys_are_read_in_their_order() -> None:
    """The first is the one that encrypts; an id may have what names have, dots and dashes."""
    settings = read(PAYLOAD_ENCRYPTION_KEYS=f" new-1.b:{'A' * 43}= , old_0:{'/+' * 21}8=")

    assert [("new-1.b", bytes(32)), ("old_0", b64decode("/+" * 21 + "8="))] == settings.encryption_keys


def test_temporal_s_own_settings_are_read_by_its_sdk() -> None:
    """Address, namespace and headers arrive as the SDK's `Client.connect` takes them."""
    assert {"target_host": "localhost:7233", "namespace": "default"} == read().temporal
    assert {
        "target_host": "[::1]:7234",
        "namespace": "shop",
        "rpc_metadata": {"x-tenant": "a"},
    } == read(TEMPORAL_ADDRESS="[::1]:7234", TEMPORAL_NAMESPACE="shop", TEMPORAL_GRPC_META_X_TENANT="a").temporal


@pytest.mark.parametrize(
    ("environ", "tls"),
    [
        ({}, None),
        ({"TEMPORAL_API_KEY": "hunter2"}, True),
        ({"TEMPORAL_TLS": "true"}, TLSConfig()),
        ({"TEMPORAL_TLS": "0"}, False),
        ({"TEMPORAL_TLS_SERVER_NAME": "temporal.example"}, TLSConfig(domain="temporal.example")),
    ],
)
def test_tls_is_on_when_something_calls_for_it(environ: dict[str, str], tls: object) -> None:
    """An API key never travels in the clear unless TLS is turned off by name."""
    assert tls == read(**environ).temporal.get("tls")


@pytest.mark.parametrize("kind", ["PATH", "DATA"])
def test_mutual_tls_by_files_or_by_text(tmp_path: Path, kind: str) -> None:
    """CA, client certificate and key reach the SDK, byte for byte but for white space around a text."""
    pems = {"SERVER_CA_CERT": CERTIFICATE + CERTIFICATE, "CLIENT_CERT": CERTIFICATE, "CLIENT_KEY": KEY}
    arrived = {name: (text if kind == "PATH" else text.strip()).encode() for name, text in pems.items()}
    environ = {}
    for name, text in pems.items():
        (tmp_path / name).write_text(text)
        environ[f"TEMPORAL_TLS_{name}_{kind}"] = text if kind == "DATA" else f"{tmp_path}//{name}"

    assert (
        TLSConfig(
            server_root_ca_cert=arrived["SERVER_CA_CERT"],
            client_cert=arrived["CLIENT_CERT"],
            client_private_key=arrived["CLIENT_KEY"],
        )
        == read(**environ).temporal["tls"]
    )


def test_a_profile_file(tmp_path: Path) -> None:
    """The SDK's profile file is read when named, its profile chosen by name, and variables outrank it."""
    file = tmp_path / "temporal.toml"
    file.write_text(
        '[profile.default]\naddress = "one:7233"\nnamespace = "shop"\n'
        '[profile.cloud]\naddress = "cloud:7233"\napi_key = "hunter2"\n'
    )
    named = {"TEMPORAL_CONFIG_FILE": str(file)}

    assert {"target_host": "one:7233", "namespace": "shop"} == read(**named).temporal
    assert {"target_host": "cloud:7233", "namespace": "default", "api_key": "hunter2", "tls": True} == read(
        **named, TEMPORAL_PROFILE="cloud"
    ).temporal
    assert {"target_host": "two:7233", "namespace": "shop"} == read(**named, TEMPORAL_ADDRESS="two:7233").temporal


@pytest.mark.parametrize(
    ("text", "environ", "name"),
    [
        ('[profile.default]\napi_key = "hunter2\n', {}, "TEMPORAL_CONFIG_FILE"),
        ('[profile.default]\ntls = "hunter2"\n', {}, "TEMPORAL_CONFIG_FILE"),
        ("\0", {}, "TEMPORAL_CONFIG_FILE"),
        ('[profile.default.tls]\nclient_cert_path = "/hunter2"\n', {}, "TEMPORAL_CONFIG_FILE"),
        ('[profile.default.tls]\nserver_ca_cert_data = "hunter2"\n', {}, "TEMPORAL_CONFIG_FILE"),
        ('[profile.default]\naddress = "one"\n', {}, "TEMPORAL_ADDRESS"),
        ("[profile.default]\n", {"TEMPORAL_PROFILE": "nobody"}, "TEMPORAL_PROFILE"),
    ],
    ids=["syntax", "type", "binary", "unreadable", "not-pem", "address", "profile"],
)
def test_a_broken_profile_file_is_refused(tmp_path: Path, text: str, environ: dict[str, str], name: str) -> None:
    """The variable to look at is named; what the file holds is not repeated."""
    file = tmp_path / "temporal.toml"
    file.write_text(text)

    told = refusal({"JWT_SECRET": SECRET, "TEMPORAL_CONFIG_FILE": str(file), **environ})

    assert told.startswith(f"{name}: "), told


@pytest.mark.anyio
async def test_the_command_line_ends_2_with_one_line() -> None:
    """Whatever command meets a wrong setting: exit code 2, one line, no traceback, no secret."""
    await one_line(
        ("serve", {}, 2, "JWT_JWKS_URL, JWT_PUBLIC_KEY or JWT_SECRET: set exactly one, found none; "),
        ("serve", {"JWT_PUBLIC_KEY": rsa_pem(1024)}, 2, "JWT_PUBLIC_KEY: an RSA key of 2048 bits or more is needed"),
        ("serve", {"JWT_SECRET": '"hunter2"'}, 2, "JWT_SECRET: is in quotes"),
        ("serve", {"JWT_SECRET": SECRET, "SECRET_KEY": "\n"}, 2, "SECRET_KEY: white space alone"),
        ("worker", {"TEMPORAL_CONFIG_FILE": "/hunter2"}, 2, "TEMPORAL_CONFIG_FILE: there is no such file"),
        ("token", JWKS, 2, "JWT_SECRET: "),  # with a JWKS the issuer signs
    )


def test_the_module_is_the_command_and_speaks_on_standard_error(tmp_path: Path) -> None:
    """`python -m temporal_api` does the same; a broken profile file below the home folder is found and named."""
    folder = tmp_path / ".config/temporalio"
    folder.mkdir(parents=True)
    (folder / "temporal.toml").write_text('api_key = "hunter2')
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("TEMPORAL_", "JWT_", "XDG_"))}

    ended = subprocess.run(
        [sys.executable, "-m", "temporal_api", "serve"],
        env={**environ, "HOME": str(tmp_path), "JWT_SECRET": SECRET},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (2, "") == (ended.returncode, ended.stdout)
    assert ended.stderr.startswith("temporal-api: TEMPORAL_CONFIG_FILE: ")
    assert 1 == ended.stderr.count("\n"), ended.stderr
    assert "hunter2" not in ended.stderr
