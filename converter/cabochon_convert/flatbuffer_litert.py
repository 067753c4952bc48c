"""Filling the places of a LiteRT graph with matrices: the file is written front to back, matrix by matrix.

Integers and scales lie behind the flatbuffer, where the format's offsets of 64 bits reach them, in the very layout that
ai-edge-quantizer gives to dynamically quantized layers (a test compares the two).
"""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import missing_dependency
from cabochon.manifest import Graph, RowRegion, Tensor

try:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
except ImportError as error:
    raise missing_dependency(str(error.name), "convert-litert") from None

PLACE = "cabochon.matrix"
"""Custom code of the operator that stands for a matrix; its option is the matrix's number in four bytes."""
ALIGNMENT = 64
_TYPE_NAMES = {
    schema.TensorType.FLOAT32: "float32",
    schema.TensorType.INT32: "int32",
    schema.TensorType.BOOL: "bool",
}
_INTEGER_TYPES = {2: "INT2", 4: "INT4", 8: "INT8"}


@dataclass(frozen=True, slots=True)
class MatrixPart:
    """Some rows of a matrix as they are stored."""

    values: np.ndarray
    """[rows, bytes] or float32 [rows, columns]; integers are signed, the first of a byte in its lowest bits."""
    scales: Float32Array
    """[rows, blocks]; empty for floating point."""


class StoredMatrix(Protocol):
    """A matrix on its way into a file."""

    @property
    def rows(self) -> int:
        """Outputs of a linear layer."""

    @property
    def columns(self) -> int:
        """Its inputs."""

    @property
    def bits(self) -> int:
        """2, 4 or 8; 32 for floating point."""

    @property
    def block_size(self) -> int:
        """Values that share a scale; 0 where a whole row does."""

    def parts(self) -> Iterator[MatrixPart]:
        """The matrix from its first row to its last; asked for once."""


@dataclass(frozen=True, slots=True)
class FilledMatrix:
    """Where a matrix ended up, so that its rows can be read without the engine."""

    values: RowRegion
    scales: RowRegion | None
    scale_storage: str | None
    """float16 or float32."""


@dataclass(slots=True)
class _Buffers:
    """What lies behind the flatbuffer."""

    scales: list[Float32Array] = field(default_factory=list)
    values: tuple[int, int] = (0, 0)
    """Offset and size."""
    block_scales: tuple[int, int] = (0, 0)


def fill_places(graph: bytes, matrices: Sequence[StoredMatrix], path: Path) -> list[FilledMatrix]:
    """Write a graph to a file, with a matrix in each of its places.

    Args:
        graph: flatbuffer with places.
        matrices: by number of their places.
    """
    model = schema.ModelT.InitFromPackedBuf(bytearray(graph), 0)
    filler = _Filler(model, matrices)
    with path.open("wb") as file:
        # The length does not depend on the values of offsets and scales.
        start = _aligned(len(filler.pack()))
        file.seek(start)
        for number, matrix in enumerate(matrices):
            filler.write(number, matrix, file)
        header = filler.pack()
        if _aligned(len(header)) != start:
            raise ValueError(f"a flatbuffer of {len(header)} bytes does not fit into {start}")
        file.seek(0)
        file.write(header)
    return [filler.filled(number, path.name, header) for number in range(len(matrices))]


def pack_model(model: Any) -> bytes:
    """The flatbuffer of a model, as the schema's object of it."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Filler:
    """A flatbuffer whose matrices are on their way."""

    def __init__(self, model: Any, matrices: Sequence[StoredMatrix]) -> None:
        self._model = model
        self._matrices = matrices
        self._buffers = [_Buffers(scales=[np.zeros((m.rows, 1), np.float32)]) for m in matrices]
        self._value_buffers = [self._new_buffer() for _ in matrices]
        self._scale_buffers = [self._new_buffer() if m.block_size else 0 for m in matrices]
        self._tensors: list[list[Any]] = [[] for _ in matrices]
        codes = [index for index, code in enumerate(model.operatorCodes) if code.customCode == PLACE.encode()]
        for subgraph in model.subgraphs:
            self._fill_subgraph(subgraph, set(codes))
        for index in codes:
            # An operator that no subgraph uses, but that a loader would look for.
            model.operatorCodes[index] = model.operatorCodes[_other(codes, len(model.operatorCodes))]

    def _fill_subgraph(self, subgraph: Any, codes: set[int]) -> None:
        kept = []
        for each in subgraph.operators:
            if each.opcodeIndex not in codes:
                kept.append(each)
                continue
            number = int.from_bytes(bytes(bytearray(each.customOptions)), "little")
            self._fill_tensor(subgraph, subgraph.tensors[each.outputs[0]], number)
        subgraph.operators = kept

    def _fill_tensor(self, subgraph: Any, tensor: Any, number: int) -> None:
        matrix = self._matrices[number]
        shape = [matrix.rows, matrix.columns]
        if (found := tensor.shape.tolist()) != shape:
            raise ValueError(f"place {number} has the shape {found}, not {shape}")
        tensor.buffer = self._value_buffers[number]
        tensor.quantization = None
        if matrix.bits == 32:
            return
        tensor.type = getattr(schema.TensorType, _INTEGER_TYPES[matrix.bits])
        tensor.quantization = quantization = schema.QuantizationParametersT()
        if matrix.block_size:
            scales = schema.TensorT()
            scales.name = tensor.name + b"_scales"
            scales.shape = np.array([matrix.rows, matrix.columns // matrix.block_size], np.int32)
            scales.type = schema.TensorType.FLOAT16
            scales.buffer = self._scale_buffers[number]
            subgraph.tensors.append(scales)
            details = schema.BlockwiseQuantizationT()
            details.scales, details.zeroPoints = len(subgraph.tensors) - 1, -1
            details.blockSize = matrix.block_size
            quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            quantization.details = details
        else:
            quantization.zeroPoint = np.zeros(matrix.rows, np.int64)
            self._tensors[number].append(quantization)
        quantization.quantizedDimension = 0

    def write(self, number: int, matrix: StoredMatrix, file: BinaryIO) -> None:
        """Append a matrix to the file."""
        buffers, scales = self._buffers[number], []
        offset = _align(file)
        for part in matrix.parts():
            file.write(np.ascontiguousarray(part.values).data)
            scales.append(part.scales)
        buffers.values = (offset, file.tell() - offset)
        if matrix.block_size:
            offset = _align(file)
            file.write(np.concatenate(scales).astype(np.float16).data)
            buffers.block_scales = (offset, file.tell() - offset)
        elif matrix.bits < 32:
            buffers.scales = scales

    def pack(self) -> bytes:
        """The flatbuffer with what is known by now."""
        for number, buffers in enumerate(self._buffers):
            self._point(self._value_buffers[number], buffers.values)
            if self._scale_buffers[number]:
                self._point(self._scale_buffers[number], buffers.block_scales)
            scales = np.concatenate(buffers.scales).ravel().astype(np.float32)
            for quantization in self._tensors[number]:
                quantization.scale = scales
        return pack_model(self._model)

    def filled(self, number: int, file: str, header: bytes) -> FilledMatrix:
        """Where a matrix lies."""
        matrix, buffers = self._matrices[number], self._buffers[number]
        values = RowRegion(file=file, offset=buffers.values[0], stride=buffers.values[1] // matrix.rows)
        if matrix.bits == 32:
            return FilledMatrix(values, None, None)
        if not matrix.block_size:
            offset = _offset_of_scales(header, self._value_buffers[number])
            return FilledMatrix(values, RowRegion(file=file, offset=offset, stride=4), "float32")
        offset, size = buffers.block_scales
        return FilledMatrix(values, RowRegion(file=file, offset=offset, stride=size // matrix.rows), "float16")

    def _new_buffer(self) -> int:
        self._model.buffers.append(schema.BufferT())
        return len(self._model.buffers) - 1

    def _point(self, buffer: int, where: tuple[int, int]) -> None:
        # Fields of zero are left out of a flatbuffer, and would change its length.
        offset, size = (max(2, value) for value in where)
        self._model.buffers[buffer].offset, self._model.buffers[buffer].size = offset, size


def _offset_of_scales(header: bytes, buffer: int) -> int:
    """Of a tensor with this buffer, in the bytes of a flatbuffer."""
    model = schema.Model.GetRootAsModel(header, 0)
    subgraphs = (model.Subgraphs(index) for index in range(model.SubgraphsLength()))
    tensors = (subgraph.Tensors(index) for subgraph in subgraphs for index in range(subgraph.TensorsLength()))
    table = next(tensor for tensor in tensors if tensor.Buffer() == buffer).Quantization()._tab
    # The third field of the table QuantizationParameters in LiteRT's schema.
    offset: int = table.Vector(table.Offset(8))
    return offset


def _other(codes: Sequence[int], count: int) -> int:
    return next(index for index in range(count) if index not in codes)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _align(file: BinaryIO) -> int:
    offset = _aligned(file.tell())
    file.seek(offset)
    return offset


def describe_graph(path: Path, signature: str) -> Graph:
    """What the manifest says about one signature of a file; ValueError where there is none of this name."""
    model = schema.Model.GetRootAsModel(np.memmap(path, np.uint8, "r"), 0)
    signatures = (model.SignatureDefs(index) for index in range(model.SignatureDefsLength()))
    wanted = next((each for each in signatures if each.SignatureKey() == signature.encode()), None)
    if wanted is None:
        raise ValueError(f"{path} has no signature {signature}")
    subgraph = model.Subgraphs(wanted.SubgraphIndex())

    def describe(entry: Any) -> Tensor:
        tensor = subgraph.Tensors(entry.TensorIndex())
        shape = tuple(tensor.ShapeAsNumpy().tolist()) if tensor.ShapeLength() else ()
        return Tensor(name=entry.Name().decode(), dtype=_TYPE_NAMES[tensor.Type()], shape=shape)

    inputs = [describe(wanted.Inputs(index)) for index in range(wanted.InputsLength())]
    outputs = [describe(wanted.Outputs(index)) for index in range(wanted.OutputsLength())]
    by_name = operator.attrgetter("name")
    return Graph(file=path.name, inputs=tuple(sorted(inputs, key=by_name)), outputs=tuple(sorted(outputs, key=by_name)))


def signature_names(path: Path) -> list[str]:
    """Of a file."""
    model = schema.Model.GetRootAsModel(np.memmap(path, np.uint8, "r"), 0)
    return [model.SignatureDefs(index).SignatureKey().decode() for index in range(model.SignatureDefsLength())]


def keep_signatures(
    source: Path, names: Mapping[str, str], target: Path, change: Callable[[Any], object] | None = None
) -> None:
    """Copy a file in which only some signatures are left, with new names; matrices stay where they are.

    Args:
        names: new names by old ones.
        change: what else becomes of the schema's object of the model, without its matrices.

    Raises:
        ValueError: a signature is not there.
    """
    content = np.memmap(source, np.uint8, "r")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    model.signatureDefs = [each for each in model.signatureDefs if each.signatureKey.decode() in names]
    found = {each.signatureKey.decode() for each in model.signatureDefs}
    if missing := sorted(set(names) - found):
        raise ValueError(f"{source} has no signature {missing[0]}")
    for each in model.signatureDefs:
        each.signatureKey = names[each.signatureKey.decode()].encode()
    if change is not None:
        change(model)
    start = min(buffer.offset for buffer in model.buffers if buffer.offset > 1)
    header = pack_model(model)
    if len(header) > start:
        raise ValueError(f"a flatbuffer of {len(header)} bytes does not fit into {start}")
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        file.write(header.ljust(start, b"\0"))
