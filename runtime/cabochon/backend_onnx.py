"""The onnxruntime engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.arrays import CacheArray, Float32Array
from cabochon.backend import (
    CacheRows,
    EngineSettings,
    Guess,
    Session,
    choose_capacity,
    kinds_bound_exactly,
    refuse_impossible_run,
    refuse_unfitting_rows,
    rows_needed,
)
from cabochon.errors import (
    NoMemoryError,
    PackageError,
    RequestError,
    memory_errors,
    missing_dependency,
)
from cabochon.manifest import DrafterModel, Engine, Graph, KeyValueCache, TextModel
from cabochon.package import Package
from cabochon.sliding_cache import SlidingCaches, sliding_capacity
from cabochon.telemetry import refuse_telemetry
from cabochon.thread_placement import placed_threads
from cabochon.vision_model import VisionModel

refuse_telemetry()
try:
    import onnxruntime
except ImportError:
    raise missing_dependency("onnxruntime", "onnx") from None


def open_onnx_session(package: Package, settings: EngineSettings) -> Session:
    """Load the decoder of a package; its audio encoder is loaded when it first hears something."""
    engine = package.manifest.engines["onnx"]
    decoder = OnnxDecoder(package, engine, settings)
    encoder = None
    if engine.audio_encoder is not None:
        encoder = OnnxAudioEncoder(package, engine.audio_encoder, settings)
    drafter = None
    if engine.drafter is not None:
        drafter = OnnxDrafter(_load(package, engine.drafter.graph, settings), engine.drafter, decoder)
    return Session(decoder, encoder, f"onnxruntime {onnxruntime.__version__}", drafter)


def open_onnx_vision_encoder(package: Package, settings: EngineSettings) -> OnnxVisionEncoder:
    """Load the vision encoder of a package that has one."""
    graph, vision = package.manifest.engines["onnx"].vision_encoder, package.manifest.vision
    if graph is None or vision is None:
        raise ValueError("the package has no vision encoder")
    return OnnxVisionEncoder(_load(package, graph, settings), vision)


class OnnxDecoder:
    """Text decoder whose caches and inputs are allocated once and bound to the graph where they lie."""

    def __init__(self, package: Package, engine: Engine, settings: EngineSettings) -> None:
        text = package.manifest.text
        self._text: TextModel = text
        self._capacity = choose_capacity(settings, text.context_length)
        self._session = _load(package, engine.decoder, settings)
        self._binding = self._session.io_binding()
        try:
            with _failures_told():
                self._buffers = [self._bind_cache(cache) for cache in engine.caches]
        except (NoMemoryError, PackageError):
            raise
        except (MemoryError, ValueError):  # numpy raises ValueError for sizes beyond any memory
            raise RequestError(
                f"there is not enough memory for a context of {self._capacity} positions: ask for a shorter one."
            ) from None
        self._caches = engine.caches
        self._bound_exactly = kinds_bound_exactly((cache.kind, cache.heads) for cache in engine.caches)
        self._sliding = self._sliding_caches(engine)
        self._total_length = np.zeros((), np.int32)
        self._window_length = np.zeros((), np.int32)
        self._logits_to_keep = np.zeros(1, np.int64)
        with _failures_told():
            _bind_input(self._binding, "total_length", self._total_length)
            if self._sliding is not None:
                _bind_input(self._binding, "window_length", self._window_length)
            _bind_input(self._binding, "logits_to_keep", self._logits_to_keep)
        self._positions = 0
        self._inputs_embeds = self._per_layer_inputs = self._logits = np.zeros((0, 0), np.float32)
        self._gives_hidden_states = engine.drafter is not None
        self.hidden_states: Float32Array = self._logits
        """See `Drafter.hidden_states`; only where the package has a drafter."""

    @property
    def capacity(self) -> int:
        """Positions that the cache can hold."""
        return self._capacity

    @property
    def earliest_position(self) -> int:
        """See `Decoder.earliest_position`."""
        return self._sliding.earliest_position if self._sliding else 0

    @property
    def shortest_run(self) -> int:
        """See `Decoder.shortest_run`."""
        return 1

    def run(
        self, inputs_embeds: Float32Array, per_layer_inputs: Float32Array, position: int, logits_to_keep: int = 1
    ) -> Float32Array:
        """See `Decoder.run`."""
        count = len(inputs_embeds)
        refuse_impossible_run(position, count, logits_to_keep, self._capacity)
        visible = {"full": range(position + count)}
        if self._sliding is not None:
            rows = self._sliding.make_room(position, count)
            visible["sliding"] = rows if "sliding" in self._bound_exactly else range(rows.stop)
            self._window_length[()] = len(visible["sliding"])
        kept = max(logits_to_keep, 1)  # for 0 the graph would give all of them
        with _failures_told():
            if (count, kept) != (self._positions, len(self._logits)):
                self._bind_positions(count, kept)
            self._bind_rows(visible)
        self._inputs_embeds[0] = inputs_embeds
        self._per_layer_inputs[0] = per_layer_inputs
        self._total_length[()] = position + count
        self._logits_to_keep[0] = kept
        with _failures_told():
            self._session.run_with_iobinding(self._binding)
        return self._logits[:logits_to_keep]

    def read_caches(self, end: int) -> CacheRows:
        """See `Decoder.read_caches`."""
        rows = []
        for cache, pair in zip(self._caches, self._buffers, strict=True):
            held = slice(0, end)
            if cache.window and self._sliding is not None:
                held = self._sliding.rows_before(end, rows_needed(cache, end))
            rows += [buffer[0, :, held].copy() for buffer in pair]
        return CacheRows(end, tuple(rows))

    def write_caches(self, rows: CacheRows) -> None:
        """See `Decoder.write_caches`."""
        refuse_unfitting_rows(rows, self._caches, self._capacity)
        given = iter(rows.rows)
        for cache, pair in zip(self._caches, self._buffers, strict=True):
            held = slice(0, rows.end)
            if cache.window and self._sliding is not None:
                held = self._sliding.refill(rows.end, rows_needed(cache, rows.end))
            for buffer in pair:
                buffer[0, :, held] = next(given)

    def seen_rows(self, layer: int, end: int) -> tuple[Float32Array, Float32Array]:
        """Keys and values [1, heads, rows, head size] of a layer's cache: as much of what is before a position as its
        window shows. Views where there is one head, else copies, because rows of several do not lie together.
        """
        index = next(index for index, cache in enumerate(self._caches) if cache.layer == layer)
        cache, held = self._caches[index], slice(0, end)
        if cache.window and self._sliding is not None:
            held = self._sliding.rows_before(end, min(cache.window, self._sliding.held_before(end)))
        keys, values = (np.ascontiguousarray(buffer[:, :, held]) for buffer in self._buffers[index])
        return keys, values

    def _rows_of(self, cache: KeyValueCache) -> int:
        return sliding_capacity(cache.window, self._capacity) if cache.window else self._capacity

    def _bind_cache(self, cache: KeyValueCache) -> tuple[CacheArray, CacheArray]:
        """Bind keys and values as inputs and as outputs, so that the graph writes new rows in place."""
        # The system hands out zeroed pages only when they are first written.
        shape = (1, cache.heads, self._rows_of(cache), cache.head_size)
        keys, values = np.zeros(shape, cache.storage), np.zeros(shape, cache.storage)
        self._bind_pair(cache, keys, values)
        return keys, values

    def _bind_rows(self, visible: dict[str, range]) -> None:
        """Bind what the run can see of caches of one head: so the graph can multiply with all that it is given."""
        for cache, (keys, values) in zip(self._caches, self._buffers, strict=True):
            if cache.kind in self._bound_exactly:
                rows = slice(visible[cache.kind].start, visible[cache.kind].stop)
                self._bind_pair(cache, keys[:, :, rows], values[:, :, rows])

    def _bind_pair(self, cache: KeyValueCache, keys: CacheArray, values: CacheArray) -> None:
        for buffer, past, presents in (
            (keys, cache.past_key, (cache.present_key, *cache.more_present_keys)),
            (values, cache.past_value, (cache.present_value, *cache.more_present_values)),
        ):
            _bind_input(self._binding, past, buffer)
            for present in presents:
                _bind_output(self._binding, present, buffer)

    def _sliding_caches(self, engine: Engine) -> SlidingCaches | None:
        sliding = [(cache, pair) for cache, pair in zip(engine.caches, self._buffers, strict=True) if cache.window]
        if not sliding:
            return None
        (window,) = {cache.window for cache, _ in sliding}  # a manifest with several is refused
        buffers = [buffer for _, pair in sliding for buffer in pair]
        return SlidingCaches(buffers, window, sliding_capacity(window, self._capacity))

    def _bind_positions(self, count: int, logits_to_keep: int) -> None:
        """Allocate and bind what depends on the number of positions."""
        text = self._text
        # Should memory run out here, the next run starts over instead of writing to what is half bound.
        self._positions = 0
        self._inputs_embeds = np.empty((1, count, text.hidden_size), np.float32)
        self._per_layer_inputs = np.empty((1, count, text.layer_count * text.per_layer_input_size), np.float32)
        logits = np.empty((1, logits_to_keep, text.vocabulary_size), np.float32)
        _bind_input(self._binding, "inputs_embeds", self._inputs_embeds)
        if text.per_layer_input_size:
            _bind_input(self._binding, "per_layer_inputs", self._per_layer_inputs)
        _bind_output(self._binding, "logits", logits)
        if self._gives_hidden_states:
            hidden_states = np.empty((1, logits_to_keep, text.hidden_size), np.float32)
            _bind_output(self._binding, "hidden_states", hidden_states)
            self.hidden_states = hidden_states[0]
        self._logits = logits[0]
        self._positions = count


class OnnxDrafter:
    """See `Drafter`; it reads the buffers of a decoder's caches where they lie."""

    def __init__(self, session: Any, model: DrafterModel, decoder: OnnxDecoder) -> None:
        self._session = session
        self._cache_layers = model.cache_layers
        self._decoder = decoder
        self._names = [output.name for output in session.get_outputs()]
        self._feeds: dict[str, np.ndarray] = {}

    @property
    def hidden_states(self) -> Float32Array:
        """See `Drafter.hidden_states`."""
        return self._decoder.hidden_states

    def start(self, position: int) -> None:
        """See `Drafter.start`."""
        self._feeds = {"position": np.array([position])}
        for kind, layer in self._cache_layers.items():
            self._feeds[f"keys_{kind}"], self._feeds[f"values_{kind}"] = self._decoder.seen_rows(layer, position)

    def guess(self, embedding: Float32Array, hidden: Float32Array) -> Guess:
        """See `Drafter.guess`."""
        states = {"embedding": embedding[None, None], "hidden": hidden[None, None]}
        with _failures_told():
            outputs = dict(zip(self._names, self._session.run(self._names, self._feeds | states), strict=True))
        return Guess(outputs["logits"][0, 0], outputs.get("candidates"), outputs["next_hidden"][0, 0])


class OnnxAudioEncoder:
    """Audio encoder and projector, loaded at the first sound: a chat of text needs no memory for them."""

    def __init__(self, package: Package, graph: Graph, settings: EngineSettings) -> None:
        self._package, self._graph = package, graph
        self._settings = settings
        self._session: Any = None
        self._lock = threading.Lock()

    def encode(self, frames: Float32Array) -> Float32Array:
        """See `AudioEncoder.encode`."""
        session = self._loaded()
        (graph_input,) = session.get_inputs()
        with _failures_told():
            embeddings: Float32Array = session.run(["audio_embeddings"], {graph_input.name: frames[None]})[0][0]
        return embeddings

    def start_stream(self) -> OnnxAudioEncoderStream | None:
        """See `AudioEncoder.start_stream`."""
        session = self._loaded()
        return OnnxAudioEncoderStream(session) if session.get_overridable_initializers() else None

    def _loaded(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session = _load(self._package, self._graph, self._settings)
        return self._session


class OnnxAudioEncoderStream:
    """A graph that hands states on: inputs `past_…` that may be left out, and become outputs `next_…`."""

    def __init__(self, session: Any) -> None:
        self._session = session
        (frames,) = session.get_inputs()
        self._input = frames.name
        shapes = {state.name: state.shape for state in session.get_overridable_initializers()}
        # Blocks of attention and of tokens: so no row is filled up.
        self.block_frames: int = shapes["past_keys"][1] * shapes["past_frames"][1]
        self._names = ["audio_embeddings", *(name.replace("past_", "next_") for name in shapes)]
        self._states: dict[str, np.ndarray] = {}

    def encode(self, frames: Float32Array) -> Float32Array:
        """See `AudioEncoderStream.encode`."""
        with _failures_told():
            embeddings, *states = self._session.run(self._names, {self._input: frames[None], **self._states})
        self._states = {
            name.replace("next_", "past_"): state for name, state in zip(self._names[1:], states, strict=True)
        }
        encoded: Float32Array = embeddings[0]
        return encoded


class OnnxVisionEncoder:
    """Vision encoder and projector."""

    def __init__(self, session: Any, vision: VisionModel) -> None:
        self._session = session
        self._vision = vision

    def encode(self, patches: Float32Array) -> Float32Array:
        """See `VisionEncoder.encode`."""
        self._vision.require_fitting(*patches.shape)
        with _failures_told():
            embeddings: Float32Array = self._session.run(["image_embeddings"], {"patches": patches[None]})[0][0]
        return embeddings


def _load(package: Package, graph: Graph, settings: EngineSettings) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.thread_count
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # It would remember a plan for every shape that it met, and caches grow with every token.
    options.enable_mem_pattern = False
    # On Arm cores with dot products, KleidiAI would round the activations of 4-bit layers per row instead of per block
    # of 32: 1.4 to 4 times the error. Measured with onnxruntime 1.31; to be measured again with a newer one.
    options.add_session_config_entry("mlas.disable_kleidiai", "1")
    package.refuse_changed()
    path = package.folder / graph.file
    try:
        with memory_errors(f"memory ran out before {path} was loaded"), placed_threads(pinned=settings.pinned):
            return _session(package, graph, options)
    except NoMemoryError:
        raise
    except Exception as error:  # onnxruntime raises one class per status code, all directly below Exception
        raise PackageError(f"onnxruntime cannot load {path} ({_first_line(error)}).") from None


@contextmanager
def _failures_told() -> Iterator[None]:
    """Too little memory, and a graph that is not what the manifest describes, are told about in one sentence."""
    try:
        with memory_errors():
            yield
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # see _load
        raise PackageError(
            f"onnxruntime cannot run a graph of the package ({_first_line(error)}): convert the checkpoint again."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _session(package: Package, graph: Graph, options: Any) -> Any:
    """Of a graph's file, whose weights onnxruntime maps. Where other files have the names by now, both are copied."""
    weights = [record.path for record in package.manifest.files if record.path.startswith(f"{graph.file}.data")]
    if all(map(package.is_in_place, (graph.file, *weights))):
        return onnxruntime.InferenceSession(str(package.path(graph.file)), options, ["CPUExecutionProvider"])
    mapped = [np.memmap(package.path(name), np.uint8, "r") for name in weights]
    names = [Path(name).name for name in weights]
    options.add_external_initializers_from_files_in_memory(names, mapped, list(map(len, mapped)))
    session = onnxruntime.InferenceSession(package.path(graph.file).read_bytes(), options, ["CPUExecutionProvider"])
    del mapped  # which onnxruntime reads until then, and does not hold
    return session


def _bind_input(binding: Any, name: str, array: np.ndarray) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
