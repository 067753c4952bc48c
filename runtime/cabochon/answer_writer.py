"""The decode loop → text: tokens are chosen, and sorted into thoughts, calls and the answer's text."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager

from cabochon.answer import Statistics, StatisticsSum
from cabochon.arrays import Float32Array
from cabochon.backend import Session
from cabochon.decode import decode
from cabochon.decoder_turns import DecoderTurns
from cabochon.draft_length import DraftCounts, DraftLength
from cabochon.embedder import Embedder
from cabochon.generation import Generation
from cabochon.manifest import Manifest
from cabochon.sampling import Sampler
from cabochon.speculative_decode import Speculation, decode_with_drafts
from cabochon.stop_strings import StopStrings
from cabochon.thinking import Thoughts, TokenChooser
from cabochon.tokenizer import Tokenizer


class AnswerWriter:
    """Of one model."""

    def __init__(
        self,
        session: Session,
        embedder: Embedder,
        tokenizer: Tokenizer,
        manifest: Manifest,
        turns: DecoderTurns,
        draft_length: DraftLength | None,
    ) -> None:
        """Args: draft_length: None uses no drafter."""
        self._decoder, self._drafter, self._draft_length = session.decoder, session.drafter, draft_length
        self._embedder = embedder
        self._tokenizer = tokenizer
        self._manifest = manifest
        self._turns = turns
        self.spent = StatisticsSum()
        """On all answers."""

    def write(
        self,
        logits: Float32Array,
        position: int,
        wish: Generation,
        statistics: Statistics,
        turn: int,
        thoughts: Thoughts | None = None,
        tokens: Sequence[int] = (),
    ) -> Iterator[str]:
        """The text that follows a prompt, piece by piece; pieces are empty while the model thinks or writes a call.

        Args:
            logits: [vocabulary] behind the prompt's last token.
            position: at which the prompt ends.
            wish: what is asked for.
            statistics: are filled in.
            turn: of the decoder.
            thoughts: where they are gathered.
            tokens: of the prompt.

        Raises:
            RequestError: another answer was started meanwhile.
        """
        self.spent.begin(statistics)
        thoughts, form = thoughts or Thoughts(self._tokenizer), wish.form
        suppressed = (*self._manifest.sampling.suppress_tokens, *form.suppressed)
        sampler = Sampler(wish.sampling, suppressed, self._manifest.text.final_logit_softcap, tokens)
        chooser = thoughts.end_too_long(form.keep_to(sampler, thoughts if wish.thinking else None))
        new_tokens = self._decode(logits, position, wish, statistics, sampler, chooser)
        stream, stops = self._tokenizer.start_stream(), StopStrings(wish.stop)
        while (token := self._next_token(new_tokens, turn, statistics)) is not None:
            if thoughts.take(token):
                yield ""
                continue
            call = form.take(token)
            piece = stops.push(stream.push(token) if call is None else stream.finish() + call)
            if piece or call is not None:
                yield piece
            if stops.found:
                statistics.complete = True
                return
            if form.finished:
                statistics.complete = True
                break
        if piece := stops.push(stream.finish() + form.finish()) + stops.finish():
            yield piece

    def _decode(
        self,
        logits: Float32Array,
        position: int,
        wish: Generation,
        statistics: Statistics,
        sampler: Sampler,
        chooser: TokenChooser,
    ) -> Generator[int, None, bool]:
        stop_tokens = (*self._manifest.sampling.stop_tokens, *wish.form.stop_tokens)
        # A drafter knows nothing of forms.
        if self._drafter is None or self._draft_length is None or wish.form.constraint is not None:
            return decode(self._decoder, self._embedder, chooser, logits, position, stop_tokens, wish.max_tokens)
        statistics.drafts = DraftCounts()
        speculation = Speculation(self._drafter, self._draft_length, statistics.drafts, sampler.ahead)
        return decode_with_drafts(
            self._decoder, self._embedder, chooser, speculation, logits, position, stop_tokens, wish.max_tokens
        )

    def _next_token(self, tokens: Generator[int, None, bool], turn: int, statistics: Statistics) -> int | None:
        """One step of the decode loop; None at its end."""
        with self._turns.held(turn):
            started = time.perf_counter()
            try:
                token = next(tokens)
                statistics.new_tokens += 1
                self._turns.context.chose(token)
                return token
            except StopIteration as end:
                statistics.complete = end.value
                positions = statistics.prompt_positions + statistics.new_tokens
                statistics.context_full = not end.value and positions > self._decoder.capacity
                if end.value:
                    self._turns.context.chose(None)
                return None
            finally:
                statistics.decode_seconds += time.perf_counter() - started


class ClipTurn:
    """The turn of a clip that is heard while it is spoken: see `spoken_clip.Turn`."""

    def __init__(self, turns: DecoderTurns, writer: AnswerWriter) -> None:
        self._turns, self._writer = turns, writer
        with turns.begin() as self.number:
            turns.context.forget()

    def begin(self, tokens: Sequence[int]) -> None:
        """See `Turn.begin`."""
        with self.held():
            self._turns.run_prefix(tokens)

    def held(self) -> AbstractContextManager[None]:
        """See `Turn.held`."""
        return self._turns.held(self.number)

    def decode(self, logits: Float32Array, position: int, max_tokens: int) -> Iterator[str]:
        """See `Turn.decode`."""
        wish = Generation(max_tokens=max_tokens)
        return self._writer.write(logits, position, wish, Statistics(), self.number)
