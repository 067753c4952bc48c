"""Speech for training and testing: espeak-ng reads phrasebook sentences; a simulated room and microphone spoil them.

Run as a script it fills the cache that train.py reads: shards of log-mel spectrograms in half precision with the
utterances' texts beside them. Every utterance depends on its own seed only, so the number of workers changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import soxr
from scipy.signal import fftconvolve

from cabochon.log_mel import log_mel
from cabochon_convert.processor import DEFAULT_LOG_MEL

from .phrasebook import Phrasebook, Sentence, split

Float32Array = npt.NDArray[np.float32]

LOG_MEL: Final = DEFAULT_LOG_MEL
SAMPLE_RATE: Final = LOG_MEL.sample_rate
DEFAULT_CACHE: Final = Path("~/.cache/cabochon-tiny").expanduser()


@dataclass(frozen=True, slots=True)
class Condition:
    """Where the sentences and the voices of a set of utterances come from."""

    name: str
    held_out: bool
    """Sentences of the held-out side of the phrasebook."""
    accents: Mapping[str, float]
    """espeak-ng voices of the spoken language, with weights."""
    timbres: str
    """espeak-ng voice variants, separated by spaces."""
    seed: int


_TRAINED_ACCENTS: Final = {"en-us": 45.0, "en-gb": 25.0, "en-gb-x-rp": 10.0, "en-us-nyc": 10.0, "en-gb-scotland": 10.0}
_UNSEEN_ACCENTS: Final = {"en-029": 50.0, "en-gb-x-gbclan": 50.0}
_TRAINED_TIMBRES: Final = """
m1 m2 m3 m4 m5 m6 f1 f2 f3 f4 Alex Alicia Andy Annie Denis Diogo Henrique Hugo Marco Michael Mike adam anika antonio
aunty belinda benjamin boris caleb david ed edward grandma grandpa iven john linda marcelo michel miguel norbert pablo
paul pedro rob robert sandro steph travis victor zac"""
_UNSEEN_TIMBRES: Final = "m7 m8 f5 Andrea Lee Mario Gene Jacky Nguyen shelby quincy max"
TRAINING: Final = Condition("train", False, _TRAINED_ACCENTS, _TRAINED_TIMBRES, 100)
TESTS: Final = (
    Condition("seen voices", True, _TRAINED_ACCENTS, _TRAINED_TIMBRES, 901),
    Condition("unseen voices", True, {"en-us": 60.0, "en-gb": 40.0}, _UNSEEN_TIMBRES, 902),
    Condition("unseen accents and voices", True, _UNSEEN_ACCENTS, _UNSEEN_TIMBRES, 903),
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One synthesized sentence."""

    sentence: Sentence
    voice: str
    """espeak-ng accent and variant, joined by a plus sign."""
    waveform: Float32Array
    """float32 [samples] in [-1, 1] at `SAMPLE_RATE`."""


@dataclass(frozen=True, slots=True)
class SpeakingStyle:
    """How espeak-ng is to read one sentence."""

    voice: str
    words_per_minute: int
    pitch: int
    """0 to 99; 50 is the voice's own."""

    @classmethod
    def draw(cls, condition: Condition, generator: random.Random) -> SpeakingStyle:
        accent = generator.choices(list(condition.accents), list(condition.accents.values()))[0]
        voice = f"{accent}+{generator.choice(condition.timbres.split())}"
        return cls(voice, generator.randint(150, 220), generator.randint(30, 70))


def synthesize(text: str, style: SpeakingStyle) -> Float32Array:
    """Clean speech, float32 [samples] at `SAMPLE_RATE`."""
    options = ["-v", style.voice, "-s", str(style.words_per_minute), "-p", str(style.pitch)]
    wav = subprocess.run(["espeak-ng", *options, "--stdout", text], check=True, capture_output=True).stdout
    rate = int.from_bytes(wav[24:28], "little")  # RIFF header of 44 bytes, 16-bit mono
    samples = np.frombuffer(wav[44 : len(wav) // 2 * 2], "<i2").astype(np.float32) / 32768
    return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), np.float32)


def trim(waveform: Float32Array) -> Float32Array:
    """Without the synthesizer's silence at both ends."""
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform


def reverberate(waveform: Float32Array, generator: np.random.Generator) -> Float32Array:
    """Noise that decays by 60 dB within 50 to 250 ms, as the response of a small room."""
    length = int(SAMPLE_RATE * generator.uniform(0.05, 0.25))
    response = generator.standard_normal(length) * 10.0 ** (-3.0 * np.arange(length) / length)
    response *= generator.uniform(0.1, 0.5) / np.sqrt(np.square(response).sum())
    response[0] = 1.0
    return np.asarray(fftconvolve(waveform, response)[: len(waveform)], np.float32)


def add_noise(waveform: Float32Array, generator: np.random.Generator) -> Float32Array:
    """White or pink noise, 12 to 40 dB below the speech."""
    noise = generator.standard_normal(len(waveform))
    if generator.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(waveform))
        noise /= noise.std()
    level = np.sqrt(np.square(waveform).mean()) * 10 ** (-generator.uniform(12, 40) / 20)
    return np.asarray(waveform + level * noise, np.float32)


def spoil(waveform: Float32Array, generator: np.random.Generator) -> Float32Array:
    """The same speech after silence at both ends, perhaps a room, a gain and perhaps noise; within [-1, 1]."""
    before, after = generator.uniform(0.04, 0.22), generator.uniform(0.12, 0.3)  # seconds
    padded = np.pad(trim(waveform), (int(SAMPLE_RATE * before), int(SAMPLE_RATE * after)))
    if generator.random() < 0.35:
        padded = reverberate(padded, generator)
    scaled = padded * np.float32(generator.uniform(0.15, 0.9) / (np.abs(padded).max() + 1e-6))
    noisy = add_noise(scaled, generator) if generator.random() < 0.6 else scaled
    return np.clip(noisy, -1, 1).astype(np.float32)


def _speak(sentence: Sentence, language: str, condition: Condition, generator: random.Random) -> Utterance:
    style = SpeakingStyle.draw(condition, generator)
    clean = synthesize(sentence.spoken[language], style)
    return Utterance(sentence, style.voice, spoil(clean, np.random.default_rng(generator.getrandbits(63))))


def phrasebook_of(condition: Condition) -> Phrasebook:
    """The side of the split that the condition's sentences come from."""
    training, held_out = split()
    return held_out if condition.held_out else training


def utterances(condition: Condition, first: int, count: int, language: str = "en") -> Iterator[Utterance]:
    """Utterances number `first` to `first + count - 1` of the condition's endless, seeded stream."""
    phrasebook = phrasebook_of(condition)
    for number in range(first, first + count):
        generator = random.Random(f"{condition.seed} {number}")
        yield _speak(phrasebook.draw(generator), language, condition, generator)


def distinct_utterances(condition: Condition, count: int, language: str = "en") -> Iterator[Utterance]:
    """Like the first utterances of the stream, with no sentence twice."""
    phrasebook = phrasebook_of(condition)
    said: set[str] = set()
    number = 0
    while len(said) < count:
        generator = random.Random(f"{condition.seed} {number}")
        number += 1
        sentence = phrasebook.draw(generator)
        if sentence.written[language] not in said:
            said.add(sentence.written[language])
            yield _speak(sentence, language, condition, generator)


def pronunciations(words: Sequence[str], voice: str = "en-us") -> dict[str, list[str]]:
    """By word, its phones in the International Phonetic Alphabet, without stress marks."""
    return {word: _phones(word, voice) for word in words}


def _phones(word: str, voice: str) -> list[str]:
    command = ["espeak-ng", "-q", "--ipa", "--sep=_", "-v", voice, word]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    phones = (phone.strip("ˈˌ ") for phone in answer.strip().replace(" ", "_").split("_"))
    return [phone for phone in phones if phone]


def write_shard(condition: Condition, first: int, count: int, base: Path) -> Path:
    """Writes `base`.npy, float16 [frames of all utterances, mel bins], and `base`.json, one entry per utterance."""
    spectrograms, entries = [], []
    for utterance in utterances(condition, first, count):
        spectrogram = log_mel(utterance.waveform, LOG_MEL).astype(np.float16)
        spectrograms.append(spectrogram)
        entries.append({**asdict(utterance.sentence), "voice": utterance.voice, "frames": len(spectrogram)})
    np.save(base.with_suffix(".npy"), np.concatenate(spectrograms))
    partial = base.with_suffix(".partial")
    partial.write_text(json.dumps(entries, ensure_ascii=False))
    partial.rename(base.with_suffix(".json"))  # only now is the shard complete for a reader
    return base


def write_pronunciations(cache: Path) -> None:
    """Writes phones.json: for every spoken word of the phrasebook, its phones."""
    training, held_out = split()
    sentences = training.all_sentences() + held_out.all_sentences()
    words = sorted({word for sentence in sentences for word in sentence.spoken_words("en")})
    (cache / "phones.json").write_text(json.dumps(pronunciations(words), ensure_ascii=False, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the shards (%(default)s)")
    parser.add_argument("--utterances", type=int, default=24000, help="for training (%(default)s)")
    parser.add_argument("--shard-size", type=int, default=1000, help="utterances per shard (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    write_pronunciations(arguments.cache)
    jobs = [(TESTS[0], 0, 200, arguments.cache / "validation")]
    for first in range(0, arguments.utterances, arguments.shard_size):
        base = arguments.cache / f"train_{first:06d}"
        jobs.append((TRAINING, first, min(arguments.shard_size, arguments.utterances - first), base))
    missing = [job for job in jobs if not job[3].with_suffix(".json").exists()]
    begin = time.monotonic()
    with ProcessPoolExecutor(arguments.workers) as pool:
        futures = [pool.submit(write_shard, *job) for job in missing]
        for done, future in enumerate(as_completed(futures), 1):
            remaining = (time.monotonic() - begin) / done * (len(missing) - done)
            print(f"{future.result().name}: {done}/{len(missing)} shards, {remaining:.0f} s left", file=sys.stderr)


if __name__ == "__main__":
    main()
