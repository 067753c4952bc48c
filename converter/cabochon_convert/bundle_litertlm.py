"""A package for LiteRT as one `.litertlm` file, which Google's LiteRT-LM and its apps run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from cabochon.cache_lengths import ANY_LENGTH, PREFILL_LENGTH, shortest_cache
from cabochon.embedder import open_embedder
from cabochon.errors import RequestError, missing_dependency
from cabochon.manifest import TABLE_STORAGE_BITS, EmbeddingTable, Graph, Manifest, RowRegion
from cabochon.package import Package
from cabochon.tokenizer import Tokenizer
from cabochon.whole_file import sync_folder
from cabochon_convert.cache_axes_litert import change_cache_length
from cabochon_convert.embedder_litert import build_embedder
from cabochon_convert.flatbuffer_litert import MatrixPart, keep_signatures, signature_names
from cabochon_convert.graph_writer_litert import GraphWriter
from cabochon_convert.processor import TOKENIZER_CONFIG_NAME
from cabochon_convert.work_folder import OutputError, output_errors, work_folder

try:
    from litert_lm_builder import litertlm_builder
    from litert_lm_builder.runtime.proto import executor_metadata_pb2, llm_metadata_pb2, sampler_params_pb2
except ImportError as error:
    raise missing_dependency(str(error.name), "convert-litert") from None

_ROWS_AT_ONCE = 4096
_KEY_AXIS, _VALUE_AXIS = 2, 3
"""Positions in caches of keys and of values."""


def write_litertlm(package: Package, path: Path, context_length: int | None = None) -> int:
    """Bundle a package; returns the size of the file.

    Args:
        context_length: of the caches; the package's by default.

    Raises:
        RequestError: the package is not for LiteRT, or cannot have caches of this length.
        OutputError: the file exists or cannot be written; nothing is left behind.
    """
    if "litert" not in package.manifest.engines:
        raise RequestError(f"{package.folder} has no graphs for litert: convert the checkpoint with --target litert.")
    longest = package.manifest.text.context_length
    context_length = context_length or longest
    shortest = min(longest, shortest_cache(cache.window for cache in package.manifest.engines["litert"].caches))
    if not shortest <= context_length <= longest:
        raise RequestError(
            f"{package.folder} cannot have caches of {context_length} positions: expected {shortest} to {longest}."
        )
    if path.exists():
        raise OutputError(f"{path} exists already: choose another name.")
    with output_errors(path), work_folder(path) as parts:
        beside = parts / path.name
        builder = _fill(litertlm_builder.LitertLmFileBuilder(), package, context_length, parts)
        with beside.open("wb") as file:
            builder.build(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    return path.stat().st_size


def _fill(builder: Any, package: Package, context_length: int, parts: Path) -> Any:
    manifest, engine = package.manifest, package.manifest.engines["litert"]
    types = litertlm_builder.TfLiteModelType
    (parts / "llm_metadata.pb").write_bytes(_llm_metadata(package, context_length).SerializeToString())
    (parts / "executor_metadata.pb").write_bytes(_executor_metadata(manifest, context_length).SerializeToString())
    author = litertlm_builder.Metadata(key="Authors", value=manifest.created_by, dtype=litertlm_builder.DType.STRING)
    builder.add_system_metadata(author)
    builder.add_llm_metadata(str(parts / "llm_metadata.pb"))
    builder.add_executor_metadata(str(parts / "executor_metadata.pb"))
    builder.add_hf_tokenizer(str(package.path(manifest.tokenizer_file)))
    models = {types.PREFILL_DECODE: _decoder(package, context_length, parts)}
    models[types.EMBEDDER] = _embedder(package, engine.token_embeddings, parts / "embedder.tflite")
    if engine.per_layer_embeddings is not None:
        models[types.PER_LAYER_EMBEDDER] = package.path(engine.per_layer_embeddings.values.file)
    if engine.audio_encoder is not None and engine.audio_projector is not None and manifest.audio is not None:
        features = next(tensor for tensor in engine.audio_encoder.outputs if tensor.name == "features")
        longest = features.shape[1]
        models[types.AUDIO_ENCODER_HW] = _only(package, engine.audio_encoder, f"audio_{longest}", parts)
        models[types.AUDIO_ADAPTER] = _only(package, engine.audio_projector, f"audio_adapter_{longest}", parts)
        models[types.END_OF_AUDIO] = _end_of(package, manifest.audio.end_token, "eoa", parts)
    if engine.vision_encoder is not None and engine.vision_projector is not None and manifest.vision is not None:
        budget = manifest.vision.default_soft_token_budget
        models[types.VISION_ENCODER] = _only(package, engine.vision_encoder, f"vision_{budget}", parts)
        models[types.VISION_ADAPTER] = _only(package, engine.vision_projector, f"vision_adapter_{budget}", parts)
        models[types.END_OF_VISION] = _end_of(package, manifest.vision.end_token, "eoi", parts)
    for kind, model in models.items():
        builder.add_tflite_model(str(model), kind)
    return builder


@dataclass(frozen=True, slots=True)
class _PackagedTable:
    """An embedding table of a package on its way into a graph of its own."""

    folder: Path
    table: EmbeddingTable

    @property
    def rows(self) -> int:
        return self.table.rows

    @property
    def columns(self) -> int:
        return self.table.columns

    @property
    def bits(self) -> int:
        return TABLE_STORAGE_BITS[self.table.storage]

    @property
    def block_size(self) -> int:
        return self.table.block_size if self.table.scale_storage == "float16" else 0

    def parts(self) -> Iterator[MatrixPart]:
        """See `StoredMatrix.parts`."""
        for start in range(0, self.rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, self.rows - start)
            values = self._read(self.table.values, start, count, np.dtype(np.uint8))
            scales = np.zeros((count, 0), np.float32)
            if self.table.scales is not None:
                kind = np.dtype(self.table.scale_storage)
                scales = self._read(self.table.scales, start, count, kind).astype(np.float32)
            yield MatrixPart(values if self.bits < 32 else values.view(np.float32), scales)

    def _read(self, region: RowRegion, start: int, count: int, kind: np.dtype[Any]) -> np.ndarray:
        # Rows of LiteRT's tables lie side by side.
        with (self.folder / region.file).open("rb") as file:
            file.seek(region.offset + start * region.stride)
            content = file.read(count * region.stride)
        return np.frombuffer(content, kind).reshape(count, -1)


def _decoder(package: Package, context_length: int, parts: Path) -> Path:
    """LiteRT-LM 0.18 knows the plain names of signatures only, and does not resize these.

    Runs that verify drafts are left out: it has a drafter of its own kind.
    """
    path = package.path(package.manifest.engines["litert"].decoder.file)
    names = {f"{name}{ANY_LENGTH}": name for name in ("decode", f"prefill_{PREFILL_LENGTH}")}
    found = set(signature_names(path))
    if set(names) <= found:
        keep_signatures(path, names, parts / path.name, lambda model: change_cache_length(model, context_length))
        return parts / path.name
    plain = {"decode", f"prefill_{min(PREFILL_LENGTH, package.manifest.text.context_length)}"}
    if not plain <= found:
        raise RequestError(f"{path} is of an older version of cabochon-convert: convert the checkpoint again.")
    if plain == found:
        return path
    keep_signatures(path, {name: name for name in plain}, parts / path.name)
    return parts / path.name


def _embedder(package: Package, table: EmbeddingTable, path: Path) -> Path:
    """The graph of the token embeddings, which lie in the decoder's file when they are tied."""
    build_embedder(_PackagedTable(package.folder, table), table.row_scale, (table.columns,), path)
    return path


def _only(package: Package, graph: Graph, signature: str, parts: Path) -> Path:
    """A graph with one signature, as LiteRT-LM 0.18 wants it."""
    path = parts / graph.file
    keep_signatures(package.path(graph.file), {signature: signature}, path)
    return path


def _end_of(package: Package, token: int, name: str, parts: Path) -> Path:
    """A graph that gives the embedding of a token; names as litert-torch 0.10 gives them."""
    row = open_embedder(package, "litert").tokens.look_up([token])[None]
    graph = GraphWriter()
    constant = graph.constant("row", row)
    shape = graph.constant("shape", np.array(row.shape, np.int32))
    output = graph.tensor(f"{name}_embedding", row.shape, schema.TensorType.FLOAT32)
    graph.operator(schema.BuiltinOperator.RESHAPE, [constant, shape], output)
    path = parts / f"{name}.tflite"
    path.write_bytes(graph.finish(name, {}, {f"{name}_embedding": output}))
    return path


def _llm_metadata(package: Package, context_length: int) -> Any:
    """What LiteRT-LM wants to know about tokens and prompts; fields as litert-torch 0.10 fills them."""
    manifest, metadata = package.manifest, llm_metadata_pb2.LlmMetadata()
    tokenizer = Tokenizer(package.path(manifest.tokenizer_file))
    metadata.start_token.token_ids.ids.append(manifest.bos_token)
    metadata.pad_token.token_ids.ids.append(manifest.pad_token)
    for token in manifest.sampling.stop_tokens:
        metadata.stop_tokens.add().token_ids.ids.append(token)
    metadata.suppress_tokens.ids.extend(manifest.sampling.suppress_tokens)
    sampler = metadata.sampler_params
    sampler.type = sampler_params_pb2.SamplerParameters.TOP_P
    sampler.k, sampler.p = manifest.sampling.top_k or 64, manifest.sampling.top_p
    sampler.temperature = manifest.sampling.temperature
    metadata.jinja_prompt_template = package.path(manifest.chat_template_file).read_text(encoding="utf-8")
    metadata.max_num_tokens = context_length
    gemma, special = metadata.llm_model_type.gemma4, _special_tokens(package)
    gemma.code_fence_start, gemma.code_fence_end = special.get("stc_token", ""), special.get("etc_token", "")
    gemma.open_quote = gemma.close_quote = special.get("escape_token", "")
    gemma.function_response_start = special.get("str_token", "")
    thoughts = metadata.channels.add()
    thoughts.channel_name = "thought"
    thoughts.start = special.get("soc_token", "<|channel>") + "thought\n"
    thoughts.end = special.get("eoc_token", "<channel|>")
    if manifest.audio is not None:
        gemma.start_of_audio_token.token_str = tokenizer.token_text(manifest.audio.begin_token)
        gemma.end_of_audio_token.token_str = tokenizer.token_text(manifest.audio.end_token)
    if manifest.vision is not None:
        vision = manifest.vision
        gemma.start_of_image_token.token_str = tokenizer.token_text(vision.begin_token)
        gemma.end_of_image_token.token_str = tokenizer.token_text(vision.end_token)
        gemma.patch_width = gemma.patch_height = vision.patch_size
        gemma.max_num_patches = vision.default_soft_token_budget * vision.pooling_kernel_size**2
        gemma.pooling_kernel_size = vision.pooling_kernel_size
    return metadata


def _special_tokens(package: Package) -> dict[str, str]:
    """Names of special tokens in tokenizer_config.json; empty where the checkpoint has none."""
    path = package.folder / TOKENIZER_CONFIG_NAME
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # Where a fine-tune added tokens, transformers 5.23 writes a list.
    nested = [config.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens")]
    named = config | {name: value for each in nested if isinstance(each, dict) for name, value in each.items()}
    return {name: value for name, value in named.items() if name.endswith("_token") and isinstance(value, str)}


def _executor_metadata(manifest: Manifest, context_length: int) -> Any:
    """The caches: all of them keep the whole context."""
    metadata = executor_metadata_pb2.ExecutorMetadata()
    executor = metadata.llm_executor_metadata
    kinds = executor_metadata_pb2.StateBuffer
    for cache in manifest.engines["litert"].caches:
        for name, kind, axis in (
            (cache.past_key, kinds.TYPE_GLOBAL_KEY_CACHE, _KEY_AXIS),
            (cache.past_value, kinds.TYPE_GLOBAL_VALUE_CACHE, _VALUE_AXIS),
        ):
            buffer = executor.state_buffers.add()
            buffer.prefill_input_name = buffer.prefill_output_name = name
            buffer.decode_input_name = buffer.decode_output_name = name
            buffer.policy, buffer.type = kinds.POLICY_DEFAULT, kind
            buffer.sequence_axis, buffer.maximum_sequence_length = axis, context_length
    executor.max_history_size = context_length
    return metadata
