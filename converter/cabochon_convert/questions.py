"""What package and checkpoint are asked: prompts, down to their tokens and frames of sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.errors import AudioError, RequestError
from cabochon.manifest import Manifest, Prompts
from cabochon.package import Package
from cabochon.prompt import (
    Message,
    PromptWriter,
    split_translation,
    transcription_instruction,
    translation_instruction,
)
from cabochon.tokenizer import Tokenizer
from cabochon.wav import read_sound
from cabochon_convert.evaluation_data import EvaluationData, SpokenExample, TypedPrompt

# Clips below, at and above one attention block of the encoder (12 tokens of 40 ms), none a whole number of tokens.
CLIP_SECONDS = (0.11, 0.493, 1.234, 3.217, 7.003)
TYPED_ANSWER_TOKENS = 64
"""Longest answer to a typed prompt of which no answer is expected."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens, and the sound that belongs into the places of their soft tokens."""

    tokens: tuple[int, ...]
    frames: Float32Array | None
    """[frames, values] of the sound"""


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of question, with its own measures."""

    title: str
    """Transcription, Translation into German, Typed prompts."""
    target: str | None = None
    """Language that is translated into."""

    def parts(self, answer: str, prompts: Prompts) -> tuple[str, str]:
        """What of an answer is held against words and what against characters: transcript and translation."""
        if self.target is None:
            return answer.strip(), answer.strip()
        return split_translation(answer, prompts, self.target)


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of a task, and its true answer where there is one."""

    task: Task
    name: str
    """Of the sound file; a typed prompt itself."""
    prompt: Prompt
    text: str | None
    """The true answer."""
    tokens: tuple[int, ...]
    """Of the true answer."""
    max_tokens: int
    """Longest answer."""


class QuestionWriter:
    """Writes prompts the way that a package prescribes."""

    def __init__(self, package: Package) -> None:
        self._manifest: Manifest = package.manifest
        self.tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
        self._prompts = PromptWriter(package, self.tokenizer)

    def probe(self, clip: Float32Array | None) -> Prompt:
        """The transcription prompt of a clip; without one, the same words as a plain request."""
        return self._write(transcription_instruction(self._manifest.prompts, "English"), clip)

    def questions(self, data: EvaluationData) -> tuple[Question, ...]:
        """All questions of some data, task by task.

        Raises:
            AudioError: a sound cannot be used, or the package has no audio encoder.
            RequestError: a question is longer than the package's context.
        """
        spoken = [question for example in data.spoken for question in self._spoken(example, data.language)]
        tasks = list(dict.fromkeys(question.task for question in spoken))
        typed = [self._typed(prompt) for prompt in data.typed]
        return (*sorted(spoken, key=lambda question: tasks.index(question.task)), *typed)

    def _spoken(self, example: SpokenExample, language: str) -> Iterator[Question]:
        prompts, audio = self._manifest.prompts, self._manifest.audio
        if audio is None:
            raise AudioError("the package has no audio encoder, so there is no speech to compare.")
        clip = _hear(example.sound, audio)
        prompt = self._write(transcription_instruction(prompts, language), clip)
        yield self._question(Task("Transcription"), example.sound.name, prompt, example.text)
        for translation in example.translations:
            target = translation.language
            marker = prompts.translation_marker.replace("{target}", target)
            prompt = self._write(translation_instruction(prompts, language, target), clip)
            text = f"{example.text}{marker}{translation.text}"
            yield self._question(Task(f"Translation into {target}", target), example.sound.name, prompt, text)

    def _typed(self, typed: TypedPrompt) -> Question:
        return self._question(Task("Typed prompts"), typed.text, self._write(typed.text, None), typed.answer)

    def _question(self, task: Task, name: str, prompt: Prompt, text: str | None) -> Question:
        tokens = () if text is None else tuple(self.tokenizer.encode(text))
        audio = self._manifest.audio
        if audio is not None:
            places = (*prompt.tokens, *tokens).count(audio.soft_token)
            if places != (0 if prompt.frames is None else audio.token_count(len(prompt.frames))):
                raise RequestError(
                    f"{_short(name)} or its answer has the placeholder of a sound in its text: take it out."
                )
        # Rounding may make an answer longer, but one that is twice as long has gone astray.
        wanted = TYPED_ANSWER_TOKENS if text is None else 2 * len(tokens) + 16
        room = self._manifest.text.context_length - len(prompt.tokens)
        if room <= len(tokens):
            raise RequestError(
                f"{_short(name)} and its answer take {len(prompt.tokens) + len(tokens)} of "
                f"{self._manifest.text.context_length} positions: convert with a larger --context-length."
            )
        return Question(task, name, prompt, text, tokens, min(wanted, room))

    def _write(self, instruction: str, clip: Float32Array | None) -> Prompt:
        audio = self._manifest.audio
        count = 0 if clip is None or audio is None else audio.token_count(len(clip))
        return Prompt(tuple(self._prompts.write([Message("user", instruction, has_audio=count > 0)], count)), clip)


def made_up_clips(audio: AudioModel | None) -> list[Float32Array]:
    """Frames of made-up sounds: a gliding tone that pulses like syllables, over noise; the same every time."""
    if audio is None:
        return []
    rate = audio.sample_rate
    generator = np.random.default_rng(4)
    clips = []
    for seconds in CLIP_SECONDS:
        time = np.arange(int(seconds * rate)) / rate
        glide = np.sin(2 * np.pi * (180 + 90 * np.sin(2 * np.pi * 0.7 * time)) * time) * (np.sin(8 * np.pi * time) > 0)
        waveform = 0.3 * glide + 0.02 * generator.standard_normal(len(time))
        clips.append(audio.make_frames(waveform.astype(np.float32)))
    return clips


def _short(name: str) -> str:
    """A question as an error names it."""
    return repr(name if len(name) <= 60 else f"{name[:60]}…")


def _hear(sound: Path, audio: AudioModel) -> Float32Array:
    frames = audio.make_frames(read_sound(sound, audio.sample_rate, audio.max_samples).waveform)
    if len(frames) == 0:
        raise AudioError(f"{sound} is too short to hold speech.")
    return frames
