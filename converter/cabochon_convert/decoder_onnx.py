"""The text decoder as an ONNX graph with key-value caches.

The maths is that of transformers' `Gemma4TextModel`. Inputs and outputs (S positions, K of them with logits, C the
capacity of the full caches, W that of the sliding ones):

    inputs_embeds     float32 [1, S, hidden]            scaled token embeddings, audio embeddings spliced in
    per_layer_inputs  float32 [1, S, layers * width]    scaled per-layer embeddings; absent where the width is 0
    total_length      int32 []                          positions in the full caches after this run
    window_length     int32 []                          rows in the sliding caches after this run
    logits_to_keep    int64 [1]                         K
    past_{key,value}_i, present_{key,value}_i           float32 [1, heads, C or W, head size]; the same buffer;
                                                        int8 in full layers where caches are to be integers
    present_{key,value}_i.layer_j                       likewise, where layer j reads integers of layer i
    logits            float32 [1, K, vocabulary]        before the soft cap
    hidden_states     float32 [1, K, hidden]            behind the last norm; only where a drafter reads them

Where all caches of a kind have one head, only what the run can see is bound, as its layers read all that they get: C is
total_length, W is window_length, and at most the window before the first position and the run itself.

Layers that share another layer's cache store nothing, so only the last K positions have to go through them. Sliding
caches hold the newest rows only: keys are rotated by absolute positions, so old rows can be dropped from the front.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from cabochon.arrays import Float32Array
from cabochon.manifest import AppliedPrecision, Graph, KeyValueCache
from cabochon_convert.attention_onnx import AttentionWriter
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.graph_onnx import MICROSOFT, OnnxGraph
from cabochon_convert.integer_caches_onnx import IntegerCacheWriter
from cabochon_convert.linear_onnx import LinearWriter, StoredMatrix
from cabochon_convert.matrices import LinearSettings, MatrixRows
from cabochon_convert.recipes import EMBEDDING, HEAD
from cabochon_convert.text_config import LayerConfig, TextConfig

PREFIX = "model.language_model."
# Slice's way to say "to the end".
END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class BuiltDecoder:
    """What the manifest has to say about the decoder."""

    graph: Graph
    caches: tuple[KeyValueCache, ...]
    head: StoredMatrix
    applied: dict[str, AppliedPrecision]


def build_decoder(
    checkpoint: Checkpoint,
    config: TextConfig,
    settings: LinearSettings,
    context_length: int,
    path: Path,
    *,
    gives_hidden_states: bool = False,
    kv_cache: str = "float32",
) -> BuiltDecoder:
    """Write the decoder graph to `path` and its weights beside it, one matrix in memory at a time."""
    with OnnxGraph(path) as graph:
        writer = LinearWriter(graph, checkpoint, settings)
        builder = _DecoderBuilder(graph, writer, checkpoint, config, context_length, kv_cache)
        caches, head = builder.build(gives_hidden_states=gives_hidden_states)
        return BuiltDecoder(graph.finish(), caches, head, writer.applied)


class _DecoderBuilder:
    def __init__(
        self,
        graph: OnnxGraph,
        writer: LinearWriter,
        checkpoint: Checkpoint,
        config: TextConfig,
        context_length: int,
        kv_cache: str,
    ) -> None:
        self._graph = graph
        self._writer = writer
        self._checkpoint = checkpoint
        self._config = config
        self._context_length = context_length
        integers = IntegerCacheWriter(graph, config, self._read_key_norm) if kv_cache == "int8" else None
        self._attention_writer = AttentionWriter(graph, config, integers)

    def build(self, *, gives_hidden_states: bool) -> tuple[tuple[KeyValueCache, ...], StoredMatrix]:
        graph, config = self._graph, self._config
        width = len(config.layers) * config.per_layer_input_size
        hidden = graph.input("inputs_embeds", "float32", (1, "S", config.hidden_size))
        if width:
            graph.input("per_layer_inputs", "float32", (1, "S", width))
        self._declare_lengths()
        self._write_rotations()
        self._write_shared_norms()
        owners = config.owner_count
        per_layer = self._per_layer_inputs(hidden, "per_layer_inputs", range(owners))
        for index, layer in enumerate(config.layers):
            if index == owners:
                kept = (self._keep_last("inputs_embeds"), self._keep_last("per_layer_inputs")) if width else ("", "")
                per_layer += self._per_layer_inputs(*kept, range(owners, len(config.layers)))
                hidden = self._keep_last(hidden)
            hidden = self._layer(index, layer, hidden, per_layer[index])
        if owners == len(config.layers):
            hidden = self._keep_last(hidden)
        last = "hidden_states" if gives_hidden_states else "final_norm"
        normed = self._norm(hidden, "norm.weight", config.hidden_size, last)
        tensor = EMBEDDING if config.ties_embeddings else HEAD
        head = self._writer.head(normed, MatrixRows.whole(tensor, config.vocabulary_size, config.hidden_size), "logits")
        graph.output("logits", "float32", (1, "K", config.vocabulary_size))
        if gives_hidden_states:
            graph.output(last, "float32", (1, "K", config.hidden_size))
        return tuple(self._attention_writer.caches), head

    def _declare_lengths(self) -> None:
        """Counters of positions and of rows in caches."""
        graph = self._graph
        graph.input("total_length", "int32", ())
        if any(layer.kind == "sliding" for layer in self._config.layers):
            graph.input("window_length", "int32", ())
        graph.input("logits_to_keep", "int64", (1,))
        # Slice wants a negative start.
        graph.node("Neg", ["logits_to_keep"], "keep_start")
        self._write_positions()
        self._attention_writer.write_counters()

    def _write_positions(self) -> None:
        """int64 [1, S] and [1, K]: rotations in sliding caches, whose rows say nothing about positions."""
        graph = self._graph
        total = graph.node("Cast", ["total_length"], "total_length.int64", {"to": TensorProto.INT64})
        shape = graph.node("Shape", ["inputs_embeds"], "positions.count", {"start": 1, "end": 2})
        count = graph.node("Squeeze", [shape], "positions.count.scalar")
        start = graph.node("Sub", [total, count], "positions.start")
        positions = graph.node("Range", [start, total, graph.constant("one.int64", 1, np.int64)], "positions.flat")
        graph.node("Unsqueeze", [positions, graph.constant("axis.0", [0], np.int64)], "positions")
        self._keep_last("positions")

    def _write_rotations(self) -> None:
        """Cosines and sines [context, head size / 2] of each kind of layer; unrotated pairs have frequency zero."""
        positions = np.arange(self._context_length, dtype=np.float64)[:, None]
        for kind, size in {layer.kind: layer.head_size for layer in self._config.layers}.items():
            rope = self._config.rope[kind]
            frequencies = np.zeros(size // 2)
            rotated = int(rope.rotated_fraction * size // 2)
            # Also for "proportional" RoPE the exponent is relative to the whole head, not to its rotated part.
            frequencies[:rotated] = rope.theta ** -(np.arange(0, 2 * rotated, 2) / size)
            self._graph.weight(f"rotation.{kind}.cos", np.cos(positions * frequencies).astype(np.float32))
            self._graph.weight(f"rotation.{kind}.sin", np.sin(positions * frequencies).astype(np.float32))

    def _per_layer_inputs(self, hidden: str, token_part: str, layers: range) -> list[str | None]:
        """For each layer of the range, (norm(projection of the embeddings) + token part) / sqrt(2).

        The reference scales the projection by hidden ** -0.5 before the norm; the norm is scale-free but for its
        epsilon, so the epsilon takes the factor instead. The token part arrives divided by sqrt(2) already, by its
        table's `row_scale`. Without per-layer embeddings all of them are None.
        """
        graph, config = self._graph, self._config
        count, width = len(layers), config.per_layer_input_size
        if not width:
            return [None] * count
        name = f"per_layer.{layers.start}"
        shape = (len(config.layers) * width, config.hidden_size)
        rows = range(layers.start * width, layers.stop * width)
        matrix = MatrixRows(PREFIX + "per_layer_model_projection.weight", shape, rows)
        projected = self._writer.linear(hidden, matrix, f"{name}.projection")
        by_layer = graph.constant(f"shape.by_layer.{count}", [1, -1, count, width], np.int64)
        flat = graph.constant(f"shape.flat.{count}", [1, -1, count * width], np.int64)
        projected = graph.node("Reshape", [projected, by_layer], f"{name}.by_layer")
        epsilon = config.norm_epsilon * config.hidden_size
        normed = self._writer.norm_with(projected, "per_layer.norm", f"{name}.norm", epsilon)
        normed = graph.node("Reshape", [normed, flat], f"{name}.flat")
        first, last = (graph.constant(f"column.{end}", [end], np.int64) for end in (rows.start, rows.stop))
        axis = graph.constant("axis.2", [2], np.int64)
        part = graph.node("Slice", [token_part, first, last, axis], f"{name}.token_part")
        total = graph.node("Add", [normed, part], f"{name}.sum")
        outputs = [f"layers.{layer}.per_layer_input" for layer in layers]
        if count == 1:
            return [graph.node("Identity", [total], outputs[0])]
        return [*graph.multi_node("Split", [total], outputs, {"axis": 2, "num_outputs": count})]

    def _write_shared_norms(self) -> None:
        """Norm weights that several layers use."""
        width = self._config.per_layer_input_size
        if width:
            weight = self._checkpoint.read(PREFIX + "per_layer_projection_norm.weight", (width,))
            self._graph.weight("per_layer.norm", weight * np.float32(2**-0.5))
        for size in {layer.head_size for layer in self._config.layers}:
            self._graph.weight(f"ones.{size}", np.ones(size, np.float32))

    def _keep_last(self, x: str) -> str:
        """The last K positions of [1, S, ...]."""
        graph = self._graph
        end, axis = graph.constant("end", [END], np.int64), graph.constant("axis.1", [1], np.int64)
        return graph.node("Slice", [x, "keep_start", end, axis], f"{x}.kept")

    def _layer(self, index: int, layer: LayerConfig, hidden: str, per_layer_input: str | None) -> str:
        """One decoder layer: attention, feed-forward, per-layer input where there is one, each with a residual."""
        graph, size, name = self._graph, self._config.hidden_size, f"layers.{index}"
        normed = self._norm(hidden, f"{name}.input_layernorm.weight", size, f"{name}.attention_input")
        attended = self._attention(index, layer, normed)
        attended = self._norm(attended, f"{name}.post_attention_layernorm.weight", size, f"{name}.attention_output")
        # One kernel adds the residual and norms the sum; its fourth output is the sum.
        tensor = f"{PREFIX}{name}.pre_feedforward_layernorm.weight"
        weight = graph.weight(tensor, self._checkpoint.read(tensor, (size,)))
        normed, _, _, hidden = graph.multi_node(
            "SkipSimplifiedLayerNormalization",
            [attended, hidden, weight],
            [f"{name}.feed_forward_input", "", "", f"{name}.after_attention"],
            {"epsilon": self._config.norm_epsilon},
            MICROSOFT,
        )
        fed = self._feed_forward(index, layer, normed)
        fed = self._norm(fed, f"{name}.post_feedforward_layernorm.weight", size, f"{name}.feed_forward_output")
        hidden = graph.node("Add", [hidden, fed], f"{name}.after_feed_forward")
        if per_layer_input is not None:
            extra = self._per_layer_residual(index, hidden, per_layer_input)
            hidden = graph.node("Add", [hidden, extra], f"{name}.after_per_layer")
        scalar = f"{PREFIX}{name}.layer_scalar"
        graph.weight(scalar, self._checkpoint.read(scalar, (1,)))
        return graph.node("Mul", [hidden, scalar], f"{name}.output")

    def _attention(self, index: int, layer: LayerConfig, x: str) -> str:
        config, name = self._config, f"layers.{index}.self_attn"
        query_size, kv_size = config.heads * layer.head_size, layer.kv_heads * layer.head_size
        query_rows = self._matrix(f"{name}.q_proj.weight", query_size, config.hidden_size)
        if layer.cache_layer == index:
            parts = "k" if layer.values_are_keys else "kv"
            rows = [self._matrix(f"{name}.{part}_proj.weight", kv_size, config.hidden_size) for part in parts]
            outputs = [f"{name}.{part}" for part in ("q", *parts)]
            query, key, *values = self._writer.fused(x, [query_rows, *rows], outputs)
            value = values[0] if values else self._graph.node("Identity", [key], f"{name}.v")
            new_rows = (
                self._flat(self._head_norm(key, f"{name}.k_norm.weight", layer.head_size), kv_size),
                self._flat(self._head_norm(value, None, layer.head_size), kv_size),
            )
        else:
            query = self._writer.linear(x, query_rows, f"{name}.q")
            new_rows = None
        query = self._head_norm(query, f"{name}.q_norm.weight", layer.head_size)
        attended = self._attention_writer.attention(index, layer, query, new_rows)
        matrix = self._matrix(f"{name}.o_proj.weight", config.hidden_size, query_size)
        return self._writer.linear(attended, matrix, f"{name}.o")

    def _head_norm(self, x: str, tensor: str | None, head_size: int) -> str:
        """Norm each head of [1, S, heads * head size]: [1, S * heads, head size]. Values have no weight."""
        graph = self._graph
        by_head = graph.constant(f"shape.heads.{head_size}", [1, -1, head_size], np.int64)
        split = graph.node("Reshape", [x, by_head], f"{x}.by_head")
        if tensor is None:
            return self._writer.norm_with(split, f"ones.{head_size}", f"{x}.normed", self._config.norm_epsilon)
        return self._norm(split, tensor, head_size, f"{x}.normed")

    def _read_key_norm(self, index: int, layer: LayerConfig) -> Float32Array:
        return self._checkpoint.read(f"{PREFIX}layers.{index}.self_attn.k_norm.weight", (layer.head_size,))

    def _flat(self, x: str, size: int) -> str:
        """To [1, S, size]."""
        shape = self._graph.constant(f"shape.flat.{size}", [1, -1, size], np.int64)
        return self._graph.node("Reshape", [x, shape], f"{x}.flat")

    def _feed_forward(self, index: int, layer: LayerConfig, x: str) -> str:
        name, hidden, inner = f"layers.{index}.mlp", self._config.hidden_size, layer.intermediate_size
        matrices = [self._matrix(f"{name}.{part}_proj.weight", inner, hidden) for part in ("gate", "up")]
        gate, up = self._writer.fused(x, matrices, [f"{name}.gate", f"{name}.up"])
        product = self._graph.node("Mul", [self._gelu(gate), up], f"{name}.product")
        return self._writer.linear(product, self._matrix(f"{name}.down_proj.weight", hidden, inner), f"{name}.down")

    def _per_layer_residual(self, index: int, hidden: str, per_layer_input: str) -> str:
        name, size, width = f"layers.{index}", self._config.hidden_size, self._config.per_layer_input_size
        gate = self._writer.linear(
            hidden, self._matrix(f"{name}.per_layer_input_gate.weight", width, size), f"{name}.per_layer_gate"
        )
        product = self._graph.node("Mul", [self._gelu(gate), per_layer_input], f"{name}.per_layer_product")
        projected = self._writer.linear(
            product, self._matrix(f"{name}.per_layer_projection.weight", size, width), f"{name}.per_layer_projection"
        )
        return self._norm(projected, f"{name}.post_per_layer_input_norm.weight", size, f"{name}.per_layer_residual")

    def _gelu(self, x: str) -> str:
        """FastGelu is the tanh approximation, the config's gelu_pytorch_tanh."""
        return self._graph.node("FastGelu", [x], f"{x}.gelu", domain=MICROSOFT)

    def _norm(self, x: str, tensor: str, size: int, output: str) -> str:
        return self._writer.norm(x, PREFIX + tensor, size, output, self._config.norm_epsilon)

    def _matrix(self, tensor: str, outputs: int, inputs: int) -> MatrixRows:
        return MatrixRows.whole(PREFIX + tensor, outputs, inputs)
