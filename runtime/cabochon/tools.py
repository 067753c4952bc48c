"""Functions that a model may ask for: how they are declared, and what a call of one is."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from cabochon.errors import RequestError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Of a function, as OpenAI's API allows it, and with dots."""
DEEPEST = 128
"""Objects and lists within each other."""
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ARGUMENT_LINE = re.compile(r"\s*(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask for."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """A JSON schema of an object, whose properties are the arguments; empty for a function without any."""
    response: Mapping[str, Any] | None = None
    """A JSON schema of what comes back, of which the published template shows description and type."""

    def __post_init__(self) -> None:
        _require_name(self.name)
        if not isinstance(self.description, str):
            raise RequestError(f"the description of the tool {self.name} is no text.")
        _require_schema(self.parameters, f"the parameters of the tool {self.name}")
        if self.response is not None:
            _require_json_object(self.response, f"the response of the tool {self.name}")

    @classmethod
    def of_json(cls, declaration: object) -> Tool:
        """From the shape of OpenAI's API: {"type": "function", "function": {"name": …, "parameters": …}}.

        Raises:
            RequestError: it has another shape.
        """
        function = declaration.get("function") if isinstance(declaration, Mapping) else None
        if not isinstance(declaration, Mapping) or declaration.get("type") != "function":
            function = None
        if not isinstance(function, Mapping):
            raise RequestError('a tool is declared as {"type": "function", "function": {"name": …}}.')
        return cls(
            name=function.get("name", ""),
            description=function.get("description") or "",
            parameters=function.get("parameters") or {},
            response=function.get("response"),
        )

    @classmethod
    def of_function(cls, function: Callable[..., object]) -> Tool:
        """From a Python function: its type hints, and its docstring with a section `Args:` as Google writes it.

        Hints may be str, int, float, bool, list, dict, Literal of texts, and any of these or None.

        Raises:
            RequestError: a parameter has another hint, or none.
        """
        hints = typing.get_type_hints(function)
        description, arguments = _read_docstring(inspect.getdoc(function) or "")
        properties: dict[str, Any] = {}
        required = []
        for name, parameter in inspect.signature(function).parameters.items():
            where = f"the parameter {name} of {function.__name__}"
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise RequestError(f"{where} is {parameter.kind.description}: a model gives arguments by name.")
            if name not in hints:
                raise RequestError(f"{where} has no type hint: add one.")
            properties[name] = _schema_of(hints[name], where)
            if name in arguments:
                properties[name]["description"] = arguments[name]
            if parameter.default is parameter.empty:
                required.append(name)
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if required:
            parameters["required"] = required
        return cls(function.__name__, description, parameters)

    def as_json(self) -> dict[str, Any]:
        """In the shape of OpenAI's API, which chat templates take as well."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        if self.parameters:
            function["parameters"] = self.parameters
        if self.response is not None:
            function["response"] = self.response
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model asks for a function."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    """JSON values by parameter."""

    def __post_init__(self) -> None:
        _require_name(self.name)
        _require_json_object(self.arguments, f"the arguments of the call of {self.name}")


CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one answer."""

    tools: tuple[Tool, ...]
    choice: str = "auto"
    """Whether the model may call one (`auto`), cannot (`none`), or must (`required`)."""
    only: str = ""
    """The one tool that must be called; empty: any."""

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if len(set(names)) != len(names):
            raise RequestError(f"several tools have one name ({', '.join(sorted(names))}): give each its own.")
        if self.choice not in CHOICES:
            raise RequestError(f"the tool choice is {self.choice!r}, expected one of {', '.join(CHOICES)}.")
        if self.choice == "required" and not names:
            raise RequestError("a tool call is required, but no tool was declared.")
        if self.only and self.only not in names:
            expected = ", ".join((*CHOICES, *names))
            raise RequestError(f"the tool choice is {self.only!r}, expected one of {expected}.")

    @classmethod
    def of(cls, tools: tuple[Tool, ...], choice: str) -> ToolUse:
        """From a choice that may be the name of a tool."""
        return cls(tools, choice) if choice in CHOICES else cls(tools, "required", choice)


def declare_tools(tools: Sequence[Tool | Callable[..., object] | Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools from declarations, Python functions or JSON in the shape of OpenAI's API."""
    return tuple(
        tool if isinstance(tool, Tool) else Tool.of_function(tool) if callable(tool) else Tool.of_json(tool)
        for tool in tools
    )


def too_deep(value: object, left: int = DEEPEST) -> bool:
    """Whether more than `DEEPEST` objects and lists stand within each other."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return left < 0 or any(too_deep(each, left - 1) for each in parts)


def _require_name(name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RequestError(f"a function has the name {name!r}, expected up to 64 letters, digits and _ . - .")


def _require_json_object(value: object, what: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{what} are a {type(value).__name__}: expected a JSON object.")
    if too_deep(value):
        raise RequestError(f"{what} have more than {DEEPEST} objects and lists within each other.")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what} are not JSON ({' '.join(str(error).split())}).") from None


def _require_schema(schema: object, what: str) -> None:
    """What chat templates take apart has to have its usual types; they fail without a word, or silently."""
    _require_json_object(schema, what)
    assert isinstance(schema, Mapping)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    sound = isinstance(properties, Mapping) and isinstance(required, list)
    if not sound or not all(isinstance(name, str) for name in required):
        raise RequestError(f"{what} are no JSON schema: expected properties as an object and required as a list.")
    for name, value in properties.items():
        if not isinstance(value, Mapping):
            raise RequestError(f"{what} say that {name} is {value!r}, expected a JSON schema.")
        _require_schema(value, what)
    choices = [each for name in ("anyOf", "oneOf") if isinstance(schema.get(name), list) for each in schema[name]]
    for each in (schema.get("items"), *choices):
        if isinstance(each, Mapping):
            _require_schema(each, what)


def _schema_of(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not types.NoneType]
        if len(kinds) == 1:
            return _schema_of(kinds[0], where) | {"nullable": True}
    elif origin is Literal and all(isinstance(argument, str) for argument in arguments):
        return {"type": "string", "enum": list(arguments)}
    elif hint is list or origin is list:
        return {"type": "array", **({"items": _schema_of(arguments[0], where)} if arguments else {})}
    elif hint is dict or origin is dict:
        return {"type": "object"}
    elif hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    raise RequestError(
        f"{where} has the type hint {hint}, expected str, int, float, bool, list, dict, Literal of texts, or one of "
        "these or None."
    )


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section, and the lines of `Args:` by parameter."""
    before, _, after = text.partition("\nArgs:\n")
    description = re.split(r"\n(?:Returns|Raises|Yields|Examples?|Notes?):\n", before)[0].strip()
    arguments: dict[str, str] = {}
    name = ""
    indent = len(after) - len(after.lstrip(" "))
    for line in after.splitlines():
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth < max(indent, 1):
            break
        if depth == indent and (found := _ARGUMENT_LINE.fullmatch(line)):
            name, arguments[found[1]] = found[1], found[2].strip()
        elif name and line.strip():
            arguments[name] = f"{arguments[name]} {line.strip()}".strip()
    return description, arguments
