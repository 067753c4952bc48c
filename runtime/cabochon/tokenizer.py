"""Text to token ids and back, with the checkpoint's own tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cabochon.errors import PackageError, RequestError, missing_dependency
from cabochon.freed_memory import return_freed_memory

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""How a vocabulary writes the tokens that spell a rare character byte by byte."""
MAX_BYTES = 1 << 28
"""Of a tokenizer.json; the published one has 32 million."""
_ROUNDS = 100
"""Of breaking control tokens; two are enough where a tokenizer does not put spaces together."""


class Tokenizer:
    """A tokenizer.json, read by the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise missing_dependency("tokenizers", "onnx") from None
        try:
            if path.stat().st_size > MAX_BYTES:
                raise PackageError(f"{path} is {path.stat().st_size} bytes long, too long for a tokenizer.")
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except PackageError:
            raise
        except BaseException as error:
            _raise_other_kinds(error)
            raise PackageError(
                f"{path} is not a tokenizer ({_on_one_line(error)}): copy it from the original checkpoint again."
            ) from None
        _refuse_patterns(self._tokenizer, path)
        return_freed_memory()
        added = self._tokenizer.get_added_tokens_decoder()
        # Gemma 4 does not call all of its control tokens special: <|channel> is one.
        self._control_tokens = {token for token, content in added.items() if content.content.strip()}

    @property
    def control_tokens(self) -> frozenset[int]:
        """Ids that stand for no text."""
        return frozenset(self._control_tokens)

    def spell(self, count: int) -> list[bytes]:
        """The bytes of the first `count` tokens behind other text; nothing for ids that the vocabulary lacks."""
        (letter,) = self.encode("a")[:1] or [0]
        before = self.decode_with_control_tokens([letter])
        pairs = [[letter, token] for token in range(min(count, self.largest_token + 1))]
        spelled = []
        with _failures_told():
            texts = self._tokenizer.decode_batch(pairs, skip_special_tokens=False)
        for token, text in enumerate(texts):
            written = self._tokenizer.id_to_token(token) or ""
            is_byte = BYTE_TOKEN.fullmatch(written) is not None
            spelled.append(bytes([int(written[3:5], 16)]) if is_byte else text[len(before) :].encode())
        return spelled + [b""] * (count - len(spelled))

    @property
    def largest_token(self) -> int:
        """The largest id that it can produce, control tokens included."""
        return int(max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; control tokens in the text become single ids, none is added."""
        ids: list[int] = self._encoding(text).ids
        return ids

    def break_control_tokens(self, text: str) -> str:
        """The text with a space inside whatever would become a control token.

        Raises:
            PackageError: the tokenizer makes control tokens of it whatever stands between.
        """
        for _ in range(_ROUNDS):
            encoding = self._encoding(text)
            places = zip(encoding.ids, encoding.offsets, strict=True)
            found = [place for token, place in places if token in self._control_tokens]
            if not found:
                return text
            parts, done = [], 0
            for start, end in found:
                parts += [text[done:start], _broken(text[start:end])]
                done = end
            text = "".join([*parts, text[done:]])
        raise PackageError("the tokenizer of the package makes control tokens of any text: copy the original one.")

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without control tokens."""
        with _failures_told():
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def decode_with_control_tokens(self, tokens: list[int]) -> str:
        """The text of tokens, with control tokens as they are written."""
        with _failures_told():
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def token_text(self, token: int) -> str:
        """How a single token is written in the vocabulary."""
        text = self._tokenizer.id_to_token(token)
        if text is None:
            raise PackageError(f"the tokenizer has no token {token}, which the manifest names.")
        return str(text)

    def control_token(self, text: str) -> int | None:
        """The control token that is written so, if there is one."""
        token = self._tokenizer.token_to_id(text)
        return token if token in self._control_tokens else None

    def is_byte(self, token: int) -> bool:
        """Whether a token stands for one byte of a character."""
        return BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or "") is not None

    def _encoding(self, text: str) -> Any:
        try:
            with _failures_told():
                return self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError:  # what the library makes of half a surrogate pair, which is how Python reads stray bytes
            raise RequestError("the text holds bytes that are not UTF-8: expected readable text.") from None

    def start_stream(self) -> TokenStream:
        """A decoder that turns tokens into text one by one."""
        return TokenStream(self)


@contextmanager
def _failures_told() -> Iterator[None]:
    """What the library says about a tokenizer that does not work becomes one sentence."""
    try:
        yield
    except TypeError:
        raise
    except BaseException as error:
        _raise_other_kinds(error)
        raise PackageError(
            f"the tokenizer of the package fails ({_on_one_line(error)}): copy the original one."
        ) from None


def _raise_other_kinds(error: BaseException) -> None:
    """The library raises bare Exception, and where it gives up what is none: https://docs.rs/pyo3/latest/pyo3/panic/"""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _refuse_patterns(tokenizer: Any, path: Path) -> None:
    """Regular expressions can take for ever on a text that is made for it, and no Gemma has any."""
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder):
        if part is not None and b'{"Regex":' in part.__getstate__():
            raise PackageError(f"{path} cuts texts by regular expressions, which no Gemma does: copy the original one.")


def _on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _broken(control_token: str) -> str:
    """With a space behind its first letter; one letter alone becomes a space."""
    blank = len(control_token) - len(control_token.lstrip())
    first, rest = control_token[blank : blank + 1], control_token[blank + 1 :]
    return control_token[:blank] + (f"{first} {rest}" if rest.strip() else " ")


class TokenStream:
    """Streaming detokenization: text comes out as soon as it cannot change any more."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0
        self._emitted = 0

    def push(self, token: int) -> str:
        """Add a token; returns the text that became final, often one word, sometimes nothing."""
        self._tokens.append(token)
        # Neighbouring bytes are decoded together, even across control tokens, which have no text: wait for the end.
        if self._tokenizer.is_byte(token) or not self._tokenizer.decode([token]):
            return ""
        return self._release()

    def finish(self) -> str:
        """The text that is still held back at the end."""
        return self._release()

    def _release(self) -> str:
        piece = self._tokenizer.decode(self._tokens[self._start :])[self._emitted :]
        # The last token stays as context, because a leading space is dropped at the start of a text.
        self._start = max(self._start, len(self._tokens) - 1)
        self._emitted = len(self._tokenizer.decode(self._tokens[self._start :]))
        return piece
