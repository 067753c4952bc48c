"""The vision encoder with its projector as an ONNX graph: one image's patches to embeddings in the decoder's space.

    patches           float32 [1, R, C, 3 * patch size ** 2]    R rows of C patches, both multiples of the pooling
                                                                kernel; RGB values from 0 to 1, pixel by pixel
    image_embeddings  float32 [1, R * C / kernel ** 2, hidden]  row by row

With p the patch size, patches of an image [height, width, 3] of such values are

    image.reshape(R, p, C, p, 3).transpose(0, 2, 1, 3, 4).reshape(1, R, C, 3 * p * p)

These are the pixel values of transformers' `Gemma4ImageProcessor` without the patches that it fills a batch up with:
the grid says where a patch lies, so there are neither positions nor masks to be handed in.

The maths is that of transformers' `Gemma4VisionModel` and `Gemma4MultimodalEmbedder`: learnt embeddings of column and
row, transformer layers in which every patch sees every other and half of a head rotates with the column, half with the
row, the mean of each square of patches, a projection.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.clipped_linear_onnx import ClippedLinearWriter
from cabochon_convert.graph_onnx import MICROSOFT, OnnxGraph
from cabochon_convert.linear_onnx import BuiltEncoder, LinearWriter
from cabochon_convert.matrices import LinearSettings, MatrixRows
from cabochon_convert.vision_config import VisionConfig

PREFIX = "model.vision_tower."
LAYERS = f"{PREFIX}encoder."
CHANNELS = 3


def build_vision_encoder(
    checkpoint: Checkpoint,
    config: VisionConfig,
    position_limit: int,
    hidden_size: int,
    settings: LinearSettings,
    path: Path,
) -> BuiltEncoder:
    """Write the encoder graph to `path` and its weights beside it.

    Args:
        checkpoint: holds the weights.
        config: of the encoder.
        position_limit: most rows, and columns, that an image may have; embeddings beyond are not stored.
        hidden_size: the decoder's.
        settings: how linear layers are written.
        path: of the graph.
    """
    with OnnxGraph(path) as graph:
        writer = LinearWriter(graph, checkpoint, settings)
        _VisionEncoderBuilder(graph, writer, checkpoint, config).build(position_limit, hidden_size)
        return BuiltEncoder(graph.finish(), writer.applied)


class _VisionEncoderBuilder:
    def __init__(self, graph: OnnxGraph, writer: LinearWriter, checkpoint: Checkpoint, config: VisionConfig) -> None:
        self._graph = graph
        self._writer = writer
        self._linears = ClippedLinearWriter(graph, writer, checkpoint, LAYERS, clips=config.clips_linears)
        self._checkpoint = checkpoint
        self._config = config

    def build(self, position_limit: int, hidden_size: int) -> None:
        graph, config = self._graph, self._config
        graph.input("patches", "float32", (1, "R", "C", CHANNELS * config.patch_size**2))
        for axis, name in enumerate(("rows", "columns"), start=1):
            graph.node("Shape", ["patches"], name, {"start": axis, "end": axis + 1})
        hidden = self._embed("patches", position_limit)
        self._write_rotation()
        for size in {config.head_size, config.hidden_size}:
            graph.weight(f"ones.{size}", np.ones(size, np.float32))
        for index in range(config.layer_count):
            hidden = self._layer(f"layers.{index}", hidden)
        hidden = self._standardize(self._pool(hidden))
        hidden = self._writer.norm_with(hidden, f"ones.{config.hidden_size}", "projector.norm", config.norm_epsilon)
        tensor = "model.embed_vision.embedding_projection.weight"
        self._writer.linear(hidden, MatrixRows.whole(tensor, hidden_size, config.hidden_size), "image_embeddings")
        graph.output("image_embeddings", "float32", (1, "N", hidden_size))

    def _embed(self, patches: str, position_limit: int) -> str:
        """[1, R, C, patch] to [1, R * C, hidden]: the projected pixels plus what is learnt of their column and row."""
        graph, config = self._graph, self._config
        doubled = graph.node("Mul", [patches, graph.constant("two", 2.0)], "patches.doubled")
        centred = graph.node("Sub", [doubled, graph.constant("one", 1.0)], "patches.centred")  # -1 to 1
        width = CHANNELS * config.patch_size**2
        matrix = MatrixRows.whole(f"{PREFIX}patch_embedder.input_proj.weight", config.hidden_size, width)
        projected = self._writer.linear(centred, matrix, "patches.projected")
        tables = self._read("patch_embedder.position_embedding_table", (2, config.position_count, config.hidden_size))[
            :, :position_limit
        ]
        zero, axis = graph.constant("zero", [0], np.int64), graph.constant("axis.0", [0], np.int64)
        parts = []
        for name, table in zip(("columns", "rows"), tables, strict=True):
            weight = graph.weight(f"{name}.embeddings", table)
            parts.append(graph.node("Slice", [weight, zero, name, axis], f"{name}.embedded"))
        by_row = graph.node("Unsqueeze", [parts[1], graph.constant("axis.1", [1], np.int64)], "rows.embedded.column")
        positions = graph.node("Add", [parts[0], by_row], "positions.embedded")  # [R, C, hidden]
        embedded = graph.node("Add", [projected, positions], "patches.embedded")
        flat = graph.constant("shape.hidden", [1, -1, config.hidden_size], np.int64)
        return graph.node("Reshape", [embedded, flat], "layers.input")

    def _write_rotation(self) -> None:
        """`rotation.cos` and `rotation.sin` [1, patches, 1, 2, 1, head size / 4]: angles by column, then by row."""
        graph, config = self._graph, self._config
        quarter = config.head_size // 4
        frequencies = config.rope_theta ** -(np.arange(quarter) / quarter)
        parts = []
        for index, (name, shape) in enumerate((("columns", [-1, 1, 1]), ("rows", [-1, 1, 1, 1]))):
            count = graph.node("Squeeze", [name], f"{name}.count")
            bounds = [graph.constant("first", 0, np.int64), count, graph.constant("step", 1, np.int64)]
            places = graph.node("Range", bounds, f"{name}.places")
            places = graph.node("Cast", [places], f"{name}.places.float", {"to": TensorProto.FLOAT})
            places = graph.node("Reshape", [places, graph.constant(f"shape.{name}", shape, np.int64)], f"{name}.axis")
            rates = np.zeros((2, quarter))
            rates[index] = frequencies
            parts.append(graph.node("Mul", [places, graph.constant(f"{name}.rates", rates)], f"{name}.angles"))
        angles = graph.node("Add", parts, "angles")  # [R, C, 2, head size / 4]
        by_patch = graph.constant("shape.angles", [1, -1, 1, 2, 1, quarter], np.int64)
        angles = graph.node("Reshape", [angles, by_patch], "angles.by_patch")
        graph.node("Cos", [angles], "rotation.cos")
        graph.node("Sin", [angles], "rotation.sin")

    def _layer(self, name: str, x: str) -> str:
        normed = self._norm(x, f"{name}.input_layernorm.weight", f"{name}.attention_input")
        attended = self._attention(f"{name}.self_attn", normed)
        normed = self._norm(attended, f"{name}.post_attention_layernorm.weight", f"{name}.attention_output")
        x = self._graph.node("Add", [x, normed], f"{name}.after_attention")
        normed = self._norm(x, f"{name}.pre_feedforward_layernorm.weight", f"{name}.feed_forward_input")
        fed = self._feed_forward(f"{name}.mlp", normed)
        normed = self._norm(fed, f"{name}.post_feedforward_layernorm.weight", f"{name}.feed_forward_output")
        return self._graph.node("Add", [x, normed], f"{name}.output")

    def _attention(self, name: str, x: str) -> str:
        """Attention without a mask; queries and keys are normed and rotated, values are normed."""
        graph, config = self._graph, self._config
        size, width = config.hidden_size, config.heads * config.head_size
        query, key, value = (self._linears.linear(x, f"{name}.{part}_proj", width, size) for part in "qkv")
        query = self._rotate(self._head_norm(query, f"{LAYERS}{name}.q_norm.weight"))
        key = self._rotate(self._head_norm(key, f"{LAYERS}{name}.k_norm.weight"))
        value = self._head_norm(value, None)
        flat = graph.constant("shape.heads.flat", [1, -1, width], np.int64)
        inputs = [graph.node("Reshape", [part, flat], f"{part}.flat") for part in (query, key, value)]
        # In one kernel, which never holds the weights of all pairs of patches.
        attributes = {"num_heads": config.heads, "scale": 1.0}
        attended = graph.node("MultiHeadAttention", inputs, f"{name}.attended", attributes, MICROSOFT)
        return self._linears.linear(attended, f"{name}.o_proj", size, width)

    def _head_norm(self, x: str, tensor: str | None) -> str:
        """Norm each head: [1, patches, heads * head size] to [1, patches, heads, head size]."""
        graph, config = self._graph, self._config
        shape = graph.constant("shape.heads", [1, -1, config.heads, config.head_size], np.int64)
        x = graph.node("Reshape", [x, shape], f"{x}.by_head")
        if tensor is None:
            return self._writer.norm_with(x, f"ones.{config.head_size}", f"{x}.normed", config.norm_epsilon)
        return self._writer.norm(x, tensor, config.head_size, f"{x}.normed", config.norm_epsilon)

    def _rotate(self, x: str) -> str:
        """Each half of each head by its own angles; a half pairs its first values with its second ones."""
        graph, config = self._graph, self._config
        halves = graph.constant("shape.halves", [1, -1, config.heads, 2, 2, config.head_size // 4], np.int64)
        x = graph.node("Reshape", [x, halves], f"{x}.halves")
        first, second = graph.multi_node("Split", [x], [f"{x}.first", f"{x}.second"], {"axis": 4, "num_outputs": 2})
        products = {
            (part, by): graph.node("Mul", [part, f"rotation.{by}"], f"{part}.{by}")
            for part in (first, second)
            for by in ("cos", "sin")
        }
        turned = (
            graph.node("Sub", [products[first, "cos"], products[second, "sin"]], f"{first}.turned"),
            graph.node("Add", [products[second, "cos"], products[first, "sin"]], f"{second}.turned"),
        )
        return graph.node("Concat", turned, f"{x}.turned", {"axis": 4})

    def _feed_forward(self, name: str, x: str) -> str:
        graph, size, inner = self._graph, self._config.hidden_size, self._config.intermediate_size
        gate, up = (self._linears.linear(x, f"{name}.{part}_proj", inner, size) for part in ("gate", "up"))
        # FastGelu is the tanh approximation, the config's gelu_pytorch_tanh.
        activated = graph.node("FastGelu", [gate], f"{name}.activated", domain=MICROSOFT)
        product = graph.node("Mul", [activated, up], f"{name}.gated")
        return self._linears.linear(product, f"{name}.down_proj", size, inner)

    def _pool(self, x: str) -> str:
        """The mean of each square of patches, times hidden ** 0.5: [1, R * C, hidden] to [1, tokens, hidden]."""
        graph, config = self._graph, self._config
        kernel = graph.constant("kernel", [config.pooling_kernel_size], np.int64)
        squares = [graph.node("Div", [count, kernel], f"{count}.pooled") for count in ("rows", "columns")]
        one, size = graph.constant("one.int64", [1], np.int64), graph.constant("size", [config.hidden_size], np.int64)
        dimensions = [one, squares[0], kernel, squares[1], kernel, size]
        # Fails where rows or columns are no multiples of the kernel, which would drop patches.
        x = graph.node("Reshape", [x, graph.node("Concat", dimensions, "shape.squares", {"axis": 0})], "pool.squares")
        inside = graph.constant("axes.inside", [2, 4], np.int64)
        means = graph.node("ReduceMean", [x, inside], "pool.means", {"keepdims": 0})
        tokens = graph.node("Reshape", [means, "shape.hidden"], "pool.tokens")
        return graph.node("Mul", [tokens, graph.constant("pool.factor", config.hidden_size**0.5)], "pool.output")

    def _standardize(self, x: str) -> str:
        if not self._config.standardizes:
            return x
        bias, scale = (
            self._graph.weight(name, self._read(name, (self._config.hidden_size,)))
            for name in ("std_bias", "std_scale")
        )
        centred = self._graph.node("Sub", [x, bias], "standardized.centred")
        return self._graph.node("Mul", [centred, scale], "standardized")

    def _norm(self, x: str, tensor: str, output: str) -> str:
        return self._writer.norm(x, LAYERS + tensor, self._config.hidden_size, output, self._config.norm_epsilon)

    def _read(self, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
        return self._checkpoint.read(PREFIX + tensor, shape)
