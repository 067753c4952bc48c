"""Strict reading of JSON into frozen dataclasses: no missing key, no unknown key, no value of another type.

A key whose field has a default may be left out.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

Record = TypeVar("Record")

NOT_IN_JSON = {"json": False}
"""Metadata of a field with a default, which JSON does not hold."""


class JsonMismatchError(ValueError):
    """A JSON value that does not fit the dataclass; the message names the place, e.g. `audio.log_mel.hop_length`."""


def from_json(record_type: type[Record], value: Any) -> Record:
    """Build a dataclass from decoded JSON.

    Understands dataclasses, str, bool, int, float, unions of them with None, `tuple[X, ...]`, `dict[str, X]` and Any.

    Raises:
        JsonMismatchError: the first place where value and dataclass disagree.
    """
    result: Record = _convert(record_type, value, "")
    return result


def _convert(expected: Any, value: Any, place: str) -> Any:
    if expected is Any:
        return value
    if is_dataclass(expected) and isinstance(expected, type):
        return _record(expected, value, place)
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(expected), value, place)
    if origin is tuple:
        return _tuple(typing.get_args(expected)[0], value, place)
    if origin is dict:
        return _dict(typing.get_args(expected)[1], value, place)
    return _scalar(expected, value, place)


def _record(expected: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise JsonMismatchError(f"{place or 'the top level'} is {_kind(value)}, expected an object")
    types_by_name = typing.get_type_hints(expected)
    known = [field for field in fields(expected) if field.metadata.get("json", True)]
    names = [field.name for field in known]
    optional = {field.name for field in known if field.default is not MISSING}
    for name in value:
        if name not in names:
            raise JsonMismatchError(f"unknown key {_join(place, str(name))}")
    for name in names:
        if name not in value and name not in optional:
            raise JsonMismatchError(f"missing key {_join(place, name)}")
    arguments = {
        name: _convert(types_by_name[name], value[name], _join(place, name)) for name in names if name in value
    }
    try:
        return expected(**arguments)
    except JsonMismatchError:
        raise
    except ValueError as error:
        raise JsonMismatchError(f"{place}: {error}" if place else str(error)) from None


def _union(options: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in options:
        return None
    mismatch = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, place)
        except JsonMismatchError as error:
            mismatch = error
    raise mismatch or JsonMismatchError(f"{place} is {_kind(value)}")


def _tuple(item_type: Any, value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise JsonMismatchError(f"{place} is {_kind(value)}, expected a list")
    return tuple(_convert(item_type, item, f"{place}[{index}]") for index, item in enumerate(value))


def _dict(item_type: Any, value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JsonMismatchError(f"{place} is {_kind(value)}, expected an object")
    return {str(key): _convert(item_type, item, _join(place, str(key))) for key, item in value.items()}


def _scalar(expected: Any, value: Any, place: str) -> Any:
    if expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise JsonMismatchError(f"{place} is not a finite number")
        return number
    # bool is a subclass of int in Python but not in JSON.
    if isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    raise JsonMismatchError(f"{place} is {_kind(value)}, expected {expected.__name__}")


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
