"""Training batches from the cache of log-mel spectrograms."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from .dialogues import Exchange
from .front_end import features_path
from .prompts import AFTER_AUDIO, AUDIO, END_OF_TURN, before_audio, before_typed_answer, translation_answer
from .speech import LOG_MEL, read_frames
from .tokenizer import token_id

IGNORED: Final = -100
"""Label of positions without a target."""
_MASKED_STRIPES: Final = 2
_WIDEST_FREQUENCY_STRIPE: Final = 0.1  # of the mel bins or of the features' width
_LONGEST_TIME_STRIPE: Final = 8  # frames
_FRAMES_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class Example:
    """One cached utterance."""

    language: str
    """Spoken."""
    written: Mapping[str, str]
    """By language."""
    phones: Sequence[str]
    voice: str
    log_mel: npt.NDArray[np.float16]
    """[frames, mel bins], mapped from the cache."""
    front_end: npt.NDArray[np.float16] | None = None
    """[audio tokens, width], what the encoder's convolutions give for it, where they are frozen."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What only the batches of spoken examples have."""

    features: torch.Tensor
    """float32 [batch, frames, mel bins] or, behind the convolutions, [batch, audio tokens, width]"""
    features_mask: torch.Tensor
    """bool [batch, frames] or [batch, audio tokens]"""
    token_counts: torch.Tensor
    """int64 [batch], outputs of the encoder"""
    phones: torch.Tensor
    """int64 [sum of phone_counts], targets of the alignment loss; 0 is its blank."""
    phone_counts: torch.Tensor
    """int64 [batch]"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts are padded on the left and answers on the right, so that all answers begin at the same position."""

    input_ids: torch.Tensor
    """int64 [batch, prompt length + answer length]"""
    attention_mask: torch.Tensor
    """int64, as input_ids"""
    labels: torch.Tensor
    """int64 [batch, answer length], `IGNORED` behind the end of an answer."""
    sound: Sound | None


def read_shard(base: Path, front_end: str | None = None) -> list[Example]:
    """Utterances of one shard of speech.py.

    Args:
        base: path of the shard without suffix.
        front_end: fingerprint of the frozen convolutions, whose features are then read too.
    """
    frames = read_frames(base)
    features = np.load(features_path(base, front_end), mmap_mode="r") if front_end else None
    examples, begin, first = [], 0, 0
    for entry in json.loads(base.with_suffix(".json").read_text()):
        spectrogram = frames[begin : begin + entry["frames"]]
        begin += entry["frames"]
        behind = None
        if features is not None:
            behind = features[first : first + audio_token_count(entry["frames"])]
            first += len(behind)
        examples.append(
            Example(entry["language"], entry["written"], entry["phones"], entry["voice"], spectrogram, behind)
        )
    return examples


def audio_token_count(frames: int) -> int:
    """Encoder outputs for a number of log-mel frames: two convolutions of stride 2, each rounding up."""
    halved = (frames + 1) // 2
    return (halved + 1) // 2


def mask_stripes(features: npt.NDArray[np.float32], longest: int, generator: random.Random) -> None:
    """SpecAugment in place: some widths and spans of [time, width] become the means over time.

    Args:
        features: a spectrogram or what the convolutions made of it.
        longest: of the spans.
        generator: draws them.
    """
    steps, width = features.shape
    means = features.mean(0)
    for _ in range(_MASKED_STRIPES):
        stripe = generator.randint(0, int(_WIDEST_FREQUENCY_STRIPE * width))
        low = generator.randint(0, width - stripe)
        features[:, low : low + stripe] = means[low : low + stripe]
        length = generator.randint(0, longest)
        start = generator.randint(0, max(1, steps - length))
        features[start : start + length] = means


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
            mask_stripes(features[row, :frames], _LONGEST_TIME_STRIPE, augmentation)
    return features, mask


def pad_front_end(
    examples: Sequence[npt.NDArray[np.float16]], augmentation: random.Random | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """float32 [batch, audio tokens, width] and bool [batch, audio tokens]; tokens are rounded up to 4."""
    longest = -(-max(map(len, examples)) // 4) * 4
    features = np.zeros((len(examples), longest, examples[0].shape[1]), np.float32)
    mask = np.zeros((len(examples), longest), np.bool_)
    for row, example in enumerate(examples):
        features[row, : len(example)], mask[row, : len(example)] = example, True
        if augmentation is not None:
            mask_stripes(features[row, : len(example)], _LONGEST_TIME_STRIPE // _FRAMES_PER_TOKEN, augmentation)
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


def all_phones(examples: Sequence[Example]) -> list[str]:
    """Every phone that is spoken, sorted."""
    return sorted({phone for example in examples for phone in example.phones})


class BatchMaker:
    """Turns examples and the languages asked for into padded tensors."""

    def __init__(self, tokenizer: Tokenizer, phones: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._phone_ids = {phone: identifier for identifier, phone in enumerate(phones, 1)}
        self.phone_classes = len(phones) + 1
        """Phones and the blank."""
        self._audio_token = token_id(AUDIO)
        self._encode = lru_cache(maxsize=200_000)(self._encode_uncached)

    def _encode_uncached(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _spoken_prompt(self, example: Example, target: str) -> list[int]:
        audio = [self._audio_token] * audio_token_count(len(example.log_mel))
        return self._encode(before_audio(example.language, target)) + audio + self._encode(AFTER_AUDIO)

    def _spoken_answer(self, example: Example, target: str) -> list[int]:
        answer = example.written[example.language]
        if target != example.language:
            answer = translation_answer(answer, example.written[target], target)
        return self._encode(answer) + self._encode(END_OF_TURN)

    def spoken(
        self, examples: Sequence[Example], targets: Sequence[str], augmentation: random.Random | None = None
    ) -> Batch:
        """A batch of utterances; `targets` are the written languages asked for.

        Where all examples have features from behind the convolutions, these are taken. A generator, where given, masks
        spectrograms.
        """
        behind = [example.front_end for example in examples if example.front_end is not None]
        if len(behind) == len(examples):
            features, features_mask = pad_front_end(behind, augmentation)
        else:
            features, features_mask = pad_features([example.log_mel for example in examples], augmentation)
        phones = [[self._phone_ids.get(phone, 0) for phone in example.phones] for example in examples]
        known = [[phone for phone in row if phone] for row in phones]
        sound = Sound(
            torch.from_numpy(features),
            torch.from_numpy(features_mask),
            torch.tensor([audio_token_count(len(example.log_mel)) for example in examples]),
            torch.tensor([phone for row in known for phone in row]),
            torch.tensor([len(row) for row in known]),
        )
        pairs = list(zip(examples, targets, strict=True))
        return self._pad(
            [self._spoken_prompt(*pair) for pair in pairs], [self._spoken_answer(*pair) for pair in pairs], sound
        )

    def typed(self, dialogues: Sequence[Sequence[Exchange]]) -> Batch:
        """A batch of conversations; only their last answers are learned."""
        prompts = [self._encode(before_typed_answer(dialogue)) for dialogue in dialogues]
        answers = [self._encode(dialogue[-1].model) + self._encode(END_OF_TURN) for dialogue in dialogues]
        return self._pad(prompts, answers, None)

    def _pad(self, prompts: Sequence[list[int]], answers: Sequence[list[int]], sound: Sound | None) -> Batch:
        prompt_length, answer_length = max(map(len, prompts)), max(map(len, answers))
        shape = (len(prompts), prompt_length + answer_length)
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full((len(prompts), answer_length), IGNORED, np.int64)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            occupied = slice(prompt_length - len(prompt), prompt_length + len(answer))
            ids[row, occupied] = prompt + answer
            mask[row, occupied] = 1
            labels[row, : len(answer)] = answer
        return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels), sound)
