"""How fast a package runs here, and what it takes: made-up tokens, sounds and images, because speed does not depend on
what is said. Says nothing about answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isqrt
from statistics import median
from typing import Protocol

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import EngineSettings, VisionEncoder
from cabochon.decode import prefill, run_prompt
from cabochon.embedder import open_embedder
from cabochon.energy import EnergyMeter
from cabochon.engines import choose_engine, open_session, open_vision_encoder
from cabochon.errors import RequestError
from cabochon.machine import find_processor, resident_memory
from cabochon.package import Package
from cabochon.sampling import Sampler, SamplingSettings
from cabochon.tokenizer import Tokenizer

WARM_UP_TOKENS = 2
"""The sampler's first steps after a run of many positions wake threads."""
QUESTION_POSITIONS = 32
"""Of a short question, and of what stands around a sound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What is measured, and for how long."""

    prompts: tuple[int, ...] = (128, 512)
    """Positions that are prefilled at once."""
    depths: tuple[int, ...] = (128, 1024)
    """Positions behind which is decoded."""
    tokens: int = 8
    """Decoded in a round."""
    sound_seconds: float = 5.0
    image_tokens: int = 0
    """Budget of the image; 0 means the smallest one of the package."""
    rounds: int = 3
    time_limit: float = 180.0
    """Seconds after which nothing new is begun."""

    def __post_init__(self) -> None:
        counts = (*self.prompts, *self.depths, self.tokens, self.rounds)
        if min(counts) < 1 or self.image_tokens < 0:
            raise RequestError("prompts, depths, tokens and rounds of a benchmark have to be positive numbers.")
        if not (self.sound_seconds >= 0 and self.time_limit > 0):
            raise RequestError("the seconds of sound and the time limit of a benchmark have to be positive numbers.")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kind of work, several times."""

    name: str
    """`prefill`, `decode`, `audio`, `image`, `first token` or `first token after sound`."""
    amount: float
    """Of what `unit` counts."""
    unit: str
    """`positions` prefilled, `positions` behind which was decoded, `seconds` of sound or `tokens` of an image."""
    values: tuple[float, ...]
    """One of each round."""
    quantity: str
    """What the values are: `positions/s`, `tokens/s`, `x real time` or `s`."""
    joules: tuple[float, ...] = ()
    """Spent in each round: for one prefilled position, decoded token, second of sound, image, or answer begun."""

    @property
    def median(self) -> float:
        """Over all rounds."""
        return median(self.values)


@dataclass(slots=True)
class BenchResult:
    """What was measured of one package."""

    package: str
    recipe: str
    engine: str
    library: str
    threads: int
    context_length: int
    processor: str
    load_seconds: float
    """With the tokenizer, without hashing."""
    loaded_bytes: int | None
    """Resident, after loading."""
    peak_bytes: int | None = None
    """Resident at most, of the whole process."""
    energy_source: str | None = None
    measurements: list[Measurement] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What was left out, and why."""


class BenchProgress(Protocol):
    """Is told how far a benchmark is."""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Args: done: rounds, of `total`; what: comes next."""


class LoadedPackage:
    """A package whose stages run one by one, on made-up input."""

    def __init__(self, package: Package, engine: str, settings: EngineSettings) -> None:
        self.package, self._settings = package, settings
        self.engine = choose_engine(package, engine)
        started = time.perf_counter()
        self._session = open_session(package, self.engine, settings)
        self._embedder = open_embedder(package, self.engine)
        self.load_seconds = time.perf_counter() - started
        self.library = self._session.library
        sampling = package.manifest.sampling
        self._sampler = Sampler(SamplingSettings(), sampling.suppress_tokens, package.manifest.text.final_logit_softcap)
        self._vision: VisionEncoder | None = None
        self._generator = np.random.default_rng(0)
        self._position = 0

    @property
    def capacity(self) -> int:
        """Positions that the cache can hold."""
        return self._session.decoder.capacity

    @property
    def hears(self) -> bool:
        """Whether there is an audio encoder."""
        return self.package.manifest.audio is not None and self._session.audio_encoder is not None

    @property
    def sees(self) -> bool:
        """Whether there is a vision encoder."""
        return self.package.manifest.engines[self.engine].vision_encoder is not None

    def prefill(self, count: int) -> float:
        """Forget everything and run so many tokens for the logits behind the last: seconds."""
        tokens = self._tokens(count)
        started = time.perf_counter()
        prefill(self._session.decoder, self._embedder.prepare(tokens))
        self._position = count
        return time.perf_counter() - started

    def fill(self, count: int) -> float:
        """The same without logits: seconds."""
        tokens = self._tokens(count)
        started = time.perf_counter()
        run_prompt(self._session.decoder, self._embedder.prepare(tokens), 0, logits_to_keep=0)
        self._position = count
        return time.perf_counter() - started

    def decode(self, count: int) -> list[float]:
        """Run so many tokens one by one behind what was run before, choosing one after each: seconds of each."""
        each = []
        for token in self._tokens(count):
            started = time.perf_counter()
            step = self._embedder.embed([token])
            logits = self._session.decoder.run(step.inputs_embeds, step.per_layer_inputs, self._position)[-1]
            self._sampler.choose(logits)
            each.append(time.perf_counter() - started)
            self._position += 1
        return each

    def hear(self, seconds: float) -> float:
        """Encode a sound of so many seconds: seconds."""
        waveform = self._noise(seconds)
        started = time.perf_counter()
        self._encode(waveform)
        return time.perf_counter() - started

    def see(self, tokens: int) -> float:
        """Encode an image of so many tokens: seconds. Loads the encoder before, if it is not."""
        vision = self.package.manifest.vision
        assert vision is not None  # a manifest whose engine sees without it is refused
        if self._vision is None:
            self._vision = open_vision_encoder(self.package, self.engine, self._settings)
        rows = next(count for count in range(isqrt(tokens), 0, -1) if tokens % count == 0)
        columns, kernel = tokens // rows, vision.pooling_kernel_size
        shape = (rows * kernel, columns * kernel, vision.values_per_patch)
        patches = self._generator.random(shape, np.float32)
        started = time.perf_counter()
        self._vision.encode(patches)
        return time.perf_counter() - started

    def begin_answer(self, seconds: float = 0.0) -> float:
        """From a question, with a sound of so many seconds if any, to its first token: seconds."""
        waveform, tokens = self._noise(seconds), self._tokens(QUESTION_POSITIONS)
        audio = self.package.manifest.audio
        started = time.perf_counter()
        if seconds and audio is not None:
            heard = self._encode(waveform)
            middle = len(tokens) // 2
            tokens = [*tokens[:middle], *[audio.soft_token] * len(heard), *tokens[middle:]]
            prompt = self._embedder.prepare(tokens, audio, heard)
        else:
            prompt = self._embedder.prepare(tokens)
        self._sampler.choose(prefill(self._session.decoder, prompt))
        self._position = len(tokens)
        return time.perf_counter() - started

    def _encode(self, waveform: Float32Array) -> Float32Array:
        audio, encoder = self.package.manifest.audio, self._session.audio_encoder
        assert audio is not None  # hears says so
        assert encoder is not None
        return encoder.encode(audio.make_frames(waveform))

    def _noise(self, seconds: float) -> Float32Array:
        audio = self.package.manifest.audio
        count = min(round(seconds * audio.sample_rate), audio.max_samples) if audio else 0
        return (0.1 * self._generator.standard_normal(count)).clip(-1, 1).astype(np.float32)

    def _tokens(self, count: int) -> list[int]:
        """Any, with padding in the places of those that stand for a sound or an image."""
        manifest = self.package.manifest
        media = {part.soft_token for part in (manifest.audio, manifest.vision) if part is not None}
        drawn = self._generator.integers(0, manifest.text.vocabulary_size, count)
        return [manifest.pad_token if int(token) in media else int(token) for token in drawn]


def measure_package(
    package: Package,
    engine: str,
    engine_settings: EngineSettings,
    settings: BenchSettings,
    meter: EnergyMeter | None = None,
    progress: BenchProgress | None = None,
) -> BenchResult:
    """Load a package and measure what it can do.

    Raises:
        RequestError: settings that the package cannot fulfil.
        MissingDependencyError: the engine's library is not installed.
    """
    deadline = time.monotonic() + settings.time_limit
    started = time.perf_counter()
    _tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))  # kept: it counts as memory
    tokenizer_seconds = time.perf_counter() - started
    loaded = LoadedPackage(package, engine, engine_settings)
    processor = find_processor()
    result = BenchResult(
        package=package.folder.resolve().name,
        recipe=package.manifest.recipe.name,
        engine=loaded.engine,
        library=loaded.library,
        threads=engine_settings.thread_count,
        context_length=loaded.capacity,
        processor=processor.model or processor.architecture,
        load_seconds=tokenizer_seconds + loaded.load_seconds,
        loaded_bytes=resident_memory().now,
        energy_source=meter.source if meter else None,
    )
    tasks = list(_tasks(loaded, settings, result.skipped))
    total, done = len(tasks) * settings.rounds, 0
    for task in tasks:
        values: list[float] = []
        joules: list[float] = []
        for turn in range(settings.rounds):
            if progress:
                progress(done, total, task.label)
            if time.monotonic() < deadline:
                if turn == 0:
                    task.prepare()
                before = meter.joules() if meter else 0.0
                value, units = task.measure()
                values.append(value)
                if meter:
                    joules.append((meter.joules() - before) / units)
            done += 1
        if values:
            kept = Measurement(task.name, task.amount, task.unit, tuple(values), task.quantity, tuple(joules))
            result.measurements.append(kept)
        if len(values) < settings.rounds:
            rounds = f"{settings.rounds - len(values)} of {settings.rounds} rounds"
            result.skipped.append(f"{task.label}: {rounds}, because the time limit was reached")
    if progress:
        progress(total, total, "")
    result.peak_bytes = resident_memory().peak
    return result


@dataclass(frozen=True, slots=True)
class _Task:
    """Something to measure."""

    name: str
    amount: float
    unit: str
    quantity: str
    measure: Callable[[], tuple[float, float]]
    """The value, and how many units the energy is divided by."""
    prepare: Callable[[], object]
    """Once, before the first round: warms up, and is not measured."""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.amount:g} {self.unit})"


def _tasks(loaded: LoadedPackage, settings: BenchSettings, skipped: list[str]) -> Iterator[_Task]:
    """What this package can do, from the shortest to the longest; what it cannot is noted."""
    behind = (WARM_UP_TOKENS + settings.tokens) * settings.rounds
    tasks = [(_prefill_task(loaded, count), count) for count in settings.prompts]
    tasks += [(_decode_task(loaded, depth, settings.tokens), depth + behind) for depth in settings.depths]
    tasks.append((_first_token_task(loaded, "first token", 0.0), QUESTION_POSITIONS))
    for task, positions in tasks:
        if positions < loaded.capacity:
            yield task
        else:
            skipped.append(f"{task.label}: the context has {loaded.capacity} positions")
    if settings.sound_seconds and loaded.hears:
        yield from _sound_tasks(loaded, settings.sound_seconds, skipped)
    if loaded.sees:
        yield _image_task(loaded, settings.image_tokens)


def _prefill_task(loaded: LoadedPackage, count: int) -> _Task:
    # The first run of a length allocates, and what was mapped is read.
    return _Task(
        "prefill", count, "positions", "positions/s",
        lambda: (count / loaded.prefill(count), count), lambda: loaded.prefill(count),
    )  # fmt: skip


def _decode_task(loaded: LoadedPackage, depth: int, tokens: int) -> _Task:
    def measure() -> tuple[float, float]:
        each = loaded.decode(WARM_UP_TOKENS + tokens)
        return 1 / median(each[WARM_UP_TOKENS:]), len(each)

    return _Task("decode", depth, "positions", "tokens/s", measure, lambda: loaded.fill(depth))


def _sound_tasks(loaded: LoadedPackage, seconds: float, skipped: list[str]) -> Iterator[_Task]:
    audio = loaded.package.manifest.audio
    assert audio is not None  # hears says so
    seconds = min(seconds, audio.max_samples / audio.sample_rate)
    frames = audio.make_frames(np.zeros(round(seconds * audio.sample_rate), np.float32))
    if len(frames) == 0:
        skipped.append(f"audio ({seconds:g} seconds): too short to hold speech")
        return
    yield _Task(
        "audio", seconds, "seconds", "x real time",
        lambda: (seconds / loaded.hear(seconds), seconds), lambda: loaded.hear(seconds),
    )  # fmt: skip
    if QUESTION_POSITIONS + audio.token_count(len(frames)) < loaded.capacity:
        yield _first_token_task(loaded, "first token after sound", seconds)
    else:
        skipped.append(f"first token after sound ({seconds:g} seconds): the context has {loaded.capacity} positions")


def _first_token_task(loaded: LoadedPackage, name: str, seconds: float) -> _Task:
    amount, unit = (seconds, "seconds") if seconds else (QUESTION_POSITIONS, "positions")
    return _Task(
        name, amount, unit, "s", lambda: (loaded.begin_answer(seconds), 1), lambda: loaded.begin_answer(seconds)
    )


def _image_task(loaded: LoadedPackage, budget: int) -> _Task:
    vision = loaded.package.manifest.vision
    assert vision is not None  # sees says so
    if budget and budget not in vision.soft_token_budgets:
        raise RequestError(
            f"an image of {budget} tokens was asked for, expected one of the package's budgets: "
            f"{', '.join(map(str, vision.soft_token_budgets))}."
        )
    tokens = budget or vision.soft_token_budgets[0]
    return _Task("image", tokens, "tokens", "s", lambda: (loaded.see(tokens), 1), lambda: loaded.see(tokens))
