"""How one answer is to be written: freely, in a form, or with tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cabochon.constrained_decoding import AnswerFormat, ConstrainedSampler, Constraint, GrammarReader
from cabochon.errors import RequestError
from cabochon.thinking import Thoughts, TokenChooser
from cabochon.tokenizer import Tokenizer
from cabochon.tool_calls import CallTokens, ToolCallReader
from cabochon.tool_grammar import grammar_of_calls
from cabochon.tools import Tool, ToolUse, declare_tools


@dataclass(frozen=True, slots=True)
class WrittenForm:
    """Of one answer, while it is written."""

    tools: tuple[Tool, ...] = ()
    """That stand in the prompt."""
    constraint: Constraint | None = None
    calls: ToolCallReader | None = None
    """Takes calls out of the text; None where they cannot be written."""
    suppressed: tuple[int, ...] = ()
    """Tokens that cannot be chosen."""
    stop_tokens: tuple[int, ...] = ()
    """Beside those of the checkpoint."""

    def keep_to(self, chooser: TokenChooser, thoughts: Thoughts | None = None) -> TokenChooser:
        """A chooser that does not leave the form, once thoughts that may come have ended."""
        return ConstrainedSampler(chooser, self.constraint, thoughts) if self.constraint else chooser

    def take(self, token: int) -> str | None:
        """What a token that belongs to a call leaves of it as text; None where it belongs to the text."""
        return self.calls.take(token) if self.calls else None

    @property
    def finished(self) -> bool:
        """Whether nothing can follow any more."""
        return self.constraint is not None and self.constraint.finished

    def finish(self) -> str:
        """The text of a call that was cut off."""
        return self.calls.finish() if self.calls else ""


FREE = WrittenForm()


class FormReader:
    """Reads what a call wants of the form of its answer."""

    def __init__(self, tokenizer: Tokenizer, grammars: GrammarReader) -> None:
        self._tokenizer, self._grammars = tokenizer, grammars

    def read(
        self,
        tools: Sequence[Tool | Callable[..., object] | Mapping[str, Any]],
        tool_choice: str,
        answer_format: AnswerFormat | None,
    ) -> WrittenForm:
        """The form of one answer.

        Raises:
            RequestError: it is impossible.
        """
        constraint = self._grammars.read(answer_format) if answer_format is not None else None
        if tool_choice in ("auto", "none") and not tools:
            return WrittenForm(constraint=constraint)
        use = ToolUse.of(declare_tools(tools), tool_choice)
        control = CallTokens.of(self._tokenizer)
        if use.choice == "none":
            return WrittenForm(use.tools, constraint, suppressed=(control.begins,))
        if constraint is not None:
            raise RequestError(
                "an answer in a form cannot call tools: ask for one of the two, or for the tool choice 'none'."
            )
        if use.choice == "required":
            constraint = self._grammars.read(grammar_of_calls(use.tools, only=use.only))
            constraint.stop_tokens.append(control.response)  # it ends answers, too, so thoughts may not hold it
        calls = ToolCallReader(self._tokenizer, [tool.name for tool in use.tools])
        return WrittenForm(use.tools, constraint, calls, stop_tokens=(control.response,))
