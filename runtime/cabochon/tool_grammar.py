"""A grammar for tool calls, so that a model which must call a function can write nothing else.

Names, types, enumerations and required properties are enforced, in the order in which the published template writes
them. Bounds, patterns and references are not: whoever runs a function checks its arguments anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cabochon.constrained_decoding import Grammar
from cabochon.tool_calls import CALL_BEGINS, CALL_ENDS, TEXT_QUOTE
from cabochon.tools import Tool

_COMMON = f"""
text: {TEXT_QUOTE} TEXT? {TEXT_QUOTE}
TEXT: /(?s:.)+/
integer: /-?(0|[1-9][0-9]{{0,17}})/
number: /-?(0|[1-9][0-9]{{0,17}})(\\.[0-9]{{1,22}})?(e(\\+?[0-9]{{1,2}}|-[0-9]{{1,3}}))?/
boolean: "true" | "false"
nothing: "None" | "null"
anything: text | number | boolean | nothing | list | object
list: "[" (anything ("," anything)*)? "]"
object: "{{" (NAME ":" anything ("," NAME ":" anything)*)? "}}"
NAME: /[A-Za-z_][A-Za-z0-9_]*/
"""
_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean", "null": "nothing"}
DEEPEST = 32
"""Objects and lists of a schema within each other; below, any value may stand."""


def grammar_of_calls(tools: Sequence[Tool], *, only: str = "") -> Grammar:
    """One call of one tool, or one call and further ones of any.

    Args:
        only: the name of that tool; empty: any.
    """
    rules = _Rules()
    calls = []
    for tool in tools:
        if only in ("", tool.name):
            arguments = rules.struct(tool.parameters, 0)
            calls.append(f"{_literal(f'call:{tool.name}')} {arguments}")
    call = f"{CALL_BEGINS} ({' | '.join(calls)}) {CALL_ENDS}"
    start = "start: call" if only else "start: call+"
    return Grammar("\n".join([start, f"call: {call}", *rules.written]) + _COMMON)


class _Rules:
    """Rules with numbers for names."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def struct(self, schema: Mapping[str, Any], depth: int) -> str:
        """The name of a rule for an object with these properties, from the last to the first."""
        required = schema.get("required") or []
        # As Jinja's dictsort does.
        properties = sorted((schema.get("properties") or {}).items(), key=lambda item: item[0].lower())
        first = later = self._add('"}"')
        for name, value in reversed(properties):
            member = f"{_literal(f'{name}:')} {self.value(value, depth + 1)}"
            begun, going_on = f"{member} {later}", f'"," {member} {later}'
            if name not in required:
                begun, going_on = f"{begun} | {first}", f"{going_on} | {later}"
            first, later = self._add(begun), self._add(going_on)
        return self._add(f'"{{" {first}')

    def value(self, schema: Any, depth: int) -> str:
        """The name of a rule for a value."""
        if not isinstance(schema, Mapping) or depth > DEEPEST:
            return "anything"
        options = [self._option(kind, schema, depth) for kind in _kinds(schema)]
        if "enum" in schema or "const" in schema:
            values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
            options = [_written(value) for value in values] or ["anything"]
        elif not options and isinstance(schema.get("anyOf") or schema.get("oneOf"), list):
            options = [self.value(each, depth + 1) for each in schema.get("anyOf") or schema["oneOf"]]
        if schema.get("nullable"):
            options.append("nothing")
        return self._add(" | ".join(options)) if options else "anything"

    def _option(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "array":
            item = self.value(schema.get("items"), depth + 1)
            return self._add(f'"[" ({item} ("," {item})*)? "]"')
        if kind == "object":
            return self.struct(schema, depth) if schema.get("properties") else "object"
        return _TYPES.get(kind, "anything")

    def _add(self, rule: str) -> str:
        name = f"rule_{len(self.written)}"
        self.written.append(f"{name}: {rule}")
        return name


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kinds = schema.get("type")
    return [str(kind).lower() for kind in (kinds if isinstance(kinds, list) else [kinds] if kinds else [])]


def _written(value: Any) -> str:
    """A value as the template writes it."""
    if isinstance(value, str):
        return f"{TEXT_QUOTE} {_literal(value)} {TEXT_QUOTE}" if value else f"{TEXT_QUOTE} {TEXT_QUOTE}"
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list):
        return "object" if isinstance(value, Mapping) else "list"
    return _literal(json.dumps(value))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
