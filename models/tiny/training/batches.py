"""Training batches from the cache of log-mel spectrograms."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from .phrasebook import Sentence
from .prompts import AFTER_AUDIO, AUDIO, END_OF_TURN, before_audio, translation_answer
from .speech import LOG_MEL
from .tokenizer import token_id

IGNORED: Final = -100
"""Label of positions without a target."""
_MASKED_STRIPES: Final = 2
_WIDEST_FREQUENCY_STRIPE: Final = 12  # mel bins
_WIDEST_TIME_STRIPE: Final = 8  # frames


@dataclass(frozen=True, slots=True)
class Example:
    """One cached utterance."""

    sentence: Sentence
    log_mel: npt.NDArray[np.float16]
    """[frames, mel bins], mapped from the cache."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts are padded on the left and answers on the right, so that all answers begin at the same position."""

    input_ids: torch.Tensor
    """int64 [batch, prompt length + answer length]"""
    attention_mask: torch.Tensor
    """int64, as input_ids"""
    labels: torch.Tensor
    """int64 [batch, answer length], `IGNORED` behind the end of an answer."""
    input_features: torch.Tensor
    """float32 [batch, frames, mel bins]"""
    input_features_mask: torch.Tensor
    """bool [batch, frames]"""
    phones: torch.Tensor
    """int64 [sum of phone_counts], targets of the alignment loss; 0 is its blank."""
    phone_counts: torch.Tensor
    """int64 [batch]"""


def read_shard(base: Path) -> list[Example]:
    """Utterances of one shard of speech.py."""
    frames = np.load(base.with_suffix(".npy"), mmap_mode="r")
    examples, begin = [], 0
    for entry in json.loads(base.with_suffix(".json").read_text()):
        sentence = Sentence(entry["template"], entry["written"], entry["spoken"])
        examples.append(Example(sentence, frames[begin : begin + entry["frames"]]))
        begin += entry["frames"]
    return examples


def audio_token_count(frames: int) -> int:
    """Encoder outputs for a number of log-mel frames: two convolutions of stride 2, each rounding up."""
    halved = (frames + 1) // 2
    return (halved + 1) // 2


def mask_stripes(log_mel: npt.NDArray[np.float32], generator: random.Random) -> None:
    """SpecAugment in place: a few bands of frequencies and spans of frames become the spectrogram's mean."""
    frames, bins = log_mel.shape
    mean = log_mel.mean()
    for _ in range(_MASKED_STRIPES):
        width = generator.randint(0, _WIDEST_FREQUENCY_STRIPE)
        low = generator.randint(0, bins - width)
        log_mel[:, low : low + width] = mean
        length = generator.randint(0, _WIDEST_TIME_STRIPE)
        start = generator.randint(0, max(1, frames - length))
        log_mel[start : start + length] = mean


class BatchMaker:
    """Turns examples and the languages asked for into padded tensors."""

    def __init__(self, tokenizer: Tokenizer, phones_of_word: dict[str, list[str]], spoken_language: str = "en") -> None:
        self._tokenizer = tokenizer
        self._spoken_language = spoken_language
        phones = sorted({phone for phones in phones_of_word.values() for phone in phones})
        identifiers = {phone: identifier for identifier, phone in enumerate(phones, 1)}
        self._phone_ids = {word: [identifiers[phone] for phone in phones_of_word[word]] for word in phones_of_word}
        self.phone_classes = len(phones) + 1
        """Phones and the blank."""
        self._audio_token = token_id(AUDIO)
        self._encode = lru_cache(maxsize=100_000)(self._encode_uncached)

    def _encode_uncached(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt_ids(self, frames: int, target: str) -> list[int]:
        """A whole prompt with room for the audio of so many frames."""
        audio = [self._audio_token] * audio_token_count(frames)
        return self._encode(before_audio(self._spoken_language, target)) + audio + self._encode(AFTER_AUDIO)

    def answer_ids(self, sentence: Sentence, target: str) -> list[int]:
        """The answer and the token that ends the turn."""
        answer = sentence.written[self._spoken_language]
        if target != self._spoken_language:
            answer = translation_answer(answer, sentence.written[target], target)
        return self._encode(answer) + self._encode(END_OF_TURN)

    def __call__(
        self, examples: Sequence[Example], targets: Sequence[str], augmentation: random.Random | None = None
    ) -> Batch:
        """One batch; `targets` are the written languages asked for; a generator, where given, masks spectrograms."""
        features, features_mask = pad_features([example.log_mel for example in examples], augmentation)
        prompts = [
            self.prompt_ids(len(example.log_mel), target) for example, target in zip(examples, targets, strict=True)
        ]
        answers = [self.answer_ids(example.sentence, target) for example, target in zip(examples, targets, strict=True)]
        prompt_length, answer_length = max(map(len, prompts)), max(map(len, answers))
        shape = (len(examples), prompt_length + answer_length)
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full((len(examples), answer_length), IGNORED, np.int64)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            occupied = slice(prompt_length - len(prompt), prompt_length + len(answer))
            ids[row, occupied] = prompt + answer
            mask[row, occupied] = 1
            labels[row, : len(answer)] = answer
        phones = [self._phones(example.sentence) for example in examples]
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(mask),
            torch.from_numpy(labels),
            torch.from_numpy(features),
            torch.from_numpy(features_mask),
            torch.tensor([phone for row in phones for phone in row]),
            torch.tensor([len(row) for row in phones]),
        )

    def _phones(self, sentence: Sentence) -> list[int]:
        words = sentence.spoken_words(self._spoken_language)
        return [phone for word in words for phone in self._phone_ids[word]]


def pad_features(
    spectrograms: Sequence[npt.NDArray[np.float16]], augmentation: random.Random | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """float32 [batch, frames, mel bins] and bool [batch, frames]; frames are rounded up to 16, for fewer shapes."""
    longest = -(-max(map(len, spectrograms)) // 16) * 16
    features = np.zeros((len(spectrograms), longest, LOG_MEL.mel_bins), np.float32)
    mask = np.zeros((len(spectrograms), longest), np.bool_)
    for row, spectrogram in enumerate(spectrograms):
        frames = len(spectrogram)
        features[row, :frames] = spectrogram
        mask[row, :frames] = True
        if augmentation is not None:
            mask_stripes(features[row, :frames], augmentation)
    return features, mask


def batch_order(lengths: Sequence[int], batch_size: int, epoch: int, seed: int) -> Iterator[list[int]]:
    """Indices of one epoch's batches in random order, utterances of similar length together; a remainder is dropped."""
    generator = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    for begin in range(0, len(order), batch_size * 16):
        pool = sorted(order[begin : begin + batch_size * 16], key=lambda index: lengths[index])
        batches = [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
        generator.shuffle(batches)
        yield from (batch for batch in batches if len(batch) == batch_size)
