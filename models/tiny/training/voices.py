"""Who speaks: the synthesizers, their voices, and which of them are kept for testing.

Training hears espeak-ng, in many accents and timbres, and SVOX Pico. Testing also hears espeak-ng in unheard timbres
and accents, and MBROLA, whose sounds were recorded from people.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soxr
import ttspico

from cabochon_convert.audio_frontend import DEFAULT_LOG_MEL

Float32Array = npt.NDArray[np.float32]

SAMPLE_RATE: Final = DEFAULT_LOG_MEL.sample_rate
CANONICAL_VOICES: Final = {"en": "en-us", "de": "de", "fr": "fr-fr", "es": "es"}
"""espeak-ng's voices whose phones the alignment loss is taught, by language."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Where the sentences and the voices of a set of utterances come from."""

    name: str
    held_out: bool
    """Sentences of the held-out side of the phrasebook."""
    accents: Mapping[str, Mapping[str, float]]
    """By spoken language, espeak-ng voices with weights; MBROLA's have names that begin with "mb-"."""
    timbres: str
    """espeak-ng voice variants, separated by spaces; empty: the voices as they are."""
    pico_share: float
    """Of the utterances, spoken by SVOX Pico instead."""
    seed: int


_TRAINED_ACCENTS: Final = {
    "en": {"en-us": 45.0, "en-gb": 25.0, "en-gb-x-rp": 10.0, "en-us-nyc": 10.0, "en-gb-scotland": 10.0},
    "de": {"de": 1.0},
    "fr": {"fr-fr": 70.0, "fr-be": 30.0},
    "es": {"es": 1.0},
}
_PLAIN_ACCENTS: Final = {
    "en": {"en-us": 60.0, "en-gb": 40.0},
    "de": {"de": 1.0},
    "fr": {"fr-fr": 1.0},
    "es": {"es": 1.0},
}
_UNSEEN_ACCENTS: Final = {
    "en": {"en-029": 50.0, "en-gb-x-gbclan": 50.0},
    "fr": {"fr-ch": 1.0},
    "es": {"es-419": 1.0},
}
"""espeak-ng 1.51 has one German only."""
_MBROLA_VOICES: Final = {
    "en": dict.fromkeys(("mb-us1", "mb-us2", "mb-us3", "mb-en1"), 1.0),
    "de": dict.fromkeys(("mb-de2", "mb-de4", "mb-de5", "mb-de6", "mb-de7"), 1.0),
    "fr": dict.fromkeys(("mb-fr1", "mb-fr2", "mb-fr4"), 1.0),
    "es": dict.fromkeys(("mb-es1", "mb-es2", "mb-es3", "mb-es4"), 1.0),
}
_TRAINED_TIMBRES: Final = """
m1 m2 m3 m4 m5 m6 f1 f2 f3 f4 Alex Alicia Andy Annie Denis Diogo Henrique Hugo Marco Michael Mike adam anika antonio
aunty belinda benjamin boris caleb david ed edward grandma grandpa iven john linda marcelo michel miguel norbert pablo
paul pedro rob robert sandro steph travis victor zac"""
EASY_TIMBRES: Final = frozenset(("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "f4"))
"""espeak-ng's plain variants, which differ in pitch and formants only."""
_UNSEEN_TIMBRES: Final = "m7 m8 f5 Andrea Lee Mario Gene Jacky Nguyen shelby quincy max"
TRAINING: Final = Condition("train", False, _TRAINED_ACCENTS, _TRAINED_TIMBRES, 0.25, 100)
TESTS: Final = (
    Condition("unseen sentences", True, _TRAINED_ACCENTS, _TRAINED_TIMBRES, 0.25, 901),
    Condition("unseen voices", True, _PLAIN_ACCENTS, _UNSEEN_TIMBRES, 0.0, 902),
    Condition("unseen accents", True, _UNSEEN_ACCENTS, _UNSEEN_TIMBRES, 0.0, 903),
    Condition("unseen synthesizer", True, _MBROLA_VOICES, "", 0.0, 904),
)
"""Each adds one thing that was not heard in training; the sentences are unheard in all."""

_PICO_VOICES: Final = {"en": ("en-US", "en-GB"), "de": ("de-DE",), "fr": ("fr-FR",), "es": ("es-ES",)}
_PICO_RATE: Final = 16000
_QUIETEST: Final = 0.01
"""Synthesizers that fail give silence."""


class SynthesisError(Exception):
    """A synthesizer gave no sound."""


def is_easy(voice: str) -> bool:
    """Whether the name of a voice is that of a plain espeak-ng variant."""
    return voice.partition("+")[2] in EASY_TIMBRES


@dataclass(frozen=True, slots=True)
class Voice:
    """How one sentence is read."""

    synthesizer: str
    """"espeak" or "pico"."""
    name: str
    speed: int
    """espeak-ng: words per minute; Pico: percent."""
    pitch: int
    """espeak-ng: 0 to 99, 50 is the voice's own; Pico: percent."""
    stretch: float
    """The whole sound, formants and all, is slowed down and lowered by this factor."""

    @classmethod
    def draw(cls, condition: Condition, language: str, generator: random.Random) -> Voice:
        if generator.random() < condition.pico_share:
            name = generator.choice(_PICO_VOICES[language])
            stretch = generator.uniform(0.86, 1.16)
            return cls("pico", name, generator.randint(85, 135), generator.randint(75, 135), stretch)
        accents = condition.accents[language]
        name = generator.choices(list(accents), list(accents.values()))[0]
        if condition.timbres:
            name = f"{name}+{generator.choice(condition.timbres.split())}"
        stretch = 1.0 if condition.held_out else generator.uniform(0.92, 1.09)
        return cls("espeak", name, generator.randint(145, 205), generator.randint(30, 70), stretch)

    def say(self, text: str) -> Float32Array:
        """Clean speech, float32 [samples] in [-1, 1] at `SAMPLE_RATE`.

        Raises:
            SynthesisError: the synthesizer stayed silent.
        """
        samples, rate = self._espeak(text) if self.synthesizer == "espeak" else self._pico(text)
        if not len(samples) or np.abs(samples).max() < _QUIETEST:
            raise SynthesisError(f"{self.synthesizer} {self.name} gave no sound for {text!r}; is it installed?")
        return np.asarray(soxr.resample(samples, rate, round(SAMPLE_RATE * self.stretch)), np.float32)

    def _espeak(self, text: str) -> tuple[Float32Array, int]:
        command = ["espeak-ng", "-v", self.name, "-s", str(self.speed), "-p", str(self.pitch), "--stdout", text]
        wav = subprocess.run(command, check=True, capture_output=True).stdout
        rate = int.from_bytes(wav[24:28], "little")  # RIFF header of 44 bytes, 16-bit mono
        return _from_pcm16(wav[44 : len(wav) // 2 * 2]), rate

    def _pico(self, text: str) -> tuple[Float32Array, int]:
        engine = _pico_engine(self.name)
        engine.rate, engine.pitch = self.speed, self.pitch
        return _from_pcm16(engine.speak(text)), _PICO_RATE


def _from_pcm16(data: bytes) -> Float32Array:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


@cache
def _pico_engine(name: str) -> Any:
    return ttspico.TtsEngine(name)


def phones(texts: list[str], language: str) -> list[list[str]]:
    """For every text, which has no punctuation, its phones (International Phonetic Alphabet) without stress marks."""
    lines = "".join(f"{text}.\n" for text in texts)
    command = ["espeak-ng", "-q", "--ipa", "--sep=_", "-v", CANONICAL_VOICES[language], "--stdin"]
    answer = subprocess.run(command, input=lines, check=True, capture_output=True, text=True).stdout.splitlines()
    if len(answer) != len(texts):
        raise SynthesisError(f"espeak-ng answered {len(texts)} lines with {len(answer)} lines of phones")
    found = []
    for line in answer:
        line = re.sub(r"\([\w-]+\)", "", line)  # where the language changes for a foreign name
        parts = (phone.strip("ˈˌ ") for phone in line.strip().replace(" ", "_").split("_"))
        found.append([phone for phone in parts if phone])
    return found
