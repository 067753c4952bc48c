"""Jinja templates from strangers, run within bounds: what they make, and how long they take, is counted meanwhile.

Jinja's sandbox keeps a template from Python's inside, not from filling the memory with `'a' * 10 ** 10` or from loops
that never end (https://jinja.palletsprojects.com/en/stable/sandbox/#security-considerations). Here every turn of a
loop, call, operation and output is paid for with what it makes, beforehand where that could be far more than what it is
made of; what cannot be reckoned is not there. Chat templates need a thousandth of what they are given.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import Any

from cabochon.errors import missing_dependency

try:
    from jinja2 import nodes, pass_context
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
except ImportError:
    raise missing_dependency("jinja2", "onnx") from None

LONGEST_TEMPLATE = 500_000
"""Characters; the published one has 12,000."""
LEAST_WORK = 1_000_000
"""Characters, items and turns that any template may make."""
WORK_PER_INPUT = 200
"""That it may make besides, for each character and item that it is given."""
LEAST_SECONDS, SECONDS_PER_INPUT, MOST_SECONDS = 5.0, 1e-4, 60.0
"""Of a processor, however little is made: for any input, for each character and item of it besides, and at most. A
list of 30,000 integers takes the published template 0.7 s here, and ten times as long on a Raspberry Pi."""
_LARGEST_BITS = 1024
"""Of an integer that is calculated with."""

FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
    "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
"""Of Jinja's those whose work can be reckoned."""
METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
        "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join",
        "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
        "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title",
        "upper",
    )),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}  # fmt: skip
"""By type, what templates may call of a value."""
_WIDE = re.compile(r"[0-9]{4}|\*")
_CONTAINERS = (list, tuple, set, frozenset)
# Names of filters that no template can spell.
_PAY, _MADE, _JOINED = "pay for a turn", "pay for a value", "join texts"
_REPEATED: tuple[Any, ...] = (
    nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Block, nodes.AssignBlock,
)  # fmt: skip


class TooMuchWorkError(Exception):
    """The template makes more, or takes longer, than it may."""


class _Bounds:
    """What is left of the work that one run may do."""

    def __init__(self, given: int) -> None:
        """Args: given: characters and items."""
        self.left = LEAST_WORK + WORK_PER_INPUT * given
        self._ends = time.thread_time() + min(LEAST_SECONDS + SECONDS_PER_INPUT * given, MOST_SECONDS)

    def pay(self, count: int) -> None:
        self.left -= count + 1
        if self.left < 0 or time.thread_time() > self._ends:
            raise TooMuchWorkError("it does far more than a chat template has to")


_RUNNING: ContextVar[_Bounds | None] = ContextVar("running", default=None)


def _pay(count: int) -> None:
    """While a template is read nothing runs, but for constants that are reckoned then."""
    bounds = _RUNNING.get()
    if bounds is not None:
        bounds.pay(count)
    elif count > LEAST_WORK:
        raise TooMuchWorkError("it holds a constant that is far too large")


def _measure(value: Any, most: int) -> int:
    """Characters and items of a value if it were written out, or a number above `most`."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        each = waiting.pop()
        total += 1
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, _CONTAINERS):
            total += len(each)
            waiting.extend(each if len(each) <= most - total else ())
        elif isinstance(each, Mapping):
            total += len(each)
            for pair in each.items() if len(each) <= most - total else ():
                waiting.extend(pair)
        elif isinstance(each, int):
            total += each.bit_length() // 8
    return total


def _left() -> int:
    bounds = _RUNNING.get()
    return bounds.left if bounds is not None else LEAST_WORK


def _made(value: Any) -> Any:
    """Pay for a value; what was held twice in it costs twice, for so it would be written."""
    _pay(_measure(value, _left()))
    return value


def _pay_for_joined(separator: str, parts: Iterable[Any]) -> list[Any]:
    """The parts as a list, whose text was paid for."""
    listed = list(parts)
    _pay(_measure(listed, _left()) + len(separator) * len(listed))
    return listed


def _refuse_replacement(text: str, old: str, new: str) -> None:
    _pay(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _pay_for_formatted(text: str, given: Any, sign: str) -> None:
    """Each place may be filled with all that is given."""
    if _WIDE.search(text):
        raise SecurityError("a text is to be formatted with a width of thousands")
    _pay(len(text) + text.count(sign) * _measure(given, _left()))


def _check_arguments(name: str, subject: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Pay in advance for what a filter or a method of a text could blow up."""
    given = [*arguments, *named.values()]
    match name:
        case "replace" if len(given) >= 2:
            _refuse_replacement(str(subject), str(given[0]), str(given[1]))
        case "format":
            _pay_for_formatted(str(subject), given, "%")
        case "sum" if any(isinstance(each, _CONTAINERS) for each in given):
            raise SecurityError("it sums up lists")
        case "indent" | "round" | "tojson" | "truncate":
            widths = [abs(each) if isinstance(each, int) else len(str(each)) for each in given]
            _pay(max(widths, default=0) * (_measure(subject, _left()) + 1 if name in ("indent", "tojson") else 1))


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose work is paid for."""
    # Jinja marks those that are given more than the value.
    place = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    def run(*arguments: Any, **named: Any) -> Any:
        subject, rest = arguments[place], arguments[place + 1 :]
        if name != "join":
            _check_arguments(name, subject, rest, named)
            return _made(function(*arguments, **named))
        if named.get("attribute") is None and len(rest) < 2:
            subject = _pay_for_joined(str([*rest, *named.values(), ""][0]), subject)
            return function(*arguments[:place], subject, *rest, **named)
        raise SecurityError("texts are joined by an attribute: map them first")

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(run, mark, getattr(function, mark))
    return run


def _paid_test(test: Any) -> Callable[..., bool]:
    """A test that takes its time, which `select` runs without any turn of a loop."""

    def run(*arguments: Any, **named: Any) -> bool:
        _pay(1)
        return bool(test(*arguments, **named))

    if hasattr(test, "jinja_pass_arg"):
        run.jinja_pass_arg = test.jinja_pass_arg  # type: ignore[attr-defined]
    return run


@pass_context
def _pay_for_turn(_: Any, cost: int) -> bool:
    _pay(cost)
    return True


@pass_context
def _pay_for_value(_: Any, value: Any) -> Any:
    return _made(value)


@pass_context
def _join_texts(_: Any, parts: list[Any]) -> str:
    return "".join(map(str, _pay_for_joined("", parts)))


class _PlainNamespace(Namespace):
    """Does not write out what it holds, which may hold other ones many times over."""

    def __repr__(self) -> str:
        return "<Namespace>"


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Reads and runs templates; see `run_template`."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_pay_for_value)
        self.filters = {name: _bounded(name, self.filters[name]) for name in FILTERS}
        self.filters |= {_PAY: _pay_for_turn, _MADE: _pay_for_value, _JOINED: _join_texts}
        self.tests = {name: _paid_test(test) for name, test in self.tests.items()}
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": _PlainNamespace}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """See SandboxedEnvironment.call_binop; what could be large is paid for before it is made."""
        for each in (left, right):
            if isinstance(each, int) and each.bit_length() > _LARGEST_BITS:
                raise SecurityError("it calculates with numbers of hundreds of digits")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _pay(left.bit_length() * max(right, 0))
        elif operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            count, repeated = (left, right) if isinstance(left, int) else (right, left)
            _pay(max(count if isinstance(count, int) else 0, 0) * _measure(repeated, _left()))
        elif operator == "%" and isinstance(left, str):
            _pay_for_formatted(left, right, "%")
        elif operator == "+":
            _pay(_measure(left, _left()) + _measure(right, _left()))
        return _made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:
        """See SandboxedEnvironment.call; arguments and results are paid for."""
        _made((arguments, named))
        owner = getattr(obj, "__self__", None) if isinstance(obj, BuiltinMethodType) else None
        for kind, known in METHODS.items():
            if isinstance(owner, kind):
                if obj.__name__ not in known:
                    raise SecurityError(f"it calls {obj.__name__} of a {kind.__name__}")
                if kind is str and obj.__name__ == "join" and arguments:
                    arguments = (_pay_for_joined(str(owner), arguments[0]), *arguments[1:])
                elif kind is str and obj.__name__ == "format":
                    _pay_for_formatted(str(owner), [arguments, named], "{")
                elif kind is str:
                    _check_arguments(obj.__name__, owner, arguments, named)
                break
        else:
            if isinstance(owner, int | float | bytes):
                raise SecurityError(f"it calls a method of a {type(owner).__name__}")
        return _made(super().call(context, obj, *arguments, **named))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See SandboxedEnvironment.wrap_str_format; widths may be given to it as values, so there may be none."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and (value.__name__ != "format" or ":" in value.__self__):
            raise SecurityError("it formats a text with widths")
        return wrapped

    def read(self, source: str) -> Any:
        """A template, with what it repeats made to pay.

        Raises:
            Exception: of any kind, because templates are programs from elsewhere.
        """
        if len(source) > LONGEST_TEMPLATE:
            raise TooMuchWorkError(f"it has {len(source)} characters, expected at most {LONGEST_TEMPLATE}")
        tree = self.parse(source)
        _add_payments(tree)
        tree.set_environment(self)  # of what was put in
        return self.from_string(tree)


def run_template(template: Any, values: Mapping[str, Any]) -> str:
    """What a template that `BoundedEnvironment.read` has read makes of some values.

    Raises:
        TooMuchWorkError: far more than a template has to make of them.
        Exception: of any other kind.
    """
    most = 1 << 40
    token = _RUNNING.set(_Bounds(_measure(dict(values), most)))
    try:
        text: str = template.render(values)
        return text
    finally:
        _RUNNING.reset(token)


def _add_payments(tree: nodes.Template) -> None:
    """Loops, macros and blocks pay at their beginning for themselves and the plain text in them; values that are put
    together are paid for when they are.
    """
    _wrap_values(tree)
    for kind in _REPEATED:
        for node in tree.find_all(kind):
            cost = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
            node.body.insert(0, nodes.ExprStmt(_paying(cost), lineno=node.lineno))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(_paying(1), node.test, lineno=node.lineno)


def _paying(cost: int) -> nodes.Filter:
    return _filtered(nodes.Const(cost), _PAY)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=1)


def _wrap_values(node: nodes.Node) -> None:
    """Put what pays around every list, dictionary, slice and text that is put together below a node."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_wrapped(each) for each in value]
        elif isinstance(value, nodes.Node):
            setattr(node, name, _wrapped(value))


def _wrapped(node: Any) -> Any:
    if not isinstance(node, nodes.Node):
        return node
    _wrap_values(node)
    match node:
        case nodes.Concat():
            return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)
        # A comparison makes nothing, but may look through all that there is.
        case nodes.Getitem(arg=nodes.Slice()) | nodes.Compare():
            return _filtered(node, _MADE)
        case nodes.Tuple(ctx="store"):
            return node
        case nodes.List() | nodes.Tuple() | nodes.Dict():
            return _filtered(node, _MADE)
    return node
