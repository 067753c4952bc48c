"""Block-wise rounding of weight matrices to 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array


@dataclass(frozen=True, slots=True)
class Precision:
    """How a weight matrix is to be stored."""

    bits: int
    """4 or 8 for block-wise integers, 16 for the checkpoint's own floating point, 32 for float32."""
    block_size: int = 0
    """Consecutive inputs that share one scale; 0 for floating point."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16, 32):
            raise ValueError(f"expected 4, 8, 16 or 32 bits, got {self.bits}")
        # MatMulNBits takes powers of two from 16.
        block = self.block_size
        if self.is_integer and (block < 16 or block & (block - 1)):
            raise ValueError(f"expected a block size of a power of two from 16, got {block}")
        if not self.is_integer and block:
            raise ValueError("floating point has no blocks")

    @property
    def is_integer(self) -> bool:
        """Whether it is block-wise integer storage."""
        return self.bits < 16


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Integers and scales in the layout of onnxruntime's MatMulNBits; weight = (value - 2 ** (bits - 1)) * scale."""

    values: npt.NDArray[np.uint8]
    """[rows, blocks, block_size * bits / 8]; of 4-bit values the low half of a byte comes first."""
    scales: Float32Array
    """[rows, blocks]"""


def quantize_matrix(weights: Float32Array, precision: Precision) -> QuantizedMatrix:
    """Round a matrix [rows, columns] block by block, symmetrically.

    The value of largest magnitude in a block is mapped exactly onto the most negative integer, which two's complement
    has one more of; so a scale may be negative. A last block that is not full is padded with zeros.
    """
    rows, columns = weights.shape
    block_count = -(-columns // precision.block_size)
    padding = block_count * precision.block_size - columns
    if padding:
        weights = np.pad(weights, ((0, 0), (0, padding)))
    blocks = weights.reshape(rows, block_count, precision.block_size)
    half = 1 << (precision.bits - 1)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)  # [rows, blocks, 1]
    scales = extreme / np.float32(-half)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    scaled = blocks * inverse
    np.rint(scaled, out=scaled)
    scaled += half
    np.clip(scaled, 0, 2 * half - 1, out=scaled)
    values = scaled.astype(np.uint8)
    if precision.bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return QuantizedMatrix(values, scales[..., 0].astype(np.float32))


def dequantize_matrix(matrix: QuantizedMatrix, columns: int, precision: Precision) -> Float32Array:
    """The weights [rows, columns] that a quantized matrix stands for."""
    values = matrix.values
    if precision.bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], -1)
    half = np.float32(1 << (precision.bits - 1))
    weights = (values.astype(np.float32) - half) * matrix.scales[..., None]
    result: Float32Array = weights.reshape(len(values), -1)[:, :columns]
    return result
