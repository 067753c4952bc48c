"""Gemma 4's own notation for calls: what a model writes between `<|tool_call>` and `<tool_call|>`, as Python objects.

    <|tool_call>call:find{city:<|"|>Bonn<|"|>,days:2,exact:true,near:[1.5,None],size:{wide:1}}<tool_call|>

It is what the published chat template writes of a call. Texts stand between control tokens, so that nothing in them
needs an escape; that is why calls are read from tokens and not from text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cabochon.errors import RequestError
from cabochon.tokenizer import Tokenizer
from cabochon.tools import NAME, ToolCall

CALL_BEGINS, CALL_ENDS = "<|tool_call>", "<tool_call|>"
RESPONSE_BEGINS = "<|tool_response>"
"""What a model writes behind its calls, where an answer ends."""
TEXT_QUOTE = '<|"|>'
DEEPEST = 64
"""Objects and lists within each other."""
_HEAD = re.compile(rf"call:({NAME.pattern})\s*(?=\{{)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "None": None}  # the template writes None
_PART = re.compile(r"[{}\[\],:]|[^{}\[\],:]+")


class UnreadableCallError(ValueError):
    """What a model wrote is no call; the message is half a sentence."""


@dataclass(frozen=True, slots=True)
class _Text:
    """What stood between two quotes."""

    text: str


@dataclass(frozen=True, slots=True)
class CallTokens:
    """The control tokens that calls are written with."""

    begins: int
    ends: int
    quote: int
    response: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> CallTokens:
        """Those of a vocabulary.

        Raises:
            RequestError: it lacks one.
        """
        names = (CALL_BEGINS, CALL_ENDS, TEXT_QUOTE, RESPONSE_BEGINS)
        tokens = [tokenizer.control_token(name) for name in names]
        for name, token in zip(names, tokens, strict=True):
            if token is None:
                raise RequestError(f"the model's vocabulary has no token {name}, so that it cannot call tools.")
        return cls(*(token for token in tokens if token is not None))


class ToolCallReader:
    """Takes calls out of the tokens of an answer. What is no call that can be read stays text."""

    def __init__(self, tokenizer: Tokenizer, names: Sequence[str]) -> None:
        """Args: names: of the declared tools."""
        self._tokenizer = tokenizer
        self._tokens = CallTokens.of(tokenizer)
        self._names = frozenset(names)
        self._open: list[int] | None = None
        self.calls: list[ToolCall] = []
        """That were read, in their order."""
        self.problem = ""
        """One sentence about the last call that could not be read; empty when all could."""

    def take(self, token: int) -> str | None:
        """Add a token: None where it belongs to the text; else the text of a call that has ended unreadably, or
        nothing.
        """
        if self._open is None:
            if token != self._tokens.begins:
                return None
            self._open = []
            return ""
        if token != self._tokens.ends:
            self._open.append(token)
            return ""
        tokens, self._open = self._open, None
        try:
            call = parse_call(self._tokenizer, self._tokens, tokens)
            if call.name not in self._names:
                raise UnreadableCallError(f"no tool {call.name!r} was declared")
        except UnreadableCallError as error:
            return self._give_up(tokens, str(error), CALL_ENDS)
        self.calls.append(call)
        return ""

    def finish(self) -> str:
        """The text of a call that has not ended."""
        if self._open is None:
            return ""
        tokens, self._open = self._open, None
        return self._give_up(tokens, "it was cut off", "")

    def _give_up(self, tokens: list[int], reason: str, end: str) -> str:
        self.problem = f"the model wrote a tool call that cannot be read ({reason}): it was left in the text."
        return CALL_BEGINS + self._tokenizer.decode_with_control_tokens(tokens) + end


def parse_call(tokenizer: Tokenizer, control: CallTokens, tokens: Sequence[int]) -> ToolCall:
    """The call that stands between the tokens that begin and end it.

    Raises:
        UnreadableCallError: it is none.
    """
    parts = _parts(tokenizer, control, tokens)
    reader = _Arguments(parts[1])
    arguments = reader.object(0)
    reader.require_end()
    return ToolCall(parts[0], arguments)


def _parts(tokenizer: Tokenizer, control: CallTokens, tokens: Sequence[int]) -> tuple[str, list[str | _Text]]:
    """The name, and the rest in pieces: punctuation, words, and texts that were quoted."""
    segments: list[list[int]] = [[]]
    for token in tokens:
        if token == control.quote:
            segments.append([])
        elif token in tokenizer.control_tokens:
            raise UnreadableCallError(f"{tokenizer.token_text(token)} stands in it")
        else:
            segments[-1].append(token)
    if len(segments) % 2 == 0:
        raise UnreadableCallError("a text in it does not end")
    texts = [tokenizer.decode(segment) for segment in segments]
    head = _HEAD.match(texts[0].lstrip())
    if head is None:
        raise UnreadableCallError("it does not begin with call: and a name")
    texts[0] = texts[0].lstrip()[head.end() :]
    parts: list[str | _Text] = []
    for number, text in enumerate(texts):
        if number % 2:
            parts.append(_Text(text))
        else:
            parts += [part for each in _PART.findall(text) if (part := each.strip())]
    return head[1], parts


class _Arguments:
    """Reads pieces from left to right."""

    def __init__(self, parts: list[str | _Text]) -> None:
        self._parts = parts
        self._place = 0

    def object(self, depth: int) -> dict[str, Any]:
        self._expect("{")
        members: dict[str, Any] = {}
        if self._skip("}"):
            return members
        while True:
            key = self._next()
            name = key.text if isinstance(key, _Text) else key
            if isinstance(key, str) and key in "{}[],:":
                raise UnreadableCallError(f"{key} stands where a name was expected")
            if name in members:
                raise UnreadableCallError(f"{name[:40]!r} stands in it twice")
            self._expect(":")
            members[name] = self._value(depth + 1)
            if self._skip("}"):
                return members
            self._expect(",")

    def require_end(self) -> None:
        if self._place < len(self._parts):
            raise UnreadableCallError("something stands behind its arguments")

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise UnreadableCallError(f"more than {DEEPEST} objects and lists stand in each other")
        part = self._next()
        if isinstance(part, _Text):
            return part.text
        if part == "{":
            self._place -= 1
            return self.object(depth)
        if part == "[":
            return self._list(depth)
        if part in _WORDS:
            return _WORDS[part]
        if _NUMBER.fullmatch(part):
            return _number(part)
        raise UnreadableCallError(f"{part[:40]!r} is no value")

    def _list(self, depth: int) -> list[Any]:
        if self._skip("]"):
            return []
        items = []
        while True:
            items.append(self._value(depth + 1))
            if self._skip("]"):
                return items
            self._expect(",")

    def _next(self) -> str | _Text:
        if self._place >= len(self._parts):
            raise UnreadableCallError("its end is missing")
        self._place += 1
        return self._parts[self._place - 1]

    def _skip(self, sign: str) -> bool:
        found = self._place < len(self._parts) and self._parts[self._place] == sign
        self._place += found
        return found

    def _expect(self, sign: str) -> None:
        part = self._next()
        if part != sign:
            shown = part.text if isinstance(part, _Text) else part
            raise UnreadableCallError(f"{shown[:40]!r} stands where {sign} was expected")


def _number(text: str) -> int | float:
    try:
        number: int | float = json.loads(text)
    except ValueError:  # Python refuses integers of more than 4300 digits
        raise UnreadableCallError("a number in it is too long") from None
    if number in (float("inf"), float("-inf")):
        raise UnreadableCallError("a number in it is too large")
    return number
