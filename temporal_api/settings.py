"""Settings: one frozen struct, read once from the environment, refused when unsafe.

Temporal's own connection settings (`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, `TEMPORAL_TLS*`, ...)
are read by the SDK's `temporalio.envconfig`; the others are the fields below, upper-cased.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field
from temporalio.envconfig import ClientConfigProfile

DEFAULT_TEMPORAL_ADDRESS = "localhost:7233"

HMAC_ALGORITHMS = ("HS256", "HS384", "HS512")
ASYMMETRIC_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
DEFAULT_ASYMMETRIC_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(ge=0, le=86400)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=86400)]


class SettingsError(ValueError):
    """A wrong or unsafe setting: names the variable, what is wrong and what would be right, never a secret's value."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper):
    """Every setting of the service; README.md tells what each one means."""

    host: str = "127.0.0.1"
    port: Port = 8000
    jwt_jwks_url: Annotated[str, Meta(pattern="^https?://[^/]+")] | None = None
    jwt_public_key: str | None = None
    jwt_secret: Annotated[str, Meta(min_length=32)] | None = None
    jwt_algorithms: tuple[str, ...] = ()
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_scopes_claim: str = "scope"
    jwt_leeway_seconds: Annotated[float, Meta(ge=0, le=600)] = 30
    allowed_origins: tuple[Annotated[str, Meta(pattern="^https?://[^/*]+$")], ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    orders_task_queue: str = "temporal-product-queue"
    orders_execution_timeout_seconds: Annotated[int, Meta(ge=1)] = 7200
    allowed_workflow_types: tuple[str, ...] = ()
    allowed_task_queues: tuple[str, ...] = ()
    rpc_timeout_seconds: PositiveSeconds = 10
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 2 * 1024 * 1024
    temporal: dict[str, Any] = field(name="", default_factory=dict)
    """Arguments of the SDK's `Client.connect`; no environment variable has an empty name."""

    def __repr__(self) -> str:
        """Say nothing: a settings struct in a log line must not tell a secret."""
        return "Settings(...)"


_LISTS = {f.encode_name for f in msgspec.structs.fields(Settings) if isinstance(f.default, tuple)}
# Where msgspec's own words would not tell what is right.
_EXPECTED = {
    "ALLOWED_ORIGINS": "expected origins such as https://shop.example, comma-separated, with no path and no wildcard",
    "JWT_JWKS_URL": "expected an http or https address",
    "JWT_SECRET": "too short, expected 32 random bytes or more",
    "LOG_FORMAT": "expected json or console",
    "LOG_LEVEL": "expected debug, info, warning or error",
}


def from_env(environ: Mapping[str, str], *, keys_needed: bool = True) -> Settings:
    """Read the settings; an empty variable counts as unset. Only what checks no tokens can do without their keys.

    Raises SettingsError.
    """
    values: dict[str, Any] = {name: value for name, value in environ.items() if name and value.strip()}
    for name in _LISTS & values.keys():
        values[name] = [part.strip() for part in values[name].split(",") if part.strip()]
    for name in ("LOG_LEVEL", "LOG_FORMAT"):
        if name in values:
            values[name] = values[name].lower()
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition("[")[0]
        problem = problem.replace("`int`", "a whole number").replace("`float`", "a number").replace("`str`", "text")
        raise SettingsError(f"{name}: {_EXPECTED.get(name, problem)}") from None
    settings = msgspec.structs.replace(
        settings, jwt_public_key=_pem(settings.jwt_public_key), temporal=_temporal(environ)
    )
    if keys_needed:
        _check_jwt(settings)
    return settings


def _pem(value: str | None) -> str | None:
    """The PEM text itself, or the file it names."""
    if value is None or value.lstrip().startswith("-----BEGIN"):
        return value
    try:
        return Path(value).read_text()
    except (OSError, ValueError):
        raise SettingsError("JWT_PUBLIC_KEY: neither a PEM public key nor a readable file with one") from None


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
                f"JWT_ALGORITHMS: {algorithm} does not go with {keys[0].upper()}, which takes {', '.join(known)}"
            )
    # RFC 7518 3.2: the key of an HMAC is at least as long as its hash.
    longest = max((int(a[2:]) // 8 for a in settings.jwt_algorithms if a.startswith("HS")), default=32)
    if settings.jwt_secret and len(settings.jwt_secret.encode()) < longest:
        raise SettingsError(f"JWT_SECRET: is too short for JWT_ALGORITHMS: use {longest} random bytes or more")
    if settings.jwt_jwks_url and not (settings.jwt_issuer and settings.jwt_audience):
        missing = "JWT_AUDIENCE" if settings.jwt_issuer else "JWT_ISSUER"
        raise SettingsError(f"{missing}: required with JWT_JWKS_URL, or any token of that issuer would pass")


def _temporal(environ: Mapping[str, str]) -> dict[str, Any]:
    file = environ.get("TEMPORAL_CONFIG_FILE")
    if file and not Path(file).is_file():  # the SDK takes a missing file for an empty one
        raise SettingsError(f"TEMPORAL_CONFIG_FILE: there is no file {file}")
    try:
        profile = ClientConfigProfile.load(
            environ.get("TEMPORAL_PROFILE"), override_env_vars=dict(environ), disable_file=_no_config_file(environ)
        )
        config: dict[str, Any] = {"target_host": DEFAULT_TEMPORAL_ADDRESS, **profile.to_client_connect_config()}
    except OSError as error:
        raise SettingsError(f"TEMPORAL_TLS_*: cannot read {error.filename}: {error.strerror}") from None
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"TEMPORAL_*: {str(error).splitlines()[0]}") from None
    host, colon, port = config["target_host"].rpartition(":")
    if not colon or not host or not port.isdigit() or "/" in host:
        raise SettingsError("TEMPORAL_ADDRESS: expected host:port, such as localhost:7233")
    return config


def _no_config_file(environ: Mapping[str, str]) -> bool:
    # The SDK's default profile file is looked for below the home folder; a service account may have none.
    return "TEMPORAL_CONFIG_FILE" not in environ and "HOME" not in environ and "XDG_CONFIG_HOME" not in environ
