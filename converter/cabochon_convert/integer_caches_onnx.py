"""Attention on key-value caches of 8-bit integers.

onnxruntime's GroupQueryAttention keeps integers with fixed scales (`k_quant_type`, since 1.31 on CPUs): it rounds what
it writes and reads them as they are, so that no float copy of a cache exists. Fixed scales suit numbers of known size.
So keys and values are first multiplied by an orthogonal matrix that spreads outliers over all channels (a Hadamard
matrix with random signs, as in QuaRot, arXiv 2404.00456): keys after their rotation by position, and queries alike,
which leaves every score as it is; values, and the answers back again. Then a normed row has nearly normal entries of
the size that its norm's weights say, whatever the model, and no data are needed to find scales.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.manifest import KeyValueCache
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.graph_onnx import MICROSOFT, OnnxGraph
from cabochon_convert.text_config import LayerConfig, TextConfig

LARGEST = 127
VALUE_RANGE = 6.0
"""Standard deviations of values that integers reach: of normal numbers, 2 in a billion lie beyond."""
KEY_RANGE = 8.0
"""The same of keys; rows are longer where their large entries meet large weights of the norm."""


class IntegerCacheWriter:
    """Adds the attention of full layers, whose caches grow, to a graph."""

    def __init__(
        self, graph: OnnxGraph, config: TextConfig, read_key_norm: Callable[[int, LayerConfig], Float32Array]
    ) -> None:
        """Args: read_key_norm: weights [head size] of the norm of keys by the index of a layer, and the layer."""
        self._graph = graph
        self._config = config
        self._read_key_norm = read_key_norm

    def attention(
        self,
        index: int,
        layer: LayerConfig,
        query: str,
        new_rows: tuple[str, str] | None,
        cache: KeyValueCache,
        counters: tuple[str, str],
    ) -> str:
        """See `AttentionWriter.attention`.

        Args:
            cache: that the layer owns, or reads.
            counters: the last row, and their number.
        """
        graph, heads, owns = self._graph, self._config.heads, new_rows is not None
        name = f"layers.{index}.self_attn"
        positions = "positions" if owns else "positions.kept"
        flat = self._reshape(query, heads * layer.head_size, f"{name}.queries")
        queries = self._mix(layer, heads, self._rotate(layer, flat, positions, f"{name}.queries"))
        if new_rows is not None:
            key, value = new_rows
            keys = self._mix(layer, layer.kv_heads, self._rotate(layer, key, positions, f"{name}.keys"))
            values = self._mix(layer, layer.kv_heads, value)
            rows = [keys, values, cache.past_key, cache.past_value]
            presents = (cache.present_key, cache.present_value)
            self._write_scales(index, layer)
        else:
            size = layer.kv_heads * layer.head_size
            nothing = graph.constant(f"no_keys.{size}", np.zeros((1, 0, size)))
            rows = [nothing, nothing, cache.present_key, cache.present_value]
            # The kernel wants outputs here, too, and leaves them as they are where they are its inputs' memory.
            presents = reader_outputs(cache, index)
        last_row, length = counters
        scales = [f"layers.{cache.layer}.self_attn.{part}_scale" for part in ("key", "value")]
        attended, *_ = graph.multi_node(
            "GroupQueryAttention",
            [queries, *rows, last_row, length, "", "", "", "", "", *scales],
            [f"{name}.attended.mixed", *presents],
            {
                "num_heads": heads,
                "kv_num_heads": layer.kv_heads,
                "scale": 1.0,  # queries and keys are normed instead
                "do_rotary": 0,
                "k_quant_type": "PER_TENSOR",
                "v_quant_type": "PER_TENSOR",
                "kv_cache_bit_width": 8,
            },
            MICROSOFT,
        )
        return self._mix(layer, heads, attended, back=True)

    def _write_scales(self, index: int, layer: LayerConfig) -> None:
        weights = self._read_key_norm(index, layer)
        key_size = float(np.sqrt(np.mean(np.square(weights, dtype=np.float64))))
        for part, largest in (("key", KEY_RANGE * key_size), ("value", VALUE_RANGE)):
            # A norm of zeros makes keys of zeros.
            scale = np.array([largest / LARGEST or 1], np.float32)
            self._graph.weight(f"layers.{index}.self_attn.{part}_scale", scale)

    def _rotate(self, layer: LayerConfig, x: str, positions: str, name: str) -> str:
        inputs = [x, positions, f"rotation.{layer.kind}.cos", f"rotation.{layer.kind}.sin"]
        return self._graph.node("RotaryEmbedding", inputs, f"{name}.rotated", domain=MICROSOFT)

    def _mix(self, layer: LayerConfig, heads: int, x: str, *, back: bool = False) -> str:
        """Multiply each head of [1, positions, heads * head size] by the orthogonal matrix, or by its inverse."""
        graph, size = self._graph, layer.head_size
        by_head = self._reshape(x, size, f"{x}.by_head")
        matrix = graph.constant(f"mixing.{size}", mixing_matrix(size))
        mixed = graph.node("FusedMatMul", [by_head, matrix], f"{x}.mixed.by_head", {"transB": int(back)}, MICROSOFT)
        return self._reshape(mixed, heads * size, f"{x}.unmixed" if back else f"{x}.mixed")

    def _reshape(self, x: str, width: int, output: str) -> str:
        """To [1, any, width]."""
        shape = self._graph.constant(f"shape.rows.{width}", [1, -1, width], np.int64)
        return self._graph.node("Reshape", [x, shape], output)


def reader_outputs(cache: KeyValueCache, layer: int) -> tuple[str, str]:
    """What the caches are called behind a layer that only reads them."""
    return f"{cache.present_key}.layer_{layer}", f"{cache.present_value}.layer_{layer}"


def mixing_matrix(size: int) -> Float32Array:
    """An orthogonal matrix [size, size] all of whose entries have the same magnitude.

    Raises:
        CheckpointError: the size is no power of two.
    """
    if size < 1 or size & (size - 1):
        raise CheckpointError(
            f"text_config.head_dim is {size}, but integer caches need a power of two: leave --kv-cache int8 out."
        )
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    signs = np.random.default_rng(size).choice((-1.0, 1.0), size)
    mixed: Float32Array = (signs[:, None] * matrix / np.sqrt(size)).astype(np.float32)
    return mixed
