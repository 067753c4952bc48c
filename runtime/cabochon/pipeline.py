"""The whole way on one screen: wav → frames → audio encoder → embeddings → decode loop → text; images join in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.answer import Answer, Statistics, Translation
from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.audio_stream import AudioStream
from cabochon.backend import CacheRows, EngineSettings
from cabochon.cache_file import CACHE_FORMAT
from cabochon.constrained_decoding import AnswerFormat, GrammarReader
from cabochon.conversation import Conversation, load_conversation
from cabochon.decode import decode, prefill, require_room
from cabochon.draft_length import DraftCounts, choose_draft_length
from cabochon.embedder import PromptEmbeddings, open_embedder
from cabochon.engines import choose_engine, open_session, open_vision_encoder
from cabochon.errors import AudioError, RequestError
from cabochon.generation import Generation
from cabochon.held_context import HeldContext
from cabochon.image import ScaledImage
from cabochon.kept_prefixes import KeptPrefixes
from cabochon.manifest import MANIFEST_NAME
from cabochon.memory_budget import require_memory
from cabochon.package import Package, cache_folder, hash_file, open_package
from cabochon.prompt import (
    Message,
    PromptWriter,
    speech_instruction,
    transcription_instruction,
    translation_instruction,
)
from cabochon.sampling import Sampler, SamplingSettings
from cabochon.sight import Sight, SightSettings
from cabochon.speculative_decode import Speculation, decode_with_drafts
from cabochon.spoken_clip import ClipPrompt, SpokenClip
from cabochon.stop_strings import StopStrings
from cabochon.thinking import Thoughts
from cabochon.tokenizer import Tokenizer
from cabochon.tools import Tool
from cabochon.video import ScaledVideo
from cabochon.wav import Sound, read_sound
from cabochon.written_form import FormReader

SoundSource = str | os.PathLike[str] | Float32Array
"""A sound file, or a mono waveform float32 [samples] at the model's sample rate."""

DEFAULT_SIGHT = SightSettings()


@dataclass(frozen=True, slots=True)
class _Prompt:
    tokens: tuple[int, ...]
    prefix: int
    """Tokens that many prompts begin with."""
    audio_embeddings: Float32Array | None
    image_embeddings: Float32Array | None
    marks: tuple[int, ...]
    """Of the tokens of images: no two images have the same."""
    conversation: Conversation | None = None

    def contents(self, image_token: int | None) -> tuple[int, ...]:
        """The tokens, but for those of images, which become their marks."""
        marks = iter(self.marks)
        return tuple(next(marks) if token == image_token else token for token in self.tokens)


class Model:
    """A loaded package. It holds one key-value cache: starting an answer ends the one before it."""

    def __init__(self, package: Package, engine: str, settings: EngineSettings, drafts: int | None = None) -> None:
        self.package = package
        engine = choose_engine(package, engine)
        require_memory(package.manifest, engine, settings.context_length)
        self._session = open_session(package, engine, settings)
        self._draft_length = choose_draft_length(package.manifest.engines[engine].drafter, drafts)
        self._embedder = open_embedder(package, engine)
        self._tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
        self._prompts = PromptWriter(package, self._tokenizer)
        self.identity = f"{hash_file(package.path(MANIFEST_NAME))} {self._session.library} {CACHE_FORMAT}"
        """Of everything that decides about keys and values."""
        self._prefixes = KeptPrefixes(self._session.decoder, self._embedder, self.identity, _prefix_folder())
        self._context = HeldContext(self._session.decoder)
        self._conversation: Conversation | None = None
        """Whose context is held."""
        vocabulary_size, stop_tokens = package.manifest.text.vocabulary_size, package.manifest.sampling.stop_tokens
        self._forms = FormReader(self._tokenizer, GrammarReader(self._tokenizer, vocabulary_size, stop_tokens))
        vision = package.manifest.vision
        self._sight = Sight(vision, lambda: open_vision_encoder(package, engine, settings)) if vision else None
        self._answers_started = 0
        # The decoder writes into one cache and one set of buffers.
        self._lock = threading.Lock()

    def transcribe(self, sound: SoundSource, language: str | None = None, max_tokens: int = 1024) -> Answer:
        """What is said in a clip; `language` is an English name or code, None when it is not known."""
        instruction = transcription_instruction(self.package.manifest.prompts, language)
        return self._obey(instruction, sound, max_tokens)

    def translate(self, sound: SoundSource, *, source: str, target: str, max_tokens: int = 1024) -> Translation:
        """Transcript of a clip in its source language, then its translation into the target language."""
        prompts = self.package.manifest.prompts
        instruction = translation_instruction(prompts, source, target)
        return Translation(self._obey(instruction, sound, max_tokens), prompts, target)

    def start_clip(self, language: str | None = None, *, target: str | None = None) -> SpokenClip | None:
        """A clip that is heard while it is spoken; None where the engine takes whole clips only.

        Args:
            language: that is spoken; None when it is not known.
            target: translate into this language, too; the spoken one is needed then.
        """
        audio, prompts = self.audio_model, self.package.manifest.prompts
        instruction = speech_instruction(prompts, language, target)
        assert self._session.audio_encoder is not None  # audio_model refuses a package without
        stages = self._session.audio_encoder.start_stream()
        if stages is None or audio.log_mel is None:
            return None
        tokens = self._prompts.write([Message("user", instruction, has_audio=True)], 1)
        place = tokens.index(audio.soft_token)
        prompt = ClipPrompt(tokens[:place], tokens[place + 1 :])
        stream = AudioStream(audio, stages)
        return SpokenClip(self._session.decoder, self._embedder, audio, stream, prompt, _ClipTurn(self))

    def finish_clip(self, clip: SpokenClip, target: str | None = None, max_tokens: int = 1024) -> Answer:
        """The answer to a clip that has ended.

        Args:
            clip: begun by this model's last `start_clip`.
            target: that it was begun with.
            max_tokens: longest answer.
        """
        statistics = Statistics(audio_seconds=clip.seconds)
        logits = clip.finish()
        statistics.encode_seconds, statistics.prefill_seconds = clip.encode_seconds, clip.prefill_seconds
        statistics.prompt_positions = clip.position
        wish = Generation(max_tokens=max_tokens)
        pieces = self._decoded(logits, clip.position, wish, statistics, clip.turn_number)
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
            max_tokens: longest answer, thoughts included.
            sound: what the one message with `has_audio` holds.
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
        """
        places = sum(message.has_audio for message in messages)
        if places != (sound is not None):
            raise RequestError(
                f"{places} messages have a sound and {int(sound is not None)} was given: expected one of each, or none."
            )
        settings = settings or SamplingSettings.of_checkpoint(self.package.manifest.sampling)
        form = self._forms.read(tools, tool_choice, answer_format)
        wish = Generation(settings, max_tokens, (stop,) if isinstance(stop, str) else tuple(stop), thinking, form)
        clip = None if sound is None else self._hear(sound)
        return self._answer(messages, clip, wish, conversation=conversation, sight=sight or DEFAULT_SIGHT)

    def start_conversation(self, system: str | None = None) -> Conversation:
        """One whose turns are not run again, and which can be copied, taken back and saved."""
        return Conversation(self, [Message("system", system)] if system else [])

    def load_conversation(self, path: str | os.PathLike[str]) -> Conversation:
        """One that was saved with this very package, engine and version.

        Raises:
            PackageError: the file is damaged, or of another model.
        """
        return load_conversation(self, path)

    def context_of(self, conversation: Conversation) -> tuple[list[int], CacheRows] | None:
        """A copy of what is held of a conversation."""
        with self._lock:
            return self._context.read() if self._conversation is conversation else conversation.waiting

    @property
    def context_length(self) -> int:
        """Positions that a prompt and its answer can take together."""
        return self._session.decoder.capacity

    def count_positions(self, messages: Sequence[Message]) -> int:
        """Positions that a conversation without sounds takes as a prompt."""
        return len(self._prompts.write(messages))

    def quote(self, text: str) -> str:
        """A text from elsewhere as it may stand in a message: nothing in it becomes a control token."""
        return self._tokenizer.break_control_tokens(text)

    def _obey(self, instruction: str, sound: SoundSource, max_tokens: int) -> Answer:
        """One of the published instructions, which come again and again."""
        message = Message("user", instruction, has_audio=True)
        return self._answer([message], self._hear(sound), Generation(max_tokens=max_tokens), keep_prefix=True)

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
        statistics = Statistics()
        note = ""
        audio_embeddings = image_embeddings = None
        seen = self._look(messages, sight)
        if clip is not None:
            note, statistics.audio_seconds = clip.note, clip.seconds
            started = time.perf_counter()
            audio_embeddings = self._encode(clip)
            statistics.encode_seconds = time.perf_counter() - started
        count = 0 if audio_embeddings is None else len(audio_embeddings)
        tokens = self._prompts.write(messages, count, wish.form.tools, seen, thinking=wish.thinking is not False)
        marks: tuple[int, ...] = ()
        if seen and self._sight is not None:
            require_room(self._session.decoder, len(tokens))  # before it is looked at, which takes long
            started = time.perf_counter()
            image_embeddings, marks = self._sight.encode(seen)
            statistics.encode_seconds += time.perf_counter() - started
        audio = self.package.manifest.audio
        prefix = tokens[: tokens.index(audio.soft_token)] if keep_prefix and audio else []
        statistics.prompt_positions = len(tokens)
        thoughts = Thoughts(self._tokenizer, wish.longest_thoughts)
        prompt = _Prompt(tuple(tokens), len(prefix), audio_embeddings, image_embeddings, marks, conversation)
        return Answer(self._pieces(prompt, wish, statistics, thoughts), statistics, note, thoughts, wish.form.calls)

    def _hear(self, sound: SoundSource) -> Sound:
        audio = self.audio_model
        if isinstance(sound, str | os.PathLike):
            return read_sound(sound, audio.sample_rate, audio.max_samples)
        if not isinstance(sound, np.ndarray):
            raise AudioError(f"the sound is a {type(sound).__name__}: expected the path of a file or a numpy array.")
        fits = np.issubdtype(sound.dtype, np.floating) and sound.ndim == 1 and len(sound) <= audio.max_samples
        # A comparison with "not a number" is false.
        if not fits or not (np.abs(sound) <= 1).all():
            raise AudioError(
                f"the waveform is {sound.dtype} of shape {list(sound.shape)}: expected at most {audio.max_samples} "
                "floating-point samples, all of them in [-1, 1]."
            )
        return Sound(sound.astype(np.float32), audio.sample_rate, "")

    def _look(self, messages: Sequence[Message], settings: SightSettings) -> list[ScaledImage | ScaledVideo]:
        if self._sight is not None:
            return self._sight.read(messages, settings)
        if any(message.images or message.videos for message in messages) or settings != DEFAULT_SIGHT:
            raise RequestError(
                "the package has no vision encoder: convert a checkpoint that sees, without --no-vision or --text-only."
            )
        return []

    def _encode(self, clip: Sound) -> Float32Array:
        """wav → frames → audio encoder: embeddings [tokens, hidden]."""
        encoder = self._session.audio_encoder
        frames = self.audio_model.make_frames(clip.waveform)
        if len(frames) == 0:
            raise AudioError(f"the sound lasts {clip.seconds * 1000:.0f} ms, too short to hold speech.")
        assert encoder is not None  # a manifest with audio but without encoder is refused by audio_model
        return encoder.encode(frames)

    @property
    def audio_model(self) -> AudioModel:
        """What the model hears.

        Raises:
            RequestError: it has no audio encoder.
        """
        audio = self.package.manifest.audio
        if audio is None or self._session.audio_encoder is None:
            raise RequestError(
                "the package has no audio encoder: convert a checkpoint that hears, without --text-only."
            )
        return audio

    def _pieces(self, prompt: _Prompt, wish: Generation, statistics: Statistics, thoughts: Thoughts) -> Iterator[str]:
        """embeddings → decode loop → text."""
        decoder, tokens = self._session.decoder, prompt.tokens
        with self._lock:
            turn = self._take_turn(prompt.conversation)
            started = time.perf_counter()
            require_room(decoder, len(tokens))
            start = self._begin(prompt)
            rest = self._embed_from(start, prompt)
            logits = prefill(decoder, rest, start)
            if prompt.audio_embeddings is None:
                self._context.was_run(prompt.contents(self._image_token))
            statistics.prefill_seconds = time.perf_counter() - started
        yield from self._decoded(logits, len(tokens), wish, statistics, turn, thoughts, tokens)

    @contextmanager
    def _held(self, turn: int) -> Iterator[None]:
        with self._lock:
            if turn != self._answers_started:
                raise RequestError("another answer was started on this model: finish one before you start the next.")
            yield

    def _take_turn(self, conversation: Conversation | None = None) -> int:
        """Begin another answer."""
        self._answers_started += 1
        if self._conversation is not conversation:
            if self._conversation is not None:
                self._conversation.suspend(self._context.read())
            self._conversation = conversation
            waiting = conversation.resume() if conversation else None
            if waiting:
                try:
                    self._context.write(*waiting)
                except ValueError:  # from a damaged file, or of a longer context
                    self._context.forget()
        return self._answers_started

    def _begin(self, prompt: _Prompt) -> int:
        """From which position on a prompt has to be run: what the decoder holds of it is kept."""
        if prompt.audio_embeddings is None:
            return self._context.keep(prompt.contents(self._image_token))
        self._context.forget()
        self._prefixes.run(prompt.tokens[: prompt.prefix])
        return prompt.prefix

    @property
    def _image_token(self) -> int | None:
        vision = self.package.manifest.vision
        return vision.soft_token if vision else None

    def _embed_from(self, start: int, prompt: _Prompt) -> PromptEmbeddings:
        """The part of a prompt that is to be run."""
        manifest, images = self.package.manifest, prompt.image_embeddings
        if images is not None:
            left = images[prompt.tokens[:start].count(self._image_token) :]
            images = left if len(left) else None
        return self._embedder.embed(
            prompt.tokens[start:], manifest.audio, prompt.audio_embeddings, manifest.vision, images
        )

    def _decoded(
        self,
        logits: Float32Array,
        position: int,
        wish: Generation,
        statistics: Statistics,
        turn: int,
        thoughts: Thoughts | None = None,
        tokens: Sequence[int] = (),
    ) -> Iterator[str]:
        """The text that follows a prompt which ends at a position.

        Args:
            thoughts: where they are gathered.
            tokens: of the prompt.
        """
        manifest, thoughts = self.package.manifest, thoughts or Thoughts(self._tokenizer)
        softcap, form = manifest.text.final_logit_softcap, wish.form
        suppressed = (*manifest.sampling.suppress_tokens, *form.suppressed)
        sampler = Sampler(wish.sampling, suppressed, softcap, tokens)
        chooser = thoughts.end_too_long(form.keep_to(sampler, thoughts if wish.thinking else None))
        stream, stops = self._tokenizer.start_stream(), StopStrings(wish.stop)
        decoder, drafter, length = self._session.decoder, self._session.drafter, self._draft_length
        stop_tokens, max_tokens = (*manifest.sampling.stop_tokens, *form.stop_tokens), wish.max_tokens
        # A drafter knows nothing of forms.
        if drafter is None or length is None or form.constraint is not None:
            new_tokens = decode(decoder, self._embedder, chooser, logits, position, stop_tokens, max_tokens)
        else:
            statistics.drafts = DraftCounts()
            speculation = Speculation(drafter, length, statistics.drafts, sampler.ahead)
            new_tokens = decode_with_drafts(
                decoder, self._embedder, chooser, speculation, logits, position, stop_tokens, max_tokens
            )
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

    def _next_token(self, tokens: Generator[int, None, bool], turn: int, statistics: Statistics) -> int | None:
        """One step of the decode loop; None at its end."""
        with self._held(turn):
            started = time.perf_counter()
            try:
                token = next(tokens)
                statistics.new_tokens += 1
                self._context.chose(token)
                return token
            except StopIteration as end:
                statistics.complete = end.value
                if end.value:
                    self._context.chose(None)
                return None
            finally:
                statistics.decode_seconds += time.perf_counter() - started


class _ClipTurn:
    """See `spoken_clip.Turn`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        with model._lock:
            self.number = model._take_turn()
            model._context.forget()

    def begin(self, tokens: Sequence[int]) -> None:
        """See `Turn.begin`."""
        with self.held():
            self._model._prefixes.run(tokens)

    def held(self) -> AbstractContextManager[None]:
        """See `Turn.held`."""
        return self._model._held(self.number)

    def decode(self, logits: Float32Array, position: int, max_tokens: int) -> Iterator[str]:
        """See `Turn.decode`."""
        return self._model._decoded(logits, position, Generation(max_tokens=max_tokens), Statistics(), self.number)


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
) -> Model:
    """Load a package that cabochon-convert wrote.

    Args:
        package: the folder.
        engine: `onnx` or `litert`; by default the one that the package was converted for.
        threads: of one operation; 0 means one per processor.
        context_length: positions of the cache; 0 means as many as the package allows.
        drafts: tokens that the package's drafter guesses at a time; None finds out what is fastest, 0 uses no drafter.

    Raises:
        PackageError: the package is missing, damaged or of another format version.
        MissingDependencyError: the engine's library is not installed.
        RequestError: something that was asked for is impossible.
    """
    return Model(open_package(package), engine, EngineSettings(threads, context_length), drafts)
