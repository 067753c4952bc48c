"""What a model answers: text as it comes, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cabochon.draft_length import DraftCounts
from cabochon.errors import CabochonError
from cabochon.manifest import Prompts
from cabochon.prompt import split_translation
from cabochon.thinking import Thoughts
from cabochon.tool_calls import ToolCallReader
from cabochon.tools import ToolCall


@dataclass(slots=True)
class Statistics:
    """What one answer cost; filled in while it comes."""

    audio_seconds: float = 0.0
    encode_seconds: float = 0.0
    """Frames and audio encoder."""
    prompt_positions: int = 0
    prefill_seconds: float = 0.0
    new_tokens: int = 0
    decode_seconds: float = 0.0
    complete: bool = False
    """The model ended its answer itself; False while it comes and when it was cut at the longest length allowed."""
    context_full: bool = False
    """The answer was cut because there was no room for more."""
    drafts: DraftCounts | None = None
    """What a drafter contributed; None without one."""

    @property
    def draft_speed_up(self) -> float:
        """How many times as fast the answer came as by runs of one token; 0 where there was none to compare with."""
        return self.tokens_per_second * self.drafts.plain_seconds if self.drafts else 0.0

    @property
    def total_seconds(self) -> float:
        """From the waveform to the last token."""
        return self.encode_seconds + self.prefill_seconds + self.decode_seconds

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of sound; 0 without sound."""
        return self.total_seconds / self.audio_seconds if self.audio_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of the decode loop."""
        return self.new_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Answer:
    """The model's answer: iterate over it to get the text piece by piece, as it comes."""

    def __init__(
        self,
        pieces: Iterator[str],
        statistics: Statistics,
        note: str = "",
        thoughts: Thoughts | None = None,
        calls: ToolCallReader | None = None,
    ) -> None:
        self._pieces = pieces
        self._calls = calls
        self._thoughts = thoughts
        self._received: list[str] = []
        self._failure: CabochonError | None = None
        self.statistics = statistics
        self.note = note
        """One sentence about how the sound file was converted; empty when it was not."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._failure is not None:
            raise self._failure
        try:
            piece = next(self._pieces)
        except CabochonError as error:
            self._failure = error
            raise
        self._received.append(piece)
        return piece

    @property
    def thought(self) -> Thoughts | None:
        """Where the thoughts are gathered."""
        return self._thoughts

    @property
    def thoughts(self) -> str:
        """What the model thought before it answered, so far; while it thinks, pieces are empty."""
        return self._thoughts.text if self._thoughts else ""

    @property
    def call_reader(self) -> ToolCallReader | None:
        """Where tool calls are gathered."""
        return self._calls

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """What the model asks for so far; while it writes a call, pieces are empty."""
        return tuple(self._calls.calls) if self._calls else ()

    @property
    def tool_call_problem(self) -> str:
        """One sentence about a call that could not be read and stayed text; empty when there is none."""
        return self._calls.problem if self._calls else ""

    @property
    def text(self) -> str:
        """The text received so far."""
        return "".join(self._received)

    def finish(self) -> str:
        """Wait for the rest; returns the whole text."""
        for _ in self:
            pass
        return self.text


class Translation(Answer):
    """An answer that holds a transcript and its translation."""

    def __init__(self, answer: Answer, prompts: Prompts, target: str) -> None:
        super().__init__(answer, answer.statistics, answer.note)
        self._prompts = prompts
        self._target = target

    @property
    def transcript(self) -> str:
        """What was said, so far."""
        return split_translation(self.text, self._prompts, self._target)[0]

    @property
    def translation(self) -> str:
        """Its translation, so far."""
        return split_translation(self.text, self._prompts, self._target)[1]
