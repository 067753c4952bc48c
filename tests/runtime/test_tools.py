from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from transformers.utils import get_json_schema

from cabochon.errors import RequestError
from cabochon.tools import Tool, ToolCall, ToolUse, declare_tools


def find(city: str, days: int = 1, near: list[float] | None = None, unit: Literal["km", "mi"] = "km") -> str:
    """Finds a room.

    It asks nobody.

    Args:
        city: Where it is,
            or near where.
        days: For how long.
        near: Places.
        unit: Of length.

    Returns:
        A sentence.
    """
    return f"{city} {days} {near} {unit}"


def switch(on: bool, level: float, options: dict) -> None:
    """Switches the light.

    Args:
        on: Or off.
        level: How bright.
        options: Whatever else.
    """
    del on, level, options


def now() -> str:
    """Says what time it is."""
    return ""


def test_a_function_is_declared_by_its_signature_and_docstring() -> None:
    tool = Tool.of_function(find)
    assert (tool.name, tool.description) == ("find", "Finds a room.\n\nIt asks nobody.")
    assert tool.parameters["required"] == ["city"]
    assert tool.parameters["properties"] == {
        "city": {"type": "string", "description": "Where it is, or near where."},
        "days": {"type": "integer", "description": "For how long."},
        "near": {"type": "array", "items": {"type": "number"}, "nullable": True, "description": "Places."},
        "unit": {"type": "string", "enum": ["km", "mi"], "description": "Of length."},
    }


@pytest.mark.parametrize("function", [switch, now])
def test_a_function_is_declared_as_transformers_declares_it(function: Any) -> None:
    expected = get_json_schema(function)
    del expected["function"]["return"]  # which no template shows
    assert Tool.of_function(function).as_json() == expected


def test_what_cannot_be_called_by_name_or_has_no_known_type_is_refused() -> None:
    def untyped(a): ...  # type: ignore[no-untyped-def]
    def strange(a: bytes) -> None: ...
    def several(*names: str) -> None: ...
    def either(a: int | str) -> None: ...

    for function, word in ((untyped, "hint"), (strange, "bytes"), (several, "variadic"), (either, "hint")):
        with refused(RequestError, "parameter", word):
            Tool.of_function(function)


def test_tools_are_taken_in_every_shape() -> None:
    tool = Tool("go", "Goes.", {"type": "object", "properties": {}})
    assert [each.name for each in declare_tools([tool, now, tool.as_json()])] == ["go", "now", "go"]
    assert Tool.of_json(tool.as_json()) == tool


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
SHAPES = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": JSON | st.just("a"), "parameters": JSON})}
)


@given(JSON | SHAPES)
def test_whatever_is_declared_is_taken_or_refused_in_one_sentence(declaration: object) -> None:
    try:
        tool = Tool.of_json(declaration)
    except RequestError as error:
        sentence = str(error)
    else:
        sentence = json.dumps(tool.as_json(), allow_nan=False)
    assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "<|turn>", "a{", None, 3])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with refused(RequestError, "name"):
        Tool(name)
    with refused(RequestError, "name"):
        ToolCall(name)


def test_what_is_too_deep_or_wrong_within_a_choice_is_refused_in_one_sentence() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    with refused(RequestError, "within each other"):
        Tool("go", parameters=deep)
    for wrong in ({"type": "object", "properties": [1]}, {"type": "object", "required": 5}):
        with refused(RequestError, "parameters"):
            Tool("go", parameters={"type": "object", "properties": {"a": {"anyOf": [wrong]}}})


def test_impossible_choices_are_refused() -> None:
    tools = (Tool("go"), Tool("stop"))
    assert ToolUse.of(tools, "go") == ToolUse(tools, "required", "go")
    with refused(RequestError, "fly", "go, stop"):
        ToolUse.of(tools, "fly")
    with refused(RequestError, "no tool"):
        ToolUse.of((), "required")
    with refused(RequestError, "one name"):
        ToolUse.of((Tool("go"), Tool("go")), "auto")
