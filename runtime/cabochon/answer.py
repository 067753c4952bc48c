"""What a model answers: text as it comes, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    """Length of the sound."""
    encode_seconds: float = 0.0
    """Of work: frames and audio encoder, images and vision encoder."""
    prompt_positions: int = 0
    """Tokens, sounds and images included; those that did not have to be run again count, too."""
    prefill_seconds: float = 0.0
    new_tokens: int = 0
    """Of the answer, thoughts and calls included."""
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
        """Speed of the decode loop; 0 before it has begun."""
        return self.new_tokens / self.decode_seconds if self.decode_seconds else 0.0


class StatisticsSum:
    """What all answers of a model have cost together, the one that comes included."""

    def __init__(self) -> None:
        self._ended = Statistics()
        self._latest = Statistics()

    def begin(self, statistics: Statistics) -> None:
        """Another answer begins."""
        self._ended, self._latest = self.total(), statistics

    def total(self) -> Statistics:
        """As of now; whether an answer is complete is not summed up."""
        one, other = self._ended, self._latest
        return Statistics(
            audio_seconds=one.audio_seconds + other.audio_seconds,
            encode_seconds=one.encode_seconds + other.encode_seconds,
            prompt_positions=one.prompt_positions + other.prompt_positions,
            prefill_seconds=one.prefill_seconds + other.prefill_seconds,
            new_tokens=one.new_tokens + other.new_tokens,
            decode_seconds=one.decode_seconds + other.decode_seconds,
            drafts=_sum_drafts(one.drafts, other.drafts),
        )


def _sum_drafts(one: DraftCounts | None, other: DraftCounts | None) -> DraftCounts | None:
    if one is None or other is None:
        found = one or other
        return replace(found) if found else None
    # What a token takes without drafts was measured over all of them; 0 where it is not known yet.
    seconds = other.plain_seconds or one.plain_seconds
    return DraftCounts(one.drafted + other.drafted, one.accepted + other.accepted, seconds)


class Answer:
    """The model's answer: iterate over it to get the text piece by piece, as it comes.

    Nothing is decoded that is not asked for; what was received stays. Iterating raises RequestError where another
    answer of the same model was started.
    """

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
        """Filled in while the answer comes."""
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
        """Wait for the rest; returns the whole text.

        Raises:
            RequestError: another answer of the same model was started.
        """
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
