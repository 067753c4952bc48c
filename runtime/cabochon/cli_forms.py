"""The form of an answer on the command line: a JSON schema, a pattern, or tools. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cabochon.answer import Answer
from cabochon.constrained_decoding import AnswerFormat, JsonSchema, Regex
from cabochon.errors import RequestError
from cabochon.tools import Tool, declare_tools


def add_form_arguments(parser: argparse.ArgumentParser) -> None:
    """Which form; one at most."""
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json-schema", metavar="FILE", help="the answer is JSON that the schema in this file allows")
    forms.add_argument("--regex", metavar="PATTERN", help="the whole answer matches this regular expression")
    forms.add_argument(
        "--tools", metavar="FILE", help="functions that the model may ask for: a JSON list in the shape of OpenAI's API"
    )


def read_answer_format(arguments: argparse.Namespace) -> AnswerFormat | None:
    """What the answer keeps to.

    Raises:
        RequestError: the file holds no JSON object.
    """
    if arguments.regex is not None:
        return Regex(arguments.regex)
    return JsonSchema(_read_json(arguments.json_schema)) if arguments.json_schema else None


def read_tools(arguments: argparse.Namespace) -> tuple[Tool, ...]:
    """What the model may ask for.

    Raises:
        RequestError: the file holds no list of tools.
    """
    if not arguments.tools:
        return ()
    declarations = _read_json(arguments.tools)
    if not isinstance(declarations, list):
        raise RequestError(f"{arguments.tools} holds no JSON list of tools.")
    return declare_tools(declarations)


def print_tool_calls(answer: Answer) -> None:
    """Calls, one a line in JSON, and what became of one that could not be read."""
    for call in answer.tool_calls:
        print(json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False), flush=True)
    if answer.tool_call_problem:
        print(f"note: {answer.tool_call_problem}", file=sys.stderr)


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({' '.join(str(error).split())}).") from None
