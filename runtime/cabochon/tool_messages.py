"""Calls and what came back from them, as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cabochon.errors import RequestError
from cabochon.tools import Tool, ToolCall, too_deep


def join_tool_turns(messages: Sequence[dict[str, Any]], quote: Callable[[str], str]) -> list[dict[str, Any]]:
    """Messages of the role `tool` become `tool_responses` of the turn that called, and the answer its content.

    Gemma 4 was trained on one turn with calls, what came back, and the answer; the published template writes calls
    before content, so text that preceded a call is a turn of its own. Nothing that came back becomes a control token.

    Raises:
        RequestError: something came back that nobody called.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        last = turns[-1] if turns else {}
        if message["role"] == "tool":
            if not last.get("tool_calls") or last.get("content"):
                raise RequestError("a message of a tool follows no call: put the assistant's message before it.")
            # Quoted after it was read: JSON has escapes.
            response = {"name": message["name"], "response": quote_all(response_value(message["content"]), quote)}
            last.setdefault("tool_responses", []).append(response)
        elif message["role"] == "assistant" and message.get("tool_calls"):
            if message["content"]:
                turns.append({"role": "assistant", "content": message["content"]})
            turns.append({"role": "assistant", "tool_calls": message["tool_calls"]})
        elif message["role"] == "assistant" and last.get("tool_responses") and not last.get("content"):
            last["content"] = message["content"]
        else:
            turns.append(message)
    return turns


def response_value(text: Any) -> Any:
    """What came back, as a value: JSON but for a text becomes what it stands for, everything else stays text."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, TypeError, RecursionError):
        return text
    return text if isinstance(value, str) or too_deep(value) else value


def template_calls(calls: Sequence[ToolCall], quote: Callable[[str], str]) -> list[dict[str, Any]]:
    """Calls for the template; nothing in them becomes a control token."""
    return [
        {"type": "function", "function": {"name": call.name, "arguments": quote_all(call.arguments, quote)}}
        for call in calls
    ]


def template_tools(tools: Sequence[Tool], quote: Callable[[str], str]) -> list[dict[str, Any]]:
    """Declarations for the template; nothing in them becomes a control token."""
    return [quote_all(tool.as_json(), quote) for tool in tools]


def quote_all(value: Any, quote: Callable[[str], str]) -> Any:
    """A JSON value whose texts, names included, hold no control token."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, Mapping):
        return {quote(name): quote_all(each, quote) for name, each in value.items()}
    if isinstance(value, Sequence):
        return [quote_all(each, quote) for each in value]
    return value


def _refuse_constant(name: str) -> None:
    """NaN and infinities are no JSON."""
    raise ValueError(name)
