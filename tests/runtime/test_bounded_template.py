from __future__ import annotations

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from refusals import refused

from cabochon.bounded_template import LONGEST_TEMPLATE, BoundedEnvironment, run_template
from cabochon.errors import CabochonError, PackageError, RequestError
from cabochon.prompt import ChatTemplate, Message

REPEATED = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x|length }}"
LARGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10**4 * 'a' }}",
    "{{ [[1] * 99999] * 99999 }}",
    "{{ (['a' * 100000] * 100000)|join }}",
    "{{ ''.join(['a' * 100000] * 100000) }}",
    "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "{{ 'a'|indent(10**9, true) }}",
    "{{ {'a': [1]}|tojson(indent=10**9) }}",
    "{{ 1.5|round(10**9) }}",
    "{{ '%(a)s' * 9999 % {'a': 'b' * 99999} }}",
    "{{ ('%(a)s' * 9999)|format(a='b' * 99999) }}",
    "{{ ('{0}' * 9999).format('b' * 99999) }}",
    "{% autoescape 'a'|indent(10**10, true) %}{% endautoescape %}",
    "{% set x = 'a' * 100000 %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}{{ y|length }}",
    "{% filter replace('a', 'b' * 100000) %}" + "a" * 100_000 + "{% endfilter %}",
    REPEATED.replace("START", "'ab'").replace("STEP", "ns.x ~ ns.x"),
    REPEATED.replace("START", "'ab'").replace("STEP", "ns.x + ns.x"),
    REPEATED.replace("START", "'ab'").replace("STEP", "[ns.x, ns.x]|join"),
    REPEATED.replace("START", "[1]").replace("STEP", "ns.x + ns.x"),
    REPEATED.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]"),
    REPEATED.replace("START", "{}").replace("STEP", "dict(a=ns.x, b=ns.x)"),
]
ENDLESS = [
    "{{ range(99999)|select('in', range(99999)|list)|list }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
    "{% set x = 'a' * 400000 %}{% set y = 'a' * 200000 ~ 'b' %}{% for i in range(99999) %}{{ y in x }}{% endfor %}",
]
NOT_THERE = [
    "{{ 'a'.center(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%999999999d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10**9}) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ lipsum(n=10**9) }}",
    "{% set n = namespace(x=range(99999)|list) %}{{ ([n] * 9999)|map(attribute='x')|sum(start=[])|length }}",
    "{{ 0x" + "f" * 3000 + " // 3 }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'other' %}",
]
UNREADABLE = [
    "{{ 'a'|center(10**9) }}",
    "{{ [1]|batch(10**10, 1)|list }}",
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "{{" + "(" * 2000 + "1" + ")" * 2000 + "}}",
    "{{" + "1 + " * 3000 + "1 }}",
    "x" * (LONGEST_TEMPLATE + 1),
]


def render(template: str) -> str:
    return ChatTemplate(template, bos_token="<bos>").render([Message("user", "hello")])


@pytest.mark.parametrize("template", LARGE)
def test_a_template_that_makes_something_huge_is_refused_before_it_is_made(template: str) -> None:
    # Some constants are reckoned while a template is read.
    with refused(CabochonError, "far "):
        render(template)


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_goes_on_and_on_is_ended(template: str) -> None:
    with refused(RequestError, "far more than a chat template has to"):
        render(template)


@pytest.mark.parametrize("template", NOT_THERE)
def test_what_cannot_be_reckoned_is_not_there_for_templates(template: str) -> None:
    with refused(RequestError, "the chat template refuses this conversation"):
        render(template)


@pytest.mark.parametrize("template", UNREADABLE)
def test_a_template_that_python_or_the_bounds_do_not_take_is_no_template(template: str) -> None:
    with refused(PackageError, "not valid Jinja"):
        render(template)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=40)), max_size=5), st.booleans())
def test_within_bounds_a_template_writes_what_it_writes_without(turns: list[tuple[str, str]], think: bool) -> None:
    source = (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    source += "{{ turns|map('upper')|join(', ') }}{{ '%s-%02d' % (turns[0:2], turns|length) }}{{ 'a' ~ 3 ~ turns[:1] }}"
    source += "{% for turn in turns if loop is defined or turn %}{{ loop.index }}{{ turn|trim|tojson }}{% endfor %}"
    source += (
        "{% macro twice(x) %}{{ x }}{{ x + x }}{% endmacro %}{{ twice('é') }}{% set y %}{{ think }}{% endset %}{{ y }}"
    )
    values = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "turns": [text for _, text in turns],
        "bos_token": "<bos>",
        "think": think,
    }
    expected = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source).render(values)
    assert run_template(BoundedEnvironment().read(source), values) == expected


def test_a_long_conversation_is_well_within_the_bounds() -> None:
    template = ChatTemplate((TINY / "chat_template.jinja").read_text(encoding="utf-8"), bos_token="<bos>")
    turns = [Message(role, "something to talk about " * 400) for role in ("user", "assistant")] * 500
    assert template.render(turns).count("something") == 400_000
