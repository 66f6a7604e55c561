"""Settings: one frozen struct, read once from the environment, refused when unsafe.

Temporal's own connection settings (`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, `TEMPORAL_TLS*`, ...)
are read by the SDK's `temporalio.envconfig`. The others are the fields below, in upper case.
"""

import base64
import ipaddress
import os.path
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import Meta, field
from temporalio.envconfig import ClientConfigProfile, DataSource
from temporalio.service import TLSConfig

HMAC_ALGORITHMS = ("HS256", "HS384", "HS512")
ASYMMETRIC_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
DEFAULT_ASYMMETRIC_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")

Converted = TypeVar("Converted")

Port = Annotated[int, Meta(ge=0, le=65535)]
# As browsers send it: no user, no path. The host of a web page is in lower case; an app's may have any case.
Origin = Annotated[
    str,
    Meta(
        pattern=r"^(https?://[^\s/*@?#A-Z]+"
        r"|(?!(https?|ftps?|file|data|wss?|blob|filesystem|about|javascript):)[a-z][a-z0-9+.-]*://[^\s/*@?#]+)$"
    ),
]
# Empty, or segments that mean the same in a URL, in HTML and to every proxy.
RootPath = Annotated[str, Meta(pattern=r"^(/(?!\.{1,2}(/|$))[A-Za-z0-9._~:@+-]+)*$")]


class SettingsError(ValueError):
    """A wrong or unsafe setting. It names the variable, what is wrong and what is right, but never a secret's value."""


class TLSFilesError(SettingsError):
    """TLS files that exist and cannot be used."""


class ResourceSettings(msgspec.Struct, frozen=True, rename=str.upper):
    """The settings of a business resource. The variables begin with its plural: `ORDERS_TASK_QUEUE`."""

    task_queue: Annotated[str, Meta(max_length=1000)] = ""
    """Empty: the resource's own `task_queue`, or its plural."""
    execution_timeout_seconds: Annotated[int, Meta(ge=1, le=315_360_000)] = 7200


_RESOURCE_DEFAULTS = ResourceSettings()
_RESOURCE_VARIABLE = re.compile(r"(?P<resource>[A-Z][A-Z0-9_]*?)_(?P<name>TASK_QUEUE|EXECUTION_TIMEOUT_SECONDS)")


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper):
    """Every setting of the service. README.md explains each."""

    host: str = "127.0.0.1"
    port: Port = 8000
    metrics_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    root_path: RootPath = ""
    jwt_jwks_url: str | None = None
    jwt_public_key: str | None = None
    jwt_secret: str | None = None
    jwt_secret_previous: str | None = None
    jwt_algorithms: tuple[str, ...] = ()
    jwt_issuer: tuple[str, ...] = ()
    jwt_audience: tuple[str, ...] = ()
    jwt_scopes_claim: tuple[str, ...] = ("scope", "scp")
    jwt_scopes_prefix: tuple[str, ...] = ()
    jwt_leeway_seconds: Annotated[float, Meta(ge=0, le=600)] = 30
    secret_key: str | None = None
    allowed_origins: tuple[Origin, ...] = ()
    forwarded_allow_ips: str = "127.0.0.1"
    """The proxies whose `X-Forwarded-For` is trusted: addresses and networks, or `*`. The name is uvicorn's."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otel_exporter_otlp_endpoint: str | None = None
    allowed_workflow_types: tuple[str, ...] = ()
    allowed_task_queues: tuple[str, ...] = ()
    payload_encryption_keys: tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+:[A-Za-z0-9+/]{43}=$")], ...] = ()
    rpc_timeout_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 10
    max_wait_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 50
    max_open_waits: Annotated[int, Meta(ge=0)] = 200
    max_connections: Annotated[int, Meta(ge=1)] = 1000
    request_timeout_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 15
    max_open_waits_per_user: Annotated[int, Meta(ge=0)] = 50
    max_requests: Annotated[int, Meta(ge=1)] = 200
    shutdown_delay_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 2 * 1024 * 1024
    max_memory_bytes: Annotated[int, Meta(ge=1024)] = 256 * 1024 * 1024
    temporal: dict[str, Any] = field(name="", default_factory=dict)
    """Arguments of the SDK's `Client.connect`; no environment variable has an empty name."""
    temporal_source: tuple[dict[str, str], bool] = field(name="  ", default=({}, True))
    """The variables that `temporal` was read from, and whether the SDK looks for its profile file."""
    resources: dict[str, ResourceSettings] = field(name=" ", default_factory=dict)
    """The settings of business resources, by the resource's plural."""

    def resource(self, plural: str, task_queue: str = "") -> ResourceSettings:
        """The settings of a business resource. Its task queue is the variable's, else `task_queue`, else the plural."""
        own = self.resources.get(plural, _RESOURCE_DEFAULTS)
        return own if own.task_queue else ResourceSettings(task_queue or plural, own.execution_timeout_seconds)

    def read_temporal(self) -> dict[str, Any]:
        """Read `temporal` again, since its files may have changed. Raises SettingsError."""
        return _temporal(*self.temporal_source)

    @property
    def issuers(self) -> dict[str, str]:
        """Each name of JWT_ISSUER, and the prefix of its callers' names.

        Names joined by a vertical bar are a group and share their subjects. The first group has no prefix; a later one
        has its first name, so that no caller gets the same name as a caller of another issuer.
        """
        groups = [[name.strip() for name in group.split("|")] for group in self.jwt_issuer]
        return {name: group[0] if at else "" for at, group in enumerate(groups) for name in group}

    @property
    def encryption_keys(self) -> list[tuple[str, bytes]]:
        """The ids and keys of PAYLOAD_ENCRYPTION_KEYS. The first one encrypts."""
        pairs = (entry.split(":") for entry in self.payload_encryption_keys)
        return [(key_id, base64.b64decode(key)) for key_id, key in pairs]

    def __repr__(self) -> str:
        """Hide the values: settings in a log line must show no secret."""
        return "Settings(...)"


_NAMES = {f.encode_name for f in msgspec.structs.fields(Settings) if f.encode_name.strip()}
_LISTS = {f.encode_name for f in msgspec.structs.fields(Settings) if isinstance(f.default, tuple)}
# Messages for which msgspec's own is not clear.
_EXPECTED = {
    "ALLOWED_ORIGINS": (
        "expected origins such as https://shop.example or capacitor://localhost, comma-separated, "
        "with no path and no wildcard"
    ),
    "ROOT_PATH": "expected a path such as /temporal, of letters, digits and ._~:@+-",
    "PAYLOAD_ENCRYPTION_KEYS": "expected id:base64,id:base64, each key 32 random bytes in base64",
    "METRICS_PORT": "expected a whole number from 1 to 65535",
    "LOG_FORMAT": "expected json or console",
    "LOG_LEVEL": "expected debug, info, warning or error",
}


def from_env(environ: Mapping[str, str], *, keys_needed: bool = True) -> Settings:
    """Read the settings; an empty variable counts as unset, white space around a value as not there.

    Only what checks no tokens can do without their keys. Raises SettingsError.
    """
    # The SDK looks for its profile file below the home folder; a service account may have none.
    has_file = any(environ.get(name) for name in ("TEMPORAL_CONFIG_FILE", "HOME", "XDG_CONFIG_HOME"))
    environ = {
        name: _unwrapped(name, value)
        for name, value in environ.items()
        if value and (name in _NAMES or name.startswith("TEMPORAL_") or _RESOURCE_VARIABLE.fullmatch(name))
    }
    values: dict[str, Any] = dict(environ)
    for name in _LISTS & values.keys():
        if values[name].startswith("["):
            raise SettingsError(f"{name}: is in brackets; expected values separated by commas")
        values[name] = [_unwrapped(name, part) for part in values[name].split(",") if part.strip()]
        if not values[name]:
            raise SettingsError(f"{name}: commas alone; leave it empty, or unset")
    if "ROOT_PATH" in values:
        values["ROOT_PATH"] = values["ROOT_PATH"].removesuffix("/")
    for name in ("LOG_LEVEL", "LOG_FORMAT"):
        if name in values:
            values[name] = values[name].lower()
    source = {name: value for name, value in environ.items() if name.startswith("TEMPORAL_")}, has_file
    settings = msgspec.structs.replace(
        _converted(values, Settings),
        temporal=_temporal(*source),
        temporal_source=source,
        resources=_resources(environ),
    )
    if len(dict(settings.encryption_keys)) < len(settings.payload_encryption_keys):
        raise SettingsError("PAYLOAD_ENCRYPTION_KEYS: two keys have the same id; give each its own")
    try:
        for item in settings.forwarded_allow_ips.split(",") if settings.forwarded_allow_ips != "*" else ():
            ipaddress.ip_network(item.strip())
    except ValueError:  # uvicorn would take it for a name, which no client has
        raise SettingsError("FORWARDED_ALLOW_IPS: expected addresses and networks, comma-separated, or *") from None
    for name in ("otel_exporter_otlp_endpoint", "jwt_jwks_url"):
        if (address := getattr(settings, name)) and not is_http_address(address):
            raise SettingsError(f"{name.upper()}: expected an http or https address, with no user and no password")
    # RFC 7518 3.2: the key of an HMAC is at least as long as its hash.
    longest = max((int(a[2:]) // 8 for a in settings.jwt_algorithms if a in HMAC_ALGORITHMS), default=32)
    for name, least in (("jwt_secret", longest), ("jwt_secret_previous", longest), ("secret_key", 32)):
        if (secret := getattr(settings, name)) and len(secret.encode()) < least:
            raise SettingsError(f"{name.upper()}: too short, expected {least} random bytes or more")
        if secret and re.match(r'-----BEGIN|LS0tLS1CRUdJTi|ssh-|https?://|\{\s*"', secret):
            raise SettingsError(f"{name.upper()}: is a key in PEM or JSON, or an address; expected random bytes")
    if keys_needed:
        _check_jwt(settings)
    return settings


def _converted(values: Mapping[str, Any], kind: type[Converted], prefix: str = "") -> Converted:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        name = prefix + path.rstrip("`").partition("[")[0]
        problem = problem.replace("`int`", "a whole number").replace("`float`", "a number").replace("`str`", "text")
        raise SettingsError(f"{name}: {_EXPECTED.get(name, problem)}") from None


def _resources(environ: Mapping[str, str]) -> dict[str, ResourceSettings]:
    found: dict[str, dict[str, str]] = {}
    for variable, value in environ.items():
        if match := _RESOURCE_VARIABLE.fullmatch(variable):
            found.setdefault(match["resource"], {})[match["name"]] = value
    return {name.lower(): _converted(values, ResourceSettings, f"{name}_") for name, values in found.items()}


_UNSEEN = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"
"""A byte order mark, and what web pages put between letters."""
_QUOTES = ('""', "''", "``", "\u201c\u201d", "\u2018\u2019", "\u201e\u201c", "\u201a\u2018", "\u00ab\u00bb")


def _unwrapped(name: str, value: str) -> str:
    """Strip what files, shells and copying leave around a value."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SettingsError(f"{name}: expected text in UTF-8") from None
    value = value.strip().strip(_UNSEEN).strip()
    if not value:
        raise SettingsError(f"{name}: white space alone; leave it empty, or unset")
    if len(value) > 1 and value[0] + value[-1] in _QUOTES:
        raise SettingsError(f"{name}: is in quotes, which would be part of it; leave them out")
    return value


def _check_jwt(settings: Settings) -> None:
    keys = [name for name in ("jwt_jwks_url", "jwt_public_key", "jwt_secret") if getattr(settings, name)]
    if len(keys) != 1:
        found = " and ".join(k.upper() for k in keys) or "none"
        raise SettingsError(
            f"JWT_JWKS_URL, JWT_PUBLIC_KEY or JWT_SECRET: set exactly one, found {found}; "
            "the service never runs without a key to check tokens with"
        )
    known = HMAC_ALGORITHMS if settings.jwt_secret else ASYMMETRIC_ALGORITHMS
    for algorithm in settings.jwt_algorithms:
        if algorithm not in known:
            raise SettingsError(
                f"JWT_ALGORITHMS: {algorithm!r} does not go with {keys[0].upper()}, which takes {', '.join(known)}"
            )
    if settings.jwt_secret_previous and not settings.jwt_secret:
        raise SettingsError(f"JWT_SECRET_PREVIOUS: goes with JWT_SECRET only, not with {keys[0].upper()}")
    names = [name.strip() for group in settings.jwt_issuer for name in group.split("|")]
    if any(not name or re.search("[\\s\"'`]", name) for name in names):
        raise SettingsError("JWT_ISSUER: expected names without white space and quotes, separated by commas or |")
    if len(names) > len(settings.issuers):
        raise SettingsError("JWT_ISSUER: has the same name twice")
    for name in ("jwt_issuer", "jwt_audience") if settings.jwt_jwks_url else ():
        if not getattr(settings, name):
            raise SettingsError(f"{name.upper()}: required with JWT_JWKS_URL, or any token of that issuer would pass")


def is_http_address(url: str) -> bool:
    """Whether it is an http or https address, without user and password."""
    try:
        parts = urlsplit(url)
        port = parts.port  # raises ValueError, as a half IPv6 address does
    except ValueError:
        return False
    plain = re.fullmatch(r"[!-~]+", url) and parts.username is None and port != 0
    return bool(plain and parts.scheme in ("http", "https") and parts.hostname)


_ADDRESS = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_SERVER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+")


def _is_host(text: str) -> bool:
    """Whether a URL can have this host: in brackets or at the end of numbers, it must be an address."""
    try:
        if text.startswith("["):
            ipaddress.IPv6Address(text[1:-1])
        elif text.rpartition(".")[2].isdigit():
            ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _temporal(environ: Mapping[str, str], has_file: bool) -> dict[str, Any]:
    """Read the SDK's settings. Refuse wrong values that the SDK would accept and fail with at every call."""
    file = environ.get("TEMPORAL_CONFIG_FILE")
    if file and not os.path.isfile(file):  # Path.is_file() raises for some texts
        raise SettingsError("TEMPORAL_CONFIG_FILE: there is no such file")
    if environ.get("TEMPORAL_TLS", "true").lower() not in ("true", "false", "1", "0"):
        raise SettingsError("TEMPORAL_TLS: expected true or false")
    sources: dict[str, DataSource | None] = {}
    try:
        profile = ClientConfigProfile.load(
            environ.get("TEMPORAL_PROFILE"), override_env_vars=environ, disable_file=not has_file
        )
        if tls := profile.tls:
            given = (tls.server_root_ca_cert, tls.client_cert, tls.client_private_key)
            sources = {_pem_name(*pem, environ): pem[1] for pem in zip(_PEMS, given, strict=True)}
        config: dict[str, Any] = {"target_host": "localhost:7233", "namespace": "default"}
        config |= profile.to_client_connect_config()
    except OSError as error:
        paths = {name: source for name, source in sources.items() if isinstance(source, Path)}
        found = (name for name, path in paths.items() if path == Path(error.filename or path))
        name = next(found, "TEMPORAL_CONFIG_FILE")
        # Do not show the path: it may be a key that was set by mistake.
        raise SettingsError(f"{name}: cannot read the file it names: {error.strerror}") from None
    except (RuntimeError, ValueError) as error:
        problem = str(error).partition("\n")[0]  # the other lines quote the file with its secrets
        named = re.search(r"TEMPORAL_\w+", problem)
        guess = "TEMPORAL_PROFILE" if problem.startswith("Profile ") else "TEMPORAL_CONFIG_FILE"
        raise SettingsError(f"{named[0] if named else guess}: {problem}") from None
    address = _ADDRESS.fullmatch(config["target_host"])
    if address is None or not _is_host(address[1]) or not 0 < int(address[2]) < 65536:
        raise SettingsError("TEMPORAL_ADDRESS: expected host:port, such as localhost:7233")
    if not re.fullmatch("[ -~]+", config["namespace"]):
        raise SettingsError("TEMPORAL_NAMESPACE: expected a name in ASCII, with no line break")
    if not re.fullmatch("[!-~]*", config.get("api_key", "")):
        raise SettingsError("TEMPORAL_API_KEY: expected visible ASCII characters, with no space and no line break")
    for name, value in config.get("rpc_metadata", {}).items():
        if not re.fullmatch("[a-z0-9_.-]+(?<!-bin)", name) or not re.fullmatch("[ -~]+", value):
            variable = name.upper().replace("-", "_")
            raise SettingsError(f"TEMPORAL_GRPC_META_{variable}: expected a name and a value that a header can carry")
    if isinstance(tls_config := config.get("tls"), TLSConfig):
        if tls_config.domain and not _SERVER_NAME.fullmatch(tls_config.domain):
            raise SettingsError("TEMPORAL_TLS_SERVER_NAME: expected a host's name, such as temporal.example")
        _check_tls(tls_config, [*sources])
    return config


_PEMS = ("SERVER_CA_CERT", "CLIENT_CERT", "CLIENT_KEY")


def _pem_name(stem: str, source: DataSource | None, environ: Mapping[str, str]) -> str:
    """The variable or profile entry that set one of the SDK's TLS settings."""
    form = "PATH" if isinstance(source, Path) else "DATA"
    name = f"TEMPORAL_TLS_{stem}_{form}"
    return name if name in environ else f"TEMPORAL_CONFIG_FILE: tls.{stem.lower()}_{form.lower()}"


def _check_tls(tls: TLSConfig, names: list[str]) -> None:
    if tls.client_cert and not tls.client_private_key:
        raise SettingsError("TEMPORAL_TLS_CLIENT_KEY_PATH: required with a client certificate")
    if tls.client_private_key and not tls.client_cert:
        raise SettingsError("TEMPORAL_TLS_CLIENT_CERT_PATH: required with a client key")
    given = zip(names, (tls.server_root_ca_cert, tls.client_cert, tls.client_private_key), strict=True)
    pems: list[Any] = [_read_pem(name, text) if text else None for name, text in given]
    if certificate := pems[1]:
        if certificate.not_valid_after_utc < datetime.now(UTC):
            raise _wrong_pem(names[1], f"the certificate has expired on {certificate.not_valid_after_utc:%F}")
        try:
            fits = certificate.public_key() == pems[2].public_key()
        except (ValueError, UnsupportedAlgorithm):
            raise _wrong_pem(names[2], "goes with a certificate whose key is of an unsupported kind") from None
        if not fits:
            raise _wrong_pem(names[2], "is not the key of the client's certificate")


def _read_pem(name: str, text: bytes) -> Any:
    is_key = "CLIENT_KEY" in name.upper()
    try:
        return load_pem_private_key(text, None) if is_key else x509.load_pem_x509_certificates(text)[0]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        what = "an unencrypted private key" if is_key else "a certificate"
        raise _wrong_pem(name, f"expected {what} in PEM; it is none, or a damaged one") from None


def _wrong_pem(name: str, why: str) -> SettingsError:
    kind = TLSFilesError if name.upper().endswith("_PATH") else SettingsError
    return kind(f"{name}: {why}")
