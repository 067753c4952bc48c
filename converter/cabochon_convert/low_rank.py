"""A weight matrix plus a product of two small ones, row by row and in float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array
from cabochon_convert.checkpoint import CheckpointError, RowIndex, RowMerge, TensorRecord, read_record

# Products are made in float64, so that they do not depend on how rows are cut into parts: 8 MB of them at a time.
_VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class LowRankChange:
    """weight + scaling * left right, with rows scaled to given lengths if there are any.

    For a linear layer, left is lora_B [outputs, rank] and right lora_A [rank, inputs]. For a table, left is
    lora_embedding_A [rank, rows] and right lora_embedding_B [columns, rank], both transposed when they are read.
    """

    tensor: str
    left: TensorRecord
    right: TensorRecord
    is_table: bool
    scaling: float
    lengths: TensorRecord | None = None
    """DoRA's magnitudes [outputs]."""

    def refuse_misfit(self, shape: tuple[int, ...], rank: int) -> None:
        """CheckpointError unless the factors have this rank and fit a matrix of this shape."""
        left, right = self.left.shape, self.right.shape
        if self.is_table:
            left, right = left[::-1], right[::-1]
        if len(left) != 2 or len(right) != 2 or len(shape) != 2 or (left[0], right[1]) != shape:
            raise CheckpointError(
                f"the adapter's factors of {self.tensor} have shapes {list(self.left.shape)} and "
                f"{list(self.right.shape)}, which do not make a matrix of {list(shape)}: "
                "it belongs to another model, or was saved in parts."
            )
        if left[1] != rank or right[0] != rank:
            raise CheckpointError(
                f"the adapter's factors of {self.tensor} have ranks {left[1]} and {right[0]}, but its config says "
                f"{rank}: config and weights do not belong together."
            )
        if self.lengths is not None and self.lengths.shape != (shape[0],):
            raise CheckpointError(
                f"the adapter's magnitudes of {self.tensor} have shape {list(self.lengths.shape)}, expected "
                f"{[shape[0]]}: it belongs to another model."
            )

    def factors(self) -> tuple[Float32Array, Float32Array]:
        """Left [rows, rank] and right [rank, columns]."""
        left, right = read_record(self.left), read_record(self.right)
        return (left.T, right.T) if self.is_table else (left, right)

    def open(self) -> RowMerge:
        """Read the factors; what comes back merges rows of the matrix."""
        left, right = self.factors()
        wide = right.astype(np.float64)
        lengths = None if self.lengths is None else read_record(self.lengths)
        step = max(1, _VALUES_AT_ONCE // wide.shape[1])

        def merge(weights: Float32Array, rows: RowIndex) -> Float32Array:
            chosen, merged = left[rows], np.empty_like(weights)
            with np.errstate(all="ignore"):  # what is not finite is refused below
                for start in range(0, len(weights), step):
                    part = slice(start, start + step)
                    product = chosen[part].astype(np.float64) @ wide
                    product *= self.scaling
                    merged[part] = weights[part] + product.astype(np.float32)
                if lengths is not None:
                    merged *= _stretch(merged, lengths[rows])
                finite = np.isfinite(merged).all()
            if not finite:
                raise CheckpointError(
                    f"the adapter makes values of {self.tensor} that are not finite (its factor is {self.scaling:g}): "
                    "its lora_alpha or its training went wrong."
                )
            return merged

        return merge


def _stretch(merged: Float32Array, lengths: Float32Array) -> Float32Array:
    """[rows, 1]: what gives the rows their lengths."""
    norms = np.sqrt(np.square(merged, dtype=np.float64).sum(axis=1))
    factors: Float32Array = (lengths / norms).astype(np.float32)
    return factors[:, None]
