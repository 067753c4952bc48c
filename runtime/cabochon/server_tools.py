"""Tools and forms of answers in the shapes of OpenAI's API."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cabochon.answer import Answer
from cabochon.constrained_decoding import JSON_OBJECT, AnswerFormat, JsonSchema
from cabochon.errors import RequestError
from cabochon.tools import CHOICES, Tool, ToolCall

MAX_TOOLS = 128


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class FunctionDeclaration(_Shape):
    """A function that the model may ask for."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolDeclaration(_Shape):
    """A tool; functions are all that there is."""

    type: Literal["function"]
    function: FunctionDeclaration

    def tool(self) -> Tool:
        """As the model takes it."""
        function = self.function
        return Tool(function.name, function.description or "", function.parameters or {})


class ChosenName(_Shape):
    """Of a function."""

    name: str


class ChosenTool(_Shape):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: ChosenName


class CalledFunction(_Shape):
    """A function with what it was called with."""

    name: str = Field(min_length=1, max_length=64)
    arguments: str = "{}"


class GivenToolCall(_Shape):
    """A call of an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def call(self) -> ToolCall:
        """As the model takes it.

        Raises:
            RequestError: its arguments are no JSON object.
        """
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise RequestError(f"the arguments of the tool call {self.id!r} are not a JSON object.")
        return ToolCall(self.function.name, arguments)


class TextFormat(_Shape):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(_Shape):
    """Some JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Shape):
    """A JSON schema."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, populate_by_name=True)

    name: str = ""
    given: dict[str, Any] = Field(alias="schema")


class JsonSchemaFormat(_Shape):
    """JSON that a schema allows, whether `strict` or not."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
ChoiceOfTools = Literal["none", "auto", "required"] | ChosenTool


def answer_format(wanted: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> AnswerFormat | None:
    """What the answer keeps to; None for free text."""
    match wanted:
        case JsonObjectFormat():
            return JSON_OBJECT
        case JsonSchemaFormat():
            return JsonSchema(wanted.json_schema.given)
    return None


def tool_choice(wanted: Literal["none", "auto", "required"] | ChosenTool | None, tools: list[ToolDeclaration]) -> str:
    """As `Model.chat` takes it."""
    if isinstance(wanted, ChosenTool):
        if wanted.function.name not in [tool.function.name for tool in tools]:
            raise RequestError(f"tool_choice names {wanted.function.name!r}, expected one of the tools.")
        if wanted.function.name in CHOICES:
            raise RequestError(f"a tool called {wanted.function.name!r} cannot be chosen by its name: rename it.")
        return wanted.function.name
    return wanted or "auto"


@dataclass(frozen=True, slots=True)
class NumberedCall:
    """A call of an answer as it is given back."""

    number: int
    call: ToolCall
    identity: str

    def content(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        arguments = json.dumps(self.call.arguments, ensure_ascii=False)
        return {
            "id": self.identity,
            "type": "function",
            "function": {"name": self.call.name, "arguments": arguments},
        }

    def delta(self) -> dict[str, Any]:
        """As an event of a stream, whole."""
        return {"role": "assistant", "tool_calls": [{"index": self.number} | self.content()]}


def number_calls(answer: Answer, given: int) -> list[NumberedCall]:
    """The calls of an answer that came after those that were given."""
    calls = answer.tool_calls[given:]
    return [NumberedCall(given + number, call, f"call_{uuid.uuid4().hex}") for number, call in enumerate(calls)]


def finish_reason(answer: Answer) -> str:
    """Why an answer has ended."""
    if not answer.statistics.complete:
        return "length"
    return "tool_calls" if answer.tool_calls else "stop"
