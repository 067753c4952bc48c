"""Numbers, clock times, prices and dates: how each language writes them in digits and says them in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from num2words import num2words

from .words import LANGUAGES, word_list


@dataclass(frozen=True, slots=True)
class Quantity:
    """One text per language, written and spoken."""

    written: dict[str, str]
    spoken: dict[str, str]


@cache
def say_number(number: int, language: str) -> str:
    """A number in words, hyphens as spaces."""
    return str(num2words(number, lang=language)).replace("-", " ")


def number(value: int) -> Quantity:
    """A bare number, as of a bus or a hotel room."""
    return Quantity(dict.fromkeys(LANGUAGES, str(value)), {code: say_number(value, code) for code in LANGUAGES})


def _after(minute: int, language: str) -> str:
    return f" {say_number(minute, language)}" if minute else ""


_SAY_TIME: Final[dict[str, Callable[[int, int], str]]] = {
    "en": lambda hour, minute: f"{say_number(hour, 'en')}{_after(minute, 'en') or ' o clock'}",
    "de": lambda hour, minute: f"{'ein' if hour == 1 else say_number(hour, 'de')} Uhr{_after(minute, 'de')}",
    "fr": lambda hour, minute: (
        f"{'une heure' if hour == 1 else say_number(hour, 'fr') + ' heures'}{_after(minute, 'fr')}"
    ),
    "es": lambda hour, minute: f"{'la una' if hour == 1 else 'las ' + say_number(hour, 'es')}{_after(minute, 'es')}",
}
_WRITE_TIME: Final[dict[str, Callable[[int, int], str]]] = {
    "en": lambda hour, minute: f"{hour}:{minute:02d}" if minute else f"{hour} o'clock",
    "de": lambda hour, minute: f"{hour}:{minute:02d} Uhr" if minute else f"{hour} Uhr",
    "fr": lambda hour, minute: f"{hour}h{minute:02d}" if minute else f"{hour} heure{'s' if hour > 1 else ''}",
    "es": lambda hour, minute: f"{'la' if hour == 1 else 'las'} {hour}" + (f":{minute:02d}" if minute else ""),
}


def time(hour: int, minute: int) -> Quantity:
    """A time of day; the Spanish text begins with its article."""
    return Quantity(
        {code: _WRITE_TIME[code](hour, minute) for code in LANGUAGES},
        {code: _SAY_TIME[code](hour, minute) for code in LANGUAGES},
    )


_EURO: Final = {"en": "euros", "de": "Euro", "fr": "euros", "es": "euros"}


def price(euros: int, cents: int) -> Quantity:
    """An amount of at least two euros that does not end on one, for then the word before "euros" would change."""
    point = {code: "." if code == "en" else "," for code in LANGUAGES}
    written = {code: f"{euros}{point[code]}{cents:02d}" if cents else str(euros) for code in LANGUAGES}
    return Quantity(
        {code: f"{written[code]} {_EURO[code]}" for code in LANGUAGES},
        {code: f"{say_number(euros, code)} {_EURO[code]}{_after(cents, code)}" for code in LANGUAGES},
    )


def _ordinal(day: int, language: str) -> str:
    ordinal = str(num2words(day, lang=language, to="ordinal")).replace("-", " ")
    return ordinal + "n" if language == "de" else ordinal


def date(day: int, month: dict[str, str]) -> Quantity:
    """A day of a month from the second on, as it follows "on", "am", "le" and "el"."""
    return Quantity(
        {
            "en": f"{month['en']} {day}",
            "de": f"{day}. {month['de']}",
            "fr": f"{day} {month['fr']}",
            "es": f"{day} de {month['es']}",
        },
        {
            "en": f"{month['en']} {_ordinal(day, 'en')}",
            "de": f"{_ordinal(day, 'de')} {month['de']}",
            "fr": f"{say_number(day, 'fr')} {month['fr']}",
            "es": f"{say_number(day, 'es')} de {month['es']}",
        },
    )


@cache
def quantities() -> dict[str, tuple[Quantity, ...]]:
    """By slot name, everything that can fill it.

    Numbers that count something ("count", "many", "price") do not end on one, where French and Spanish say the noun's
    gender.
    """
    months = [{code: month[code].singular for code in LANGUAGES} for month in word_list("month")]
    return {
        "count": tuple(number(value) for value in range(2, 21)),
        "many": tuple(number(value) for value in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 60, 90)),
        "number": tuple(number(value) for value in range(2, 100)),
        "degrees": tuple(number(value) for value in range(12, 31)),
        "hundreds": tuple(number(value) for value in range(101, 1000) if value % 100),
        "time": tuple(time(hour, minute) for hour in range(1, 13) for minute in (0, *range(10, 60, 5))),
        "price": tuple(price(euros, 0) for euros in range(2, 100) if euros % 10 != 1 or euros == 11)
        + tuple(price(euros, cents) for euros in range(2, 21) for cents in (20, 40, 50, 60, 80, 90)),
        "date": tuple(date(day, month) for month in months for day in range(2, 29)),
    }
