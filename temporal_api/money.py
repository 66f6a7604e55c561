"""Prices: the caller's own digits from the JSON text to the sum. Float never sees them."""

import re
from decimal import Decimal
from typing import Annotated

from msgspec import Meta, Raw

MAX_PRICE = 10**12

# A JSON number or a plain decimal string; what is captured is the number's own digits.
_PRICE = re.compile(r'"0*(\d+(?:\.\d+)?)"|(\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)', re.ASCII)
# The pattern backtracks: megabytes of zeros would hold up everyone. No price is as long as this.
_LONGEST = 62

Price = Annotated[
    Raw,
    Meta(
        extra_json_schema={
            # The string first: a client that is made from the contract keeps every digit of it.
            "anyOf": [
                {"type": "string", "maxLength": _LONGEST, "pattern": r"^0*(\d{1,12}(\.\d{1,6})?|10{12}(\.0{1,6})?)$"},
                {"type": "number", "minimum": 0, "maximum": MAX_PRICE},
            ],
            "description": "A plain decimal string or a JSON number: 0 to 10^12, at most 6 decimals.",
            "examples": ["19.99", 19.99],
        }
    ),
]
"""A JSON number or a plain decimal string, 0 to 10^12, at most 6 decimals."""


def check_price(field: str, raw: Raw) -> Raw:
    """The price as a JSON number. Raises ValueError that names the field."""
    text = bytes(raw).decode()
    digits = _PRICE.fullmatch(text) if len(text) <= _LONGEST + 2 else None  # 2: its quotes
    if digits is None:
        raise ValueError(f"{field}: Expected a price from 0 to 10^12, such as 19.99")
    number = Raw((digits[1] or digits[2]).encode())
    price = exact(number)
    if price.adjusted() > 12 or price > MAX_PRICE:
        raise ValueError(f"{field}: Expected a price from 0 to 10^12")
    if int(price.as_tuple().exponent) < -6:
        raise ValueError(f"{field}: Expected at most 6 decimals")
    return number


def exact(number: Raw) -> Decimal:
    """A checked price as a Decimal, digit for digit."""
    return Decimal(bytes(number).decode())
