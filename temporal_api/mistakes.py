"""Find every mistake of an invalid request: msgspec and Litestar stop at the first.

Each part of a refused body is decoded again with its own type, and if that fails, the parts of that part. So messages
are msgspec's own, and paths are exact. Valid requests never come here.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from litestar import Request
from msgspec import NODEFAULT, Raw

from temporal_api.errors import LONGEST_ECHO, FieldError, shown

MOST = 20
"""The most mistakes that an answer lists."""
_MOST_ENTRIES = 1000
"""The most entries of a list or an object that are checked. Bounds of requests allow no more."""

# msgspec names types as Python does, callers as JSON does.
_JSON_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "bytes": "a base64 string",
    "datetime": "a time",
    "date": "a date",
    "time": "a time of day",
    "duration": "a duration",
    "uuid": "a UUID",
    "decimal": "a decimal number",
}
_QUOTED = re.compile(r"`([^`]*)`")
KEY = "^[!-~]{1,255}$"
RUN_ID = "^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$"
EVENT_ID = "^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9]{1,9})?$"
_FORMS = {
    KEY: "1 to 255 visible ASCII characters",
    RUN_ID: "a run's id, a UUID",
    EVENT_ID: "the id of an event of this stream, RUN_ID:EVENT_ID",
}
"""The patterns of parameters, in words."""
_PATTERN = re.compile("a string matching regex '(.*)'")
# What a struct's `__post_init__` says of its own field.
_OWN = re.compile(r"([a-z_]+): (.*)", re.DOTALL)


def body_mistakes(text: bytes, expected: Any, path: str = "") -> list[FieldError]:
    """The mistakes of JSON that does not match its type, at most `MOST`."""
    return list(islice(_mistakes(text.lstrip(), expected, path), MOST))


def _mistakes(text: bytes | Raw, expected: Any, path: str) -> Iterator[FieldError]:
    """The mistakes of its parts, or else msgspec's message about the whole."""
    try:
        msgspec.json.decode(text, type=expected)
        return
    except msgspec.ValidationError as error:
        said = str(error)
    found = False
    if len(path) <= LONGEST_ECHO:  # which bounds the depth too
        with suppress(RecursionError):
            for mistake in _inside(bytes(text), expected, path):
                found = True
                yield mistake
    if not found:
        said, _, inside = said.rpartition(" - at `") if " - at `" in said else (said, "", "")
        at = (path + inside.rstrip("`").removeprefix("key in `").removeprefix("$")).removeprefix(".")
        if own := _OWN.fullmatch(said):
            at, said = _join(at, own[1]), own[2]
        yield FieldError(shown(at), _in_words(said, expected))


def _inside(text: bytes, expected: Any, path: str) -> Iterator[FieldError]:
    kind, limits = _container(expected, text[:1])
    if kind is None:
        return
    if issubclass(origin := get_origin(kind) or kind, msgspec.Struct):
        yield from _in_struct(text, kind, path)
        return
    of_any: Any = list[Raw] if origin is list else dict[str, Raw]
    try:
        entries = msgspec.json.decode(text, type=Annotated[(of_any, *limits)] if limits else of_any)
    except msgspec.ValidationError as error:
        yield FieldError(shown(path), in_json_words(str(error)))
        entries = msgspec.json.decode(text, type=of_any)
    *of_key, of_value = get_args(kind)
    for key, value in islice(enumerate(entries) if origin is list else entries.items(), _MOST_ENTRIES):
        for mistake in _mistakes(msgspec.json.encode(key), of_key[0], "") if of_key else ():
            yield FieldError(shown(path), f'The name "{shown(key)}": {mistake.message}')
        yield from _mistakes(value, of_value, f"{path}[{key}]" if origin is list else _join(path, key))


def _container(expected: Any, opening: bytes, limits: tuple[Any, ...] = ()) -> tuple[Any, tuple[Any, ...]]:
    """The struct, list or dict type in `expected` that decodes such a value, and its limits."""
    origin = get_origin(expected)
    if origin is Annotated:
        return _container(expected.__origin__, opening, (*limits, *expected.__metadata__))
    if origin in (Union, UnionType):
        found = [each for each in (_container(of, opening, limits) for of in get_args(expected)) if each[0]]
        return found[0] if len(found) == 1 else (None, ())
    kind = origin or expected
    looks_in = kind is list or kind is dict or (isinstance(kind, type) and issubclass(kind, msgspec.Struct))
    return (expected, limits) if looks_in and opening == (b"[" if kind is list else b"{") else (None, ())


def _in_struct(text: bytes, kind: Any, path: str) -> Iterator[FieldError]:
    sent = msgspec.json.decode(text, type=dict[str, Raw])
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    defaults = {
        field.name: field.default_factory() if field.default is NODEFAULT else field.default
        for field in fields.values()
        if not field.required
    }
    right = dict(defaults)
    for name, field in fields.items():
        if name in sent:
            right.pop(field.name, None)
            yield from _mistakes(sent[name], field.type, _join(path, name))
            with suppress(msgspec.ValidationError):
                right[field.name] = msgspec.json.decode(sent[name], type=field.type)
        elif field.required:
            yield FieldError(shown(_join(path, name)), f"Object missing required field {name}")
    if kind.__struct_config__.forbid_unknown_fields:
        for name in sent:
            if name not in fields:
                yield FieldError(shown(_join(path, name)), f"Unknown field{there_are(name, fields)}")
    if hasattr(kind, "__post_init__"):
        yield from _own_rules(kind, right, defaults, path)


def _own_rules(kind: Any, right: dict[str, Any], defaults: dict[str, Any], path: str) -> Iterator[FieldError]:
    """The mistakes that the struct's `__post_init__` finds in fields of the right type, one after the other."""
    known, told = SimpleNamespace(**right), set[str]()
    while True:
        try:
            kind.__post_init__(known)
            return
        except ValueError as error:
            own = _OWN.fullmatch(str(error))
            if own is None or own[1] in told:
                return
            yield FieldError(shown(_join(path, own[1])), own[2])
            told.add(own[1])
            vars(known).pop(own[1], None)
            if own[1] in defaults:
                setattr(known, own[1], defaults[own[1]])
        except (AttributeError, TypeError):  # it needs a field that is wrong
            return


def _join(path: str, name: str) -> str:
    return f"{path}.{shown(name)}".removeprefix(".")


def there_are(name: str, known: Collection[str]) -> str:
    """Help with an unknown name: the nearest known one, and all known ones."""
    near = get_close_matches(shown(name), known, 1)
    are = "are" if len(known) > 1 else "is"
    return f"; {f'did you mean {near[0]}? There' if near else 'there'} {are} {', '.join(sorted(known))}"


def _in_words(said: str, expected: Any) -> str:
    allowed = _allowed(expected)
    if allowed and not said.startswith("Expected `array`"):
        return f"Expected one of {', '.join(map(str, allowed))}"
    return in_json_words(shown(said))


def in_json_words(said: str) -> str:
    """Replace the Python types and the patterns in a message of msgspec."""
    said = _QUOTED.sub(lambda m: " or ".join(_JSON_TYPES.get(kind, kind) for kind in m[1].split(" | ")), said)
    return _PATTERN.sub(lambda m: _FORMS.get(m[1], m[0]), said)


def _allowed(expected: Any) -> tuple[Any, ...]:
    """The values of a Literal, alone, in a list or with null."""
    origin, of = get_origin(expected), get_args(expected)
    if origin is Literal:
        return of
    if origin is Annotated or origin is list:
        return _allowed(of[0])
    if origin in (Union, UnionType):
        others = [each for each in of if each is not NoneType]
        return _allowed(others[0]) if len(others) == 1 else ()
    return ()


class Parameter(msgspec.Struct, frozen=True):
    """A query parameter or a header of an operation."""

    type: Any
    repeatable: bool


PARAMETERS, HEADERS = "parameters", "header_parameters"
"""The keys of a handler's `opt` that hold its query parameters and its headers, by name."""


def parameter_mistakes(request: Request[Any, Any, Any]) -> list[FieldError]:
    """The mistakes of a request's query parameters and headers."""
    mistakes = []
    for where, values in ((PARAMETERS, request.query_params), (HEADERS, request.headers)):
        known: Mapping[str, Parameter] = request.route_handler.opt.get(where, {})
        for name, parameter in known.items():
            if sent := values.getall(name, []):
                if name == "Idempotency-Key" and len(sent) > 1:
                    mistakes.append(FieldError(name, "Expected it once"))
                    continue
                strict = "null" in map(str.lower, sent)  # else msgspec takes it for no value
                try:
                    msgspec.convert(sent if parameter.repeatable else sent[-1], parameter.type, strict=strict)
                except msgspec.ValidationError as error:
                    said = str(error).partition(" - at `")[0]
                    mistakes.append(FieldError(name, _in_words(said, parameter.type)))
    return mistakes
