"""What a package costs in memory, computed from its manifest alone.

Weights and caches are exact up to how an engine keeps them; what runs need besides is a multiple, found on E2B (two
cores of x86, onnxruntime 1.31, LiteRT 2.3), of sizes that the manifest states. So all of it is marked as computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from cabochon.audio_model import AudioModel
from cabochon.backend import LONGEST_RUN, EngineSettings, choose_capacity
from cabochon.cache_lengths import PREFILL_LENGTH, cache_lengths, shortest_cache
from cabochon.draft_length import AUTOMATIC_LONGEST
from cabochon.errors import RequestError
from cabochon.log_mel import LogMelParameters
from cabochon.manifest import CACHE_STORAGE_BYTES, TABLE_STORAGE_BITS, Graph, KeyValueCache, Manifest
from cabochon.sliding_cache import sliding_capacity

FLOAT_BYTES = 4
MEBIBYTE = 1 << 20

INTERPRETER_BYTES = 65 * MEBIBYTE
"""Python, numpy and the libraries that every command imports."""
TOKEN_BYTES, TOKENIZER_FACTOR = 222, 2.2
"""The tokenizer in memory: of each token, which is kept twice, and a multiple of tokenizer.json, for its merges."""
ENGINE_BYTES = {"onnx": 10 * MEBIBYTE, "litert": 12 * MEBIBYTE}
"""What an engine needs for itself, once a graph is loaded."""
WEIGHTS_FACTOR = {"onnx": 1.11, "litert": 1.08}
"""onnxruntime sorts weights into its kernels' order and adds sums of their blocks; LiteRT maps sorted ones from a file,
and reads some of the graph's own."""
ENCODER_WEIGHTS_FACTOR = 1.04
"""Of encoders, which have fewer sums."""
CACHE_COPIES_FACTOR = {"onnx": 0.0, "litert": 0.7}
"""Windows, transposed keys and masks that LiteRT keeps, as a multiple of the caches."""
HIDDEN_COPIES, PER_LAYER_COPIES = 16, 5
"""Rows of a run that are alive at once: as wide as the model (MLPs are wider), and as wide as all per-layer inputs."""
FRAME_COPIES, FRAME_ROWS = 70, 5
"""What is alive of a sound at once: a multiple of its log-mels, of which the first convolution makes channels, and rows
as wide as the text model for every frame."""
PATCH_COPIES = 19
"""What is alive of an image at once, as a multiple of its patches."""
LITERT_BYTES_PER_PAIR = 48
"""Scores of any patch for any other: onnxruntime keeps none, LiteRT those of all heads, 12 of E2B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Bytes of what is in memory."""

    runtime: int
    """Interpreter, engine and tokenizer."""
    decoder_weights: int
    caches: int
    """Keys and values of all positions of the context."""
    activations: int
    """Of the decoder's longest run."""
    prompt: int
    """Embeddings of the part of a prompt that is run at once."""
    audio_weights: int
    """0 where the package does not hear."""
    audio_activations: int
    """Of the longest sound that the model takes at once."""
    vision_weights: int
    """0 where the package does not see."""
    vision_activations: int
    """Of an image of the default budget."""
    drafter_weights: int = 0
    """0 where the package has no drafter."""
    drafter_activations: int = 0
    """Of its guesses, and of the decoder's logits for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCost:
    """Memory that a process with a loaded package takes, in bytes."""

    engine: str
    context_length: int
    """Positions that it is computed for."""
    parts: Parts
    cache_per_1000_positions: int
    """What 1000 more positions cost, once sliding windows are full."""
    loading: int
    """At most while it is loaded: the largest matrix is there twice for a moment."""
    mapped: int
    """Of the weights of decoder and encoders: mapped from files, so that the system may drop and read them again."""

    @property
    def mapped_for_text(self) -> int:
        """Of `text`, of which encoders are no part."""
        return self.mapped - self.parts.audio_weights - self.parts.vision_weights if self.mapped else 0

    @property
    def text(self) -> int:
        """At most, for text alone with the whole context in use."""
        return max(self.loading, self._decoding + self.parts.prompt)

    @property
    def sound(self) -> int | None:
        """At most, when sounds are heard as well; None where the package does not hear."""
        parts = self.parts
        if not parts.audio_weights:
            return None
        return max(self.loading, self._decoding + parts.audio_weights + max(parts.prompt, parts.audio_activations))

    @property
    def image(self) -> int | None:
        """At most, when images are seen as well as text; None where the package does not see."""
        parts = self.parts
        if not parts.vision_weights:
            return None
        return max(self.loading, self._decoding + parts.vision_weights + max(parts.prompt, parts.vision_activations))

    @property
    def everything(self) -> int:
        """At most, when all that the package can do is used."""
        weights = self.parts.audio_weights + self.parts.vision_weights
        return max(self.loading, self._decoding + weights + self.inputs)

    @property
    def inputs(self) -> int:
        """Of what is put in, before the decoder runs it: a prompt as long as the context, or a sound and an image."""
        return max(self.parts.prompt, self.parts.audio_activations + self.parts.vision_activations)

    @property
    def _decoding(self) -> int:
        parts = self.parts
        drafter = parts.drafter_weights + parts.drafter_activations
        return parts.runtime + parts.decoder_weights + parts.caches + parts.activations + drafter


def compute_memory_cost(manifest: Manifest, engine: str, context_length: int = 0) -> MemoryCost:
    """What a package costs in memory.

    Args:
        manifest: of the package.
        engine: that it has graphs for.
        context_length: positions to make room for; 0 means all.

    Raises:
        RequestError: the package was converted for a shorter context, or this version does not know the engine.
    """
    if engine not in ENGINE_BYTES:
        raise RequestError(f"what the engine {engine!r} needs is unknown to this cabochon: install a newer one.")
    capacity = choose_capacity(EngineSettings(context_length=context_length), manifest.text.context_length)
    graphs = manifest.engines[engine]
    runtime = INTERPRETER_BYTES + ENGINE_BYTES[engine] + _tokenizer_bytes(manifest)
    stored = _weights(manifest, graphs.decoder)
    weights = round(WEIGHTS_FACTOR[engine] * stored)
    heard = _part_weights(manifest, engine, (graphs.audio_encoder, graphs.audio_projector))
    seen = _part_weights(manifest, engine, (graphs.vision_encoder, graphs.vision_projector))
    drafter = _weights(manifest, graphs.drafter.graph) if graphs.drafter else 0
    drafting = round(WEIGHTS_FACTOR[engine] * drafter)
    parts = Parts(
        runtime=runtime,
        decoder_weights=weights,
        caches=_cache_bytes(manifest, engine, capacity),
        activations=_activations(manifest, engine, capacity),
        prompt=FLOAT_BYTES * min(capacity, LONGEST_RUN) * (manifest.text.hidden_size + _per_layer_width(manifest)),
        audio_weights=heard,
        audio_activations=_audio_activations(manifest.audio, manifest.text.hidden_size)
        if heard and manifest.audio
        else 0,
        vision_weights=seen,
        vision_activations=_vision_activations(manifest, engine) if seen else 0,
        drafter_weights=drafting,
        drafter_activations=_drafter_activations(manifest, engine, capacity),
    )
    is_mapped, largest = engine == "litert", _largest_matrix(manifest, engine)
    return MemoryCost(
        engine=engine,
        context_length=capacity,
        parts=parts,
        cache_per_1000_positions=1000 * _bytes_per_position(manifest, engine),
        # What is mapped comes with the first run.
        loading=runtime + (weights + drafting - stored - drafter if is_mapped else weights + max(largest, drafting)),
        mapped=stored + heard + seen + drafter if is_mapped else 0,
    )


def weight_cache_bytes(manifest: Manifest, engine: str) -> int:
    """What an engine writes into the cache folder when it first loads the graphs of a package."""
    if engine != "litert":
        return 0
    graphs = manifest.engines[engine]
    encoders = (graphs.audio_encoder, graphs.audio_projector, graphs.vision_encoder, graphs.vision_projector)
    drafter = graphs.drafter.graph if graphs.drafter else None
    return sum(_weights(manifest, graph) for graph in (graphs.decoder, drafter, *encoders) if graph)


def _tokenizer_bytes(manifest: Manifest) -> int:
    return TOKEN_BYTES * manifest.text.vocabulary_size + round(
        TOKENIZER_FACTOR * _size(manifest, manifest.tokenizer_file)
    )


def _size(manifest: Manifest, path: str) -> int:
    return sum(record.size for record in manifest.files if record.path == path)


def _weights(manifest: Manifest, graph: Graph) -> int:
    """A graph and, for onnxruntime, the file of its weights."""
    return _size(manifest, graph.file) + _size(manifest, f"{graph.file}.data")


def _part_weights(manifest: Manifest, engine: str, graphs: Iterable[Graph | None]) -> int:
    factor = ENCODER_WEIGHTS_FACTOR if engine == "onnx" else 1.0
    return round(factor * sum(_weights(manifest, graph) for graph in graphs if graph))


def _largest_matrix(manifest: Manifest, engine: str) -> int:
    """The matrix of logits, which is as large as the token embeddings."""
    table = manifest.engines[engine].token_embeddings
    return table.rows * table.columns * TABLE_STORAGE_BITS[table.storage] // 8


def _cache_bytes(manifest: Manifest, engine: str, capacity: int) -> int:
    """Of all caches, filled: LiteRT's grow, and while they do the last ones are there as well."""
    caches = manifest.engines[engine].caches
    if engine == "onnx":
        rows = [sliding_capacity(cache.window, capacity) if cache.window else capacity for cache in caches]
        return sum(_bytes_per_row(cache) * count for cache, count in zip(caches, rows, strict=True))
    lengths = cache_lengths(manifest.text.context_length, shortest_cache(cache.window for cache in caches))
    last = next((index for index, length in enumerate(lengths) if length >= capacity), len(lengths) - 1)
    positions = (1 + CACHE_COPIES_FACTOR[engine]) * lengths[last] + (lengths[last - 1] if last else 0)
    return round(_bytes_per_position(manifest, engine) * positions)


def _bytes_per_position(manifest: Manifest, engine: str) -> int:
    """Of a position in all caches that grow: not in onnxruntime's sliding ones."""
    growing = [cache for cache in manifest.engines[engine].caches if not cache.window or engine == "litert"]
    return sum(map(_bytes_per_row, growing))


def _bytes_per_row(cache: KeyValueCache) -> int:
    """A key and a value of all heads."""
    return 2 * CACHE_STORAGE_BYTES[cache.storage] * cache.heads * cache.head_size


def _activations(manifest: Manifest, engine: str, capacity: int) -> int:
    text = manifest.text
    positions = min(capacity, LONGEST_RUN if engine == "onnx" else PREFILL_LENGTH)
    row = HIDDEN_COPIES * text.hidden_size + PER_LAYER_COPIES * _per_layer_width(manifest)
    return FLOAT_BYTES * (positions * row + text.vocabulary_size)


def _drafter_activations(manifest: Manifest, engine: str, capacity: int) -> int:
    """Logits of a guess and of the decoder's rows that check it, and copies of the caches that the drafter reads: rows
    of several heads do not lie together.
    """
    drafter = manifest.engines[engine].drafter
    if drafter is None:
        return 0
    read = set(drafter.cache_layers.items())
    caches = [cache for cache in manifest.engines[engine].caches if (cache.kind, cache.layer) in read]
    rows = [(cache, min(cache.window or capacity, capacity)) for cache in caches if cache.heads > 1]
    copies = sum(2 * cache.heads * cache.head_size * count for cache, count in rows)
    return FLOAT_BYTES * ((1 + AUTOMATIC_LONGEST) * manifest.text.vocabulary_size + copies)


def _per_layer_width(manifest: Manifest) -> int:
    return manifest.text.layer_count * manifest.text.per_layer_input_size


def _audio_activations(audio: AudioModel, hidden_size: int) -> int:
    frontend = audio.frontend
    if isinstance(frontend, LogMelParameters):
        frames = audio.max_samples // frontend.hop_length
        return FLOAT_BYTES * frames * (FRAME_COPIES * frontend.mel_bins + FRAME_ROWS * hidden_size)
    # Without an encoder, frames are only multiplied.
    return 2 * FLOAT_BYTES * audio.max_samples


def _vision_activations(manifest: Manifest, engine: str) -> int:
    vision = manifest.vision
    assert vision is not None  # a manifest whose engine sees without it is refused
    patches = vision.default_soft_token_budget * prod((vision.pooling_kernel_size,) * 2)
    needed = FLOAT_BYTES * PATCH_COPIES * patches * vision.values_per_patch
    return needed + (LITERT_BYTES_PER_PAIR * patches**2 if engine == "litert" else 0)
