"""The domain: sentences of travel and household, each spoken in one language and written in several.

Every template is rendered in each language from the same slot fillers, so a translation is right by construction.
Sentences are split into training and held-out ones template by template: a held-out sentence was never heard or read in
training, though all its words were.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .spoken_numbers import SAY_NUMBER, SAY_PRICE, SAY_TIME, WRITE_PRICE, WRITE_TIME
from .words import LANGUAGES, word_lists

SPOKEN_LANGUAGES: Final = ("en",)
"""Languages that speech is synthesized in."""
LANGUAGE_NAMES: Final = {"en": "English", "de": "German"}
"""As the prompts name them."""
HELD_OUT_SHARE: Final = 0.12
SPLIT_SEED: Final = 20
MAXIMUM_SENTENCES_PER_TEMPLATE: Final = 4000
"""A seeded choice is taken from templates with more combinations, to bound memory."""


@dataclass(frozen=True, slots=True)
class Filler:
    """What stands in one slot of a template."""

    written: Mapping[str, object]
    """By language, something that formats itself."""
    spoken: Mapping[str, object]
    """By spoken language; differs from `written` where digits are said as words."""


@dataclass(frozen=True, slots=True)
class Template:
    """One sentence pattern; slots are named after a word list, with a digit behind where a list is used twice."""

    name: str
    weight: float
    """How often it is drawn, relative to the others."""
    texts: Mapping[str, str]
    """By language, a format string."""

    def slots(self) -> list[str]:
        return sorted(set(re.findall(r"\{(\w+)", self.texts["en"])))


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence in all its forms."""

    template: str
    written: Mapping[str, str]
    """By language, with digits."""
    spoken: Mapping[str, str]
    """By spoken language, with number words, as handed to the speech synthesizer."""

    def spoken_words(self, language: str) -> list[str]:
        """Lower-case words without punctuation, in the order spoken."""
        return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", self.spoken[language].lower())


_PATTERNS: Final = """
where 20 | Where is the {place}? | Wo ist {place:der}?
way 20 | How do I get to the {place}? | Wie komme ich {place:zum}?
seek 20 | I am looking for the {place}. | Ich suche {place:den}.
far 20 | Is the {place} far from here? | Ist {place:der} weit von hier?
walk 25 | The {place} is {many} minutes from here. | {place:Der} ist {many} Minuten von hier entfernt.
opens 40 | The {shop} opens at {time}. | {shop:Der} öffnet um {time}.
closes 40 | The {shop} closes at {time}. | {shop:Der} schließt um {time}.
closed 25 | The {shop} is closed on {weekday}. | {shop:Der} ist am {weekday} geschlossen.
next 45 | The {place1} is next to the {place2}. | {place1:Der} ist neben {place2:dem}.
behind 45 | The {place1} is behind the {place2}. | {place1:Der} ist hinter {place2:dem}.
line 35 | Bus {number} goes to the {place}. | Bus {number} fährt {place:zum}.
need 25 | I need {thing:a}. | Ich brauche {thing:einen}.
have 25 | Do you have {thing:a}? | Haben Sie {thing:einen}?
bring 25 | Please bring me {thing:a}. | Bitte bringen Sie mir {thing:einen}.
cost 25 | How much does the {thing} cost? | Wie viel kostet {thing:der}?
missing 25 | I cannot find my {thing}. | Ich kann {thing:meinen} nicht finden.
price 70 | The {thing} costs {price}. | {thing:Der} kostet {price}.
mine 50 | My {thing} is {quality}. | {thing:Mein} ist {quality}.
quality 40 | The {thing} is {quality}. | {thing:Der} ist {quality}.
inside 40 | The {thing} is in the {room}. | {thing:Der} ist {room:im}.
left 40 | I left my {thing} in the {room}. | Ich habe {thing:meinen} {room:im} gelassen.
order 40 | I would like {count} {dish}, please. | Ich möchte {count} {dish}, bitte.
buy 40 | We need to buy {count} {goods}. | Wir müssen {count} {goods} kaufen.
some 15 | I would like some {food}, please. | Ich möchte etwas {food}, bitte.
list 15 | Add {food} to the shopping list. | Setze {food} auf die Einkaufsliste.
remind 45 | Remind me at {time} to buy {food}. | Erinnere mich um {time} daran, {food} zu kaufen.
leave 70 | The {vehicle} to {city} leaves at {time}. | {vehicle:Der} nach {city} fährt um {time} ab.
soon 45 | The {vehicle} to {city} leaves in {many} minutes. | {vehicle:Der} nach {city} fährt in {many} Minuten ab.
arrive 55 | The {vehicle} from {city} arrives at {time}. | {vehicle:Der} aus {city} kommt um {time} an.
late 45 | The {vehicle} to {city} is {many} minutes late. | {vehicle:Der} nach {city} hat {many} Minuten Verspätung.
platform 30 | The train to {city} leaves from platform {count}. | Der Zug nach {city} fährt von Gleis {count} ab.
tickets 35 | We need {count} tickets to {city}. | Wir brauchen {count} Fahrkarten nach {city}.
fare 40 | A ticket to {city} costs {price}. | Eine Fahrkarte nach {city} kostet {price}.
stay 35 | I am staying in {city} for {count} days. | Ich bleibe {count} Tage in {city}.
go 30 | We are going to {city} on {weekday}. | Wir fahren am {weekday} nach {city}.
on 30 | Turn on the {device} in the {room}. | Schalte {device:den} {room:im} ein.
off 30 | Turn off the {device} in the {room}. | Schalte {device:den} {room:im} aus.
on_at 30 | Turn on the {device} at {time}. | Schalte {device:den} um {time} ein.
off_at 30 | Turn off the {device} at {time}. | Schalte {device:den} um {time} aus.
open 15 | Open the {opening} in the {room}. | Öffne {opening:den} {room:im}.
close 15 | Close the {opening} in the {room}. | Schließe {opening:den} {room:im}.
alarm 25 | Set an alarm for {time}. | Stelle einen Wecker auf {time}.
wake 35 | Wake me on {weekday} at {time}. | Wecke mich am {weekday} um {time}.
timer 30 | Set a timer for {number} minutes. | Stelle einen Timer auf {number} Minuten.
warm 40 | Set the {room} to {number} degrees. | Stelle die Temperatur {room:im} auf {number} Grad.
table 40 | I would like a table for {count} people at {time}. | Ich möchte einen Tisch für {count} Personen um {time}.
party 10 | I have a reservation for {count} people. | Ich habe eine Reservierung für {count} Personen.
chamber 45 | My room number is {hundreds}. | Meine Zimmernummer ist {hundreds}.
visit 45 | My {relative} arrives on {weekday} at {time}. | {relative:Mein} kommt am {weekday} um {time} an.
call 35 | Call my {relative} at {time}. | Rufe {relative:meinen} um {time} an.
meet 35 | I have an appointment on {weekday} at {time}. | Ich habe am {weekday} um {time} einen Termin.
weather 25 | How is the weather in {city} on {weekday}? | Wie ist das Wetter am {weekday} in {city}?
fixed 2 | Thank you very much. | Vielen Dank.
fixed 2 | Good morning. | Guten Morgen.
fixed 2 | Good evening. | Guten Abend.
fixed 2 | Good night. | Gute Nacht.
fixed 2 | Excuse me. | Entschuldigung.
fixed 2 | I do not understand. | Ich verstehe nicht.
fixed 2 | Please speak more slowly. | Bitte sprechen Sie langsamer.
fixed 2 | Can you help me? | Können Sie mir helfen?
fixed 2 | The bill, please. | Die Rechnung, bitte.
fixed 2 | What time is it? | Wie spät ist es?
fixed 2 | Please call a doctor. | Bitte rufen Sie einen Arzt.
fixed 2 | I am lost. | Ich habe mich verlaufen.
fixed 2 | I am hungry. | Ich habe Hunger.
fixed 2 | I am thirsty. | Ich habe Durst.
fixed 2 | I am tired. | Ich bin müde.
fixed 2 | See you tomorrow. | Bis morgen.
fixed 2 | How are you? | Wie geht es Ihnen?
fixed 2 | Have a good trip. | Gute Reise.
fixed 2 | Do you speak English? | Sprechen Sie Englisch?
"""
"""Name and weight, then the text in each of `LANGUAGES`."""


def templates() -> list[Template]:
    """All sentence patterns, in a fixed order; patterns without slots share the name "fixed"."""
    found = []
    for line in _PATTERNS.strip().splitlines():
        head, *texts = (part.strip() for part in line.split(" | "))
        name, weight = head.split()
        found.append(Template(name, float(weight), dict(zip(LANGUAGES, texts, strict=True))))
    return found


def _number_filler(number: int) -> Filler:
    return Filler(
        {language: str(number) for language in LANGUAGES},
        {language: SAY_NUMBER[language](number) for language in SPOKEN_LANGUAGES},
    )


def _time_filler(hour: int, minute: int) -> Filler:
    return Filler(
        {language: WRITE_TIME[language](hour, minute) for language in LANGUAGES},
        {language: SAY_TIME[language](hour, minute) for language in SPOKEN_LANGUAGES},
    )


def _price_filler(euros: int, cents: int) -> Filler:
    return Filler(
        {language: WRITE_PRICE[language](euros, cents) for language in LANGUAGES},
        {language: SAY_PRICE[language](euros, cents) for language in SPOKEN_LANGUAGES},
    )


def fillers() -> dict[str, list[Filler]]:
    """By slot name, everything that can fill it."""
    known = {name: [Filler(word, word) for word in words] for name, words in word_lists().items()}
    known["count"] = [_number_filler(number) for number in range(2, 13)]
    known["number"] = [_number_filler(number) for number in range(2, 100)]
    known["many"] = [_number_filler(number) for number in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50)]
    known["hundreds"] = [_number_filler(number) for number in range(101, 1000) if number % 100]
    known["time"] = [
        _time_filler(hour, minute) for hour in range(1, 13) for minute in (0, 10, 15, 20, 25, 30, 40, 45, 50)
    ]
    known["price"] = [_price_filler(euros, 0) for euros in range(2, 100)]
    known["price"] += [_price_filler(euros, cents) for euros in range(2, 20) for cents in (20, 50, 80)]
    return known


def _choices(template: Template, known: Mapping[str, Sequence[Filler]]) -> Iterator[dict[str, Filler]]:
    """All ways to fill a template, without the same word twice."""
    slots = template.slots()
    for combination in itertools.product(*(known[slot.rstrip("0123456789")] for slot in slots)):
        if len({id(filler) for filler in combination}) == len(combination):
            yield dict(zip(slots, combination, strict=True))


def _render(template: Template, filled: Mapping[str, Filler]) -> Sentence:
    written = {
        language: template.texts[language].format(**{slot: filler.written[language] for slot, filler in filled.items()})
        for language in LANGUAGES
    }
    spoken = {
        language: template.texts[language].format(**{slot: filler.spoken[language] for slot, filler in filled.items()})
        for language in SPOKEN_LANGUAGES
    }
    return Sentence(template.name, written, spoken)


@dataclass(frozen=True, slots=True)
class Phrasebook:
    """Sentences of one side of the split."""

    sentences: Sequence[Sequence[Sentence]]
    """By template."""
    weights: Sequence[float]
    """By template."""

    def draw(self, generator: random.Random) -> Sentence:
        """A sentence: first the template by its weight, then one of its sentences."""
        return generator.choice(generator.choices(self.sentences, self.weights)[0])

    def all_sentences(self) -> list[Sentence]:
        return [sentence for group in self.sentences for sentence in group]


def split(seed: int = SPLIT_SEED) -> tuple[Phrasebook, Phrasebook]:
    """Training and held-out sentences; patterns without slots are in training only."""
    known = fillers()
    groups: list[tuple[Template, list[Sentence], list[Sentence]]] = []
    for template in templates():
        generator = random.Random(f"{seed} {template.name}")
        sentences = [_render(template, filled) for filled in _choices(template, known)]
        generator.shuffle(sentences)
        sentences = sentences[:MAXIMUM_SENTENCES_PER_TEMPLATE]
        held_out = max(1, round(len(sentences) * HELD_OUT_SHARE)) if template.slots() else 0
        groups.append((template, sentences[held_out:], sentences[:held_out]))
    training = Phrasebook([part for _, part, _ in groups], [template.weight for template, _, _ in groups])
    with_slots = [group for group in groups if group[2]]
    testing = Phrasebook([part for _, _, part in with_slots], [template.weight for template, _, _ in with_slots])
    return training, testing
