"""Speech for training and testing: synthesizers read phrasebook sentences; a simulated room and microphone spoil them.

Run as a script it fills the cache that train.py reads: shards of log-mel spectrograms in half precision with the
utterances' texts beside them. Every utterance depends on its own seed only, so the number of workers changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cabochon.log_mel import log_mel
from cabochon_convert.audio_frontend import DEFAULT_LOG_MEL

from .phrasebook import Sentence, draw, spoken_words
from .room import spoil
from .voices import TESTS, TRAINING, Condition, Float32Array, Voice, phones
from .words import LANGUAGES

LOG_MEL: Final = DEFAULT_LOG_MEL
DEFAULT_CACHE: Final = Path("~/.cache/cabochon-tiny").expanduser()
VALIDATION_UTTERANCES: Final = 240


@dataclass(frozen=True, slots=True)
class Utterance:
    """One synthesized sentence."""

    sentence: Sentence
    language: str
    voice: Voice
    waveform: Float32Array
    """float32 [samples] in [-1, 1] at `SAMPLE_RATE`."""


def _speak(sentence: Sentence, language: str, condition: Condition, generator: random.Random) -> Utterance:
    voice = Voice.draw(condition, language, generator)
    clean = voice.say(sentence.spoken[language])
    return Utterance(sentence, language, voice, spoil(clean, np.random.default_rng(generator.getrandbits(63))))


def utterances(condition: Condition, first: int, count: int) -> Iterator[Utterance]:
    """Utterances number `first` to `first + count - 1` of the condition's endless, seeded stream of all languages."""
    for number in range(first, first + count):
        generator = random.Random(f"{condition.seed} {number}")
        language = LANGUAGES[number % len(LANGUAGES)]
        if language in condition.accents:
            yield _speak(draw(generator, condition.held_out), language, condition, generator)


def distinct_utterances(condition: Condition, count: int, language: str) -> Iterator[Utterance]:
    """Utterances of one language, with no sentence twice."""
    said: set[str] = set()
    number = 0
    while len(said) < count:
        generator = random.Random(f"{condition.seed} {language} {number}")
        number += 1
        sentence = draw(generator, condition.held_out)
        if sentence.written[language] not in said:
            said.add(sentence.written[language])
            yield _speak(sentence, language, condition, generator)


def _phones_of(spoken: Sequence[Utterance]) -> dict[int, list[str]]:
    """By place in the sequence."""
    found: dict[int, list[str]] = {}
    for language in LANGUAGES:
        places = [place for place, utterance in enumerate(spoken) if utterance.language == language]
        # Without punctuation, which would cut a line into several.
        texts = [" ".join(spoken_words(spoken[place].sentence.spoken[language])) for place in places]
        if texts:
            found |= dict(zip(places, phones(texts, language), strict=True))
    return found


def write_shard(condition: Condition, first: int, count: int, base: Path) -> Path:
    """Writes `base`.npy, float16 [frames of all utterances, mel bins], and `base`.json, one entry per utterance."""
    spoken = list(utterances(condition, first, count))
    spectrograms = [log_mel(utterance.waveform, LOG_MEL).astype(np.float16) for utterance in spoken]
    phones_of = _phones_of(spoken)
    entries: list[Mapping[str, object]] = [
        {
            "language": utterance.language,
            "written": utterance.sentence.written,
            "phones": phones_of[place],
            "voice": utterance.voice.name,
            "frames": len(spectrograms[place]),
        }
        for place, utterance in enumerate(spoken)
    ]
    np.save(base.with_suffix(".npy"), np.concatenate(spectrograms))
    partial = base.with_suffix(".partial")
    partial.write_text(json.dumps(entries, ensure_ascii=False))
    partial.rename(base.with_suffix(".json"))  # only now is the shard complete for a reader
    return base


def read_frames(base: Path) -> npt.NDArray[np.float16]:
    """float16 [frames of all utterances, mel bins], mapped from the file."""
    frames: npt.NDArray[np.float16] = np.load(base.with_suffix(".npy"), mmap_mode="r")
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the shards (%(default)s)")
    parser.add_argument("--utterances", type=int, default=64000, help="for training (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first; later ones are new (%(default)s)")
    parser.add_argument("--shard-size", type=int, default=1000, help="utterances per shard (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    jobs = [(TESTS[0], 0, VALIDATION_UTTERANCES, arguments.cache / "validation")]
    end = arguments.first + arguments.utterances
    for first in range(arguments.first, end, arguments.shard_size):
        base = arguments.cache / f"train_{first:06d}"
        jobs.append((TRAINING, first, min(arguments.shard_size, end - first), base))
    missing = [job for job in jobs if not job[3].with_suffix(".json").exists()]
    begin = time.monotonic()
    with ProcessPoolExecutor(arguments.workers) as pool:
        futures = [pool.submit(write_shard, *job) for job in missing]
        for done, future in enumerate(as_completed(futures), 1):
            remaining = (time.monotonic() - begin) / done * (len(missing) - done)
            print(f"{future.result().name}: {done}/{len(missing)} shards, {remaining:.0f} s left", file=sys.stderr)


if __name__ == "__main__":
    main()
