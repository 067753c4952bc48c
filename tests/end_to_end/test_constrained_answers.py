"""A model of random weights, which writes garbage by itself, keeps to every form that it is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from random_schemas import random_schema
from refusals import refused

import cabochon
from cabochon import JSON_OBJECT, JsonSchema, Message, RequestError, SamplingSettings
from cabochon.constrained_decoding import LONGEST_FORM, Constraint
from cabochon.errors import PackageError

QUESTION = [Message("user", "hello")]
SCHEMAS = 1000


@pytest.fixture(scope="module")
def model(random_package: Path) -> cabochon.Model:
    return cabochon.load(random_package, threads=1)


def sampled(seed: int) -> SamplingSettings:
    """From the whole vocabulary, and so hot that a number does not go on for ever."""
    return SamplingSettings(temperature=2.0, seed=seed)


def ask(model: cabochon.Model, form: Any, settings: SamplingSettings, max_tokens: int = 480) -> cabochon.Answer:
    answer = model.chat(QUESTION, settings, max_tokens, answer_format=form)
    answer.finish()
    return answer


def test_without_a_form_the_model_writes_no_json(model: cabochon.Model) -> None:
    texts = [ask(model, None, sampled(seed), 20).text for seed in range(20)]
    for text in texts:
        with pytest.raises(ValueError, match=r"Expecting|Extra"):
            json.loads(text)


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_random_schemas_are_kept_to(model: cabochon.Model, block: int) -> None:
    for seed in range(block * SCHEMAS // 10, (block + 1) * SCHEMAS // 10):
        schema = random_schema(seed)
        answer = ask(model, JsonSchema(schema), sampled(seed))
        assert answer.statistics.complete, (schema, answer.text)
        jsonschema.validate(json.loads(answer.text), schema, jsonschema.Draft202012Validator)


def test_the_random_schemas_differ_and_are_valid() -> None:
    schemas = [random_schema(seed) for seed in range(SCHEMAS)]
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
    assert len({json.dumps(schema) for schema in schemas}) > 0.9 * SCHEMAS


@pytest.mark.parametrize(
    "pattern",
    [r"[a-z]{3,8}", r"(yes|no)", "[0-9]{4}-[0-9]{2}", r"[äöüß]{1,9}", r"[\x{1F600}-\x{1F64F}]{3}", r"a\nb", r"(?i)ok",
     "é*x"],
)  # fmt: skip
def test_the_whole_answer_matches_a_pattern(model: cabochon.Model, pattern: str) -> None:
    python = re.sub(r"\\x\{(\w+)\}", lambda found: chr(int(found[1], 16)), pattern)
    for seed in range(10):
        answer = ask(model, cabochon.Regex(pattern), sampled(seed))
        assert answer.statistics.complete
        assert re.fullmatch(python, answer.text), answer.text


def test_texts_may_hold_characters_that_the_vocabulary_spells_in_bytes(model: cabochon.Model) -> None:
    value = '你好 😀 \U0001d518 \u0301 ﷽ " \\ \n'
    answer = ask(model, JsonSchema({"const": {"ключ": value}}), sampled(0))
    assert json.loads(answer.text) == {"ключ": value}


def test_some_json_object_may_be_asked_for(model: cabochon.Model) -> None:
    for seed in range(10):
        answer = ask(model, JSON_OBJECT, sampled(seed))
        assert not answer.statistics.complete or isinstance(json.loads(answer.text), dict)
        assert answer.text.lstrip().startswith("{")


def test_an_answer_that_is_cut_says_so_and_has_begun_right(model: cabochon.Model) -> None:
    answer = ask(model, JsonSchema({"type": "array", "items": {"const": "again"}, "minItems": 500}), sampled(1), 30)
    assert not answer.statistics.complete
    assert answer.statistics.new_tokens == 30
    assert re.match(r'\[\s*"again"', answer.text)


def test_an_answer_ends_with_its_form_even_at_the_last_token_allowed(model: cabochon.Model) -> None:
    length = ask(model, JsonSchema({"const": "yes"}), SamplingSettings()).statistics.new_tokens
    answer = ask(model, JsonSchema({"const": "yes"}), SamplingSettings(), length)
    assert answer.statistics.complete
    assert answer.text == '"yes"'


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"not": {"type": "string"}}, "not"), ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "strng"}, "strng"), ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"), ({"enum": []}, "empty"),
        ({"type": "string", "pattern": "("}, "regex"), ({"oneOf": [{"type": "string"}, {}]}, "oneOf"),
        ({"type": "string", "format": "smell"}, "smell"), ({"const": float("nan")}, "JSON"),
        ({"const": {1, 2}}, "JSON"), ([], "object"), ({"const": "\ud800"}, "UTF-8"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"), ({"enum": ["a" * LONGEST_FORM]}, "characters"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_kept_to_is_refused_before_anything_runs(
    model: cabochon.Model, schema: Any, word: str
) -> None:
    with refused(RequestError, word):
        model.chat(QUESTION, answer_format=JsonSchema(schema))


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1", "a{2,1}", "\ud800", "a" * (LONGEST_FORM + 1)])
def test_a_pattern_that_cannot_be_kept_to_is_refused(model: cabochon.Model, pattern: str) -> None:
    with refused(RequestError):
        model.chat(QUESTION, answer_format=cabochon.Regex(pattern))


def test_a_form_that_is_too_complex_is_one_sentence(model: cabochon.Model) -> None:
    texts = [{f"p{i}{j}": {"type": "string", "pattern": f".*{i}.{{20}}"} for j in range(30)} for i in range(30)]
    schema = {"anyOf": [{"type": "object", "properties": properties} for properties in texts]}
    with refused(RequestError, "max is"):
        ask(model, JsonSchema(schema), sampled(0))


class Allowing(Constraint):
    """Allows these tokens."""

    def __init__(self, *tokens: int) -> None:
        super().__init__(None, [])
        self.tokens = list(tokens)

    def restrict(self, logits: np.ndarray) -> None:
        others = np.ones(len(logits), bool)
        others[self.tokens] = False
        logits[others] = -np.inf


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("allowed", [[], [3], [3, 4]])
def test_a_form_whose_every_token_is_suppressed_is_refused(allowed: list[int], temperature: float) -> None:
    from cabochon.constrained_decoding import ConstrainedSampler
    from cabochon.sampling import Sampler

    sampler = Sampler(SamplingSettings(temperature=temperature), (3, 4), 0.0)
    with refused(RequestError, "suppress"):
        ConstrainedSampler(sampler, Allowing(*allowed)).choose(np.zeros(9, np.float32))


def test_logits_that_are_no_numbers_are_the_packages_fault_in_a_form_too() -> None:
    from cabochon.constrained_decoding import ConstrainedSampler
    from cabochon.sampling import Sampler

    logits = np.full(9, np.nan, np.float32)
    with refused(PackageError, "no number"):
        ConstrainedSampler(Sampler(SamplingSettings(), (3,), 0.0), Allowing(1)).choose(logits)
