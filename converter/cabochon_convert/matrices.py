"""Weight matrices of a checkpoint on their way into a graph: at which precision, and as which integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cabochon.arrays import Float32Array
from cabochon.manifest import AppliedPrecision
from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.compensation import error_spread
from cabochon_convert.quantize import Precision, QuantizedMatrix, quantize_matrix
from cabochon_convert.recipes import Recipe
from cabochon_convert.trained_integers import TrainedIntegers, to_blocks

# 4 lets MLAS round activations to int8 per block and multiply integers; without it an int8 weight is unpacked to float
# at every step, which is twenty times slower. https://onnxruntime.ai/docs (MatMulNBits, accuracy_level)
ACCURACY_LEVEL = 4


@dataclass(frozen=True, slots=True)
class MatrixRows:
    """Some rows of a weight matrix of the checkpoint."""

    tensor: str
    shape: tuple[int, int]
    """[outputs, inputs] of the whole matrix."""
    rows: range

    @classmethod
    def whole(cls, tensor: str, outputs: int, inputs: int) -> MatrixRows:
        """All rows of a matrix."""
        return cls(tensor, (outputs, inputs), range(outputs))


@dataclass(frozen=True, slots=True)
class LinearSettings:
    """How linear layers are written."""

    recipe: Recipe
    accuracy_level: int = ACCURACY_LEVEL
    """Of MatMulNBits; 0 keeps activations in float32, which is slow and exact."""
    second_moments: Callable[[str], Float32Array] | None = None
    """By tensor name, [inputs, inputs]: the mean of input times input transposed on calibration data."""
    integers: TrainedIntegers | None = None
    """Matrices that are carried over as the integers that they are."""

    def precision(self, tensor: str, shape: tuple[int, int]) -> Precision:
        """How a weight matrix is stored: as it was trained, or as the recipe says."""
        trained = self.integers.precision(tensor, shape) if self.integers else None
        return trained or self.recipe.precision(tensor)


def apply_precision(tensor: str, precision: Precision) -> AppliedPrecision:
    """What the manifest says about a tensor that was stored so."""
    return AppliedPrecision(
        tensor=tensor,
        bits=precision.bits,
        block_size=precision.block_size,
        symmetric=precision.symmetric,
        algorithm=precision.algorithm,
        scale_bits=precision.scale_bits if precision.is_integer else 0,
    )


def quantized_parts(
    checkpoint: Checkpoint, settings: LinearSettings, matrix: MatrixRows, precision: Precision
) -> Iterator[QuantizedMatrix]:
    """Rows of a matrix as integers, a few megabytes at a time."""
    if precision.algorithm == "as-trained" and settings.integers is not None:
        for carried in settings.integers.rows(matrix.tensor, matrix.shape, matrix.rows):
            yield to_blocks(carried, precision)
        return
    spread = _spread(settings, matrix.tensor, precision)
    for part in checkpoint.read_rows(matrix.tensor, matrix.shape, matrix.rows):
        try:
            yield quantize_matrix(part, precision, spread)
        except OverflowError:
            raise CheckpointError(
                f"the tensor {matrix.tensor} holds values too large for half-precision scales: choose the recipe int8."
            ) from None


def _spread(settings: LinearSettings, tensor: str, precision: Precision) -> Float32Array | None:
    if precision.algorithm != "gptq":
        return None
    if settings.second_moments is None:
        raise ValueError(f"the recipe calibrates {tensor}, and there is no calibration")
    return error_spread(settings.second_moments(tensor), precision.block_size)
