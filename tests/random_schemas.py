"""JSON schemas of all kinds that are kept to, in which every value is of bounded length."""

from __future__ import annotations

import random
from typing import Any

LETTERS = 'abcXYZ_ -é你😀"\\/\n{}[]:,'
FORMATS = ("date", "time", "date-time", "ipv4", "uuid")
PATTERNS = (r"^[a-z]{1,5}$", r"^\d{3}-\d{4}$", r"^(yes|no|maybe)$", r"^[äöü]{2,4}!$", r"^#[0-9a-fA-F]{6}$")


def random_schema(seed: int) -> dict[str, Any]:
    """The schema of that number."""
    return _Schemas(random.Random(seed)).draw(3)


class _Schemas:
    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._definitions: dict[str, Any] = {}

    def draw(self, depth: int) -> dict[str, Any]:
        schema = self._any(depth)
        return schema | ({"$defs": self._definitions} if self._definitions else {})

    def _any(self, depth: int) -> dict[str, Any]:
        leaves = (self._text, self._integer, self._number, self._constant, self._enumeration, self._simple)
        nests = (self._object, self._object, self._array, self._tuple, self._choice, self._reference)
        return self._random.choice(leaves if depth == 0 or self._random.random() < 0.25 else nests)(depth - 1)

    def _word(self) -> str:
        return "".join(self._random.choices(LETTERS, k=self._random.randint(1, 6)))

    def _value(self) -> Any:
        number = self._random.randint(-999, 999)
        return self._random.choice([self._word(), number, number / 8, True, False, None, [number], {self._word(): "x"}])

    def _text(self, _: int) -> dict[str, Any]:
        kind = self._random.randrange(3)
        if kind == 0:
            return {"type": "string", "format": self._random.choice(FORMATS)}
        if kind == 1:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)}
        least = self._random.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + self._random.randint(0, 12)}

    def _integer(self, _: int) -> dict[str, Any]:
        least = self._random.randint(-1000, 1000)
        schema = {"type": "integer", "minimum": least, "maximum": least + self._random.randint(10, 5000)}
        return schema | ({"multipleOf": self._random.randint(1, 5)} if self._random.random() < 0.3 else {})

    def _number(self, _: int) -> dict[str, Any]:
        least = self._random.randint(-100, 100)
        bounds = ("minimum", "maximum") if self._random.random() < 0.5 else ("exclusiveMinimum", "exclusiveMaximum")
        return {"type": "number", bounds[0]: least, bounds[1]: least + self._random.randint(1, 50) + 0.5}

    def _constant(self, _: int) -> dict[str, Any]:
        return {"const": self._value()}

    def _enumeration(self, _: int) -> dict[str, Any]:
        return {"enum": [self._value() for _ in range(self._random.randint(1, 5))]}

    def _simple(self, _: int) -> dict[str, Any]:
        return {"type": self._random.choice(["boolean", "null", ["boolean", "null"]]), "description": self._word()}

    def _object(self, depth: int) -> dict[str, Any]:
        names = sorted({self._word() for _ in range(self._random.randint(0, 4))})
        properties = {name: self._any(depth) for name in names}
        required = [name for name in names if self._random.random() < 0.6]
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        return schema | ({"required": required} if required else {})

    def _array(self, depth: int) -> dict[str, Any]:
        least = self._random.randint(0, 2)
        return {"type": "array", "items": self._any(depth), "minItems": least, "maxItems": least + 2}

    def _tuple(self, depth: int) -> dict[str, Any]:
        items = [self._any(depth) for _ in range(self._random.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}

    def _choice(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(1, 3))]}

    def _reference(self, depth: int) -> dict[str, Any]:
        name = f"part{len(self._definitions)}"
        self._definitions[name] = {}
        self._definitions[name] = self._any(depth)
        return {"$ref": f"#/$defs/{name}"}
