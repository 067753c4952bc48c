"""Thoughts over HTTP: how long they may be, and where they stand in an answer.

OpenAI's API asks for them (`reasoning_effort`) and counts them, but keeps them to itself. `reasoning_content` is where
DeepSeek, vLLM and llama.cpp give them: https://api-docs.deepseek.com/guides/reasoning_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cabochon.answer import Answer

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high"]

LONGEST_THOUGHTS: dict[ReasoningEffort, int] = {"minimal": 64, "low": 256, "medium": 1024}
"""Tokens; the model ends those of `high` itself."""


def thinking(effort: ReasoningEffort | None) -> bool | int:
    """As `Model.chat` takes it."""
    if effort is None or effort == "none":
        return False
    return LONGEST_THOUGHTS.get(effort, True)


@dataclass(frozen=True, slots=True)
class ThoughtPiece:
    """Thoughts as they come."""

    text: str

    def delta(self) -> dict[str, Any]:
        """As an event of a stream."""
        return {"role": "assistant", "reasoning_content": self.text}


def count_usage(answer: Answer) -> dict[str, Any]:
    """What an answer took, in OpenAI's shape: tokens of thoughts are among those of the completion."""
    statistics = answer.statistics
    tokens = statistics.prompt_positions, statistics.new_tokens
    return {
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "total_tokens": sum(tokens),
        "completion_tokens_details": {"reasoning_tokens": answer.thought.count if answer.thought else 0},
    }
