"""What rounding did to answers: package and checkpoint on the same questions, told apart token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import missing_dependency
from cabochon.manifest import Prompts
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.questions import Prompt, Task
from cabochon_convert.reference_record import AnswerRecord, LogitStore

POSITIONS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class AnswerFidelity:
    """One answer. Its predictions are compared along the true answer, or else along the checkpoint's own."""

    name: str
    """Of the sound file; a typed prompt itself."""
    text: str | None
    """The true answer; None where nobody gave one."""
    reference_answer: str
    """The checkpoint's greedy answer."""
    answer: str
    """The package's greedy answer."""
    divergence: float
    """Mean Kullback-Leibler divergence from the checkpoint's next-token distribution, in nats."""
    same_top_token: float
    """Share of positions where both prefer the same token."""
    reference_perplexity: float
    """Of the compared tokens under the checkpoint."""
    perplexity: float
    """Of the compared tokens under the package."""
    tokens: int
    """Of the checkpoint's answer."""
    agreeing_tokens: int
    """Before the first token of the package's answer that differs."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Over all answers that have a true one, in percent, strict about case and punctuation."""

    reference_word_error_rate: float
    word_error_rate: float
    """By jiwer; of a translation, that of the transcript before it."""
    reference_chrf: float
    chrf: float
    """By sacrebleu; of a translation, that of the translated line."""


@dataclass(frozen=True, slots=True)
class TaskFidelity:
    """All answers of one task, and their summary."""

    title: str
    answers: tuple[AnswerFidelity, ...]
    divergence: float
    """Mean over the answers, in nats."""
    same_top_token: float
    """Mean share over the answers."""
    agreeing_tokens: float
    """Share of the checkpoint's tokens that stand before the first difference."""
    reference_perplexity: float
    """Geometric mean over the answers."""
    perplexity: float
    same_answers: int
    """Answers that are the checkpoint's to the letter."""
    rates: Rates | None
    """None where no true answer is known."""


def compare_answer(converted: ConvertedModel, record: AnswerRecord, store: LogitStore) -> AnswerFidelity:
    """Ask the package what the checkpoint was asked."""
    question, tokens = record.question, list(record.scored)
    prompt = Prompt((*question.prompt.tokens, *tokens[:-1]), question.prompt.frames)
    # Of a vocabulary of 262144 the logarithms are worth computing once.
    ours, theirs = log_softmax(converted.logits(prompt, len(tokens))), log_softmax(store.get(record.logits))
    found = converted.greedy(question.prompt, question.max_tokens, converted.manifest.sampling.stop_tokens)
    return AnswerFidelity(
        name=question.name,
        text=question.text,
        reference_answer=converted.tokenizer.decode(list(record.greedy)).strip(),
        answer=converted.tokenizer.decode(found).strip(),
        divergence=_mean_divergence(ours, theirs),
        same_top_token=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        reference_perplexity=_perplexity(theirs, tokens),
        perplexity=_perplexity(ours, tokens),
        tokens=len(record.greedy),
        agreeing_tokens=agreement(found, record.greedy),
    )


def summarize(task: Task, answers: Sequence[AnswerFidelity], prompts: Prompts) -> TaskFidelity:
    """The figures of one task."""
    tokens = sum(answer.tokens for answer in answers)
    return TaskFidelity(
        title=task.title,
        answers=tuple(answers),
        divergence=float(np.mean([answer.divergence for answer in answers])),
        same_top_token=float(np.mean([answer.same_top_token for answer in answers])),
        agreeing_tokens=sum(answer.agreeing_tokens for answer in answers) / tokens if tokens else 1.0,
        reference_perplexity=_geometric_mean([answer.reference_perplexity for answer in answers]),
        perplexity=_geometric_mean([answer.perplexity for answer in answers]),
        same_answers=sum(answer.answer == answer.reference_answer for answer in answers),
        rates=_rates(task, [answer for answer in answers if answer.text is not None], prompts),
    )


def log_softmax(logits: Float32Array) -> np.ndarray:
    """Natural logarithms of probabilities, float64 [positions, vocabulary]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def divergence(ours: Float32Array, theirs: Float32Array) -> float:
    """Mean Kullback-Leibler divergence of our distributions from theirs, in nats; logits [positions, vocabulary]."""
    total = 0.0
    # In float64, with a vocabulary of 262144, a few hundred positions are a gigabyte.
    for start in range(0, len(ours), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        total += len(ours[part]) * _mean_divergence(log_softmax(ours[part]), log_softmax(theirs[part]))
    return total / len(ours)


def agreement(found: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = zip(found, expected, strict=False)
    different = (index for index, (ours, theirs) in enumerate(pairs) if ours != theirs)
    return next(different, min(len(found), len(expected)))


def _rates(task: Task, answers: Sequence[AnswerFidelity], prompts: Prompts) -> Rates | None:
    if not answers:
        return None
    try:
        import jiwer
        import sacrebleu
    except ImportError as error:
        raise missing_dependency(str(error.name), "verify") from None
    true, expected, found = (
        [task.parts(text or "", prompts) for text in texts]
        for texts in zip(*((a.text, a.reference_answer, a.answer) for a in answers), strict=True)
    )
    words, characters = ([part[index] for part in true] for index in (0, 1))
    reference_rate, rate = (100 * float(jiwer.wer(words, [part[0] for part in given])) for given in (expected, found))
    reference_chrf, chrf = (
        float(sacrebleu.corpus_chrf([part[1] for part in given], [characters]).score) for given in (expected, found)
    )
    return Rates(reference_rate, rate, reference_chrf, chrf)


def _mean_divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of log-probabilities [positions, vocabulary]."""
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def _perplexity(log_probabilities: np.ndarray, tokens: Sequence[int]) -> float:
    """Exponential of the mean negative log-probability of the tokens."""
    return float(np.exp(-log_probabilities[np.arange(len(tokens)), list(tokens)].mean()))


def _geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))
