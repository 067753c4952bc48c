"""Comparing a package with the checkpoint that it came from, as transformers runs it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import EngineSettings, Session
from cabochon.decode import decode, prefill
from cabochon.embedder import open_embedder
from cabochon.engines import open_session
from cabochon.errors import RequestError
from cabochon.log_mel import log_mel
from cabochon.manifest import Manifest
from cabochon.package import Package, open_package
from cabochon.prompt import Message, PromptWriter, transcription_instruction
from cabochon.sampling import Sampler, SamplingSettings, soft_cap
from cabochon.tokenizer import Tokenizer
from cabochon_convert.package import REPORT_NAME
from cabochon_convert.progress import Progress
from cabochon_convert.reference import ReferenceModel

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
class Report:
    """What a verification found."""

    package: str
    recipe: str
    engine: str
    tolerance: float | None
    """Largest relative error allowed; None where the recipe rounds weights, so that errors are measured, not judged."""
    audio: tuple[AudioComparison, ...]
    logits: tuple[LogitComparison, ...]

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
        error, divergence = max(c.relative_error for c in self.logits), max(c.divergence for c in self.logits)
        lines["logits"] = f"relative error {error:.2g}, divergence {divergence:.2g} nats at worst"
        agreed, tokens = (sum(getattr(c, name) for c in self.logits) for name in ("greedy_agreement", "greedy_tokens"))
        lines["greedy tokens"] = f"{agreed} of {tokens} before the first difference"
        limit = "no limit for a rounding recipe" if self.tolerance is None else f"limit {self.tolerance:g}"
        lines["verdict"] = f"{'passed' if self.passed else 'FAILED'} ({limit})"
        return lines


def verify_package(folder: Path, checkpoint: Path, progress: Progress, engine: str = "onnx") -> Report:
    """Compare a package with its checkpoint; writes report.json into the package folder."""
    package = open_package(folder)
    manifest = package.manifest
    refuse_short_context(manifest.text.context_length)
    rounds = any(applied.block_size for applied in manifest.recipe.precisions)
    clips = _clips(manifest)
    progress.start("verifying", 2 * len(clips) + 1, "comparison")
    subject, reference = _Subject(package, engine), ReferenceModel(checkpoint)
    audio, logits = [], []
    for clip in clips:
        audio.append(_compare_audio(subject, reference, clip, manifest))
        progress.advance(1)
        logits.append(_compare_logits(subject, reference, clip))
        progress.advance(1)
    logits.append(_compare_logits(subject, reference, None))
    progress.advance(1)
    report = Report(
        package=manifest.source.name,
        recipe=manifest.recipe.name,
        engine=engine,
        tolerance=None if rounds else FLOAT_TOLERANCE,
        audio=tuple(audio),
        logits=tuple(logits),
    )
    _write_report(folder / REPORT_NAME, report)
    return report


def refuse_short_context(context_length: int) -> None:
    """The longest clip, the instruction and the greedy continuation need room."""
    if context_length < MIN_CONTEXT_LENGTH:
        raise RequestError(
            f"verifying needs a context of at least {MIN_CONTEXT_LENGTH} positions, found {context_length}: "
            "convert with a larger --context-length."
        )


class _Subject:
    """The converted model, opened below the level of text."""

    def __init__(self, package: Package, engine: str) -> None:
        self.manifest = package.manifest
        self.session: Session = open_session(package, engine, EngineSettings())
        self.embedder = open_embedder(package, engine)
        self._prompts = PromptWriter(package, Tokenizer(package.path(package.manifest.tokenizer_file)))

    def prompt(self, audio_tokens: int) -> list[int]:
        """Tokens of the transcription prompt; without audio, the same words as a plain request."""
        instruction = transcription_instruction(self.manifest.prompts, "English")
        return self._prompts.write([Message("user", instruction, has_audio=audio_tokens > 0)], audio_tokens)


def _compare_audio(
    subject: _Subject, reference: ReferenceModel, clip: Float32Array, manifest: Manifest
) -> AudioComparison:
    assert subject.session.audio_encoder is not None  # there are no clips otherwise
    assert manifest.audio is not None
    ours, theirs = subject.session.audio_encoder.encode(clip), reference.audio_embeddings(clip)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return AudioComparison(
        seconds=len(clip) * manifest.audio.log_mel.hop_length / manifest.audio.log_mel.sample_rate,
        tokens=len(theirs),
        relative_error=_relative_error(ours, theirs),
        cosine=float(((ours * theirs).sum(axis=1) / norms).min()),
    )


def _compare_logits(subject: _Subject, reference: ReferenceModel, clip: Float32Array | None) -> LogitComparison:
    manifest, decoder = subject.manifest, subject.session.decoder
    encoder = subject.session.audio_encoder
    embeddings = encoder.encode(clip) if clip is not None and encoder else None
    tokens = subject.prompt(0 if embeddings is None else len(embeddings))
    prompt = subject.embedder.embed(tokens, manifest.audio, embeddings)
    cap = manifest.text.final_logit_softcap
    raw = decoder.run(prompt.inputs_embeds, prompt.per_layer_inputs, 0, logits_to_keep=len(tokens))
    ours, theirs = soft_cap(raw.copy(), cap), reference.logits(tokens, clip)
    suppress = manifest.sampling.suppress_tokens
    expected = reference.greedy(tokens, clip, suppress, GREEDY_TOKENS)
    sampler = Sampler(SamplingSettings(), suppress, cap)
    logits = prefill(decoder, prompt)
    found = list(decode(decoder, subject.embedder, sampler, logits, len(tokens), (), GREEDY_TOKENS))
    differences = [index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
    return LogitComparison(
        prompt="question" if clip is None else f"transcription of {len(tokens)} positions",
        positions=len(tokens),
        relative_error=_relative_error(ours, theirs),
        same_top_token=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        divergence=_divergence(ours, theirs),
        greedy_tokens=len(expected),
        greedy_agreement=differences[0] if differences else len(expected),
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


def _divergence(ours: Float32Array, theirs: Float32Array) -> float:
    ours_log, theirs_log = (
        logits
        - logits.max(axis=1, keepdims=True)
        - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        for logits in (ours.astype(np.float64), theirs.astype(np.float64))
    )
    return float((np.exp(theirs_log) * (theirs_log - ours_log)).sum(axis=1).mean())


def _write_report(path: Path, report: Report) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(asdict(report) | {"passed": report.passed}, indent=1, ensure_ascii=False)
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)
