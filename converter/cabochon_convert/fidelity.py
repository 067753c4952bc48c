"""What rounding did to transcripts: the package and its checkpoint on the same speech, told apart token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import AudioError, missing_dependency
from cabochon.log_mel import log_mel
from cabochon.manifest import AudioModel
from cabochon.wav import read_sound
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.reference import ReferenceModel

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
LONGEST_TRANSCRIPT = 256
"""Tokens; 30 s of fast speech stay below."""


@dataclass(frozen=True, slots=True)
class SpokenExample:
    """A sound file and what is said in it."""

    sound: Path
    text: str


@dataclass(frozen=True, slots=True)
class ExampleFidelity:
    """One example."""

    sound: str
    text: str
    reference_answer: str
    """The checkpoint's greedy transcript."""
    answer: str
    """The package's greedy transcript."""
    divergence: float
    """Mean Kullback-Leibler divergence from the checkpoint's next-token distribution over the true text, in nats."""
    same_top_token: float
    """Share of positions in the true text where both prefer the same token."""
    reference_perplexity: float
    """Of the true text under the checkpoint."""
    perplexity: float
    """Of the true text under the package."""
    tokens: int
    """Of the checkpoint's answer."""
    agreeing_tokens: int
    """Before the first token of the package's answer that differs."""


@dataclass(frozen=True, slots=True)
class SpeechFidelity:
    """All examples, and their summary; rates in percent."""

    language: str
    examples: tuple[ExampleFidelity, ...]
    reference_word_error_rate: float
    word_error_rate: float
    reference_chrf: float
    chrf: float

    @property
    def divergence(self) -> float:
        """Mean over the examples, in nats."""
        return float(np.mean([example.divergence for example in self.examples]))

    @property
    def same_top_token(self) -> float:
        """Mean share over the examples."""
        return float(np.mean([example.same_top_token for example in self.examples]))

    @property
    def same_answers(self) -> int:
        """Examples that package and checkpoint transcribe alike."""
        return sum(example.answer == example.reference_answer for example in self.examples)


def read_examples(folder: Path) -> tuple[SpokenExample, ...]:
    """Pairs of a sound file and a text file of the same name: `hello.wav` and `hello.txt`, in name order.

    Raises:
        AudioError: there is no pair, or a text is missing or empty.
    """
    if not folder.is_dir():
        raise AudioError(f"{folder} is not a folder: expected sound files with a .txt of the same name beside each.")
    sounds = sorted(path for path in folder.iterdir() if path.suffix.lower() in SOUND_ENDINGS)
    if not sounds:
        raise AudioError(f"{folder} has no sound files: expected {', '.join(SOUND_ENDINGS)}.")
    return tuple(SpokenExample(sound, _read_text(sound.with_suffix(".txt"))) for sound in sounds)


def measure_speech(
    converted: ConvertedModel, reference: ReferenceModel, examples: Sequence[SpokenExample], language: str
) -> Iterator[ExampleFidelity]:
    """Compare both on each example, one after the other."""
    manifest = converted.manifest
    if manifest.audio is None:
        raise AudioError("the package has no audio encoder, so there is no speech to compare.")
    for example in examples:
        yield _measure_example(converted, reference, example, manifest.audio, language)


def summarize(examples: Sequence[ExampleFidelity], language: str) -> SpeechFidelity:
    """Word error rates by jiwer and chrF by sacrebleu, both strict about case and punctuation."""
    try:
        import jiwer
        import sacrebleu
    except ImportError as error:
        raise missing_dependency(str(error.name), "verify") from None
    texts = [example.text for example in examples]
    answers = [[example.reference_answer for example in examples], [example.answer for example in examples]]
    reference_rate, rate = (100 * float(jiwer.wer(texts, given)) for given in answers)
    reference_chrf, chrf = (float(sacrebleu.corpus_chrf(given, [texts]).score) for given in answers)
    return SpeechFidelity(language, tuple(examples), reference_rate, rate, reference_chrf, chrf)


def log_softmax(logits: Float32Array) -> np.ndarray:
    """Natural logarithms of probabilities, float64 [positions, vocabulary]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def divergence(ours: Float32Array, theirs: Float32Array) -> float:
    """Mean Kullback-Leibler divergence of our distributions from theirs, in nats; logits [positions, vocabulary]."""
    return _mean_divergence(log_softmax(ours), log_softmax(theirs))


def agreement(found: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = zip(found, expected, strict=False)
    different = (index for index, (ours, theirs) in enumerate(pairs) if ours != theirs)
    return next(different, min(len(found), len(expected)))


def _measure_example(
    converted: ConvertedModel, reference: ReferenceModel, example: SpokenExample, audio: AudioModel, language: str
) -> ExampleFidelity:
    clip = read_sound(example.sound, audio.log_mel.sample_rate, audio.max_samples)
    features = log_mel(clip.waveform, audio.log_mel)
    if len(features) == 0:
        raise AudioError(f"{example.sound} is too short to hold speech.")
    prompt = converted.transcription_prompt(audio.token_count(len(features)), language)
    text = converted.tokenizer.encode(example.text)
    # Position i predicts token i + 1, so the text is predicted from the prompt's last position on.
    scored = slice(len(prompt) - 1, len(prompt) - 1 + len(text))
    # Of a vocabulary of 262144 the logarithms are worth computing once.
    ours, theirs = (log_softmax(model.logits([*prompt, *text], features)[scored]) for model in (converted, reference))
    stop_tokens, suppress = converted.manifest.sampling.stop_tokens, converted.manifest.sampling.suppress_tokens
    found = converted.greedy(prompt, features, LONGEST_TRANSCRIPT, stop_tokens)
    expected = reference.greedy(prompt, features, suppress, LONGEST_TRANSCRIPT, stop_tokens)
    return ExampleFidelity(
        sound=example.sound.name,
        text=example.text,
        reference_answer=converted.tokenizer.decode(expected).strip(),
        answer=converted.tokenizer.decode(found).strip(),
        divergence=_mean_divergence(ours, theirs),
        same_top_token=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        reference_perplexity=_perplexity(theirs, text),
        perplexity=_perplexity(ours, text),
        tokens=len(expected),
        agreeing_tokens=agreement(found, expected),
    )


def _mean_divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of log-probabilities [positions, vocabulary]."""
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def _perplexity(log_probabilities: np.ndarray, tokens: Sequence[int]) -> float:
    """Exponential of the mean negative log-probability of the tokens."""
    return float(np.exp(-log_probabilities[np.arange(len(tokens)), list(tokens)].mean()))


def _read_text(path: Path) -> str:
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        raise AudioError(f"{path} is missing: every sound needs a text file with what is said in it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AudioError(f"{path} is not readable text ({error}).") from None
    if not text:
        raise AudioError(f"{path} is empty: expected what is said in the sound of the same name.")
    return text
