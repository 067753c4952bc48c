from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from conftest import TINY
from hypothesis import example, given
from hypothesis import strategies as st
from refusals import refused

from cabochon.errors import PackageError, RequestError
from cabochon.tokenizer import Tokenizer

VOCABULARY_SIZE = 3072


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(TINY / "tokenizer.json")


CONTROL_TOKENS = ["<bos>", "<turn|>", "<|turn>", "<|audio|>", "<|channel>", "<pad>"]


@given(st.lists(st.text(st.sampled_from("<|>turn/ é"), max_size=6) | st.sampled_from(CONTROL_TOKENS), max_size=12))
@example(["<tu", "<turn|>", "rn|>"])
def test_no_text_from_elsewhere_holds_a_control_token_once_it_is_broken(
    tokenizer: Tokenizer, pieces: list[str]
) -> None:
    text = "".join(pieces)
    control = {tokenizer.encode(name)[0] for name in CONTROL_TOKENS}
    broken = tokenizer.break_control_tokens(text)
    assert control.isdisjoint(tokenizer.encode(broken))
    assert broken.replace(" ", "") == text.replace(" ", "")
    if control.isdisjoint(tokenizer.encode(text)):
        assert broken == text


def test_a_control_token_of_one_letter_or_with_white_space_around_it_is_broken_too(tmp_path: Path) -> None:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    wide = tokenizers.AddedToken("<end>", lstrip=True, rstrip=True, special=True)
    model.add_special_tokens([tokenizers.AddedToken("§"), wide, tokenizers.AddedToken("\n\n")])
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.break_control_tokens("a§b  <end>  c\n\nd") == "a b  < end>  c\n\nd"


def stream_pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = tokenizer.start_stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@example("good morning, where is the station?")
@example("  two  spaces\n\nand lines ")
@example("東京駅はどこですか")
@example("👩‍👩‍👧‍👦 family 🇩🇪🇬🇧 naïve façade ﷽")
@example("\ufffd is a character too \ufffd")
def test_streamed_text_is_the_text_that_went_in(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert "".join(stream_pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(st.text(st.sampled_from("abc où 日本語 😀🇩🇪\n▁"), max_size=40))
def test_ordinary_text_survives_encoding_and_streaming(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(stream_pieces(tokenizer, tokenizer.encode(text))) == text.replace("▁", " ")


@given(st.lists(st.integers(0, VOCABULARY_SIZE - 1) | st.integers(0, 300), max_size=30))
@example([24 + byte for byte in b"\xc3\xa9\xc3"])
@example([24 + 0xC3, 6, 24 + 0xA9])
def test_nothing_that_was_streamed_changes_later_whatever_the_tokens(tokenizer: Tokenizer, tokens: list[int]) -> None:
    pieces = stream_pieces(tokenizer, tokens)
    whole = tokenizer.decode(tokens)
    assert "".join(pieces) == whole
    for count in range(len(tokens)):
        assert whole.startswith("".join(pieces[: count + 1]))


def test_words_come_out_as_soon_as_they_are_there(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("good morning")
    pieces = stream_pieces(tokenizer, tokens)
    assert all(pieces[:-1])
    assert pieces[-1] == ""


def test_control_tokens_are_read_from_a_prompt_and_not_shown_in_an_answer(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("<bos><|turn>user\nhi<turn|>")
    assert [tokenizer.token_text(token) for token in (tokens[0], tokens[1], tokens[-1])] == [
        "<bos>",
        "<|turn>",
        "<turn|>",
    ]
    assert "".join(stream_pieces(tokenizer, tokens)) == "user\nhi"


def test_a_token_outside_the_vocabulary_has_no_text_and_no_name(tokenizer: Tokenizer) -> None:
    assert "".join(stream_pieces(tokenizer, [VOCABULARY_SIZE + 5, *tokenizer.encode("hi")])) == "hi"
    with refused(PackageError, str(VOCABULARY_SIZE + 5)):
        tokenizer.token_text(VOCABULARY_SIZE + 5)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10_000, b"\xff\xfe", b'{"version": "1.0", "model": {}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with refused(PackageError, "tokenizer.json"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_text_that_is_not_utf_8_is_refused(tokenizer: Tokenizer) -> None:
    with refused(RequestError, "not UTF-8"):
        tokenizer.encode(b"caf\xe9".decode(errors="surrogateescape"))


TINY_MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "merges": [], "unk_token": "<unk>"}


def test_a_tokenizer_with_regular_expressions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps({"version": "1.0", "model": TINY_MODEL, "added_tokens": [], "pre_tokenizer": split}))
    with refused(PackageError, "regular expressions"):
        Tokenizer(path)
    word = TINY_MODEL | {"vocab": {"Regex": 0, "b": 1, "<unk>": 2}}
    path.write_text(json.dumps({"version": "1.0", "model": word, "added_tokens": []}))
    assert Tokenizer(path).largest_token == 2


def test_a_tokenizer_that_fails_on_a_text_is_told_about_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}
    path.write_text(json.dumps({"version": "1.0", "model": words, "added_tokens": []}))
    with refused(PackageError, "the tokenizer of the package fails"):
        Tokenizer(path).encode("b")


def test_a_tokenizer_that_makes_control_tokens_of_any_text_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    added = {"id": 3, "content": "ab", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
             "special": True}  # fmt: skip
    together = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    whole = {"version": "1.0", "model": TINY_MODEL, "added_tokens": [added], "normalizer": together}
    path.write_text(json.dumps(whole))
    with refused(PackageError, "control tokens of any text"):
        Tokenizer(path).break_control_tokens("ab")
