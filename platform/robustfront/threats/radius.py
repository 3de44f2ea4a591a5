"""Radii as exact numbers: `8/255` stays 8/255 from the job file to the metric's name."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer


def parse_eps(value: object) -> Fraction:
    """A radius from a number or a text such as `8/255`.

    Raises:
        ValueError: not a number, not finite, or negative.
    """
    hint = f"write a number or a fraction such as 8/255, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, str | int | float | Fraction):
        raise ValueError(hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(hint)
    try:
        # str gives the shortest decimal that is this float: 0.1 becomes 1/10 exactly
        eps = value if isinstance(value, Fraction) else Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(hint) from None
    if eps < 0:
        raise ValueError(f"a radius is 0 or more, got {value!r}")
    return eps


def eps_text(eps: Fraction) -> str:
    """`0.3` where the decimal expansion ends, else `8/255`."""
    rest = eps.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return f"{eps.numerator}/{eps.denominator}"
    with localcontext(prec=60):
        return format((Decimal(eps.numerator) / Decimal(eps.denominator)).normalize(), "f")


Eps = Annotated[Fraction, BeforeValidator(parse_eps), PlainSerializer(eps_text, return_type=str)]
