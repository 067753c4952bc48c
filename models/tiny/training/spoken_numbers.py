"""Numbers, clock times and prices: how each language writes them in digits and how a spoken language says them.

Two languages of writing (`en`, `de`) and one of speech (`en`) are known; a further one needs an entry in the
dictionaries of functions at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_ENGLISH_ONES: Final = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen"""
_ENGLISH_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_ENGLISH_WORDS: Final = dict(enumerate(_ENGLISH_ONES.split())) | dict(
    zip(range(20, 100, 10), _ENGLISH_TENS.split(), strict=True)
)


def say_english_number(number: int) -> str:
    """English words of a number from 0 to 999, without hyphens or "and"."""
    if not 0 <= number < 1000:
        raise ValueError(f"expected a number from 0 to 999, got {number}")
    if number in _ENGLISH_WORDS:
        return _ENGLISH_WORDS[number]
    if number < 100:
        return f"{_ENGLISH_WORDS[number // 10 * 10]} {_ENGLISH_WORDS[number % 10]}"
    hundreds, rest = divmod(number, 100)
    return f"{_ENGLISH_WORDS[hundreds]} hundred" + (f" {say_english_number(rest)}" if rest else "")


def _say_english_time(hour: int, minute: int) -> str:
    spoken_minute = say_english_number(minute) if minute else "o'clock"
    return f"{say_english_number(hour)} {spoken_minute}"


def _say_english_price(euros: int, cents: int) -> str:
    return f"{say_english_number(euros)} euros" + (f" {say_english_number(cents)}" if cents else "")


def _write_english_time(hour: int, minute: int) -> str:
    return f"{hour}:{minute:02d}" if minute else f"{hour} o'clock"


def _write_german_time(hour: int, minute: int) -> str:
    return f"{hour}:{minute:02d} Uhr" if minute else f"{hour} Uhr"


def _write_english_price(euros: int, cents: int) -> str:
    return f"{euros}.{cents:02d} euros" if cents else f"{euros} euros"


def _write_german_price(euros: int, cents: int) -> str:
    return f"{euros},{cents:02d} Euro" if cents else f"{euros} Euro"


SAY_NUMBER: Final[dict[str, Callable[[int], str]]] = {"en": say_english_number}
"""By spoken language: number to words."""
SAY_TIME: Final[dict[str, Callable[[int, int], str]]] = {"en": _say_english_time}
"""By spoken language: hour and minute to words."""
SAY_PRICE: Final[dict[str, Callable[[int, int], str]]] = {"en": _say_english_price}
"""By spoken language: euros and cents to words."""
WRITE_TIME: Final[dict[str, Callable[[int, int], str]]] = {"en": _write_english_time, "de": _write_german_time}
"""By written language: hour and minute to digits."""
WRITE_PRICE: Final[dict[str, Callable[[int, int], str]]] = {"en": _write_english_price, "de": _write_german_price}
"""By written language: euros and cents to digits."""
