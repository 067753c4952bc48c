"""Lets a model call a function of yours: python examples/tools.py PACKAGE "What time is it in Tokyo?"."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from zoneinfo import ZoneInfo

import cabochon


def current_time(zone: str) -> str:
    """Tells date and time somewhere.

    Args:
        zone: IANA time zone, such as Asia/Tokyo.
    """
    return datetime.now(ZoneInfo(zone)).isoformat(timespec="minutes")


TOOLS = {tool.__name__: tool for tool in (current_time,)}


def carry_out(call: cabochon.ToolCall) -> str:
    """What a function answers, as JSON; the model is told of a mistake and may try again."""
    try:
        return json.dumps({"result": TOOLS[call.name](**call.arguments)})
    except (KeyError, TypeError, ValueError, OSError) as error:  # a model may make up names and values
        return json.dumps({"error": str(error)})


def answer_with_tools(model: cabochon.Model, question: str, most_rounds: int = 5) -> None:
    """Ask, carry out what is called for, give back the results, ask again."""
    messages = [cabochon.Message("user", model.quote(question))]  # what looks like a control token becomes none
    for _ in range(most_rounds):
        answer = model.chat(messages, tools=list(TOOLS.values()))
        for piece in answer:
            print(piece, end="", flush=True)
        if not answer.tool_calls:
            print()
            return
        messages.append(cabochon.Message("assistant", model.quote(answer.text), tool_calls=answer.tool_calls))
        for call in answer.tool_calls:
            print(f"calls {call.name} with {call.arguments}", file=sys.stderr)
            messages.append(cabochon.Message("tool", carry_out(call), tool_name=call.name))
    raise cabochon.RequestError(f"the model still calls functions after {most_rounds} rounds: ask for less.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", help="folder that cabochon-convert wrote")
    parser.add_argument("question")
    try:
        arguments = parser.parse_args()
        answer_with_tools(cabochon.load(arguments.package), arguments.question)
    except cabochon.CabochonError as error:  # one sentence: what was found, what was expected, what to do
        sys.exit(str(error))
