"""Comparing a package with the checkpoint that it came from, as transformers runs it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import RequestError
from cabochon.log_mel import log_mel
from cabochon.manifest import AudioModel, Manifest
from cabochon.package import open_package, replace_text
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.fidelity import (
    SpeechFidelity,
    SpokenExample,
    agreement,
    divergence,
    measure_speech,
    summarize,
)
from cabochon_convert.package import REPORT_NAME, REPORT_PAGE_NAME
from cabochon_convert.progress import Progress
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.report_page import render_page

# Clips below, at and above one attention block of the encoder (12 tokens of 40 ms), none a whole number of tokens.
CLIP_SECONDS = (0.11, 0.493, 1.234, 3.217, 7.003)
GREEDY_TOKENS = 24
MIN_CONTEXT_LENGTH = 512
FLOAT_TOLERANCE = 1e-4
"""Largest relative difference of a float package: room for sums in another order, no more."""


@dataclass(frozen=True, slots=True)
class AudioComparison:
    """Audio embeddings of one clip."""

    seconds: float
    tokens: int
    relative_error: float
    """Largest absolute difference over the largest absolute value of the reference."""
    cosine: float
    """Smallest cosine between an embedding and the reference's."""


@dataclass(frozen=True, slots=True)
class LogitComparison:
    """Logits of one prompt, at every position, and the greedy continuation."""

    prompt: str
    positions: int
    relative_error: float
    same_top_token: float
    """Share of positions whose likeliest token is the reference's."""
    divergence: float
    """Mean Kullback-Leibler divergence from the reference's next-token distribution, in nats."""
    greedy_tokens: int
    greedy_agreement: int
    """Tokens of the greedy continuation before the first difference."""


@dataclass(frozen=True, slots=True)
class SpeechData:
    """Speech that package and checkpoint are to be compared on."""

    examples: tuple[SpokenExample, ...]
    language: str
    """Spoken in all of them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found."""

    package: str
    recipe: str
    engine: str
    size: int
    """Bytes of the package."""
    tolerance: float | None
    """Largest relative error allowed; None where the recipe rounds weights, so that errors are measured, not judged."""
    audio: tuple[AudioComparison, ...]
    logits: tuple[LogitComparison, ...]
    speech: SpeechFidelity | None
    """None where no speech was given."""

    @property
    def passed(self) -> bool:
        """Whether everything is within the tolerance."""
        if self.tolerance is None:
            return True
        errors = [c.relative_error for c in self.audio] + [c.relative_error for c in self.logits]
        same = all(comparison.greedy_agreement == comparison.greedy_tokens for comparison in self.logits)
        return same and all(error <= self.tolerance for error in errors)

    def summary(self) -> dict[str, str]:
        """The worst of each figure, for the command line."""
        lines = {}
        if self.audio:
            error, cosine = max(c.relative_error for c in self.audio), min(c.cosine for c in self.audio)
            lines["audio embeddings"] = f"relative error {error:.2g}, cosine {cosine:.5f} at worst"
        error, farthest = max(c.relative_error for c in self.logits), max(c.divergence for c in self.logits)
        lines["logits"] = f"relative error {error:.2g}, divergence {farthest:.2g} nats at worst"
        agreed, tokens = (sum(getattr(c, name) for c in self.logits) for name in ("greedy_agreement", "greedy_tokens"))
        lines["greedy tokens"] = f"{agreed} of {tokens} before the first difference"
        if self.speech:
            lines |= _speech_summary(self.speech)
        limit = "no limit for a rounding recipe" if self.tolerance is None else f"limit {self.tolerance:g}"
        lines["verdict"] = f"{'passed' if self.passed else 'FAILED'} ({limit})"
        return lines


def _speech_summary(speech: SpeechFidelity) -> dict[str, str]:
    same, total = speech.same_answers, len(speech.examples)
    return {
        "transcripts": f"{same} of {total} like the checkpoint's, top token alike at {speech.same_top_token:.1%}, "
        f"divergence {speech.divergence:.2g} nats",
        "word error rate": f"{speech.word_error_rate:.2f} % (checkpoint {speech.reference_word_error_rate:.2f} %)",
        "chrF": f"{speech.chrf:.1f} (checkpoint {speech.reference_chrf:.1f})",
    }


def verify_package(
    folder: Path, checkpoint: Path, progress: Progress, speech: SpeechData | None = None, engine: str = "onnx"
) -> Report:
    """Compare a package with its checkpoint; writes report.json and report.html into the package folder."""
    package = open_package(folder)
    manifest = package.manifest
    refuse_short_context(manifest.text.context_length)
    rounds = any(applied.block_size for applied in manifest.recipe.precisions)
    clips = _clips(manifest)
    progress.start("verifying", 2 * len(clips) + 1, "comparison")
    converted, reference = ConvertedModel(package, engine), ReferenceModel(checkpoint)
    audio, logits = [], []
    for clip in clips:
        assert manifest.audio is not None  # there are no clips otherwise
        audio.append(_compare_audio(converted, reference, clip, manifest.audio))
        progress.advance(1)
        logits.append(_compare_logits(converted, reference, clip, manifest.audio))
        progress.advance(1)
    logits.append(_compare_logits(converted, reference, None, None))
    progress.advance(1)
    report = Report(
        package=manifest.source.name,
        recipe=manifest.recipe.name,
        engine=engine,
        size=package.size,
        tolerance=None if rounds else FLOAT_TOLERANCE,
        audio=tuple(audio),
        logits=tuple(logits),
        speech=None if speech is None else _measure_speech(converted, reference, speech, progress),
    )
    content = asdict(report) | {"passed": report.passed}
    replace_text(folder / REPORT_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    replace_text(folder / REPORT_PAGE_NAME, render_page(content))
    return report


def _measure_speech(
    converted: ConvertedModel, reference: ReferenceModel, speech: SpeechData, progress: Progress
) -> SpeechFidelity:
    progress.start("comparing speech", len(speech.examples), "example")
    measured = []
    for example in measure_speech(converted, reference, speech.examples, speech.language):
        measured.append(example)
        progress.advance(1)
    return summarize(measured, speech.language)


def refuse_short_context(context_length: int) -> None:
    """The longest clip, the instruction and the greedy continuation need room."""
    if context_length < MIN_CONTEXT_LENGTH:
        raise RequestError(
            f"verifying needs a context of at least {MIN_CONTEXT_LENGTH} positions, found {context_length}: "
            "convert with a larger --context-length."
        )


def _compare_audio(
    converted: ConvertedModel, reference: ReferenceModel, clip: Float32Array, audio: AudioModel
) -> AudioComparison:
    ours, theirs = converted.audio_embeddings(clip), reference.audio_embeddings(clip)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return AudioComparison(
        seconds=len(clip) * audio.log_mel.hop_length / audio.log_mel.sample_rate,
        tokens=len(theirs),
        relative_error=_relative_error(ours, theirs),
        cosine=float(((ours * theirs).sum(axis=1) / norms).min()),
    )


def _compare_logits(
    converted: ConvertedModel, reference: ReferenceModel, clip: Float32Array | None, audio: AudioModel | None
) -> LogitComparison:
    audio_tokens = audio.token_count(len(clip)) if clip is not None and audio is not None else 0
    tokens = converted.transcription_prompt(audio_tokens, "English")
    ours, theirs = converted.logits(tokens, clip), reference.logits(tokens, clip)
    expected = reference.greedy(tokens, clip, converted.manifest.sampling.suppress_tokens, GREEDY_TOKENS)
    found = converted.greedy(tokens, clip, GREEDY_TOKENS)
    return LogitComparison(
        prompt="question" if clip is None else f"transcription of {len(tokens)} positions",
        positions=len(tokens),
        relative_error=_relative_error(ours, theirs),
        same_top_token=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        divergence=divergence(ours, theirs),
        greedy_tokens=len(expected),
        greedy_agreement=agreement(found, expected),
    )


def _clips(manifest: Manifest) -> list[Float32Array]:
    """Log-mels of made-up sounds: a gliding tone that pulses like syllables, over noise; the same every time."""
    if manifest.audio is None:
        return []
    rate = manifest.audio.log_mel.sample_rate
    generator = np.random.default_rng(4)
    clips = []
    for seconds in CLIP_SECONDS:
        time = np.arange(int(seconds * rate)) / rate
        glide = np.sin(2 * np.pi * (180 + 90 * np.sin(2 * np.pi * 0.7 * time)) * time) * (np.sin(8 * np.pi * time) > 0)
        waveform = 0.3 * glide + 0.02 * generator.standard_normal(len(time))
        clips.append(log_mel(waveform.astype(np.float32), manifest.audio.log_mel))
    return clips


def _relative_error(ours: Float32Array, theirs: Float32Array) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
