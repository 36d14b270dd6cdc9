"""Numbers and lengths of time as users give them, checked before anything is stored."""

from __future__ import annotations

from datetime import timedelta

#: The longest that is taken, in seconds: what it leads to must be a moment that Python can name.
LONGEST = 1000 * 365.25 * 86400


def seconds(name: str, length: object) -> float:
    """Return a length of time, a number of seconds or a timedelta, in seconds.

    :param name: what it was given as, for the message of the error.
    :raises ValueError: if it is neither, not a number (nan), or longer than a thousand years.
    """
    if isinstance(length, timedelta):
        length = length.total_seconds()
    if isinstance(length, bool) or not isinstance(length, (int, float)):
        raise ValueError(f"{name} is a number of seconds or a timedelta, not {length!r}")
    if not abs(length) <= LONGEST:  # nan is not, either
        raise ValueError(f"{name} is a number of seconds up to a thousand years, not {length!r}")
    return float(length)


def is_whole(number: object, least: int) -> bool:
    """Tell whether it is a whole number of at least so much, and one that SQLite can store."""
    return isinstance(number, int) and type(number) is not bool and least <= number < 2**63
