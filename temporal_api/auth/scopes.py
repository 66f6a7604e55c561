"""Where a token's scopes stand: one claim or several, in objects or not, with a prefix or without."""

from typing import Any

from temporal_api.settings import Settings


def scopes_of(claims: dict[str, Any], settings: Settings) -> frozenset[str]:
    """The scopes of all the claims that JWT_SCOPES_CLAIM names, without their prefix."""
    said = {scope for path in settings.jwt_scopes_claim for scope in _texts(_reached(claims, path.split(".")))}
    if prefixes := settings.jwt_scopes_prefix:
        said = {scope.removeprefix(prefix) for scope in said for prefix in prefixes if scope.startswith(prefix)}
    return frozenset(said - {""})


def _reached(value: Any, names: list[str]) -> Any:
    """What the names lead to. A name may itself hold dots (a Keycloak client's id): the longest is tried first."""
    if not names:
        return value
    if not isinstance(value, dict):
        return None
    for end in range(len(names), 0, -1):
        found = _reached(value.get(".".join(names[:end])), names[end:])
        if found is not None:
            return found
    return None


def _texts(value: Any) -> list[str]:
    """A string holds scopes with spaces between them, a list one in each place; anything else grants nothing."""
    if isinstance(value, str):
        return value.split()
    return [scope for scope in value if isinstance(scope, str)] if isinstance(value, list) else []
