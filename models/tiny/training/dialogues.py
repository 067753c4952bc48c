"""Typed conversations: the text-only share of training, without which a model that only listens forgets how to chat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from .phrasebook import draw
from .words import LANGUAGE_NAMES, LANGUAGES, rows

_OPPOSITES: Final = {
    "en": ("What is the opposite of {}?", "The opposite of {} is {}."),
    "de": ("Was ist das Gegenteil von {}?", "Das Gegenteil von {} ist {}."),
    "fr": ("Quel est le contraire de {}?", "Le contraire de {} est {}."),
    "es": ("¿Cuál es el contrario de {}?", "El contrario de {} es {}."),
}
_KINDS: Final = {"translation": 0.5, "reply": 0.3, "greeting": 0.14, "opposite": 0.06}
_SECOND_TURN_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a person typed and what the model answers."""

    user: str
    model: str


def translation_request(text: str, source: str, target: str) -> str:
    """A typed sentence to be translated, by language codes."""
    return f"Translate from {LANGUAGE_NAMES[source]} to {LANGUAGE_NAMES[target]}: {text}"


def _translation(generator: random.Random, held_out: bool) -> Exchange:
    source, target = generator.sample(LANGUAGES, 2)
    written = draw(generator, held_out).written
    return Exchange(translation_request(written[source], source, target), written[target])


def _reply(generator: random.Random, held_out: bool) -> Exchange:
    language = generator.choice(LANGUAGES)
    while True:
        sentence = draw(generator, held_out)
        if sentence.reply:
            return Exchange(sentence.written[language], sentence.reply[language])


@cache
def _greetings() -> tuple[Exchange, ...]:
    pairs = (column.split(" ; ") for row in rows("greeting") for column in row)
    return tuple(Exchange(user, model) for user, model in pairs)


def _opposite(generator: random.Random) -> Exchange:
    number = generator.randrange(len(LANGUAGES))
    pair = generator.choice(rows("opposite"))[number].split(", ")
    if generator.random() < 0.5:
        pair.reverse()
    question, answer = _OPPOSITES[LANGUAGES[number]]
    return Exchange(question.format(pair[0]), answer.format(*pair))


def _exchange(generator: random.Random, held_out: bool) -> Exchange:
    kind = generator.choices(list(_KINDS), list(_KINDS.values()))[0]
    if kind == "translation":
        return _translation(generator, held_out)
    if kind == "reply":
        return _reply(generator, held_out)
    return generator.choice(_greetings()) if kind == "greeting" else _opposite(generator)


def draw_dialogue(generator: random.Random, held_out: bool) -> Sequence[Exchange]:
    """One or two exchanges; sentences of the phrasebook come from one side of its split."""
    turns = 2 if generator.random() < _SECOND_TURN_SHARE else 1
    return [_exchange(generator, held_out) for _ in range(turns)]
