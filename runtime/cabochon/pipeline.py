"""The whole way in one file: wav → frames → audio encoder → embeddings → decode loop → text; images join in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cabochon.answer import Answer, Statistics, Translation
from cabochon.answer_writer import AnswerWriter, ClipTurn
from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.audio_stream import AudioStream
from cabochon.backend import CacheRows, EngineSettings
from cabochon.cache_file import CACHE_FORMAT
from cabochon.constrained_decoding import AnswerFormat, GrammarReader
from cabochon.conversation import Conversation, load_conversation, remember
from cabochon.decode import prefill, require_room
from cabochon.decoder_turns import DecoderTurns
from cabochon.draft_length import choose_draft_length
from cabochon.embedder import Prompt, open_embedder
from cabochon.engines import choose_engine, open_session, open_vision_encoder
from cabochon.errors import RequestError
from cabochon.generation import Generation
from cabochon.hearing import Hearing, SoundSource
from cabochon.kept_prefixes import KeptPrefixes
from cabochon.manifest import MANIFEST_NAME
from cabochon.memory_budget import require_memory
from cabochon.package import Package, cache_folder, hash_file, open_package
from cabochon.perceived import Perceived, join_embeddings, join_marks
from cabochon.prompt import (
    Message,
    PromptWriter,
    speech_instruction,
    transcription_instruction,
    translation_instruction,
)
from cabochon.sampling import SamplingSettings
from cabochon.sight import Seen, Sight, SightSettings, flatten
from cabochon.spoken_clip import ClipPrompt, SpokenClip
from cabochon.thinking import Thoughts
from cabochon.tokenizer import Tokenizer
from cabochon.tools import Tool
from cabochon.vision_model import VisionModel
from cabochon.wav import Sound
from cabochon.written_form import FormReader

DEFAULT_SIGHT = SightSettings()


@dataclass(frozen=True, slots=True)
class _Prompt:
    tokens: tuple[int, ...]
    prefix: int
    """Tokens that many prompts begin with."""
    heard: Sequence[Perceived]
    seen: Sequence[Perceived]
    """Images, and frames of videos."""
    conversation: Conversation | None = None

    def contents(self, audio_token: int | None, image_token: int | None) -> tuple[int, ...]:
        """The tokens, but for those of sounds and images, which become their marks."""
        marks = {audio_token: iter(join_marks(self.heard)), image_token: iter(join_marks(self.seen))}
        return tuple(next(marks[token], token) if token in marks else token for token in self.tokens)


class Model:
    """A loaded package. It holds one key-value cache: starting an answer ends the one before it.

    Answers come while they are iterated over; `RequestError` there says that another one was started meanwhile.
    """

    def __init__(self, package: Package, engine: str, settings: EngineSettings, drafts: int | None = None) -> None:
        """Made by `load`."""
        self.package = package
        """Folder and manifest."""
        engine = choose_engine(package, engine)
        require_memory(package.manifest, engine, settings.context_length)
        self._session = open_session(package, engine, settings)
        self._embedder = open_embedder(package, engine)
        self._tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
        self._prompts = PromptWriter(package, self._tokenizer)
        self.identity = f"{hash_file(package.path(MANIFEST_NAME))} {self._session.library} {CACHE_FORMAT}"
        """Of everything that decides about keys and values."""
        prefixes = KeptPrefixes(self._session.decoder, self._embedder, self.identity, _prefix_folder())
        self._turns = DecoderTurns(self._session.decoder, prefixes)
        vocabulary_size, stop_tokens = package.manifest.text.vocabulary_size, package.manifest.sampling.stop_tokens
        self._forms = FormReader(self._tokenizer, GrammarReader(self._tokenizer, vocabulary_size, stop_tokens))
        vision = package.manifest.vision
        self._sight = Sight(vision, lambda: open_vision_encoder(package, engine, settings)) if vision else None
        encoder, audio = self._session.audio_encoder, package.manifest.audio
        self._hearing = Hearing(audio, encoder) if audio and encoder else None
        draft_length = choose_draft_length(package.manifest.engines[engine].drafter, drafts)
        self._writer = AnswerWriter(
            self._session, self._embedder, self._tokenizer, package.manifest, self._turns, draft_length
        )

    def transcribe(self, sound: SoundSource, language: str | None = None, max_tokens: int = 1024) -> Answer:
        """What is said in a clip, taken greedily.

        Args:
            sound: a file, or a mono waveform float32 [samples] at the model's sample rate (`audio_model.sample_rate`);
                at most `audio_model.max_samples` long, which is 30 s for E2B. See `cabochon.long_speech` for more.
            language: that is spoken, an English name or ISO 639-1 code; None when it is not known.
            max_tokens: longest answer, in tokens.

        Raises:
            AudioError: the sound cannot be read, is too short or too long.
            RequestError: the language is unknown, the package does not hear, or the context leaves no room.
        """
        instruction = transcription_instruction(self.package.manifest.prompts, language)
        return self._obey(instruction, sound, max_tokens)

    def translate(self, sound: SoundSource, *, source: str, target: str, max_tokens: int = 1024) -> Translation:
        """Transcript of a clip in its source language, then its translation into the target language, greedily.

        Args:
            sound: as for `transcribe`.
            source: that is spoken, an English name or ISO 639-1 code.
            target: to translate into; another one.
            max_tokens: longest answer, in tokens: transcript and translation together.

        Raises:
            AudioError: the sound cannot be read, is too short or too long.
            RequestError: a language is unknown, both are the same, the package does not hear, or there is no room.
        """
        prompts = self.package.manifest.prompts
        instruction = translation_instruction(prompts, source, target)
        return Translation(self._obey(instruction, sound, max_tokens), prompts, target)

    def start_clip(self, language: str | None = None, *, target: str | None = None) -> SpokenClip | None:
        """A clip that is heard while it is spoken; None where the engine takes whole clips only.

        Args:
            language: that is spoken; None when it is not known.
            target: translate into this language, too; the spoken one is needed then.

        Raises:
            RequestError: a language is unknown or missing, or the package does not hear.
        """
        self.package.refuse_changed()
        hearing = self._hear()
        audio = hearing.audio
        instruction = speech_instruction(self.package.manifest.prompts, language, target)
        stages = hearing.encoder.start_stream()
        if stages is None or audio.log_mel is None:
            return None
        tokens = self._prompts.write([Message("user", instruction, has_audio=True)], 1)
        place = tokens.index(audio.soft_token)
        prompt = ClipPrompt(tokens[:place], tokens[place + 1 :])
        stream = AudioStream(audio, stages)
        return SpokenClip(
            self._session.decoder, self._embedder, audio, stream, prompt, ClipTurn(self._turns, self._writer)
        )

    def finish_clip(self, clip: SpokenClip, target: str | None = None, max_tokens: int = 1024) -> Answer:
        """The answer to a clip that has ended.

        Args:
            clip: begun by this model's last `start_clip`.
            target: that it was begun with.
            max_tokens: longest answer, in tokens.

        Returns:
            A `Translation` where there is a target.

        Raises:
            AudioError: the clip is too short to be heard.
            RequestError: another answer was started since, or there is no room for this one.
        """
        statistics = Statistics(audio_seconds=clip.seconds)
        logits = clip.finish()
        statistics.encode_seconds, statistics.prefill_seconds = clip.encode_seconds, clip.prefill_seconds
        statistics.prompt_positions = clip.position
        wish = Generation(max_tokens=max_tokens)
        pieces = self._writer.write(logits, clip.position, wish, statistics, clip.turn_number)
        answer = Answer(pieces, statistics)
        return answer if target is None else Translation(answer, self.package.manifest.prompts, target)

    def chat(
        self,
        messages: Sequence[Message],
        settings: SamplingSettings | None = None,
        max_tokens: int = 1024,
        sound: SoundSource | None = None,
        *,
        stop: str | Sequence[str] = (),
        thinking: bool | int = False,
        conversation: Conversation | None = None,
        tools: Sequence[Tool | Callable[..., object] | Mapping[str, Any]] = (),
        tool_choice: str = "auto",
        answer_format: AnswerFormat | None = None,
        sight: SightSettings | None = None,
    ) -> Answer:
        """Continue a conversation; without settings, with the checkpoint's own sampling.

        What it has in common with the last one that this model answered is not run again.

        Args:
            messages: all turns, the question last.
            settings: how tokens are chosen; `SamplingSettings()` is greedy.
            max_tokens: longest answer, in tokens, thoughts included.
            sound: what the one message with `has_audio`, and nothing `heard`, holds.
            stop: texts at which the answer ends; they are no part of it.
            thinking: whether the model may think before it answers; a number is how many tokens its thoughts may take.
            conversation: that asks, see `start_conversation`.
            tools: functions that the model may ask for (`Answer.tool_calls`); nothing here calls them.
            tool_choice: `auto`, `none`, `required` (some call is written, whatever the model thinks), or the name of
                the one tool that is to be called.
            answer_format: what the answer keeps to, unless it is cut (`Statistics.complete` is False then).
            sight: how finely to look at images and videos of the messages.

        Raises:
            RequestError: what is asked for cannot be; nothing has run then.
            AudioError: the sound cannot be read, is too short or too long.
            ImageError: an image or a video cannot be read.
            MissingDependencyError: tools, forms or videos need a library that is not installed.
        """
        places = sum(message.has_audio and message.heard is None for message in messages)
        if places != (sound is not None):
            raise RequestError(
                f"{places} messages have a sound and {int(sound is not None)} was given: expected one of each, or none."
            )
        settings = settings or SamplingSettings.of_checkpoint(self.package.manifest.sampling)
        form = self._forms.read(tools, tool_choice, answer_format)
        wish = Generation(settings, max_tokens, (stop,) if isinstance(stop, str) else tuple(stop), thinking, form)
        clip = None if sound is None else self._hear().read(sound)
        return self._answer(messages, clip, wish, conversation=conversation, sight=sight or DEFAULT_SIGHT)

    def start_conversation(self, system: str | None = None) -> Conversation:
        """One whose turns are not run again, and which can be copied, taken back and saved.

        Args:
            system: an instruction that precedes it.
        """
        return Conversation(self, [Message("system", system)] if system else [])

    def load_conversation(self, path: str | os.PathLike[str]) -> Conversation:
        """One that was saved with this very package, engine and version.

        Raises:
            PackageError: the file is damaged, or of another model.
        """
        return load_conversation(self, path)

    def context_of(self, conversation: Conversation) -> tuple[list[int], CacheRows] | None:
        """A copy of what is held of a conversation: its tokens, and their keys and values; None where nothing is."""
        return self._turns.context_of(conversation)

    @property
    def spent(self) -> Statistics:
        """What all answers so far have cost together, those to parts of long sounds and notes of summaries included."""
        return self._writer.spent.total()

    @property
    def context_length(self) -> int:
        """Positions that a prompt and its answer can take together."""
        return self._session.decoder.capacity

    def count_positions(self, messages: Sequence[Message]) -> int:
        """Positions that a conversation without sounds takes as a prompt.

        Raises:
            RequestError: the chat template refuses it.
        """
        return len(self._prompts.write(messages))

    def quote(self, text: str) -> str:
        """A text from elsewhere as it may stand in a message: nothing in it becomes a control token."""
        return self._tokenizer.break_control_tokens(text)

    def _obey(self, instruction: str, sound: SoundSource, max_tokens: int) -> Answer:
        """One of the published instructions, which come again and again."""
        message = Message("user", instruction, has_audio=True)
        return self._answer([message], self._hear().read(sound), Generation(max_tokens=max_tokens), keep_prefix=True)

    def _answer(
        self,
        messages: Sequence[Message],
        clip: Sound | None,
        wish: Generation,
        *,
        keep_prefix: bool = False,
        conversation: Conversation | None = None,
        sight: SightSettings = DEFAULT_SIGHT,
    ) -> Answer:
        self.package.refuse_changed()
        statistics = Statistics()
        note = ""
        looked_at = self._look(messages, sight)
        started, frames, count = time.perf_counter(), None, 0
        if clip is not None:
            note, statistics.audio_seconds = clip.note, clip.seconds
            frames = self._hear().make_frames(clip)
            count = self.audio_model.token_count(len(frames))
        counts = [message.heard.tokens if message.heard else count for message in messages if message.has_audio]
        tokens = self._prompts.write(messages, counts, wish.form.tools, looked_at, thinking=wish.thinking is not False)
        require_room(self._session.decoder, len(tokens))  # before anything is encoded, which takes long
        now = None if clip is None or frames is None else self._hear().encode(clip, frames)
        seen = self._sight.encode(looked_at) if looked_at and self._sight is not None else []
        if now or seen:
            statistics.encode_seconds = time.perf_counter() - started
        heard = [each for message in messages if message.has_audio and (each := message.heard or now)]
        if conversation is not None:
            conversation.perceived(remember(messages, seen, heard))
        audio = self.package.manifest.audio
        prefix = tokens[: tokens.index(audio.soft_token)] if keep_prefix and audio else []
        statistics.prompt_positions = len(tokens)
        thoughts = Thoughts(self._tokenizer, wish.longest_thoughts)
        prompt = _Prompt(tuple(tokens), len(prefix), heard, flatten(seen), conversation)
        return Answer(self._pieces(prompt, wish, statistics, thoughts), statistics, note, thoughts, wish.form.calls)

    def _look(self, messages: Sequence[Message], settings: SightSettings) -> list[Seen]:
        if self._sight is not None:
            return self._sight.read(messages, settings)
        if any(message.images or message.videos for message in messages) or settings != DEFAULT_SIGHT:
            raise RequestError(
                "the package has no vision encoder: convert a checkpoint that sees, without --no-vision or --text-only."
            )
        return []

    @property
    def audio_model(self) -> AudioModel:
        """What the model hears.

        Raises:
            RequestError: it has no audio encoder.
        """
        return self._hear().audio

    def _hear(self) -> Hearing:
        if self._hearing is None:
            raise RequestError(
                "the package has no audio encoder: convert a checkpoint that hears, without --text-only."
            )
        return self._hearing

    def _pieces(self, prompt: _Prompt, wish: Generation, statistics: Statistics, thoughts: Thoughts) -> Iterator[str]:
        """embeddings → decode loop → text."""
        tokens = prompt.tokens
        with self._turns.begin(prompt.conversation) as turn:
            started = time.perf_counter()
            start = self._begin(prompt)
            try:
                logits = prefill(self._session.decoder, self._prepare_from(start, prompt), start)
            except BaseException:  # what the caches hold now is not known, and may not reach back to `start`
                self._turns.context.forget()
                raise
            if not prompt.prefix:
                self._turns.context.was_run(self._contents(prompt))
            statistics.prefill_seconds = time.perf_counter() - started
        yield from self._writer.write(logits, len(tokens), wish, statistics, turn, thoughts, tokens)

    def _begin(self, prompt: _Prompt) -> int:
        """From which position on a prompt has to be run: what the decoder holds of it is kept."""
        if not prompt.prefix:
            return self._turns.context.keep(self._contents(prompt))
        self._turns.run_prefix(prompt.tokens[: prompt.prefix])
        return prompt.prefix

    def _contents(self, prompt: _Prompt) -> tuple[int, ...]:
        audio, vision = self.package.manifest.audio, self.package.manifest.vision
        return prompt.contents(audio.soft_token if audio else None, vision.soft_token if vision else None)

    def _prepare_from(self, start: int, prompt: _Prompt) -> Prompt:
        """The part of a prompt that is to be run."""

        def left(model: AudioModel | VisionModel | None, perceived: Sequence[Perceived]) -> Float32Array | None:
            embeddings = join_embeddings(perceived)
            if model is None or embeddings is None:
                return None
            embeddings = embeddings[prompt.tokens[:start].count(model.soft_token) :]
            return embeddings if len(embeddings) else None

        audio, vision = self.package.manifest.audio, self.package.manifest.vision
        tokens, heard, seen = prompt.tokens[start:], left(audio, prompt.heard), left(vision, prompt.seen)
        return self._embedder.prepare(tokens, audio, heard, vision, seen)


def _prefix_folder() -> Path | None:
    try:
        return cache_folder() / "prefixes"
    except RuntimeError:  # the user has no home
        return None


def load(
    package: str | os.PathLike[str],
    *,
    engine: str = "",
    threads: int = 0,
    context_length: int = 0,
    drafts: int | None = None,
    pin_threads: bool = False,
) -> Model:
    """Load a package that cabochon-convert wrote.

    Args:
        package: the folder.
        engine: `onnx` or `litert`; by default the one that the package was converted for.
        threads: of one operation; 0 means one per processor that the process may use and has time for.
        context_length: positions of the cache; 0 means as many as the package allows.
        drafts: tokens that the package's drafter guesses at a time; None finds out what is fastest, 0 uses no drafter.
        pin_threads: keep each of the engine's own threads on one processor (Linux), for a machine without other work.

    Raises:
        PackageError: the package is missing, damaged or of another format version.
        MissingDependencyError: a library that it needs is not installed.
        RequestError: something that was asked for is impossible, such as a longer context than the package's, or surely
            does not fit into memory.
    """
    return Model(open_package(package), engine, EngineSettings(threads, context_length, pin_threads), drafts)
