"""Compare a number as prose writes it with a measured value."""

from decimal import Decimal, InvalidOperation


def agrees(stated: str, value: float, units: float = 0.5) -> bool:
    """Return True if a number as written is the value, rounded or cut off to the digits shown.

    `units`: how many units of the last digit rounding may move it; more if both sides of a difference were rounded.
    """
    try:
        written = Decimal(stated.replace(",", "").replace("−", "-").lstrip("+~≈"))
    except InvalidOperation:
        return False
    unit = 10.0 ** int(written.as_tuple().exponent)
    number = float(written)
    rounded = abs(number - value) <= units * unit * (1 + 1e-6) + 1e-12
    return rounded or (number * value > 0 and 0 <= abs(value) - abs(number) < unit)


def number(text: str) -> float:
    """Return a number as it is written in notes, without its separators of thousands."""
    return float(text.replace(",", ""))
