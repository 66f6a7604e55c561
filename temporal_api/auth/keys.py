"""Keys that verify tokens: the algorithms of each, and JWT_PUBLIC_KEY in all its forms."""

import codecs
import logging
import os.path
import re
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
from jwt.algorithms import OKPAlgorithm

from temporal_api.settings import DEFAULT_ASYMMETRIC_ALGORITHMS, Settings, SettingsError

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

ED25519 = frozenset({"EdDSA", "Ed25519"})
"""Two names of one algorithm: RFC 8037's, and RFC 9864's."""
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

log = logging.getLogger(__name__)

with suppress(ValueError):  # a newer PyJWT knows the name itself
    jwt.register_algorithm("Ed25519", OKPAlgorithm())


class Key(msgspec.Struct, frozen=True):
    """A key, the only algorithms it may be used with, and the issuer's id of it."""

    material: PublicKey | str
    algorithms: frozenset[str]
    kid: str | None = None


def accepted_algorithms(settings: Settings) -> frozenset[str]:
    """The accepted values of a token's `alg`."""
    default = ("HS256",) if settings.jwt_secret else DEFAULT_ASYMMETRIC_ALGORITHMS
    names = frozenset(settings.jwt_algorithms or default)
    return names | ED25519 if names & ED25519 else names


def _fit(key: object) -> tuple[PublicKey, frozenset[str]]:
    """The key and its algorithms, by the key's kind and not by a token's claim. Raises ValueError for an unfit key."""
    if isinstance(key, RSAPublicKey):
        if key.key_size < 2048:
            raise ValueError("an RSA key of 2048 bits or more is needed")
        return key, _RSA
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key, frozenset({_CURVES[key.curve.name]})
    if isinstance(key, Ed25519PublicKey):
        return key, ED25519
    raise ValueError("an RSA, P-256, P-384, P-521 or Ed25519 key is needed")


# Keys that an issuer publishes


def from_jwk(jwk: Any, accepted: frozenset[str]) -> Key | None:
    """The key of a JWK; None if it cannot verify our tokens: the other keys of its set still work."""
    try:
        kid, use, operations, alg = (jwk.get(name) for name in ("kid", "use", "key_ops", "alg"))
        if use not in (None, "sig") or not (operations is None or "verify" in operations):
            return None
        # Drop private members, which a careless issuer may publish.
        public = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
        material, algorithms = _fit(jwt.PyJWK(public).key)
        algorithms &= accepted
        if alg is not None:  # RFC 7517 4.4
            algorithms &= ED25519 if alg in ED25519 else {alg}
    except Exception:  # whatever the issuer sends
        return None
    return Key(material, algorithms, kid) if algorithms and isinstance(kid, str | None) else None


# JWT_PUBLIC_KEY

_EXPECTED = "public keys or certificates in PEM, or as base64, or a readable file with them"
_PUBLIC_HALF = "expected its public half, which `openssl pkey -pubout` tells"
_FORMS = {
    r"\Z": "nothing",
    "https?://": "an address, which JWT_JWKS_URL takes",
    "{": "JSON; a JWK is read from an address only, by JWT_JWKS_URL",
    "ssh-|ecdsa-": "a key in the form of OpenSSH, which `ssh-keygen -e -m PKCS8` turns into PEM",
    r"[A-Za-z0-9+/=_\s-]{64,}\Z": "base64 of neither a PEM nor DER",
    "[/.]": "a path with no file there",
    "": "neither a key nor the name of a file",
}
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)


def public_keys(value: str, accepted: frozenset[str]) -> tuple[Key, ...]:
    """Every key in JWT_PUBLIC_KEY, or in the file that it names. Raises SettingsError."""
    try:
        found = [_fit(key) for key in _loaded(value)]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"JWT_PUBLIC_KEY: {error}") from None
    keys = tuple(Key(key, algorithms & accepted) for key, algorithms in found if algorithms & accepted)
    for unused in ("/".join(sorted(algorithms)) for _, algorithms in found if not algorithms & accepted):
        if not keys:
            raise SettingsError(f"JWT_ALGORITHMS: none of them goes with this JWT_PUBLIC_KEY ({unused})")
        log.warning("JWT_PUBLIC_KEY: one of its keys is not used, as JWT_ALGORITHMS has none of %s", unused)
    return keys


def _loaded(value: str) -> list[object]:
    is_file = os.path.isfile(value)  # unlike Path.is_file(), it never raises
    try:
        data = Path(value).read_bytes() if is_file else value.encode()
    except OSError as error:
        raise ValueError(f"cannot read the file it names: {error.strerror}") from None
    keys = _read(data)
    if keys is None and is_file and data[:1] == b"\x30":
        return [_from_der(data, "a file of DER")]
    if keys is None:
        seen = f"a file, but it holds {_form(data.decode(errors='replace').strip())}" if is_file else _form(value)
        raise ValueError(f"{seen}; expected {_EXPECTED}")
    return keys


def _read(data: bytes) -> list[object] | None:
    """The keys in PEM, or in base64 of a PEM or of DER; None for anything else."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as some shells write files
        data = data.decode("utf-16", "replace").encode()
    if b"-----BEGIN" in data:
        text = re.sub(r"\\+n", "\n", re.sub(r"\\+r", "", data.decode(errors="replace")))  # escaped, maybe twice
        blocks = _PEM.findall(text)
        if not blocks or text.count("-----BEGIN") != len(blocks):
            raise ValueError("PEM with a block that does not end")
        return [_from_pem(label, content) for label, content in blocks]
    try:
        decoded = _base64(data.decode("utf-8-sig"))
    except ValueError:  # not text, or not base64
        return None
    if b"-----BEGIN" in decoded:
        return _read(decoded)
    return [_from_der(decoded, "base64 of DER")] if decoded[:1] == b"\x30" else None


def _base64(text: str) -> bytes:
    """Decode base64 of both alphabets, with any line breaks, with or without padding."""
    text = re.sub(r"\s|=+\s*$", "", text)
    return b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)


def _from_pem(label: str, content: str) -> object:
    if label.endswith("PRIVATE KEY"):
        raise ValueError(f"{label} in PEM, a private key; {_PUBLIC_HALF}")
    try:
        der = _base64(content)
    except ValueError:
        raise ValueError(f"{label} in PEM, but what it holds is not base64") from None
    return _from_der(der, f"{label} in PEM")


def _from_der(der: bytes, form: str) -> object:
    """The public key in DER, alone or in a certificate."""
    with suppress(ValueError, UnsupportedAlgorithm):
        return load_der_public_key(der)
    with suppress(ValueError, UnsupportedAlgorithm):
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        if certificate.not_valid_after_utc < datetime.now(UTC):
            log.warning(
                "JWT_PUBLIC_KEY: one of its certificates expired on %s; tokens signed with its key are still accepted",
                f"{certificate.not_valid_after_utc:%Y-%m-%d}",
            )
        return key
    try:
        load_der_private_key(der, None)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{form}, but no public key and no certificate can be read from it") from None
    except TypeError:  # it has a password
        pass
    raise ValueError(f"{form}, a private key; {_PUBLIC_HALF}")


def _form(text: str) -> str:
    """What the text is instead of a key, to show the mistake without showing the text."""
    if os.path.isdir(text):
        return "the path of a folder"
    return next(form for pattern, form in _FORMS.items() if re.match(pattern, text))
