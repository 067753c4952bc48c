"""The package manifest: every fact that the runtime, a Raspberry Pi or an Android app needs to run a converted model.

`manifest.json` is the only contract between the converter and whatever runs the model; `manifest_file.py` reads and
writes it. Every part refuses impossible values with a ValueError, whose message is half a sentence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath

from cabochon.audio_model import AudioModel
from cabochon.vision_model import VisionModel

FORMAT_VERSION = 4
MANIFEST_NAME = "manifest.json"

TABLE_STORAGE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4, "int2": 2}
"""How an embedding table may be stored, and bits of one value."""
CACHE_KINDS = ("sliding", "full")
CACHE_STORAGE_BYTES = {"float32": 4, "int8": 1}
"""By storage of a key-value cache, bytes of a number."""


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the package."""

    path: str
    """Path below the package folder, with forward slashes."""
    size: int
    """Length in bytes."""
    sha256: str
    """Hexadecimal SHA-256 of the whole file."""

    def __post_init__(self) -> None:
        _require(is_safe_path(self.path), f"the path {self.path!r} leaves the package folder or is not plain")
        _require(self.size >= 0, f"{self.path} has a negative size")
        digits = set("0123456789abcdef")
        _require(len(self.sha256) == 64 and set(self.sha256) <= digits, f"{self.path} has no SHA-256 of 64 hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAdapter:
    """A LoRA adapter that was merged into the weights."""

    name: str
    """Name of its folder or hub repository."""
    revision: str | None
    """Commit of the hub repository; None for a folder."""
    sha256: str
    """SHA-256 over its adapter_config.json and adapter_model.safetensors, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCheckpoint:
    """Where the weights came from."""

    name: str
    """Name of the checkpoint's folder or hub repository."""
    revision: str | None
    """Commit of the hub repository; None for a folder."""
    architecture: str
    """The checkpoint's own name for its model class."""
    sha256: str
    """SHA-256 over the checkpoint's config.json and weight files, in name order."""
    skipped_tensors: tuple[str, ...]
    """Tensors of the checkpoint that no part of the package uses."""
    adapter: SourceAdapter | None
    """What was merged into the checkpoint's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedPrecision:
    """How one weight matrix was stored."""

    tensor: str
    """Name in the checkpoint."""
    bits: int
    """2, 4 or 8 for block-wise integers, 16 or 32 for floating point."""
    block_size: int
    """Consecutive inputs that share one scale; 0 for floating point."""
    symmetric: bool
    """Whether all blocks put zero on the same integer; true for floating point."""
    scale_bits: int
    """Of each scale; 0 for floating point."""
    algorithm: str
    """How the integers were chosen: "nearest" (also for floating point), "mse", "gptq", or "as-trained": they are the
    checkpoint's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedRecipe:
    """The quantization as it was really applied, tensor by tensor."""

    name: str
    precisions: tuple[AppliedPrecision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """Sizes of the text decoder."""

    vocabulary_size: int
    hidden_size: int
    layer_count: int
    per_layer_input_size: int
    """Width of the per-layer embedding of one layer."""
    context_length: int
    """Positions that the exported graph can address."""
    final_logit_softcap: float
    """Logits are to be replaced by cap * tanh(logits / cap) before sampling; 0: there is no cap, or graphs do it."""

    def __post_init__(self) -> None:
        sizes = (self.vocabulary_size, self.hidden_size, self.layer_count, self.context_length)
        _require(min(sizes) > 0 and self.per_layer_input_size >= 0, "the text model has a size that is not positive")
        _require(self.final_logit_softcap >= 0, "final_logit_softcap is negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Instructions that the model was trained to follow; `{source}` and `{target}` stand for language names."""

    transcribe: str
    transcribe_unknown_language: str
    translate: str
    translation_marker: str
    """What the model writes between the transcript and its translation."""

    def __post_init__(self) -> None:
        _require("{source}" in self.transcribe, "the transcribe prompt has no {source}")
        both = "{source}" in self.translate and "{target}" in self.translate
        _require(both and "{target}" in self.translation_marker, "the translate prompt lacks {source} or {target}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The checkpoint's generation defaults."""

    temperature: float
    top_k: int
    """Candidates that sampling chooses from; 0 means all."""
    top_p: float
    """Smallest probability mass that the candidates must hold together."""
    stop_tokens: tuple[int, ...]
    suppress_tokens: tuple[int, ...]
    """Never produced, not even by greedy decoding."""

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, f"temperature is {self.temperature}, expected a number from 0")
        _require(self.top_k >= 0, f"top_k is {self.top_k}, expected a number from 0")
        _require(0 < self.top_p <= 1, f"top_p is {self.top_p}, expected a value above 0 and at most 1")
        _require(len(self.stop_tokens) > 0, "there is no stop token, so decoding would never end")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRegion:
    """Rows of equal length at equal distance in one file."""

    file: str
    offset: int
    """Byte of the first row."""
    stride: int
    """Bytes from the start of one row to the next."""

    def __post_init__(self) -> None:
        _require(self.offset >= 0 and self.stride > 0, f"the rows in {self.file} have an impossible offset or stride")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTable:
    """A table whose rows are read from disk one by one, never loaded whole.

    An integer row holds `columns` values: unsigned, less the zero point of their block, or signed; times its scale. Of
    the values that share a byte the first lies in its lowest bits.
    """

    rows: int
    columns: int
    storage: str
    """One of `TABLE_STORAGE_BITS`."""
    signed: bool
    """Whether integers are two's complements; false for floating point."""
    values: RowRegion
    block_size: int
    """Values that share a scale; 0 for floating-point storage."""
    scales: RowRegion | None
    scale_storage: str | None
    """float32 or float16."""
    zero_points: RowRegion | None
    """One per block, stored like the values; None where all are `2 ** (bits - 1)`, or 0 of signed integers."""
    row_scale: float
    """Every looked-up row is multiplied by this."""

    def __post_init__(self) -> None:
        _require(self.rows > 0 and self.columns > 0, "an embedding table has no rows or no columns")
        _require(self.storage in TABLE_STORAGE_BITS, f"the table storage {self.storage!r} is unknown")
        if self.storage.startswith("int"):
            whole_bytes = self.columns * TABLE_STORAGE_BITS[self.storage] % 8 == 0
            fills = whole_bytes and self.block_size > 0 and self.columns % self.block_size == 0
            _require(fills, "an embedding table's blocks do not fill its rows")
            _require(self.scales is not None and self.scale_storage in ("float32", "float16"), "a table has no scales")
        else:
            bare = self.block_size == 0 and self.scales is None and self.zero_points is None
            _require(bare and not self.signed, "a floating-point table has signs, scales or zero points")
        _require(not self.signed or self.zero_points is None, "a table of signed integers has zero points")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of a graph; a dimension is a number or the name of one that varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueCache:
    """The cache of one layer that owns its keys and values: the graph's output buffer is its input buffer."""

    layer: int
    kind: str
    """`sliding` (only the last window of positions is attended to) or `full`."""
    window: int
    """Positions that are attended to, the newest included; 0 for a full cache. Older ones may be dropped."""
    heads: int
    head_size: int
    past_key: str
    past_value: str
    present_key: str
    present_value: str
    storage: str = "float32"
    """One of `CACHE_STORAGE_BYTES`; the scales of integers are in the graph."""
    more_present_keys: tuple[str, ...] = ()
    """Further outputs for the same buffer: of layers that read integers of this one."""
    more_present_values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.storage in CACHE_STORAGE_BYTES, f"the cache storage {self.storage!r} is unknown")
        _require(self.kind in CACHE_KINDS, f"the cache kind {self.kind!r} is unknown")
        _require(self.layer >= 0 and self.heads > 0 and self.head_size > 0, "a cache has an impossible size")
        _require(
            (self.window > 0) == (self.kind == "sliding"), "a sliding cache has no window, or a full cache has one"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One executable graph."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterModel:
    """A small model that guesses what the decoder says next, from the decoder's own caches and hidden states."""

    graph: Graph
    cache_layers: dict[str, int]
    """By kind of cache that it reads, the decoder's layer that owns it."""
    recommended_drafts: int
    """How many tokens to guess at a time, by the checkpoint; 0 where it does not say."""
    source: SourceCheckpoint

    def __post_init__(self) -> None:
        kinds = set(self.cache_layers)
        _require(bool(kinds) and kinds <= set(CACHE_KINDS), "the drafter reads no cache, or one of an unknown kind")
        _require(self.recommended_drafts >= 0, "the drafter's recommended_drafts is negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Everything that one engine runs."""

    decoder: Graph
    caches: tuple[KeyValueCache, ...]
    audio_encoder: Graph | None
    audio_projector: Graph | None
    """From the audio encoder's features to embeddings; None where the encoder's graph does that too."""
    vision_encoder: Graph | None
    vision_projector: Graph | None
    """From the vision encoder's features to embeddings; None where the encoder's graph does that too."""
    token_embeddings: EmbeddingTable
    per_layer_embeddings: EmbeddingTable | None
    drafter: DrafterModel | None = None
    """None where there is none; manifests without the key are read, too."""

    def __post_init__(self) -> None:
        owners = {(cache.kind, cache.layer) for cache in self.caches}
        read = set(self.drafter.cache_layers.items()) if self.drafter else set()
        floats = {(cache.kind, cache.layer) for cache in self.caches if cache.storage == "float32"}
        _require(not read & (owners - floats), "the drafter reads a cache of integers")
        _require(read <= owners, "the drafter reads the cache of a layer that has none of this kind")
        windows = {cache.window for cache in self.caches if cache.window}
        _require(len(windows) < 2, "the sliding caches have different windows")
        _require(self.audio_encoder is not None or self.audio_projector is None, "a projector has no audio encoder")
        _require(self.vision_encoder is not None or self.vision_projector is None, "a projector has no vision encoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole manifest."""

    format_version: int
    created_by: str
    """Program and version that wrote the package."""
    source: SourceCheckpoint
    recipe: AppliedRecipe
    text: TextModel
    audio: AudioModel | None
    vision: VisionModel | None
    bos_token: int
    """Starts every prompt; the chat template asks for its text."""
    pad_token: int
    """Its embeddings stand in for those of media placeholders before splicing."""
    prompts: Prompts
    sampling: Sampling
    tokenizer_file: str
    chat_template_file: str
    engines: dict[str, Engine]
    """By engine name: `onnx` or `litert`; empty only while a package is being written."""
    files: tuple[FileRecord, ...]
    """Every file of the package but the manifest itself."""

    def __post_init__(self) -> None:
        _require(self.format_version == FORMAT_VERSION, f"format_version is not {FORMAT_VERSION}")
        paths = [record.path for record in self.files]
        _require(len(set(paths)) == len(paths), "a file is listed twice")
        for path in self._referenced_files():
            _require(path in paths, f"{path} is used but not listed among the files")
        for token in self._control_tokens():
            _require(0 <= token < self.text.vocabulary_size, f"token {token} is outside the vocabulary")
        for name, engine in self.engines.items():
            self._require_fitting_tables(name, engine)
        sees = [engine.vision_encoder is not None for engine in self.engines.values()]
        _require(self.vision is not None or not any(sees), "there is a vision_encoder, but vision is null")
        _require(
            self.vision is None or any(sees) or not sees, "vision is described, but no engine has a vision_encoder"
        )

    def _require_fitting_tables(self, name: str, engine: Engine) -> None:
        text, tokens, per_layer = self.text, engine.token_embeddings, engine.per_layer_embeddings
        fits = (tokens.rows, tokens.columns) == (text.vocabulary_size, text.hidden_size)
        _require(fits, f"the token_embeddings of {name} have another size than the text model")
        width = text.layer_count * text.per_layer_input_size
        fits = (per_layer.rows, per_layer.columns) == (text.vocabulary_size, width) if per_layer else width == 0
        _require(fits, f"the per_layer_embeddings of {name} have another size than the text model")

    @property
    def size(self) -> int:
        """Bytes of all files together, without the manifest."""
        return sum(record.size for record in self.files)

    def _referenced_files(self) -> list[str]:
        paths = [self.tokenizer_file, self.chat_template_file]
        for engine in self.engines.values():
            encoders = (engine.audio_encoder, engine.audio_projector, engine.vision_encoder, engine.vision_projector)
            paths += [graph.file for graph in (engine.decoder, *encoders) if graph is not None]
            if engine.drafter is not None:
                paths.append(engine.drafter.graph.file)
            for table in (engine.token_embeddings, engine.per_layer_embeddings):
                if table is not None:
                    paths += [
                        region.file for region in (table.values, table.scales, table.zero_points) if region is not None
                    ]
        return paths

    def _control_tokens(self) -> tuple[int, ...]:
        media = [part for part in (self.audio, self.vision) if part is not None]
        placeholders = [token for part in media for token in (part.begin_token, part.soft_token, part.end_token)]
        sampling = self.sampling
        return (self.bos_token, self.pad_token, *sampling.stop_tokens, *sampling.suppress_tokens, *placeholders)


def is_safe_path(path: str) -> bool:
    """Whether a path names something below a folder on every system: relative, plain parts, no escape."""
    parts = PurePosixPath(path).parts
    plain = "\\" not in path and ":" not in path and path.isprintable() and not path.startswith("/")
    return plain and len(parts) > 0 and ".." not in parts and str(PurePosixPath(path)) == path and path != MANIFEST_NAME
