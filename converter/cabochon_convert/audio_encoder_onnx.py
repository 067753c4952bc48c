"""The audio encoder with its projector as an ONNX graph: log_mel [1, T, mel] → audio_embeddings [1, N, hidden].

The maths is that of transformers' `Gemma4AudioModel` and `Gemma4MultimodalEmbedder`: two strided convolutions,
conformer layers whose attention looks at one block of tokens and the block before it, a projection into the decoder's
space.
Nothing looks ahead, so rows that fill up the last block cannot change the others and no padding mask is needed; and a
sound may come piece by piece, each of a multiple of 4 frames but the last, when states are handed on:

    past_frames  float32 [1, 4, mel]                      before the piece
    past_keys    float32 [layers, chunk, hidden]          of the tokens before it, newest last
    past_values  float32 [layers, chunk, hidden]
    past_gated   float32 [layers, kernel size - 1, hidden] what the convolution of each layer saw last
    past_count   int64   [1]                              how many of these tokens there were

Each may be left out, as at the beginning of a sound, and `next_frames` and so on are what they become.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from cabochon_convert.audio_config import INVALID_LOGIT, AudioConfig
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.clipped_linear_onnx import ClippedLinearWriter, clip
from cabochon_convert.graph_onnx import Attribute, OnnxGraph
from cabochon_convert.linear_onnx import BuiltEncoder, LinearWriter
from cabochon_convert.matrices import LinearSettings, MatrixRows

PREFIX = "model.audio_tower."
# Norms of the conformer that the reference builds without the config's epsilon use its class's default.
DEFAULT_EPSILON = 1e-6
# Two convolutions of stride 2.
FRAMES_PER_TOKEN = 4
ROWS_END = 2**31
"""Behind the last row, for slices."""


def build_audio_encoder(
    checkpoint: Checkpoint,
    config: AudioConfig,
    hidden_size: int,
    settings: LinearSettings,
    path: Path,
) -> BuiltEncoder:
    """Write the encoder graph to `path` and its weights beside it; `hidden_size` is the decoder's."""
    with OnnxGraph(path) as graph:
        writer = LinearWriter(graph, checkpoint, settings)
        builder = _AudioEncoderBuilder(graph, writer, checkpoint, config)
        # The frontend is refused where it has another number of mel bins than there are channels.
        builder.build(config.subsampling_channels[0], hidden_size)
        return BuiltEncoder(graph.finish(), writer.applied)


class _AudioEncoderBuilder:
    def __init__(self, graph: OnnxGraph, writer: LinearWriter, checkpoint: Checkpoint, config: AudioConfig) -> None:
        self._graph = graph
        self._writer = writer
        self._linears = ClippedLinearWriter(graph, writer, checkpoint, PREFIX, clips=config.clips_linears)
        self._checkpoint = checkpoint
        self._config = config
        self._head_size = config.hidden_size // config.heads

    def build(self, mel_bins: int, hidden_size: int) -> None:
        graph, config = self._graph, self._config
        graph.input("log_mel", "float32", (1, "T", mel_bins))
        self._declare_states(mel_bins)
        frames = graph.node("Concat", ["past_frames", "log_mel"], "frames", {"axis": 1})
        self._keep_last(frames, FRAMES_PER_TOKEN, "next_frames", "past_frames")
        hidden = self._subsample(frames, mel_bins)
        hidden = self._fill_last_block(hidden)
        self._write_attention_bias(hidden)
        for index in range(config.layer_count):
            hidden = self._layer(index, hidden)
        self._collect_states()
        hidden = self._cut_to_tokens(hidden)
        matrix = MatrixRows.whole(f"{PREFIX}output_proj.weight", config.output_size, config.hidden_size)
        hidden = self._writer.linear(hidden, matrix, "output_proj.product")
        bias = graph.weight("output_proj.bias", self._read("output_proj.bias", (config.output_size,)))
        hidden = graph.node("Add", [hidden, bias], "output_proj")
        ones = graph.weight("projector.ones", np.ones(config.output_size, np.float32))
        hidden = self._writer.norm_with(hidden, ones, "projector.norm", config.norm_epsilon)
        tensor = "model.embed_audio.embedding_projection.weight"
        self._writer.linear(hidden, MatrixRows.whole(tensor, hidden_size, config.output_size), "audio_embeddings")
        graph.output("audio_embeddings", "float32", (1, "N", hidden_size))

    def _declare_states(self, mel_bins: int) -> None:
        """Zeros at the beginning: they give what the convolutions' own padding would, which have no biases."""
        graph, config = self._graph, self._config
        layers, size = config.layer_count, config.hidden_size
        graph.state("past_frames", np.zeros((1, FRAMES_PER_TOKEN, mel_bins), np.float32))
        for name in ("past_keys", "past_values"):
            graph.state(name, np.zeros((layers, config.chunk_size, size), np.float32))
        graph.state("past_gated", np.zeros((layers, config.conv_kernel_size - 1, size), np.float32))
        graph.state("past_count", np.zeros(1, np.int64))

    def _past(self, state: str, layer: int) -> str:
        """A layer's part of a state: [1, rows, hidden]."""
        graph = self._graph
        index = graph.constant(f"layer.{layer}", [layer], np.int64)
        return graph.node("Gather", [state, index], f"{state}.{layer}", {"axis": 0})

    def _keep_last(self, rows: str, count: int, name: str, state: str = "") -> str:
        """The last of some rows [1, rows, columns]; what a state becomes, where one is named."""
        graph = self._graph
        start = graph.constant(f"last.{count}", [-count], np.int64)
        end, axis = (graph.constant(each, [value], np.int64) for each, value in (("end", ROWS_END), ("axis.1", 1)))
        graph.node("Slice", [rows, start, end, axis], name)
        return graph.next_state(name, state) if state else name

    def _hand_on(self, state: str, layer: int, rows: str) -> None:
        """Keep the last real ones of a layer's rows [1, rows, hidden] for the next piece."""
        graph = self._graph
        real = self._cut_to_tokens(rows, f"{state}.{layer}.new")
        both = graph.node("Concat", [f"{state}.{layer}", real], f"{state}.{layer}.all", {"axis": 1})
        config = self._config
        count = config.conv_kernel_size - 1 if state == "past_gated" else config.chunk_size
        self._keep_last(both, count, f"{state}.{layer}.next")

    def _collect_states(self) -> None:
        graph, config = self._graph, self._config
        for state in ("past_keys", "past_values", "past_gated"):
            parts = [f"{state}.{layer}.next" for layer in range(config.layer_count)]
            graph.node("Concat", parts, state.replace("past", "next"), {"axis": 0})
            graph.next_state(state.replace("past", "next"), state)
        chunk = graph.constant("chunk_size", [config.chunk_size], np.int64)
        seen = graph.node("Add", ["past_count", "token_count"], "seen_count")
        graph.node("Min", [seen, chunk], "next_count")
        graph.next_state("next_count", "past_count")

    def _subsample(self, frames: str, mel_bins: int) -> str:
        """[1, 4 + T, mel] to [1, N, hidden], N = ceil(T / 4): without the token of the frames before."""
        graph, config = self._graph, self._config
        channels = (1, *config.subsampling_channels)
        x = graph.node("Unsqueeze", [frames, graph.constant("axis.1", [1], np.int64)], "subsample.input")
        for index in range(2):
            name = f"subsample_conv_projection.layer{index}"
            shape = (channels[index + 1], channels[index], 3, 3)
            kernel = graph.weight(f"{name}.conv", self._read(f"{name}.conv.weight", shape))
            attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
            x = graph.node("Conv", [x, kernel], f"{name}.convolved", attributes)  # [1, channels, time, frequency]
            x = graph.node("Transpose", [x], f"{name}.channels_last", {"perm": [0, 2, 3, 1]})
            norm = graph.weight(f"{name}.norm", self._read(f"{name}.norm.weight", (channels[index + 1],)))
            attributes_norm = {"axis": -1, "epsilon": config.norm_epsilon}
            x = graph.node("LayerNormalization", [x, norm], f"{name}.normed", attributes_norm)
            x = graph.node("Relu", [x], f"{name}.relu")
            if index == 0:
                x = graph.node("Transpose", [x], f"{name}.channels_first", {"perm": [0, 3, 1, 2]})
        width = -(-mel_bins // FRAMES_PER_TOKEN) * channels[2]
        x = graph.node("Reshape", [x, graph.constant("shape.flat", [1, -1, width], np.int64)], "subsample.flat")
        one, end, axis = (
            graph.constant(name, [value], np.int64) for name, value in (("one", 1), ("end", ROWS_END), ("axis.1", 1))
        )
        x = graph.node("Slice", [x, one, end, axis], "subsample.new")
        tensor = f"{PREFIX}subsample_conv_projection.input_proj_linear.weight"
        return self._writer.linear(x, MatrixRows.whole(tensor, config.hidden_size, width), "subsample")

    def _fill_last_block(self, x: str) -> str:
        """Append zero rows until the tokens [1, N, hidden] fill whole blocks; remembers N as `token_count`."""
        graph = self._graph
        count = graph.node("Shape", [x], "token_count", {"start": 1, "end": 2})
        negative = graph.node("Neg", [count], "token_count.negative")
        chunk = graph.constant("chunk_size", [self._config.chunk_size], np.int64)
        missing = graph.node("Mod", [negative, chunk], "tokens_missing")  # takes the sign of the chunk
        before, after = graph.constant("pads.before", [0, 0, 0, 0], np.int64), graph.constant("zero", [0], np.int64)
        pads = graph.node("Concat", [before, missing, after], "pads", {"axis": 0})
        return graph.node("Pad", [x, pads], "blocks.input")

    def _cut_to_tokens(self, x: str, name: str = "blocks.output") -> str:
        graph = self._graph
        start, axis = graph.constant("zero", [0], np.int64), graph.constant("axis.1", [1], np.int64)
        return graph.node("Slice", [x, start, "token_count", axis], name)

    def _write_attention_bias(self, x: str) -> None:
        """`attention_bias` [blocks, 1, chunk, 2 chunk]: each token sees itself and the chunk - 1 tokens before it.

        Of the block before the first one only `past_count` tokens, its last, are real. (The config counts the token
        itself: attention_context_left - 1 = chunk, and the reference compares with "less than".)
        """
        graph, chunk = self._graph, self._config.chunk_size
        columns = np.arange(2 * chunk)
        distance = np.arange(chunk)[:, None] + chunk - columns[None, :]
        later = np.where((distance >= 0) & (distance < chunk), 0.0, INVALID_LOGIT)[None, None]
        size = graph.constant("chunk_size", [chunk], np.int64)
        missing = graph.node("Sub", [size, "past_count"], "past_missing")
        unreal = graph.node("Less", [graph.constant("columns", columns, np.int64), missing], "past_unreal")
        bias = graph.constant("bias.later", later)
        first = graph.node("Where", [unreal, graph.constant("unseen", INVALID_LOGIT), bias], "bias.first")
        length = graph.node("Shape", [x], "padded_count", {"start": 1, "end": 2})
        blocks = graph.node("Div", [length, size], "block_count")
        more = graph.node("Sub", [blocks, graph.constant("one", [1], np.int64)], "blocks_after_first")
        shape = graph.node("Concat", [more, graph.constant("bias.shape", [1, 1, 1], np.int64)], "bias", {"axis": 0})
        later_bias = graph.node("Expand", [bias, shape], "bias.later.expanded")
        graph.node("Concat", [first, later_bias], "attention_bias", {"axis": 0})

    def _layer(self, index: int, x: str) -> str:
        name = f"layers.{index}"
        x = self._feed_forward(f"{name}.feed_forward1", x)
        normed = self._norm(self._clip(x), f"{name}.norm_pre_attn.weight", f"{name}.attention_input")
        attended = self._attention(f"{name}.self_attn", index, normed)
        normed = self._norm(self._clip(attended), f"{name}.norm_post_attn.weight", f"{name}.attention_output")
        x = self._graph.node("Add", [normed, x], f"{name}.after_attention")
        x = self._light_convolution(f"{name}.lconv1d", index, x)
        x = self._feed_forward(f"{name}.feed_forward2", x)
        return self._norm(self._clip(x), f"{name}.norm_out.weight", f"{name}.output")

    def _feed_forward(self, name: str, x: str) -> str:
        """Half-step feed-forward of the conformer."""
        graph, size = self._graph, self._config.hidden_size
        y = self._norm(self._clip(x), f"{name}.pre_layer_norm.weight", f"{name}.input")
        y = self._silu(self._linear(f"{name}.ffw_layer_1", y, 4 * size, size))
        y = self._clip(self._linear(f"{name}.ffw_layer_2", y, size, 4 * size))
        y = self._norm(y, f"{name}.post_layer_norm.weight", f"{name}.normed")
        weight = graph.constant("residual_weight", self._config.residual_weight)
        return graph.node("Add", [graph.node("Mul", [y, weight], f"{name}.scaled"), x], f"{name}.output")

    def _attention(self, name: str, layer: int, x: str) -> str:
        """Block-wise attention with relative positions and a soft cap on its logits."""
        graph, config = self._graph, self._config
        heads, head_size, chunk, size = config.heads, self._head_size, config.chunk_size, config.hidden_size
        query, key, value = (self._linear(f"{name}.{part}_proj", x, size, size) for part in "qkv")
        blocks = graph.constant("shape.blocks", [-1, chunk, heads, head_size], np.int64)
        query = graph.node("Reshape", [query, blocks], f"{name}.query_blocks")
        key_scale = math.log(1 + math.e) / math.log(2)
        scale = graph.weight(f"{name}.query_scale", self._query_scale(name) * np.float32(key_scale))
        query = graph.node("Mul", [query, scale], f"{name}.query_scaled")
        query = graph.node("Transpose", [query], f"{name}.query_heads", {"perm": [0, 2, 1, 3]})
        key, value = self._with_previous(key, "past_keys", layer), self._with_previous(value, "past_values", layer)
        key = graph.node("Transpose", [key], f"{name}.key_heads", {"perm": [0, 2, 3, 1]})
        value = graph.node("Transpose", [value], f"{name}.value_heads", {"perm": [0, 2, 1, 3]})
        content = graph.node("MatMul", [query, key], f"{name}.content_logits")  # [blocks, heads, chunk, 2 chunk]
        # The scale of the keys is folded into the queries; relative keys do not have it.
        relative = graph.weight(f"{name}.relative_keys", self._relative_keys(name) / np.float32(key_scale))
        position = self._shift(graph.node("MatMul", [query, relative], f"{name}.position_logits"))
        logits = graph.node("Add", [content, position], f"{name}.logits")
        cap = graph.constant("logit_cap", config.attention_logit_cap)
        logits = graph.node("Tanh", [graph.node("Div", [logits, cap], f"{name}.logits_over_cap")], f"{name}.tanh")
        logits = graph.node("Mul", [logits, cap], f"{name}.capped")
        masked = graph.node("Add", [logits, "attention_bias"], f"{name}.masked")
        weights = graph.node("Softmax", [masked], f"{name}.weights", {"axis": -1})
        attended = graph.node("MatMul", [weights, value], f"{name}.attended_heads")
        attended = graph.node("Transpose", [attended], f"{name}.attended_blocks", {"perm": [0, 2, 1, 3]})
        flat = graph.constant("shape.tokens", [1, -1, size], np.int64)
        attended = graph.node("Reshape", [attended, flat], f"{name}.attended")
        return self._linear(f"{name}.post", attended, size, size)

    def _query_scale(self, name: str) -> np.ndarray:
        """head size ** -0.5 / ln 2 * softplus(per_dim_scale), [head size]."""
        per_dim = self._read(f"{name}.per_dim_scale", (self._head_size,)).astype(np.float64)
        scale = self._head_size**-0.5 / math.log(2) * np.logaddexp(0, per_dim)
        return np.asarray(scale, np.float32)

    def _relative_keys(self, name: str) -> np.ndarray:
        """Projected sinusoids of the distances chunk … 0: [1, heads, head size, chunk + 1]."""
        size, chunk = self._config.hidden_size, self._config.chunk_size
        count = size // 2
        frequencies = np.exp(np.arange(count) * (-math.log(10_000.0) / max(count - 1, 1)))
        angles = np.arange(chunk, -1, -1)[:, None] * frequencies
        sinusoids = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
        keys = sinusoids @ self._read(f"{name}.relative_k_proj.weight", (size, size)).T
        return np.asarray(keys.reshape(chunk + 1, self._config.heads, self._head_size).transpose(1, 2, 0)[None])

    def _with_previous(self, x: str, state: str, layer: int) -> str:
        """[1, blocks * chunk, hidden] to [blocks, 2 chunk, heads, head size]: the block before, then the block."""
        graph = self._graph
        past = graph.node("Reshape", [self._past(state, layer), "shape.blocks"], f"{x}.past")
        self._hand_on(state, layer, x)
        blocks = graph.node("Reshape", [x, "shape.blocks"], f"{x}.blocks")
        shifted = graph.node("Concat", [past, blocks], f"{x}.with_past", {"axis": 0})
        ends = {"zero": 0, "minus_one": -1, "axis.0": 0}
        bounds = [graph.constant(name, [value], np.int64) for name, value in ends.items()]
        previous = graph.node("Slice", [shifted, *bounds], f"{x}.previous")
        return graph.node("Concat", [previous, blocks], f"{x}.context", {"axis": 1})

    def _shift(self, x: str) -> str:
        """Align logits by distance [.., chunk, chunk + 1] with keys [.., chunk, 2 chunk] (Transformer-XL, app. B)."""
        graph, chunk = self._graph, self._config.chunk_size
        pads = graph.constant("pads.shift", [0, 0, 0, 0, 0, 0, 0, chunk], np.int64)
        x = graph.node("Pad", [x, pads], f"{x}.padded")  # rows of 2 chunk + 1
        x = graph.node("Reshape", [x, graph.constant("shape.rows", [0, 0, -1], np.int64)], f"{x}.flat")
        zero, axis = graph.constant("zero", [0], np.int64), graph.constant("axis.2", [2], np.int64)
        end = graph.constant("shift.end", [chunk * 2 * chunk], np.int64)
        x = graph.node("Slice", [x, zero, end, axis], f"{x}.cut")
        shape = graph.constant("shape.logits", [0, 0, chunk, 2 * chunk], np.int64)
        return graph.node("Reshape", [x, shape], f"{x}.shifted")

    def _light_convolution(self, name: str, layer: int, x: str) -> str:
        """Gated causal depthwise convolution."""
        graph, size, epsilon = self._graph, self._config.hidden_size, self._config.norm_epsilon
        kernel_size = self._config.conv_kernel_size
        y = self._norm(x, f"{name}.pre_layer_norm.weight", f"{name}.input", epsilon)
        y = self._linear(f"{name}.linear_start", y, 2 * size, size)
        value, gate = graph.multi_node("Split", [y], [f"{name}.value", f"{name}.gate"], {"axis": 2, "num_outputs": 2})
        y = graph.node("Mul", [value, graph.node("Sigmoid", [gate], f"{name}.gate.sigmoid")], f"{name}.gated")
        past = self._past("past_gated", layer)
        self._hand_on("past_gated", layer, y)
        y = graph.node("Concat", [past, y], f"{name}.with_past", {"axis": 1})
        y = graph.node("Transpose", [y], f"{name}.channels_first", {"perm": [0, 2, 1]})
        kernel = graph.weight(f"{name}.kernel", self._read(f"{name}.depthwise_conv1d.weight", (size, 1, kernel_size)))
        attributes: dict[str, Attribute] = {"group": size, "kernel_shape": [kernel_size]}
        y = graph.node("Conv", [y, kernel], f"{name}.convolved", attributes)
        y = self._clip(graph.node("Transpose", [y], f"{name}.channels_last", {"perm": [0, 2, 1]}))
        y = self._silu(self._norm(y, f"{name}.conv_norm.weight", f"{name}.normed", epsilon))
        y = self._linear(f"{name}.linear_end", y, size, size)
        return graph.node("Add", [y, x], f"{name}.output")

    def _linear(self, name: str, x: str, outputs: int, inputs: int) -> str:
        return self._linears.linear(x, name, outputs, inputs)

    def _clip(self, x: str) -> str:
        """Gradient clipping of the training code, which clips values."""
        bound = min(self._config.gradient_clipping, float(np.finfo(np.float32).max))
        return clip(self._graph, x, f"{x}.clipped", -bound, bound)

    def _silu(self, x: str) -> str:
        return self._graph.node("Mul", [x, self._graph.node("Sigmoid", [x], f"{x}.sigmoid")], f"{x}.silu")

    def _norm(self, x: str, tensor: str, output: str, epsilon: float = DEFAULT_EPSILON) -> str:
        return self._writer.norm(x, PREFIX + tensor, self._config.hidden_size, output, epsilon)

    def _read(self, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
        return self._checkpoint.read(PREFIX + tensor, shape)
