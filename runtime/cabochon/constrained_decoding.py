"""Answers that keep to a form: tokens that would leave a JSON schema, a pattern or a grammar cannot be chosen.

What may come next is computed by llguidance (https://github.com/guidance-ai/llguidance), byte by byte, so that
characters which a vocabulary spells in bytes are allowed as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import PackageError, RequestError, missing_dependency
from cabochon.thinking import Thoughts, TokenChooser
from cabochon.tokenizer import Tokenizer

LONGEST_FORM = 200_000
"""Characters of a schema, a pattern or a grammar: what is longer takes minutes to read."""
WHITE_SPACE = r"(\n {0,16}| )?"
"""Between the parts of JSON: what models write, and no more, because one that may write spaces for ever can do so."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is one JSON value that a schema allows."""

    schema: Mapping[str, Any]
    """See https://json-schema.org; what cannot be kept to is refused."""

    @property
    def text(self) -> str:
        """The schema in JSON.

        Raises:
            RequestError: it is no JSON object.
        """
        if not isinstance(self.schema, Mapping):
            raise RequestError(f"the JSON schema is a {type(self.schema).__name__}: expected a JSON object.")
        try:
            return json.dumps(self.schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema is not JSON ({_on_one_line(error)}).") from None


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole answer matches a regular expression of Rust's syntax, without looking around."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Grammar:
    """The answer is a text of a context-free grammar, in llguidance's variant of Lark."""

    rules: str


JSON_OBJECT = JsonSchema({"type": "object"})
"""Any JSON object."""

AnswerFormat = JsonSchema | Regex | Grammar


class GrammarReader:
    """Makes constraints for one vocabulary, which is looked at when the first one is asked for."""

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, stop_tokens: Sequence[int]) -> None:
        """Args: vocabulary_size: logits of a position; stop_tokens: end an answer that is complete."""
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._stop_tokens = list(stop_tokens)
        self._vocabulary: Any = None

    def read(self, form: AnswerFormat) -> Constraint:
        """A constraint for one answer.

        Raises:
            RequestError: the form is not valid, cannot be kept to, or nothing fulfils it.
            MissingDependencyError: llguidance is not installed.
        """
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise missing_dependency("llguidance", "constraints") from None
        what, text = _described(form)
        if len(text) > LONGEST_FORM:
            raise RequestError(f"the {what} has {len(text)} characters, expected at most {LONGEST_FORM}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"the {what} holds bytes that are not UTF-8: expected readable text.") from None
        match form:
            case JsonSchema():
                options: Any = {"whitespace_pattern": WHITE_SPACE, "lenient": False, "coerce_one_of": False}
                read = LLMatcher.grammar_from_json_schema(text, overrides=options)
            case Regex():
                read = LLMatcher.grammar_from_regex(text)
            case Grammar():
                read = LLMatcher.grammar_from_lark(text)
        matcher = LLMatcher(self._words(), read, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some are found too complex only now
        if matcher.is_error():
            raise RequestError(f"an answer cannot keep to the {what} ({_reason(matcher)}): change it.")
        return Constraint(matcher, self._stop_tokens)

    def _words(self) -> Any:
        """What llguidance knows of the vocabulary: seconds for a large one, once."""
        if self._vocabulary is None:
            from llguidance import LLTokenizer

            spelled = _Spelled(self._tokenizer, self._vocabulary_size, self._stop_tokens[0])
            self._vocabulary = LLTokenizer(spelled, n_vocab=self._vocabulary_size, eos_token=self._stop_tokens)  # type: ignore[arg-type]
        return self._vocabulary


class Constraint:
    """What may come next in one answer."""

    def __init__(self, matcher: Any, stop_tokens: Sequence[int]) -> None:
        self._matcher = matcher
        self.stop_tokens = list(stop_tokens)
        """That end an answer, which is not complete while the model thinks."""

    @property
    def finished(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())

    def restrict(self, logits: Float32Array) -> None:
        """Make tokens impossible that may not come next, in place.

        Raises:
            RequestError: the form is too complex to be followed any further.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").view(np.bool_)
        logits[~allowed] = -np.inf

    def accept(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        if not self._matcher.consume_token(token):
            self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise RequestError(
                f"the form of the answer is too complex to be followed ({_reason(self._matcher)}): simplify it."
            )


class ConstrainedSampler:
    """Chooses as another one does, among the tokens that a constraint allows, or freely while the model thinks."""

    def __init__(self, chooser: TokenChooser, constraint: Constraint, thoughts: Thoughts | None = None) -> None:
        """Args: thoughts: that may come before; None where they may not."""
        self._chooser, self._constraint, self._thoughts = chooser, constraint, thoughts
        self._may_think = thoughts is not None and thoughts.begin is not None

    def choose(self, logits: Float32Array) -> int:
        """The next token, from raw logits [vocabulary]; the array is changed in place."""
        if self._thoughts is not None and self._thoughts.inside:
            logits[self._constraint.stop_tokens] = -np.inf
            return self._chooser.choose(logits)
        begin = self._thoughts.begin if self._thoughts is not None and self._may_think else None
        thinking = logits[begin] if begin is not None else None
        self._constraint.restrict(logits)
        if begin is not None and thinking is not None:
            logits[begin] = thinking
        self._may_think = False
        are_numbers = not np.isnan(logits).any()
        try:
            token = self._chooser.choose(logits)
        except PackageError:
            if are_numbers:  # what the form allows is what the model never says
                raise RequestError(
                    "the model suppresses every token that could come next in the form of the answer: change the form."
                ) from None
            raise
        if token != begin:
            self._constraint.accept(token)
        return token


def _described(form: AnswerFormat) -> tuple[str, str]:
    """What it is, and its text."""
    match form:
        case JsonSchema():
            return "JSON schema", form.text
        case Regex():
            return "regular expression", form.pattern
    return "grammar", form.rules


class _Spelled:
    """A vocabulary as llguidance's LLTokenizer asks for it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, stop_token: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = stop_token
        self.bos_token_id = None
        self.tokens = tokenizer.spell(vocabulary_size)
        self.special_token_ids = sorted(tokenizer.control_tokens)

    def __call__(self, text: str | bytes) -> list[int]:
        tokens = self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
        return [each for token in tokens for each in self._spelled(token)]

    def _spelled(self, token: int) -> list[int]:
        """Text that a form prescribes holds no control token, but may hold its letters."""
        if token not in self._tokenizer.control_tokens:
            return [token]
        return [each for letter in self._tokenizer.token_text(token) for each in self._tokenizer.encode(letter)]


def _reason(matcher: Any) -> str:
    """The first lines of what llguidance says, whose rest is its state."""
    message: str = matcher.get_error().partition("<state>")[0]
    return _on_one_line(message)[:300].rstrip(" .")


def _on_one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
