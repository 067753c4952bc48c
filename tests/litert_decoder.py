"""A LiteRT decoder that can be checked by hand: logits say which rows of the caches a position saw, and where they lay.

Row s of the keys is the embedding of position s. Row s of the values is its per-layer embedding plus the ranks of all
that position s saw, where the rank of position t is t + 1. Logits are the sums of all rows that a position sees, times
their ranks, plus the position itself: whole numbers, so that every answer is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from litert_graphs import FLOAT, INTEGER, OPERATORS, OPTIONS, GivenMatrix, add_layer, add_place

from cabochon.manifest import EmbeddingTable, Engine, FileRecord, KeyValueCache, RowRegion, TextModel
from cabochon.manifest_file import manifest_from_text
from cabochon.package import Package
from cabochon_convert.flatbuffer_litert import describe_graph, fill_places
from cabochon_convert.graph_writer_litert import GraphWriter

GOLDEN_MANIFEST = Path(__file__).parent / "golden" / "manifest.json"
HEADS, HEAD_SIZE = 2, 3
HIDDEN = HEADS * HEAD_SIZE
LAYERS, WIDTH = HEADS, HEAD_SIZE
VOCABULARY = 2 * HIDDEN
KEYS, VALUES = "kv_cache_k_0", "kv_cache_v_0"


def write_decoder(path: Path, runs: Iterable[tuple[int, int]], verified: int = 0) -> None:
    """Signatures of so many positions, with caches of such a length; those of one position give logits.

    Args:
        verified: of so many positions, a run gives logits and hidden states, as one of a single position then does.
    """
    graph = GraphWriter()
    runs = tuple(runs)
    signatures = [
        (f"decode_cache_{cache}" if count == 1 else f"prefill_{count}_cache_{cache}", count, cache)
        for count, cache in runs
    ]
    if verified:
        lengths = sorted({cache for _, cache in runs})
        signatures += [(f"verify_{verified}_cache_{cache}", verified, cache) for cache in lengths if cache >= verified]
    for name, count, cache in signatures:
        inputs, outputs = _add_run(graph, count, cache, gives_logits=not name.startswith("prefill"))
        if not verified:
            outputs.pop("hidden_states", None)
        if name == signatures[-1][0]:
            content = graph.finish(name, inputs, outputs)
        else:
            graph.signature(name, inputs, outputs)
    # Backwards, so that the order of logits is not that of the caches.
    backwards = np.ascontiguousarray(np.eye(VOCABULARY, dtype=np.float32)[::-1])
    fill_places(content, [GivenMatrix(backwards, None, 32)], path)


def expected_logits(embeddings: np.ndarray, per_layer: np.ndarray) -> np.ndarray:
    """Of the last position of some that were run from the first one: [vocabulary]."""
    ranks = np.arange(len(embeddings)) + 1
    values = per_layer + np.cumsum(ranks)[:, None]
    return np.concatenate([ranks @ embeddings + len(embeddings) - 1, ranks @ values])[::-1]


def expected_hidden_state(embeddings: np.ndarray) -> np.ndarray:
    """Of the same position: [hidden]."""
    hidden: np.ndarray = (np.arange(len(embeddings)) + 1) @ embeddings + len(embeddings) - 1
    return hidden


def write_package(folder: Path, runs: Iterable[tuple[int, int]], context_length: int, verified: int = 0) -> Package:
    """A package of such a decoder, good for nothing but to be run."""
    path = folder / "decoder.tflite"
    runs = tuple(runs)
    write_decoder(path, runs, verified)
    golden = manifest_from_text(GOLDEN_MANIFEST.read_text(), "golden")
    _, longest = max(runs, key=lambda run: run[1])
    table = EmbeddingTable(
        rows=VOCABULARY, columns=HIDDEN, storage="float32", signed=False,
        values=RowRegion(file=path.name, offset=0, stride=4 * HIDDEN),
        block_size=0, scales=None, scale_storage=None, zero_points=None, row_scale=1.0,
    )  # fmt: skip
    cache = KeyValueCache(
        layer=0, kind="full", window=0, heads=HEADS, head_size=HEAD_SIZE,
        past_key=KEYS, past_value=VALUES, present_key=KEYS, present_value=VALUES,
    )  # fmt: skip
    engine = Engine(
        decoder=describe_graph(path, f"decode_cache_{longest}"),
        caches=(cache,),
        audio_encoder=None,
        audio_projector=None,
        vision_projector=None,
        vision_encoder=None,
        token_embeddings=table,
        per_layer_embeddings=table,
    )
    content = path.read_bytes()
    record = FileRecord(path=path.name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest = replace(
        golden,
        text=TextModel(
            vocabulary_size=VOCABULARY,
            hidden_size=HIDDEN,
            layer_count=LAYERS,
            per_layer_input_size=WIDTH,
            context_length=context_length,
            final_logit_softcap=0.0,
        ),
        audio=None,
        vision=None,
        bos_token=1,
        pad_token=0,
        sampling=replace(golden.sampling, stop_tokens=(2,), suppress_tokens=()),
        engines={"litert": engine},
        files=(record, *(replace(record, path=name) for name in (golden.tokenizer_file, golden.chat_template_file))),
    )
    return Package(folder, manifest)


def _add_run(
    graph: GraphWriter, count: int, cache: int, *, gives_logits: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Inputs and outputs of a signature."""
    inputs = {
        "embeddings": graph.tensor("embeddings", [1, count, HIDDEN], FLOAT),
        "per_layer_embeddings": graph.tensor("per_layer_embeddings", [1, count, LAYERS, WIDTH], FLOAT),
        "input_pos": graph.tensor("input_pos", [count], INTEGER),
        "mask": graph.tensor("mask", [1, 1, count, cache], FLOAT),
        KEYS: graph.tensor(KEYS, [1, HEADS, cache, HEAD_SIZE], FLOAT),
        VALUES: graph.tensor(VALUES, [1, HEADS, HEAD_SIZE, cache], FLOAT),
    }
    ranks = _constant(graph, np.arange(1, cache + 1, dtype=np.float32))
    # What is added to scores becomes 1 or 0.
    shape = [1, 1, count, cache]
    seen = _apply(graph, "ADD", [inputs["mask"], _number(graph, 1)], shape)
    seen = _apply(graph, "MAXIMUM", [seen, _number(graph, 0)], shape)
    ranked = _apply(graph, "MUL", [seen, ranks], shape)
    row_sums = _sum(graph, ranked, 3, [1, 1, count])
    heads = _reshape(graph, inputs["embeddings"], [1, count, HEADS, HEAD_SIZE])
    new_keys = _transpose(graph, heads, [0, 2, 1, 3], [1, HEADS, count, HEAD_SIZE])
    shape = [1, HEADS, HEAD_SIZE, count]
    new_values = _transpose(graph, inputs["per_layer_embeddings"], [0, 2, 3, 1], shape)
    new_values = _apply(graph, "ADD", [new_values, _reshape(graph, row_sums, [1, 1, 1, count])], shape)
    first = _first_position(graph, inputs["input_pos"])
    keys = _write_rows(graph, inputs[KEYS], new_keys, first, 2, [1, HEADS, cache, HEAD_SIZE])
    values = _write_rows(graph, inputs[VALUES], new_values, first, 3, [1, HEADS, HEAD_SIZE, cache])
    outputs = {KEYS: keys, VALUES: values}
    if gives_logits:
        outputs |= _add_logits(graph, keys, values, ranked, inputs["input_pos"], count, cache)
    return inputs, outputs


def _add_logits(
    graph: GraphWriter, keys: int, values: int, ranked: int, positions: int, count: int, cache: int
) -> dict[str, int]:
    """Logits [1, count, vocabulary] and hidden states [1, count, hidden]."""
    placed, joined = [], []
    for row in range(count):
        ranks = _cut(graph, ranked, [0, 0, row, 0], [1, 1, 1, cache], FLOAT)
        position = _cut(graph, positions, [row], [1], INTEGER)
        placed.append(_sum_of_keys(graph, keys, ranks, position, cache))
        joined.append(graph.tensor("joined", [1, 1, VOCABULARY], FLOAT))
        value_sum = _sum_of_values(graph, values, ranks, cache)
        graph.operator(OPERATORS.CONCATENATION, [placed[-1], value_sum], joined[-1], _along(2))
    rows, hidden_states = (
        graph.tensor(name, [1, count, size], FLOAT) for name, size in (("rows", VOCABULARY), ("hidden_states", HIDDEN))
    )
    graph.operator(OPERATORS.CONCATENATION, joined, rows, _along(1))
    graph.operator(OPERATORS.CONCATENATION, placed, hidden_states, _along(1))
    matrix = add_place(graph, 0, (VOCABULARY, VOCABULARY))
    logits = add_layer(graph, rows, count, matrix, (VOCABULARY, VOCABULARY), "logits")
    return {"logits": logits, "hidden_states": hidden_states}


def _sum_of_keys(graph: GraphWriter, keys: int, ranks: int, position: int, cache: int) -> int:
    """And the position: [1, 1, hidden]."""
    column = _reshape(graph, ranks, [1, 1, cache, 1])
    all_keys = _apply(graph, "MUL", [keys, column], [1, HEADS, cache, HEAD_SIZE])
    key_sum = _reshape(graph, _sum(graph, all_keys, 2, [1, HEADS, HEAD_SIZE]), [1, 1, HIDDEN])
    place = graph.tensor("position", [1], FLOAT)
    cast = schema.CastOptionsT()
    cast.inDataType, cast.outDataType = INTEGER, FLOAT
    graph.operator(OPERATORS.CAST, [position], place, (OPTIONS.CastOptions, cast))
    return _apply(graph, "ADD", [key_sum, place], [1, 1, HIDDEN])


def _sum_of_values(graph: GraphWriter, values: int, ranks: int, cache: int) -> int:
    all_values = _apply(graph, "MUL", [values, ranks], [1, HEADS, HEAD_SIZE, cache])
    return _reshape(graph, _sum(graph, all_values, 3, [1, HEADS, HEAD_SIZE]), [1, 1, HIDDEN])


def _cut(graph: GraphWriter, values: int, start: list[int], shape: list[int], kind: int) -> int:
    part = graph.tensor("part", shape, kind)
    begin, size = (_constant(graph, np.array(numbers, np.int32)) for numbers in (start, shape))
    graph.operator(OPERATORS.SLICE, [values, begin, size], part)
    return part


def _write_rows(graph: GraphWriter, cache: int, rows: int, first: int, axis: int, shape: list[int]) -> int:
    before, after = np.zeros(axis, np.int32), np.zeros(3 - axis, np.int32)
    parts = [_constant(graph, before), first, *([_constant(graph, after)] if len(after) else [])]
    start = graph.tensor("start", [4], INTEGER)
    graph.operator(OPERATORS.CONCATENATION, parts, start, _along(0))
    written = graph.tensor("written", shape, FLOAT)
    graph.operator(OPERATORS.DYNAMIC_UPDATE_SLICE, [cache, rows, start], written)
    return written


def _first_position(graph: GraphWriter, positions: int) -> int:
    first = graph.tensor("first", [1], INTEGER)
    begin, size = (_constant(graph, np.array([number], np.int32)) for number in (0, 1))
    graph.operator(OPERATORS.SLICE, [positions, begin, size], first)
    return first


def _apply(graph: GraphWriter, kind: str, operands: list[int], shape: list[int]) -> int:
    output = graph.tensor(kind.lower(), shape, FLOAT)
    options = {
        "ADD": (OPTIONS.AddOptions, schema.AddOptionsT()),
        "MUL": (OPTIONS.MulOptions, schema.MulOptionsT()),
        "MAXIMUM": (OPTIONS.MaximumMinimumOptions, schema.MaximumMinimumOptionsT()),
    }
    graph.operator(getattr(OPERATORS, kind), operands, output, options[kind])
    return output


def _sum(graph: GraphWriter, values: int, axis: int, shape: list[int]) -> int:
    output = graph.tensor("sum", shape, FLOAT)
    axes = _constant(graph, np.array([axis], np.int32))
    graph.operator(OPERATORS.SUM, [values, axes], output, (OPTIONS.ReducerOptions, schema.ReducerOptionsT()))
    return output


def _reshape(graph: GraphWriter, values: int, shape: list[int]) -> int:
    output = graph.tensor("reshaped", shape, FLOAT)
    graph.operator(OPERATORS.RESHAPE, [values, _constant(graph, np.array(shape, np.int32))], output)
    return output


def _transpose(graph: GraphWriter, values: int, order: list[int], shape: list[int]) -> int:
    output = graph.tensor("transposed", shape, FLOAT)
    graph.operator(OPERATORS.TRANSPOSE, [values, _constant(graph, np.array(order, np.int32))], output)
    return output


def _along(axis: int) -> tuple[int, schema.ConcatenationOptionsT]:
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    return OPTIONS.ConcatenationOptions, options


def _number(graph: GraphWriter, value: float) -> int:
    return _constant(graph, np.array(value, np.float32))


def _constant(graph: GraphWriter, values: np.ndarray) -> int:
    return graph.constant("constant", values)
