"""The text decoder once more for onnxruntime-genai, which feeds token ids and an attention mask.

A second graph file of some hundred kilobytes around the same weights: it looks embeddings up in the tables of the
package, counts positions by the mask, keeps whole contexts in all caches, gives the logits of the last position and
caps them, since genai samples from them as they are. genai_config.json says how to run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cabochon.manifest import TABLE_STORAGE_BITS, EmbeddingTable, Engine, Manifest, RowRegion
from cabochon_convert.attention_onnx import SINGLE
from cabochon_convert.graph_onnx import Attribute
from cabochon_convert.text_config import TextConfig

GRAPH_NAME: Final = "decoder_genai.onnx"
CONFIG_NAME: Final = "genai_config.json"
MODEL_TYPE: Final = "gemma4_text"
"""genai's name for a decoder of this family that is fed token ids."""
_TYPES: Final = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
RAW_LOGITS: Final = "logits.raw"
_REPLACED: Final = ("inputs_embeds", "per_layer_inputs", "total_length", "window_length", "logits_to_keep")
_GENAI_INPUTS: Final = (("input_ids", "S"), ("attention_mask", "T"))


def write_genai(manifest: Manifest, engine: Engine, config: TextConfig, folder: Path) -> None:
    """Write graph and config beside the decoder of a package.

    Args:
        manifest: of the package; its engines and files are not read.
        engine: of its ONNX graphs.
        config: of the decoder.
        folder: of the package.
    """
    model = onnx.load(str(folder / engine.decoder.file), load_external_data=False)
    front = _Front()
    front.count_positions()
    front.look_up(engine.token_embeddings, "inputs_embeds")
    if engine.per_layer_embeddings is not None:
        front.look_up(engine.per_layer_embeddings, "per_layer_inputs")
    graph = model.graph
    # genai binds caches at full length, which the way for single positions does not expect.
    decoder_nodes = [node for node in graph.node if node.output[0] not in SINGLE.values()]
    front.decide_against(SINGLE.values())
    (head,) = (node for node in decoder_nodes if "logits" in node.output)
    head.name = head.output[0] = RAW_LOGITS
    front.cap_logits(manifest.text.final_logit_softcap)
    del graph.node[:]
    graph.node.extend([*front.nodes, *decoder_nodes, *front.last_nodes])
    graph.initializer.extend(front.initializers)
    inputs = [value for value in graph.input if value.name not in _REPLACED]
    del graph.input[:]
    graph.input.extend(
        [helper.make_tensor_value_info(name, TensorProto.INT64, [1, size]) for name, size in _GENAI_INPUTS] + inputs
    )
    outputs = [value for value in graph.output if value.name != "hidden_states"]
    del graph.output[:]
    graph.output.extend(outputs)
    for value in (*graph.input, *graph.output):
        _unify_capacity(value)
    (logits,) = (value for value in graph.output if value.name == "logits")
    # genai reads this dimension to learn that it need not pick the last position itself.
    logits.CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, config.vocabulary_size]))
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString())
    text = json.dumps(_genai_config(manifest, engine, config), indent=1)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def _unify_capacity(value: onnx.ValueInfoProto) -> None:
    """All caches hold the whole context."""
    for dimension in value.type.tensor_type.shape.dim:
        if dimension.dim_param == "W":
            dimension.dim_param = "C"


class _Front:
    """Nodes that come before and behind those of the decoder."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.last_nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def count_positions(self) -> None:
        """All counters of the decoder from the mask, which is one for every position up to the last."""
        self._node("ReduceSum", ["attention_mask"], "genai.positions", {"keepdims": 0})
        self._node("Cast", ["genai.positions"], "total_length", {"to": TensorProto.INT32})
        self._node("Cast", ["genai.positions"], "window_length", {"to": TensorProto.INT32})
        self.initializers.append(numpy_helper.from_array(np.array([1], np.int64), "logits_to_keep"))

    def decide_against(self, conditions: Iterable[str]) -> None:
        """Conditions that are never met."""
        for condition in conditions:
            self.initializers.append(numpy_helper.from_array(np.array([False]), condition))

    def look_up(self, table: EmbeddingTable, output: str) -> None:
        """Scaled rows of a table: float32 [1, S, columns]."""
        if table.storage in _TYPES:
            values = self._region(f"{output}.table", table.values, _TYPES[table.storage], (table.rows, table.columns))
            rows = self._node("Gather", [values, "input_ids"], f"{output}.stored")
            floats = self._node("Cast", [rows], f"{output}.float", {"to": TensorProto.FLOAT})
        else:
            floats = self._dequantized(table, output)
        self._node("Mul", [floats, self._constant(f"{output}.row_scale", np.float32(table.row_scale))], output)

    def cap_logits(self, cap: float) -> None:
        """Behind the decoder: cap * tanh(logits / cap)."""
        if not cap:
            self.last_nodes.append(helper.make_node("Identity", [RAW_LOGITS], ["logits"], "logits"))
            return
        value = self._constant("genai.cap", np.float32(cap))
        for operator, inputs, result in (
            ("Div", [RAW_LOGITS, value], "genai.divided"),
            ("Tanh", ["genai.divided"], "genai.bent"),
            ("Mul", ["genai.bent", value], "logits"),
        ):
            self.last_nodes.append(helper.make_node(operator, inputs, [result], result))

    def _dequantized(self, table: EmbeddingTable, name: str) -> str:
        assert table.scales is not None  # EmbeddingTable refuses integer storage without scales
        bits = TABLE_STORAGE_BITS[table.storage]
        value_bytes, blocks = table.columns * bits // 8, table.columns // table.block_size
        packed = self._bytes(f"{name}.values", table.values, table.rows, value_bytes)
        places = []
        for place in range(8 // bits):
            shifted = packed
            if place:
                shift = self._constant(f"{name}.shift.{place}", np.array(place * bits, np.uint8))
                shifted = self._node("BitShift", [packed, shift], f"{name}.shifted.{place}", {"direction": "RIGHT"})
            mask = self._constant(f"{name}.mask", np.array((1 << bits) - 1, np.uint8))
            masked = self._node("BitwiseAnd", [shifted, mask], f"{name}.masked.{place}")
            last = self._constant(f"{name}.last_axis", np.array([-1], np.int64))
            places.append(self._node("Unsqueeze", [masked, last], f"{name}.place.{place}"))
        together = self._node("Concat", places, f"{name}.places", {"axis": -1})
        shape = self._constant(f"{name}.by_block", np.array([1, -1, blocks, table.block_size], np.int64))
        unsigned = self._node("Reshape", [together, shape], f"{name}.unsigned")
        floats = self._node("Cast", [unsigned], f"{name}.unsigned.float", {"to": TensorProto.FLOAT})
        zero = self._constant(f"{name}.zero", np.float32(1 << (bits - 1)))
        signed = self._node("Sub", [floats, zero], f"{name}.signed")
        scales = self._scales(table, table.scales, blocks, f"{name}.scales")
        scaled = self._node("Mul", [signed, scales], f"{name}.by_block.scaled")
        flat = self._constant(f"{name}.flat", np.array([1, -1, table.columns], np.int64))
        return self._node("Reshape", [scaled, flat], f"{name}.dequantized")

    def _scales(self, table: EmbeddingTable, region: RowRegion, blocks: int, name: str) -> str:
        """float32 [1, S, blocks, 1]"""
        dtype = np.dtype(table.scale_storage)
        shape = self._constant(f"{name}.shape", np.array([1, -1, blocks, 1], np.int64))
        if region.stride == blocks * dtype.itemsize:
            kind = _TYPES[dtype.name]
            stored = self._region(f"{name}.table", region, kind, (table.rows, blocks))
            rows = self._node("Gather", [stored, "input_ids"], f"{name}.stored")
            floats = self._node("Cast", [rows], f"{name}.float", {"to": TensorProto.FLOAT})
        else:
            floats = self._floats_of_bytes(self._bytes(name, region, table.rows, blocks * dtype.itemsize), dtype, name)
        return self._node("Reshape", [floats, shape], f"{name}.by_block")

    def _floats_of_bytes(self, rows: str, dtype: np.dtype[Any], name: str) -> str:
        """Numbers that lie among bytes: ONNX has no cast of bits, so the halves of each are looked up in tables."""
        numbers = self._node("Cast", [rows], f"{name}.numbers", {"to": TensorProto.INT32})
        shape = self._constant(f"{name}.halves.shape", np.array([-1, dtype.itemsize // 2, 2], np.int64))
        pairs = self._node("Reshape", [numbers, shape], f"{name}.pairs")
        place_values = self._constant(f"{name}.place_values", np.array([1, 256], np.int32))
        weighed = self._node("Mul", [pairs, place_values], f"{name}.weighed")
        axis = self._constant(f"{name}.byte_axis", np.array([2], np.int64))
        halves = self._node("ReduceSum", [weighed, axis], f"{name}.halves", {"keepdims": 0})
        words = np.arange(1 << 16, dtype=np.uint32)
        if dtype == np.float16:
            table = self._constant("genai.float16", words.astype(np.uint16).view(np.float16).astype(np.float32))
            return self._node("Gather", [table, halves], f"{name}.float")
        # The upper half of a float32 is a number of its own, and tells what a step of the lower half is worth.
        upper = (words << 16).view(np.float32)
        with np.errstate(invalid="ignore"):
            steps = ((words << 16) + 1).view(np.float32) - upper
        low, high = self._multi_node("Split", [halves], [f"{name}.low", f"{name}.high"], {"axis": 1, "num_outputs": 2})
        base = self._node("Gather", [self._constant("genai.float32.upper", upper), high], f"{name}.base")
        step = self._node("Gather", [self._constant("genai.float32.steps", steps), high], f"{name}.step")
        count = self._node("Cast", [low], f"{name}.low.float", {"to": TensorProto.FLOAT})
        rest = self._node("Mul", [step, count], f"{name}.rest")
        return self._node("Add", [base, rest], f"{name}.float")

    def _bytes(self, name: str, region: RowRegion, rows: int, width: int) -> str:
        """uint8 [1, S, width] of the rows of a region, which may lie apart."""
        # The region may begin inside the first row; whole rows are gathered and cut.
        begin = region.offset % region.stride if region.stride > width else 0
        whole = RowRegion(file=region.file, offset=region.offset - begin, stride=region.stride)
        stored = self._region(f"{name}.table", whole, TensorProto.UINT8, (rows, region.stride))
        gathered = self._node("Gather", [stored, "input_ids"], f"{name}.rows")
        if region.stride == width:
            return gathered
        ends = [
            self._constant(f"{name}.{end}", np.array([value], np.int64))
            for end, value in (("begin", begin), ("end", begin + width), ("axis", 2))
        ]
        return self._node("Slice", [gathered, *ends], f"{name}.bytes")

    def _region(self, name: str, region: RowRegion, kind: int, shape: tuple[int, int]) -> str:
        """A weight that lies in a file of the package already."""
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        length = shape[0] * region.stride
        for key, value in (("location", region.file), ("offset", region.offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        if name not in {tensor.name for tensor in self.initializers}:
            self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(
        self, operator: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Attribute] | None = None
    ) -> str:
        return self._multi_node(operator, inputs, [output], attributes)[0]

    def _multi_node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: list[str],
        attributes: Mapping[str, Attribute] | None = None,
    ) -> list[str]:
        node = helper.make_node(operator, inputs, outputs, outputs[0])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes or {}).items())
        self.nodes.append(node)
        return outputs


def _genai_config(manifest: Manifest, engine: Engine, config: TextConfig) -> dict[str, Any]:
    first, sampling = engine.caches[0], manifest.sampling
    return {
        "model": {
            "type": MODEL_TYPE,
            "bos_token_id": manifest.bos_token,
            "eos_token_id": list(sampling.stop_tokens),
            "pad_token_id": manifest.pad_token,
            "vocab_size": config.vocabulary_size,
            "context_length": manifest.text.context_length,
            "decoder": {
                "filename": GRAPH_NAME,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.heads,
                "num_hidden_layers": len(config.layers),
                # Where layers differ, genai takes the shapes of the graph's caches.
                "num_key_value_heads": first.heads,
                "head_size": first.head_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_%d",
                    "past_value_names": "past_value_%d",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present_key_%d",
                    "present_value_names": "present_value_%d",
                },
            },
        },
        "search": {
            "do_sample": sampling.temperature > 0,
            "max_length": manifest.text.context_length,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "temperature": sampling.temperature or 1.0,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        },
    }
