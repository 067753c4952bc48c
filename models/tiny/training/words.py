"""Words of the phrasebook and the little grammar that puts them into sentences.

A word list is a table in `words/`, one entry a line, one column a language. Patterns ask for a word's forms by example,
always in the masculine: `{place:dem}` in a German text becomes "dem Bahnhof", "der Post" or "dem Museum"; `{thing:un}`
in a French one "une clé"; `{thing:a+color}` in an English one "an umbrella" or "a red umbrella" with its adjective.
A further language is one more column in the tables and one more function in `_INFLECT`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

LANGUAGES: Final = ("en", "de", "fr", "es")
"""In the order of the tables' columns."""
LANGUAGE_NAMES: Final = {"en": "English", "de": "German", "fr": "French", "es": "Spanish"}
"""As the prompts name them."""
_FOLDER: Final = Path(__file__).parent / "words"
_FRENCH_VOWELS: Final = "aeiouhâàæéèêëîïôœùûüAEIOUÉ"
"""First letters that French elides before; in the tables an aspirated h begins names only, and is a capital."""
_STRESSED_A: Final = ("agua",)
"""Feminine Spanish nouns that take masculine articles in the singular."""


@dataclass(frozen=True, slots=True)
class Word:
    """One column of one table's entry."""

    singular: str
    plural: str = ""
    gender: int = 0
    """0 masculine, 1 feminine, 2 neuter; of adjectives: unused."""
    feminine: str = ""
    """Of adjectives that agree."""
    weak_ending: str = ""
    """Of German masculine nouns, in every case but the nominative singular."""

    def agreeing(self, noun: Word) -> str:
        """An adjective's form beside the noun in French and Spanish."""
        return self.feminine if noun.gender == 1 and self.feminine else self.singular


_GERMAN_ARTICLES: Final = {
    "der": ("der", "die", "das"),
    "den": ("den", "die", "das"),
    "dem": ("dem", "der", "dem"),
    "ein": ("ein", "eine", "ein"),
    "einen": ("einen", "eine", "ein"),
    "einem": ("einem", "einer", "einem"),
    "kein": ("kein", "keine", "kein"),
    "keinen": ("keinen", "keine", "kein"),
    "mein": ("mein", "meine", "mein"),
    "meinen": ("meinen", "meine", "mein"),
    "meinem": ("meinem", "meiner", "meinem"),
    "zum": ("zum", "zur", "zum"),
    "im": ("im", "in der", "im"),
    "am": ("am", "an der", "am"),
    "vom": ("vom", "von der", "vom"),
}
_GERMAN_ENDINGS: Final = {"ein": ("er", "e", "es"), "einen": ("en", "e", "es"), "der": ("e", "e", "e")}
_FRENCH_ARTICLES: Final = {
    "le": ("le", "la", "l'"),
    "un": ("un", "une", ""),
    "du": ("du", "de la", "de l'"),
    "au": ("au", "à la", "à l'"),
    "mon": ("mon", "ma", "mon"),
    "de": ("de", "de", "d'"),
}
"""Masculine, feminine, and either before a vowel (empty: no such form)."""
_SPANISH_ARTICLES: Final = {
    "el": ("el", "la"),
    "un": ("un", "una"),
    "al": ("al", "a la"),
    "del": ("del", "de la"),
    "este": ("este", "esta"),
}


def _inflect_english(word: Word, form: str, adjective: Word | None) -> str:
    first = adjective.singular if adjective else word.singular
    phrase = f"{adjective.singular} {word.singular}" if adjective else word.singular
    if form != "a":
        raise ValueError(f"unknown English form {form!r}")
    vowel = first[0] in "aeiou" and not first.startswith(("uni", "eu", "use", "one"))
    return f"an {phrase}" if vowel or first.startswith("hour") else f"a {phrase}"


def _inflect_german(word: Word, form: str, adjective: Word | None) -> str:
    noun = word.singular if form in ("der", "ein", "mein", "kein") else word.singular + word.weak_ending
    if adjective:
        noun = f"{adjective.singular}{_GERMAN_ENDINGS[form][word.gender]} {noun}"
    return f"{_GERMAN_ARTICLES[form][word.gender]} {noun}"


def _inflect_french(word: Word, form: str, adjective: Word | None) -> str:
    noun = f"{word.singular} {adjective.agreeing(word)}" if adjective else word.singular
    elided = _FRENCH_ARTICLES[form][2] if word.singular[0] in _FRENCH_VOWELS else ""
    article = elided or _FRENCH_ARTICLES[form][word.gender]
    return article + noun if article.endswith("'") else f"{article} {noun}"


def _inflect_spanish(word: Word, form: str, adjective: Word | None) -> str:
    noun = f"{word.singular} {adjective.agreeing(word)}" if adjective else word.singular
    gender = 0 if word.singular in _STRESSED_A and form != "este" else word.gender
    return f"{_SPANISH_ARTICLES[form][gender]} {noun}"


_INFLECT: Final[dict[str, Callable[[Word, str, Word | None], str]]] = {
    "en": _inflect_english,
    "de": _inflect_german,
    "fr": _inflect_french,
    "es": _inflect_spanish,
}


def inflect(word: Word, language: str, form: str, adjective: Word | None = None) -> str:
    """The word in a form named by example.

    Args:
        word: a noun, or a city's or person's name.
        language: one of `LANGUAGES`.
        form: empty for the bare word, "plural", or a masculine article; a capital letter is kept.
        adjective: stands before or behind the noun and agrees with it.

    Raises:
        ValueError, KeyError: the language has no such form.
    """
    if form in ("", "plural"):
        bare = word.plural if form else word.singular
        if not bare:
            raise ValueError(f"{word.singular!r} has no plural")
        return bare
    phrase = _INFLECT[language](word, form.lower(), adjective)
    return phrase[0].upper() + phrase[1:] if form[0].isupper() else phrase


_ARTICLES: Final = {
    "de": {"der": 0, "die": 1, "das": 2},
    "fr": {"un": 0, "une": 1},
    "es": {"un": 0, "una": 1},
}


def _parse_noun(language: str, column: str) -> Word:
    """From dictionary style: "der Bahnhof/Bahnhöfe", "une clé/clés", "key/keys"."""
    if language == "en":
        singular, _, plural = column.partition("/")
        return Word(singular, plural)
    article, _, rest = column.partition(" ")
    singular, _, plural = rest.partition("/")
    weak = re.fullmatch(r"(.*)\((e?n)\)", singular)
    return Word(
        weak[1] if weak else singular, plural, _ARTICLES[language][article], weak_ending=weak[2] if weak else ""
    )


def _parse_adjective(column: str) -> Word:
    """From "roto/rota"."""
    masculine, _, feminine = column.partition("/")
    return Word(masculine, feminine=feminine or masculine)


_NOUNS: Final = frozenset(
    (
        "thing",
        "device",
        "goods",
        "dish",
        "food",
        "place",
        "shop",
        "room",
        "vehicle",
        "relative",
        "job",
        "animal",
        "body",
    )
)
_ADJECTIVES: Final = frozenset(("color", "quality", "quality_ser"))


@cache
def rows(name: str) -> tuple[tuple[str, ...], ...]:
    """Entries of a table in `words/`: one text per language."""
    lines = (line.partition("#")[0].strip() for line in (_FOLDER / f"{name}.txt").read_text("utf-8").splitlines())
    found = tuple(tuple(column.strip() for column in line.split("|")) for line in lines if line)
    for row in found:
        if len(row) != len(LANGUAGES):
            raise ValueError(f"expected {len(LANGUAGES)} columns in words/{name}.txt, found {row}")
    return found


@cache
def word_list(name: str) -> tuple[dict[str, Word], ...]:
    """Entries of a table, each a word per language."""

    def parse(language: str, column: str) -> Word:
        if name in _NOUNS:
            return _parse_noun(language, column)
        return _parse_adjective(column) if name in _ADJECTIVES else Word(column)

    return tuple(
        {language: parse(language, column) for language, column in zip(LANGUAGES, row, strict=True)}
        for row in rows(name)
    )
