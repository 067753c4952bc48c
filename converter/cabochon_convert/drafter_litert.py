"""A drafter as a LiteRT graph: one guess from the model's caches, its last hidden state and its last token.

The maths is that of transformers' `Gemma4AssistantForCausalLM`. All layers only ask: keys and values are the model's,
and their caches are bound where they lie. Signatures are `draft`, or `draft_cache_C` where the model has caches of
several lengths C (B the model's hidden size, N candidates, which are all tokens without clusters):

    embedding      float32 [1, 1, B]   of the last token, scaled as for the model
    hidden         float32 [1, 1, B]   the model's behind its last norm, or `next_hidden` of the last guess
    position       int32 [1]           of the last token, for all guesses of a round; rows before it can be seen
    keys_{kind}    float32 [1, heads, C, head size]
    values_{kind}  float32 [1, heads, head size, C]
    logits         float32 [1, 1, N]
    candidates     int32 [N]           tokens that the logits are of; only with clusters
    next_hidden    float32 [1, 1, B]

Of a sliding layer's cache, no more than the window is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from cabochon_convert.flatbuffer_litert import describe_graph, fill_places
from cabochon_convert.graph_writer_litert import GraphWriter
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.matrices_litert import Place, matrices_of
from cabochon_convert.operators_litert import FLOAT, INTEGER, Operators, Value
from cabochon_convert.text_config import LayerConfig

_UNSEEN = 1e4
"""Taken off the score of a row that must not be attended to, as in the decoder's masks."""


def build_litert_drafter(
    checkpoint: Checkpoint, config: DrafterConfig, settings: LinearSettings, cache_lengths: Sequence[int], path: Path
) -> BuiltDrafter:
    """Write the drafter to a file.

    Args:
        cache_lengths: of the model's caches.
    """
    tensors = _Tensors(checkpoint)
    graph = GraphWriter()
    names = ["draft"] if len(cache_lengths) == 1 else [f"draft_cache_{length}" for length in cache_lengths]
    content = b""
    for name, length in zip(names, cache_lengths, strict=True):
        inputs, outputs = _Draft(Operators(graph), tensors, config, length).write()
        end = graph.finish if name == names[-1] else graph.signature
        content = end(name, inputs, outputs) or b""
    matrices = matrices_of(tensors.places, checkpoint, drafter_settings(settings))
    fill_places(content, matrices, path)
    return BuiltDrafter(describe_graph(path, names[-1]), describe_applied(each.applied for each in matrices))


class _Tensors:
    """What all signatures share of the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._vectors: dict[str, np.ndarray] = {}
        self._numbers: dict[str, int] = {}
        self.places: list[Place] = []

    def number(self, tensor: str, rows: int, columns: int) -> int:
        """Of a matrix."""
        if tensor not in self._numbers:
            self._numbers[tensor] = len(self.places)
            self.places.append(Place(tensor, rows, columns))
        return self._numbers[tensor]

    def vector(self, tensor: str, size: int) -> np.ndarray:
        """A small tensor."""
        if tensor not in self._vectors:
            self._vectors[tensor] = self._checkpoint.read(tensor, (size,))
        return self._vectors[tensor]

    def clusters(self, count: int, vocabulary_size: int) -> np.ndarray:
        """Tokens of each cluster: int32 [clusters, tokens]."""
        if "clusters" not in self._vectors:
            self._vectors["clusters"] = read_ordering(self._checkpoint, vocabulary_size).astype(np.int32)
        return self._vectors["clusters"].reshape(count, -1)


@dataclass(frozen=True, slots=True)
class _Cache:
    """What layers of one kind can see."""

    keys: Value
    """[1, heads, rows, head size]"""
    values: Value
    """[1, heads, head size, rows]"""
    mask: Value
    """Added to scores: [rows]."""
    cosine: Value
    """[head size / 2]"""
    sine: Value


class _Draft:
    """Writes one signature."""

    def __init__(self, operators: Operators, tensors: _Tensors, config: DrafterConfig, cache_length: int) -> None:
        self._ops = operators
        self._tensors = tensors
        self._config, self._text = config, config.text
        self._length = cache_length
        self._inputs: dict[str, Value] = {}

    def write(self) -> tuple[dict[str, int], dict[str, int]]:
        """Tensors of inputs and of outputs by name."""
        ops, size, target = self._ops, self._text.hidden_size, self._config.target_hidden_size
        states = [self._input(name, (1, 1, target)) for name in ("embedding", "hidden")]
        position = self._input("position", (1,), INTEGER)
        kinds = {layer.kind: layer for layer in self._text.layers}
        caches = {kind: self._cache(layer, position) for kind, layer in kinds.items()}
        hidden = self._linear(ops.concatenate(states, 2), PRE_PROJECTION, size)
        for index, layer in enumerate(self._text.layers):
            hidden = self._layer(f"{PREFIX}layers.{index}", layer, caches[layer.kind], hidden)
        hidden = self._norm(hidden, f"{PREFIX}norm")
        outputs = {"next_hidden": self._linear(hidden, POST_PROJECTION, target)}
        if self._config.clusters is None:
            outputs["logits"] = self._linear(hidden, TABLE, self._text.vocabulary_size)
        else:
            outputs |= self._clustered_head(hidden, self._config.clusters)
        return _numbers(self._inputs), _numbers(outputs)

    def _cache(self, layer: LayerConfig, position: Value) -> _Cache:
        ops, heads, size = self._ops, layer.kv_heads, layer.head_size
        keys = self._input(f"keys_{layer.kind}", (1, heads, self._length, size))
        values = self._input(f"values_{layer.kind}", (1, heads, size, self._length))
        rows, seen = self._length, position
        if layer.kind == "sliding" and self._text.sliding_window < self._length:
            rows = self._text.sliding_window
            start = ops.maximum(ops.subtract(position, _integers(ops, [rows])), _integers(ops, [0]))
            seen = ops.subtract(position, start)
            keys = ops.cut(keys, self._start(start, 2), (1, heads, rows, size))
            values = ops.cut(values, self._start(start, 3), (1, heads, size, rows))
        # 1 where a row is seen, 0 where not.
        ahead = ops.subtract(ops.to_float(seen), _floats(ops, np.arange(rows)))
        share = ops.minimum(ops.maximum(ahead, _floats(ops, 0.0)), _floats(ops, 1.0))
        mask = ops.multiply(ops.subtract(share, _floats(ops, 1.0)), _floats(ops, _UNSEEN))
        frequencies = _floats(ops, rotation_frequencies(self._text.rope[layer.kind], size))
        angles = ops.multiply(ops.to_float(position), frequencies)
        return _Cache(keys, values, mask, ops.cosine(angles), ops.sine(angles))

    def _start(self, start: Value, axis: int) -> Value:
        """On four axes; zero on the others."""
        zero = _integers(self._ops, [0])
        return self._ops.concatenate([start if each == axis else zero for each in range(4)], 0)

    def _layer(self, name: str, layer: LayerConfig, cache: _Cache, hidden: Value) -> Value:
        """One layer: attention, then feed-forward, each with a residual."""
        ops = self._ops
        attended = self._attention(f"{name}.self_attn", layer, cache, self._norm(hidden, f"{name}.input_layernorm"))
        hidden = ops.add(hidden, self._norm(attended, f"{name}.post_attention_layernorm"))
        normed = self._norm(hidden, f"{name}.pre_feedforward_layernorm")
        gate, up = (
            self._linear(normed, f"{name}.mlp.{part}_proj.weight", layer.intermediate_size) for part in ("gate", "up")
        )
        product = ops.multiply(ops.gelu(gate), up)
        fed = self._linear(product, f"{name}.mlp.down_proj.weight", self._text.hidden_size)
        hidden = ops.add(hidden, self._norm(fed, f"{name}.post_feedforward_layernorm"))
        return ops.multiply(hidden, ops.constant(self._tensors.vector(f"{name}.layer_scalar", 1)))

    def _attention(self, name: str, layer: LayerConfig, cache: _Cache, x: Value) -> Value:
        ops, heads, size, groups = self._ops, self._text.heads, layer.head_size, layer.kv_heads
        query = self._linear(x, f"{name}.q_proj.weight", heads * size)
        query = self._norm(ops.reshape(query, (1, 1, heads, size)), f"{name}.q_norm")
        # Heads that share keys and values lie together.
        query = ops.reshape(self._rotate(query, cache), (1, groups, heads // groups, size))
        # Queries are normed: scores need no factor.
        scores = ops.add(ops.multiply_transposed(query, cache.keys), cache.mask)
        answers = ops.multiply_transposed(ops.softmax(scores), cache.values)
        return self._linear(ops.reshape(answers, (1, 1, heads * size)), f"{name}.o_proj.weight", self._text.hidden_size)

    def _rotate(self, query: Value, cache: _Cache) -> Value:
        """The first half of a head's values are pairs with the second half."""
        ops, half = self._ops, (*query.shape[:-1], query.shape[-1] // 2)
        first, second = (ops.cut(query, (0, 0, 0, start), half) for start in (0, half[-1]))
        rotated = (
            ops.subtract(ops.multiply(first, cache.cosine), ops.multiply(second, cache.sine)),
            ops.add(ops.multiply(second, cache.cosine), ops.multiply(first, cache.sine)),
        )
        return ops.concatenate(rotated, 3)

    def _clustered_head(self, hidden: Value, head: ClusteredHead) -> dict[str, Value]:
        """Logits of the tokens of the clusters whose centroids fit best."""
        ops, count, size = self._ops, self._text.vocabulary_size, self._text.hidden_size
        fits = self._linear(hidden, CENTROIDS, head.clusters)
        chosen = ops.reshape(ops.largest(fits, head.chosen), (head.chosen,))
        clusters = ops.constant(self._tensors.clusters(head.clusters, count))
        tokens = head.chosen * (count // head.clusters)
        candidates = ops.reshape(ops.pick_rows(clusters, chosen), (tokens,))
        rows = ops.look_up(self._matrix(TABLE, count, size), candidates)
        logits = ops.multiply_transposed(hidden, ops.reshape(rows, (1, tokens, size)))
        return {"logits": logits, "candidates": candidates}

    def _input(self, name: str, shape: Sequence[int], kind: int = FLOAT) -> Value:
        self._inputs[name] = self._ops.input(name, shape, kind)
        return self._inputs[name]

    def _matrix(self, tensor: str, rows: int, columns: int) -> Value:
        return self._ops.matrix(self._tensors.number(tensor, rows, columns), rows, columns)

    def _linear(self, x: Value, tensor: str, outputs: int) -> Value:
        return self._ops.linear(x, self._matrix(tensor, outputs, x.shape[-1]))

    def _norm(self, x: Value, name: str) -> Value:
        weight = self._ops.constant(self._tensors.vector(f"{name}.weight", x.shape[-1]))
        return self._ops.root_mean_square_norm(x, weight, self._text.norm_epsilon)


def _numbers(values: Mapping[str, Value]) -> dict[str, int]:
    return {name: value.tensor for name, value in values.items()}


def _floats(operators: Operators, values: float | np.ndarray) -> Value:
    return operators.constant(np.array(values, np.float32))


def _integers(operators: Operators, values: Sequence[int]) -> Value:
    return operators.constant(np.array(values, np.int32))
