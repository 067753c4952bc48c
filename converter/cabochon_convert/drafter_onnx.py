"""A drafter as an ONNX graph: one guess from the model's caches, its last hidden state and its last token.

The maths is that of transformers' `Gemma4AssistantForCausalLM`. All layers only ask: keys and values are the model's.
Inputs and outputs (B the model's hidden size, R rows of a cache, N candidates, which are all tokens without clusters):

    embedding                   float32 [1, 1, B]   of the last token, scaled as for the model
    hidden                      float32 [1, 1, B]   the model's behind its last norm, or `next_hidden` of the last guess
    position                    int64 [1]           of the last token, for all guesses of a round
    keys_{kind}, values_{kind}  float32 [1, heads, R, head size]   rows before the position that can be seen
    logits                      float32 [1, 1, N]
    candidates                  int64 [N]           tokens that the logits are of; only with clusters
    next_hidden                 float32 [1, 1, B]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.drafter_config import ClusteredHead, DrafterConfig
from cabochon_convert.drafter_matrices import (
    CENTROIDS,
    POST_PROJECTION,
    PRE_PROJECTION,
    PREFIX,
    TABLE,
    BuiltDrafter,
    describe_applied,
    drafter_settings,
    read_ordering,
    rotation_frequencies,
)
from cabochon_convert.graph_onnx import MICROSOFT, OnnxGraph
from cabochon_convert.linear_onnx import LinearWriter
from cabochon_convert.matrices import LinearSettings, MatrixRows, apply_precision
from cabochon_convert.quantize import Precision, quantize_matrix
from cabochon_convert.recipes import FLOAT
from cabochon_convert.text_config import LayerConfig

ROWS = {"sliding": "W", "full": "C"}


def build_drafter(checkpoint: Checkpoint, config: DrafterConfig, settings: LinearSettings, path: Path) -> BuiltDrafter:
    """Write the drafter's graph to `path` and its weights beside it."""
    with OnnxGraph(path) as graph:
        writer = LinearWriter(graph, checkpoint, drafter_settings(settings))
        _DrafterBuilder(graph, writer, checkpoint, config).build()
        return BuiltDrafter(graph.finish(), describe_applied(writer.applied.values()))


class _DrafterBuilder:
    def __init__(self, graph: OnnxGraph, writer: LinearWriter, checkpoint: Checkpoint, config: DrafterConfig) -> None:
        self._graph = graph
        self._writer = writer
        self._checkpoint = checkpoint
        self._config = config
        self._text = config.text

    def build(self) -> None:
        graph, size, target = self._graph, self._text.hidden_size, self._config.target_hidden_size
        states = [graph.input(name, "float32", (1, 1, target)) for name in ("embedding", "hidden")]
        graph.input("position", "int64", (1,))
        for layer in {layer.kind: layer for layer in self._text.layers}.values():
            shape = (1, layer.kv_heads, ROWS[layer.kind], layer.head_size)
            graph.input(f"keys_{layer.kind}", "float32", shape)
            graph.input(f"values_{layer.kind}", "float32", shape)
            self._write_rotation(layer)
        both = graph.node("Concat", states, "states", {"axis": -1})
        hidden = self._writer.linear(both, MatrixRows.whole(PRE_PROJECTION, size, 2 * target), "projected")
        for index, layer in enumerate(self._text.layers):
            hidden = self._layer(index, layer, hidden)
        hidden = self._norm(hidden, "norm.weight", size, "final_norm")
        self._writer.linear(hidden, MatrixRows.whole(POST_PROJECTION, target, size), "next_hidden")
        if self._config.clusters is None:
            self._writer.head(hidden, MatrixRows.whole(TABLE, self._text.vocabulary_size, size), "logits")
            graph.output("logits", "float32", (1, 1, self._text.vocabulary_size))
        else:
            self._clustered_head(hidden, self._config.clusters)
        graph.output("next_hidden", "float32", (1, 1, target))

    def _write_rotation(self, layer: LayerConfig) -> None:
        """Cosines and sines [1, head size / 2] of the position; whole turns are taken off in double precision."""
        graph, kind, size = self._graph, layer.kind, layer.head_size
        frequencies = rotation_frequencies(self._text.rope[kind], size)
        position = graph.node("Cast", ["position"], f"position.{kind}", {"to": TensorProto.DOUBLE})
        frequency = graph.weight(f"frequencies.{kind}", frequencies[None])
        angles = graph.node("Mul", [position, frequency], f"angles.{kind}")
        turn = graph.constant("turn", 2 * np.pi, np.float64)
        angles = graph.node("Mod", [angles, turn], f"angles.{kind}.rest", {"fmod": 1})
        angles = graph.node("Cast", [angles], f"angles.{kind}.single", {"to": TensorProto.FLOAT})
        graph.node("Cos", [angles], f"rotation.{kind}.cos")
        graph.node("Sin", [angles], f"rotation.{kind}.sin")

    def _layer(self, index: int, layer: LayerConfig, hidden: str) -> str:
        """One layer: attention, then feed-forward, each with a residual."""
        graph, size, name = self._graph, self._text.hidden_size, f"layers.{index}"
        normed = self._norm(hidden, f"{name}.input_layernorm.weight", size, f"{name}.attention_input")
        attended = self._attention(index, layer, normed)
        attended = self._norm(attended, f"{name}.post_attention_layernorm.weight", size, f"{name}.attention_output")
        hidden = graph.node("Add", [hidden, attended], f"{name}.after_attention")
        normed = self._norm(hidden, f"{name}.pre_feedforward_layernorm.weight", size, f"{name}.feed_forward_input")
        fed = self._feed_forward(index, layer, normed)
        fed = self._norm(fed, f"{name}.post_feedforward_layernorm.weight", size, f"{name}.feed_forward_output")
        hidden = graph.node("Add", [hidden, fed], f"{name}.after_feed_forward")
        scalar = f"{PREFIX}{name}.layer_scalar"
        graph.weight(scalar, self._checkpoint.read(scalar, (1,)))
        return graph.node("Mul", [hidden, scalar], f"{name}.output")

    def _attention(self, index: int, layer: LayerConfig, x: str) -> str:
        graph, heads, size, name = self._graph, self._text.heads, layer.head_size, f"layers.{index}.self_attn"
        query = self._writer.linear(
            x, self._matrix(f"{name}.q_proj.weight", heads * size, self._text.hidden_size), name
        )
        by_head = graph.constant(f"shape.heads.{size}", [heads, 1, size], np.int64)
        query = graph.node("Reshape", [query, by_head], f"{name}.by_head")
        query = self._norm(query, f"{name}.q_norm.weight", size, f"{name}.normed")
        # Heads take the place of a batch, all of them at the same position, which is the only row of the tables.
        row = graph.constant("row", np.zeros((heads, 1)), np.int64)
        inputs = [query, row, f"rotation.{layer.kind}.cos", f"rotation.{layer.kind}.sin"]
        query = graph.node("RotaryEmbedding", inputs, f"{name}.rotated", domain=MICROSOFT)
        groups = graph.constant(f"shape.grouped.{layer.kind}", [1, layer.kv_heads, -1, size], np.int64)
        query = graph.node("Reshape", [query, groups], f"{name}.grouped")
        # Without a scale: queries and keys are normed instead.
        keys, values = f"keys_{layer.kind}", f"values_{layer.kind}"
        scores = graph.node("FusedMatMul", [query, keys], f"{name}.scores", {"transB": 1}, MICROSOFT)
        shares = graph.node("Softmax", [scores], f"{name}.shares", {"axis": -1})
        answers = graph.node("MatMul", [shares, values], f"{name}.answers")
        flat = graph.constant(f"shape.flat.{heads * size}", [1, 1, heads * size], np.int64)
        answers = graph.node("Reshape", [answers, flat], f"{name}.attended")
        return self._writer.linear(
            answers, self._matrix(f"{name}.o_proj.weight", self._text.hidden_size, heads * size), f"{name}.o"
        )

    def _feed_forward(self, index: int, layer: LayerConfig, x: str) -> str:
        name, hidden, inner = f"layers.{index}.mlp", self._text.hidden_size, layer.intermediate_size
        matrices = [self._matrix(f"{name}.{part}_proj.weight", inner, hidden) for part in ("gate", "up")]
        gate, up = self._writer.fused(x, matrices, [f"{name}.gate", f"{name}.up"])
        gelu = self._graph.node("FastGelu", [gate], f"{name}.gelu", domain=MICROSOFT)
        product = self._graph.node("Mul", [gelu, up], f"{name}.product")
        return self._writer.linear(product, self._matrix(f"{name}.down_proj.weight", hidden, inner), f"{name}.down")

    def _clustered_head(self, hidden: str, head: ClusteredHead) -> None:
        """Logits of the tokens of the clusters whose centroids fit best, clusters lying together in the data file."""
        graph, size = self._graph, self._text.hidden_size
        each = self._text.vocabulary_size // head.clusters
        centroids = MatrixRows.whole(CENTROIDS, head.clusters, size)
        fits = self._writer.linear(hidden, centroids, "clusters.fits")
        count = graph.constant("clusters.count", [head.chosen], np.int64)
        _, chosen = graph.multi_node("TopK", [fits, count], ["clusters.best", "clusters.chosen"])
        chosen = graph.node("Reshape", [chosen, graph.constant("shape.flat", [-1], np.int64)], "clusters.flat")
        ordering = read_ordering(self._checkpoint, self._text.vocabulary_size)
        tokens = graph.weight("clusters.tokens", ordering.reshape(head.clusters, each))
        candidates = graph.node("Gather", [tokens, chosen], "clusters.candidates", {"axis": 0})
        graph.node("Reshape", [candidates, graph.constant("shape.flat", [-1], np.int64)], "candidates")
        rows = self._cluster_rows(ordering, chosen, head, each)
        shape = graph.constant("shape.rows", [1, head.chosen * each, size], np.int64)
        rows = graph.node("Reshape", [rows, shape], "clusters.rows")
        graph.node("FusedMatMul", [hidden, rows], "logits", {"transB": 1}, MICROSOFT)
        graph.output("logits", "float32", (1, 1, head.chosen * each))
        graph.output("candidates", "int64", (head.chosen * each,))

    def _cluster_rows(self, ordering: np.ndarray, chosen: str, head: ClusteredHead, each: int) -> str:
        """Rows of the output matrix, as numbers: 8 bits where the recipe has integers, which Cast unpacks fastest."""
        graph, text = self._graph, self._text
        rule = self._writer.precision(TABLE, (text.vocabulary_size, text.hidden_size))
        table = self._checkpoint.read(TABLE, (text.vocabulary_size, text.hidden_size))[ordering]
        if not rule.is_integer:
            self._writer.applied[TABLE] = apply_precision(TABLE, FLOAT)
            graph.weight(TABLE, table.reshape(head.clusters, each, text.hidden_size))
            return graph.node("Gather", [TABLE, chosen], "clusters.values", {"axis": 0})
        precision = Precision(8, rule.block_size)
        self._writer.applied[TABLE] = apply_precision(TABLE, precision)
        rounded = quantize_matrix(table, precision)
        blocks = (head.clusters, each, -1)
        # Turning the highest bit around makes two's complements of unsigned integers around 128.
        values = (rounded.values ^ np.uint8(0x80)).view(np.int8).reshape(*blocks, rule.block_size)
        graph.weight(f"{TABLE}.values", values)
        graph.weight(f"{TABLE}.scales", rounded.scales.reshape(*blocks, 1))
        picked = graph.node("Gather", [f"{TABLE}.values", chosen], "clusters.integers", {"axis": 0})
        scales = graph.node("Gather", [f"{TABLE}.scales", chosen], "clusters.scales", {"axis": 0})
        numbers = graph.node("Cast", [picked], "clusters.numbers", {"to": TensorProto.FLOAT})
        rows = graph.node("Mul", [numbers, scales], "clusters.values")
        return self._without_filling(rows, rounded.scales.shape[1] * rule.block_size)

    def _without_filling(self, rows: str, width: int) -> str:
        """The last block of a row is filled up with zeros."""
        graph, size = self._graph, self._text.hidden_size
        if width == size:
            return rows
        flat = graph.node("Reshape", [rows, graph.constant("shape.filled", [-1, width], np.int64)], f"{rows}.filled")
        first, last, axis = (graph.constant(f"rows.{value}", [value], np.int64) for value in (0, size, 1))
        return graph.node("Slice", [flat, first, last, axis], f"{rows}.cut")

    def _norm(self, x: str, tensor: str, size: int, output: str) -> str:
        return self._writer.norm(x, PREFIX + tensor, size, output, self._text.norm_epsilon)

    def _matrix(self, tensor: str, outputs: int, inputs: int) -> MatrixRows:
        return MatrixRows.whole(PREFIX + tensor, outputs, inputs)
