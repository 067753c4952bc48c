"""What a verification found, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.fidelity import Rates, TaskFidelity
from cabochon_convert.layers_onnx import LayerErrors


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
class ImageComparison:
    """Image embeddings of one image."""

    image: str
    """What it shows, and its size."""
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
    """How one package differs from its checkpoint."""

    package: str
    """Name of the checkpoint that it came from."""
    recipe: str
    engine: str
    size: int
    """Bytes of the package."""
    tolerance: float | None
    """Largest relative error allowed; None where the recipe rounds weights, so that errors are measured, not judged."""
    audio: tuple[AudioComparison, ...]
    images: tuple[ImageComparison, ...]
    """None where the package does not see."""
    logits: tuple[LogitComparison, ...]
    layers: LayerErrors
    tasks: tuple[TaskFidelity, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is within the tolerance."""
        if self.tolerance is None:
            return True
        errors = [c.relative_error for c in self.audio] + [c.relative_error for c in self.images]
        errors += [c.relative_error for c in self.logits]
        same = all(comparison.greedy_agreement == comparison.greedy_tokens for comparison in self.logits)
        return same and all(error <= self.tolerance for error in errors)

    def summary(self) -> dict[str, str]:
        """The worst of each figure, for the command line."""
        lines = {}
        if self.audio:
            lines["audio embeddings"] = _embedding_summary(self.audio)
        blind = "not compared: the package has no vision encoder"
        lines["image embeddings"] = _embedding_summary(self.images) if self.images else blind
        error, farthest = max(c.relative_error for c in self.logits), max(c.divergence for c in self.logits)
        lines["logits"] = f"relative error {error:.2g}, divergence {farthest:.2g} nats at worst"
        agreed, tokens = (sum(getattr(c, name) for c in self.logits) for name in ("greedy_agreement", "greedy_tokens"))
        lines["greedy tokens"] = f"{agreed} of {tokens} before the first difference"
        for task in self.tasks:
            lines[task.title[0].lower() + task.title[1:]] = _task_summary(task)
        limit = "no limit for a rounding recipe" if self.tolerance is None else f"limit {self.tolerance:g}"
        lines["verdict"] = f"{'passed' if self.passed else 'FAILED'} ({limit})"
        return lines


@dataclass(frozen=True, slots=True)
class Figures:
    """The checkpoint, or one of the packages that were compared with it, in a few numbers."""

    name: str
    recipe: str | None
    """None for the checkpoint."""
    engine: str | None
    size: int
    """Bytes."""
    divergence: float
    """Mean over all answers, in nats."""
    same_top_token: float
    """Mean share over all answers."""
    word_error_rate: float | None
    """Mean over the tasks that have true answers, in percent."""
    chrf: float | None


def checkpoint_figures(checkpoint: Checkpoint, report: Report) -> Figures:
    """The checkpoint, by what the report on any of its packages says about it."""
    rates = _rates(report)
    return Figures(
        name="checkpoint",
        recipe=None,
        engine=None,
        size=checkpoint.size,
        divergence=0.0,
        same_top_token=1.0,
        word_error_rate=_mean([rate.reference_word_error_rate for rate in rates]),
        chrf=_mean([rate.reference_chrf for rate in rates]),
    )


def package_figures(folder: Path, report: Report) -> Figures:
    """One package."""
    rates, answers = _rates(report), [answer for task in report.tasks for answer in task.answers]
    return Figures(
        name=folder.resolve().name,
        recipe=report.recipe,
        engine=report.engine,
        size=report.size,
        divergence=float(np.mean([answer.divergence for answer in answers])),
        same_top_token=float(np.mean([answer.same_top_token for answer in answers])),
        word_error_rate=_mean([rate.word_error_rate for rate in rates]),
        chrf=_mean([rate.chrf for rate in rates]),
    )


def _rates(report: Report) -> list[Rates]:
    return [task.rates for task in report.tasks if task.rates is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _embedding_summary(comparisons: Sequence[AudioComparison | ImageComparison]) -> str:
    error, cosine = max(c.relative_error for c in comparisons), min(c.cosine for c in comparisons)
    return f"relative error {error:.2g}, cosine {cosine:.5f} at worst"


def _task_summary(task: TaskFidelity) -> str:
    parts = [
        f"{task.same_answers} of {len(task.answers)} answers like the checkpoint's",
        f"top token alike at {task.same_top_token:.1%}",
        f"divergence {task.divergence:.2g} nats",
        f"perplexity {task.perplexity:.2f} (checkpoint {task.reference_perplexity:.2f})",
    ]
    if task.rates is not None:
        rates = task.rates
        parts += [
            f"word error rate {rates.word_error_rate:.2f} % (checkpoint {rates.reference_word_error_rate:.2f} %)",
            f"chrF {rates.chrf:.1f} (checkpoint {rates.reference_chrf:.1f})",
        ]
    return ", ".join(parts)
