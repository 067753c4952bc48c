"""What is to be done with speech: write it down, or write it down and translate it."""

from __future__ import annotations

from dataclasses import dataclass

from cabochon.answer import Answer
from cabochon.hearing import SoundSource
from cabochon.live_speech import Question
from cabochon.long_speech import LongSpeech, SpokenPart, transcribe_long, translate_long
from cabochon.pipeline import Model
from cabochon.prompt import speech_instruction
from cabochon.segmentation import Segmentation


@dataclass(frozen=True, slots=True)
class SpeechTask:
    """For one model; languages are refused before anybody speaks.

    Raises:
        RequestError: a language is unknown, or to translate, the spoken one is not given.
    """

    model: Model
    language: str | None = None
    """That is spoken, an English name or code; None lets the model find out."""
    target: str | None = None
    """To translate into; None only writes down."""
    max_tokens: int = 1024
    """Of one answer."""

    def __post_init__(self) -> None:
        speech_instruction(self.model.package.manifest.prompts, self.language, self.target)

    @property
    def _source(self) -> str:
        assert self.language is not None  # refused where there is a target
        return self.language

    def answer(self, sound: SoundSource) -> Answer:
        """About a sound that the model takes whole."""
        if self.target is None:
            return self.model.transcribe(sound, self.language, self.max_tokens)
        return self.model.translate(sound, source=self._source, target=self.target, max_tokens=self.max_tokens)

    def answer_long(
        self, sound: SoundSource, segmentation: Segmentation | None = None, start: float = 0.0
    ) -> LongSpeech:
        """About a sound of any length, part by part; see `transcribe_long`."""
        model, most = self.model, self.max_tokens
        if self.target is None:
            return transcribe_long(model, sound, self.language, segmentation=segmentation, start=start, max_tokens=most)
        return translate_long(
            model, sound, source=self._source, target=self.target,
            segmentation=segmentation, start=start, max_tokens=most,
        )  # fmt: skip

    def question(self) -> Question:
        """About parts of live speech."""
        model = self.model
        return Question(
            self.answer,
            lambda: model.start_clip(self.language, target=self.target),
            lambda clip: model.finish_clip(clip, self.target, self.max_tokens),
        )

    def text(self, part: SpokenPart) -> str:
        """What was asked for of a part."""
        return part.transcript if self.target is None else part.translation
