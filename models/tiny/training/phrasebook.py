"""The domain: sentences of travel and household, each spoken and written in four languages.

Every pattern is rendered in each language from the same slot fillers, so a translation is right by construction. There
are far more sentences than can be listed, so they are drawn, and a hash of the pattern and its fillers decides which
side of the split a sentence is on: a held-out sentence was never heard or read in training, though all its words were.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from .spoken_numbers import Quantity, quantities
from .words import LANGUAGES, Word, inflect, rows, word_list

HELD_OUT_SHARE: Final = 0.1
_SPLIT_SEED: Final = "30"
_SLOT: Final = re.compile(r"\{(?P<slot>\w+)(?::(?P<form>\w+))?(?:\+(?P<adjective>\w+))?(?:=(?P<agreement>\w+))?\}")
_QUANTITY_SHARE: Final = 25.0
"""A list of quantities weighs like at most so many words: they are made of few words."""
_FIXED_SHARE: Final = 0.04
"""Of all sentences drawn for training, those without slots."""

Filler = Mapping[str, Word] | Quantity


@dataclass(frozen=True, slots=True)
class Pattern:
    """One sentence pattern; slots are named after a word list, with a digit behind where a list is used twice."""

    name: str
    texts: Mapping[str, str]
    """By language."""

    def slots(self) -> list[str]:
        found = [match.group("slot", "adjective") for match in _SLOT.finditer(self.texts["en"])]
        return sorted({slot for pair in found for slot in pair if slot})


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence in all its forms."""

    pattern: str
    written: Mapping[str, str]
    """By language, with digits."""
    spoken: Mapping[str, str]
    """By language, with number words, as handed to the speech synthesizer."""
    reply: Mapping[str, str]
    """By language, what an assistant answers; empty where it has no answer."""

    def spoken_words(self, language: str) -> list[str]:
        """Lower-case words without punctuation, in the order spoken."""
        return spoken_words(self.spoken[language])


def spoken_words(text: str) -> list[str]:
    """Lower-case words without punctuation; what is before an apostrophe belongs to the word behind it."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower())


def _read_patterns(file: str) -> list[Pattern]:
    found = []
    for line in (Path(__file__).parent / file).read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, *texts = (part.strip() for part in line.split(" | "))
            found.append(Pattern(name, dict(zip(LANGUAGES, texts, strict=True))))
    return found


@cache
def patterns() -> tuple[Pattern, ...]:
    """All sentence patterns with slots, in a fixed order."""
    return tuple(_read_patterns("patterns.txt"))


@cache
def _replies() -> dict[str, Pattern]:
    return {pattern.name: pattern for pattern in _read_patterns("replies.txt")}


@cache
def fillers(slot: str) -> tuple[Filler, ...]:
    """Everything that can fill a slot."""
    name = slot.rstrip("0123456789")
    return quantities()[name] if name in quantities() else word_list(name)


def _fill(text: str, language: str, filled: Mapping[str, Filler], spoken: bool) -> str:
    def replace(match: re.Match[str]) -> str:
        filler = filled[match["slot"]]
        if isinstance(filler, Quantity):
            return (filler.spoken if spoken else filler.written)[language]
        word = filler[language]
        if match["agreement"]:
            return _agree(word, match["agreement"], language, filled)
        adjective = filled.get(match["adjective"] or "")
        if isinstance(adjective, Quantity):
            raise ValueError(f"expected an adjective behind the plus sign in {text!r}")
        return inflect(word, language, match["form"] or "", adjective[language] if adjective else None)

    return _SLOT.sub(replace, text)


def _agree(word: Word, agreement: str, language: str, filled: Mapping[str, Filler]) -> str:
    """An adjective's form beside the noun of another slot, or a participle's ending beside this noun."""
    noun = filled.get(agreement)
    if noun is None:
        endings = {"fr": ("", agreement), "es": (agreement, "a")}
        return endings[language][word.gender]
    if isinstance(noun, Quantity):
        raise ValueError(f"expected a noun in the slot {agreement!r}")
    return word.agreeing(noun[language])


def render(pattern: Pattern, filled: Mapping[str, Filler]) -> Sentence:
    """The sentence with its slots filled."""
    reply = _replies().get(pattern.name)
    return Sentence(
        pattern.name,
        {code: _fill(pattern.texts[code], code, filled, spoken=False) for code in LANGUAGES},
        {code: _fill(pattern.texts[code], code, filled, spoken=True) for code in LANGUAGES},
        {code: _capital(_fill(reply.texts[code], code, filled, spoken=False)) for code in LANGUAGES} if reply else {},
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


@cache
def fixed_sentences() -> tuple[Sentence, ...]:
    """Sentences without slots: in training only."""
    texts = [dict(zip(LANGUAGES, row, strict=True)) for row in rows("phrase")]
    return tuple(Sentence("fixed", text, text, {}) for text in texts)


@cache
def _weights() -> tuple[float, ...]:
    """By pattern, so that every word of every list is drawn about equally often."""
    uses: dict[str, int] = {}
    for pattern in patterns():
        for slot in pattern.slots():
            name = slot.rstrip("0123456789")
            uses[name] = uses.get(name, 0) + 1
    sizes = {name: float(len(fillers(name))) for name in uses}
    for name in quantities():
        sizes[name] = min(sizes.get(name, 0.0), _QUANTITY_SHARE)
    names = [[slot.rstrip("0123456789") for slot in pattern.slots()] for pattern in patterns()]
    return tuple(5.0 + sum(sizes[name] / uses[name] for name in used) for used in names)


def sentence_count() -> int:
    """How many sentences the patterns can say in each language, both sides of the split together."""
    return len(fixed_sentences()) + sum(
        math.prod(len(fillers(slot)) for slot in pattern.slots()) for pattern in patterns()
    )


def is_held_out(pattern: Pattern, numbers: Mapping[str, int]) -> bool:
    """Whether the sentence with these fillers, by their places in the lists, is kept from training."""
    key = f"{_SPLIT_SEED} {pattern.name} " + " ".join(f"{slot}={number}" for slot, number in sorted(numbers.items()))
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") / 2**32
    return place < HELD_OUT_SHARE


def draw(generator: random.Random, held_out: bool) -> Sentence:
    """A sentence from one side of the split: first the pattern by its weight, then its fillers."""
    if not held_out and generator.random() < _FIXED_SHARE:
        return generator.choice(fixed_sentences())
    while True:
        pattern = generator.choices(patterns(), _weights())[0]
        numbers = {slot: generator.randrange(len(fillers(slot))) for slot in pattern.slots()}
        filled = {slot: fillers(slot)[number] for slot, number in numbers.items()}
        different = len({id(filler) for filler in filled.values()}) == len(filled)
        if different and is_held_out(pattern, numbers) == held_out:
            return render(pattern, filled)
