"""Text to token ids and back, with the checkpoint's own tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from cabochon.errors import PackageError, missing_dependency


class Tokenizer:
    """A tokenizer.json, read by the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise missing_dependency("tokenizers", "onnx") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise PackageError(f"{path} is not a tokenizer ({error}): convert the checkpoint again.") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; control tokens in the text become single ids, none is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without control tokens."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def token_text(self, token: int) -> str:
        """How a single token is written in the vocabulary."""
        text = self._tokenizer.id_to_token(token)
        if text is None:
            raise PackageError(f"the tokenizer has no token {token}, which the manifest names.")
        return str(text)

    def start_stream(self) -> TokenStream:
        """A decoder that turns tokens into text one by one."""
        return TokenStream(self)


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
        # An incomplete UTF-8 sequence decodes to a trailing replacement character: wait for its other bytes.
        return self._release(final=False)

    def finish(self) -> str:
        """The text that is still held back at the end."""
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        text = self._tokenizer.decode(self._tokens[self._start :])
        if not final and text.endswith("\ufffd"):
            return ""
        piece = text[self._emitted :]
        self._emitted += len(piece)
        # The last token stays as context, because a leading space is dropped at the start of a text. Bytes of a
        # character are no place to cut: a run of them only decodes as a whole.
        last = self._tokenizer.decode(self._tokens[-1:])
        if last and "\ufffd" not in last:
            self._start = len(self._tokens) - 1
            self._emitted = len(last)
        return piece
