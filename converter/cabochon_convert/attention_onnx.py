"""Attention of the text decoder: caches, rotation and the choice between two ways to the same numbers.

Runs of many positions go through onnxruntime's GroupQueryAttention, which never holds a whole matrix of scores. A
single position is answered by two plain multiplications instead: GroupQueryAttention would read the keys once per
head, and the heads of Gemma 4 share them. Full layers with integer caches are in `integer_caches_onnx`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from cabochon.backend import kinds_bound_exactly
from cabochon.manifest import KeyValueCache
from cabochon_convert.graph_onnx import MICROSOFT, OnnxGraph
from cabochon_convert.integer_caches_onnx import IntegerCacheWriter, reader_outputs
from cabochon_convert.text_config import LayerConfig, TextConfig

LENGTHS = {"full": "total_length", "sliding": "window_length"}
"""By kind of layer, the input that counts rows of its cache."""
CAPACITIES = {"full": "C", "sliding": "W"}
"""By kind of layer, the name of its caches' capacity."""
SINGLE = {True: "is_single.run", False: "is_single.kept"}
"""Whether there is one position only: that is run (True), or that is kept for the logits (False)."""


@dataclass(frozen=True, slots=True)
class CacheRows:
    """A cache after a layer has added its rows."""

    keys: str
    """float32 [1, heads, capacity, head size]"""
    values: str
    visible_keys: str
    """Without the rows that the last position cannot see."""
    visible_values: str


class AttentionWriter:
    """Adds the attention of each layer to a graph, between the projections of queries and outputs."""

    def __init__(self, graph: OnnxGraph, config: TextConfig, integers: IntegerCacheWriter | None = None) -> None:
        """Args: integers: writes full layers, where their caches are to hold integers."""
        self._graph = graph
        self._integers = integers
        self._config = config
        self._bound_exactly = kinds_bound_exactly((layer.kind, layer.kv_heads) for layer in config.layers)
        self._rows: dict[int, CacheRows] = {}
        self.caches: list[KeyValueCache] = []

    def write_counters(self) -> None:
        """What all layers share: which row of a cache is the last, and whether there is one position only."""
        graph = self._graph
        one = graph.constant("one.int32", 1, np.int32)
        for kind in dict.fromkeys(layer.kind for layer in self._config.layers):
            length = LENGTHS[kind]
            last = graph.node("Sub", [length, one], f"last_row.{kind}.scalar")
            graph.node("Reshape", [last, graph.constant("shape.one", [1], np.int64)], f"last_row.{kind}")
            if kind not in self._bound_exactly:
                self._write_visible_rows(kind)
        heads = graph.constant("shape.heads", [1, self._config.heads], np.int64)
        one64 = graph.constant("one.int64", 1, np.int64)
        last = graph.node("Sub", ["total_length.int64", one64], "position.last.scalar")
        graph.node("Expand", [last, heads], "position.last")
        single = graph.constant("one.index", [1], np.int64)
        count = graph.node("Shape", ["inputs_embeds"], "run.count", {"start": 1, "end": 2})
        graph.node("Equal", [count, single], SINGLE[True])
        graph.node("Equal", ["logits_to_keep", single], SINGLE[False])

    def _write_visible_rows(self, kind: str) -> None:
        """Of a whole buffer, the first row that the last position sees, and the end."""
        graph = self._graph
        index = graph.node("Cast", [LENGTHS[kind]], f"end_row.{kind}.scalar", {"to": TensorProto.INT64})
        end = graph.node("Unsqueeze", [index, graph.constant("axis.0", [0], np.int64)], f"end_row.{kind}")
        zero = graph.constant("zero.index", [0], np.int64)
        if kind == "sliding":
            window = graph.constant("window", [self._config.sliding_window], np.int64)
            start = graph.node("Sub", [end, window], "first_row.sliding.unbounded")
            graph.node("Max", [start, zero], "first_row.sliding")

    def attention(self, index: int, layer: LayerConfig, query: str, new_rows: tuple[str, str] | None) -> str:
        """Rotate, remember and attend: the answer [1, positions, heads * head size].

        Args:
            index: of the layer.
            layer: its settings.
            query: normed, [1, positions * heads, head size].
            new_rows: keys and values, normed, [1, positions, key-value heads * head size]; None where the layer reads
                another one's cache.
        """
        if self._integers is not None and layer.kind == "full":
            return self._attend_to_integers(self._integers, index, layer, query, new_rows)
        graph, owns = self._graph, layer.cache_layer == index
        if new_rows is not None:
            self._rows[index] = self._remember(index, layer, *new_rows)
        rows = self._rows[layer.cache_layer]
        name = f"layers.{index}.self_attn"
        answer = f"{name}.attended"
        positions = "positions" if owns else "positions.kept"
        alone = graph.subgraph(f"{name}.single", lambda: self._attend_from_one(layer, query, rows, name))
        several = graph.subgraph(f"{name}.several", lambda: self._attend(layer, query, rows, positions, name))
        # Of a run of many positions, the rows of a sliding cache go back further than the last position sees.
        single = SINGLE[owns or layer.kind == "sliding"]
        return graph.node("If", [single], answer, {"then_branch": alone, "else_branch": several})

    def _attend_to_integers(
        self,
        integers: IntegerCacheWriter,
        index: int,
        layer: LayerConfig,
        query: str,
        new_rows: tuple[str, str] | None,
    ) -> str:
        if new_rows is not None:
            self._declare_cache(index, layer, "int8")
        place = next(place for place, cache in enumerate(self.caches) if cache.layer == layer.cache_layer)
        if new_rows is None:
            cache = self.caches[place]
            outputs = reader_outputs(cache, index)
            for output in outputs:
                self._graph.output(output, "int8", (1, cache.heads, CAPACITIES[cache.kind], cache.head_size))
            key, value = outputs
            self.caches[place] = replace(
                cache, more_present_keys=(*cache.more_present_keys, key),
                more_present_values=(*cache.more_present_values, value),
            )  # fmt: skip
        counters = f"last_row.{layer.kind}", LENGTHS[layer.kind]
        return integers.attention(index, layer, query, new_rows, self.caches[place], counters)

    def _remember(self, index: int, layer: LayerConfig, key: str, value: str) -> CacheRows:
        """Add rotated keys, and values, to the cache of a layer.

        GroupQueryAttention alone writes in place. What it answers is not used; it is asked with few heads.
        """
        graph = self._graph
        cache = self._declare_cache(index, layer)
        self._grouped_query_attention(
            layer,
            layer.kv_heads,
            [key, key, value, cache.past_key, cache.past_value],
            "positions",
            [f"layers.{index}.self_attn.unused", cache.present_key, cache.present_value],
        )
        visible = [cache.present_key, cache.present_value]
        if layer.kind not in self._bound_exactly:
            first = "first_row.sliding" if layer.kind == "sliding" else "zero.index"
            axis = graph.constant("axis.2", [2], np.int64)
            ends = [first, f"end_row.{layer.kind}", axis]
            visible = [graph.node("Slice", [rows, *ends], f"{rows}.visible") for rows in visible]
        return CacheRows(cache.present_key, cache.present_value, *visible)

    def _attend(self, layer: LayerConfig, query: str, rows: CacheRows, positions: str, name: str) -> str:
        """Any number of positions, which are in the cache already."""
        graph, size = self._graph, layer.kv_heads * layer.head_size
        nothing = graph.constant(f"no_keys.{size}", np.zeros((1, 0, size)))
        inputs = [self._flat(layer, query, f"{name}.queries"), nothing, nothing, rows.keys, rows.values]
        return self._grouped_query_attention(layer, self._config.heads, inputs, positions, [f"{name}.several.attended"])

    def _attend_from_one(self, layer: LayerConfig, query: str, rows: CacheRows, name: str) -> str:
        """The last position alone: all heads of a key-value head in one multiplication."""
        graph = self._graph
        # Heads take the place of positions, all of them at the same one.
        inputs = [query, "position.last", f"rotation.{layer.kind}.cos", f"rotation.{layer.kind}.sin"]
        queries = graph.node("RotaryEmbedding", inputs, f"{name}.rotated", domain=MICROSOFT)
        if layer.kv_heads > 1:
            shape = [1, layer.kv_heads, -1, layer.head_size]
            grouped = graph.constant("shape.grouped." + "_".join(map(str, shape)), shape, np.int64)
            queries = graph.node("Reshape", [queries, grouped], f"{name}.grouped")
        # Without a scale: queries and keys are normed instead.
        scores = graph.node("FusedMatMul", [queries, rows.visible_keys], f"{name}.scores", {"transB": 1}, MICROSOFT)
        shares = graph.node("Softmax", [scores], f"{name}.shares", {"axis": -1})
        answers = graph.node("MatMul", [shares, rows.visible_values], f"{name}.answers")
        return self._flat(layer, answers, f"{name}.single.attended")

    def _flat(self, layer: LayerConfig, x: str, output: str) -> str:
        """To [1, positions, heads * head size]."""
        size = self._config.heads * layer.head_size
        shape = self._graph.constant(f"shape.flat.{size}", [1, -1, size], np.int64)
        return self._graph.node("Reshape", [x, shape], output)

    def _grouped_query_attention(
        self, layer: LayerConfig, heads: int, inputs: list[str], positions: str, outputs: list[str]
    ) -> str:
        attributes = {
            "num_heads": heads,
            "kv_num_heads": layer.kv_heads,
            "scale": 1.0,  # queries and keys are normed instead
            "do_rotary": 1,
        }
        counters = [f"last_row.{layer.kind}", LENGTHS[layer.kind]]
        rotations = [f"rotation.{layer.kind}.cos", f"rotation.{layer.kind}.sin"]
        inputs = [*inputs, *counters, *rotations]
        if layer.kind == "sliding":
            attributes["local_window_size"] = self._config.sliding_window
            inputs.append(positions)  # the rows of its cache say nothing about positions
        return self._graph.multi_node("GroupQueryAttention", inputs, outputs, attributes, MICROSOFT)[0]

    def _declare_cache(self, index: int, layer: LayerConfig, storage: str = "float32") -> KeyValueCache:
        cache = KeyValueCache(
            layer=index,
            kind=layer.kind,
            window=self._config.sliding_window if layer.kind == "sliding" else 0,
            heads=layer.kv_heads,
            head_size=layer.head_size,
            past_key=f"past_key_{index}",
            past_value=f"past_value_{index}",
            present_key=f"present_key_{index}",
            present_value=f"present_value_{index}",
            storage=storage,
        )
        shape = (1, layer.kv_heads, CAPACITIES[layer.kind], layer.head_size)
        for past, present in ((cache.past_key, cache.present_key), (cache.past_value, cache.present_value)):
            self._graph.input(past, storage, shape)
            self._graph.output(present, storage, shape)
        self.caches.append(cache)
        return cache
