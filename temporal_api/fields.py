"""What the contract says of a field."""

from typing import Any

from msgspec import Meta


def about(description: str, *examples: object, **limits: Any) -> Meta:
    """Describe a field, with examples and msgspec's limits of its values."""
    return Meta(description=description, examples=list(examples) or None, **limits)
