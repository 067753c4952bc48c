"""What becomes of a recipe's precisions in LiteRT graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from litert_graphs import interpret, one_layer
from refusals import refused

from cabochon_convert.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from cabochon_convert.flatbuffer_litert import MatrixPart, fill_places
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.matrices_litert import CheckpointMatrix, fitting_precision, matrices_of
from cabochon_convert.quantize import Precision, dequantize_matrix, quantize_matrix, unpack
from cabochon_convert.recipes import RECIPES, Recipe, Rule

TENSOR = "model.language_model.layers.0.mlp.up_proj.weight"
INTEGERS = st.builds(
    Precision,
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from([16, 32, 64, 128, 256, 512, 1024]),
    symmetric=st.booleans(),
    algorithm=st.sampled_from(["nearest", "mse"]),
    scale_bits=st.sampled_from([16, 32]),
)
PRECISIONS = INTEGERS | st.sampled_from([Precision(16), Precision(32), Precision(4, 32, algorithm="gptq")])
COLUMNS = st.integers(1, 300) | st.integers(1, 40).map(lambda blocks: 32 * blocks)
WIDTHS = st.integers(1, 70) | st.sampled_from([64, 128, 192])
# Of checkpoints: bfloat16 numbers, down to the smallest of them.
WEIGHTS = st.floats(-8, 8, width=32).map(lambda value: np.float32(ml_dtypes.bfloat16(value)))
SMALL_WEIGHTS = st.floats(-(2.0**-120), 2.0**-120, width=32)


def open_matrix(folder: Path, weights: np.ndarray) -> Checkpoint:
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file({TENSOR: weights}, folder / "model.safetensors")
    return open_checkpoint(folder)


def settings_of(precision: Precision) -> LinearSettings:
    return LinearSettings(Recipe("of a test", (Rule("*", precision),)))


def given_matrix(folder: Path, weights: np.ndarray, precision: Precision) -> CheckpointMatrix:
    rows, columns = weights.shape
    place = SimpleNamespace(tensor=TENSOR, rows=rows, columns=columns)
    (matrix,) = matrices_of([place], open_matrix(folder, weights), settings_of(precision))
    return matrix


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix as it goes into a file."""

    integers: np.ndarray
    """[rows, columns]; signed, or the weights themselves."""
    scales: np.ndarray
    """[rows, blocks]"""

    @property
    def steps(self) -> np.ndarray:
        """The scale of each weight."""
        return np.repeat(self.scales, self.integers.shape[1] // self.scales.shape[1], axis=1)

    @property
    def weights(self) -> np.ndarray:
        return self.integers if not self.scales.size else self.integers * self.steps.astype(np.float64)


def stored(matrix: CheckpointMatrix) -> Stored:
    parts: list[MatrixPart] = list(matrix.parts())
    values = np.concatenate([part.values for part in parts])
    if matrix.bits < 32:
        half = 1 << (matrix.bits - 1)
        values = (unpack(values, matrix.bits).astype(np.int64) + half) % (2 * half) - half
    return Stored(values, np.concatenate([part.scales for part in parts]))


def some_weights(rows: int, columns: int, seed: int) -> np.ndarray:
    """Of a checkpoint, with a row of zeros."""
    weights = np.random.default_rng(seed).standard_normal((rows, columns))
    weights[rows // 2] = 0
    return weights.astype(ml_dtypes.bfloat16).astype(np.float32)


@given(asked=PRECISIONS, columns=COLUMNS)
def test_xnnpack_has_what_any_precision_becomes(asked: Precision, columns: int) -> None:
    fitting = fitting_precision(asked, columns)
    assert fitting.is_integer == asked.is_integer
    if not fitting.is_integer:
        assert fitting == Precision(32)
        return
    assert fitting.symmetric
    assert fitting.positive_scales
    assert fitting.algorithm == ("nearest" if asked.algorithm == "nearest" else "mse")
    # The next that fills whole bytes.
    assert fitting.bits == min(bits for bits in (2, 4, 8) if bits >= asked.bits and columns * bits % 8 == 0)
    if fitting.scale_bits == 16:
        assert fitting.bits == 4
        assert fitting.block_size in (32, 64, 128, 256)
        assert columns % fitting.block_size == 0
        assert fitting.block_size <= max(asked.block_size, 32)
    else:
        assert fitting.block_size >= columns


@pytest.mark.parametrize(
    ("asked", "columns", "bits", "block_size", "scale_bits"),
    [
        (Precision(4, 32), 1536, 4, 32, 16),
        (Precision(4, 128, algorithm="mse"), 1536, 4, 128, 16),
        (Precision(4, 128, algorithm="mse"), 192, 4, 64, 16),
        (Precision(4, 16), 64, 4, 32, 16),
        (Precision(4, 32), 80, 4, 128, 32),
        (Precision(4, 32), 7, 8, 16, 32),
        (Precision(8, 32), 1536, 8, 2048, 32),
        (Precision(2, 32, symmetric=False, algorithm="mse"), 1536, 2, 2048, 32),
        (Precision(2, 32, symmetric=False, algorithm="mse"), 1538, 4, 2048, 32),
    ],
)
def test_blocks_are_kept_where_they_fill_the_rows_of_4_bits(
    asked: Precision, columns: int, bits: int, block_size: int, scale_bits: int
) -> None:
    found = fitting_precision(asked, columns)
    assert (found.bits, found.block_size, found.scale_bits) == (bits, block_size, scale_bits)


@given(
    weights=arrays(np.float32, st.tuples(st.integers(1, 3), WIDTHS), elements=WEIGHTS | SMALL_WEIGHTS),
    asked=INTEGERS,
)
def test_scales_are_positive_normal_numbers_that_bfloat16_holds_where_they_have_16_bits(
    tmp_path: Path, weights: np.ndarray, asked: Precision
) -> None:
    matrix = given_matrix(tmp_path, weights, asked)
    found = stored(matrix)
    assert (found.scales >= np.finfo(np.float32).smallest_normal).all()
    assert np.isfinite(found.scales).all()
    if matrix.applied.scale_bits == 16:
        for kind in (ml_dtypes.bfloat16, np.float16):
            assert (found.scales == found.scales.astype(kind).astype(np.float32)).all()
    half = 1 << (matrix.bits - 1)
    assert (found.weights[weights == 0] == 0).all()
    if matrix.applied.algorithm == "nearest":
        # Half a step, and for the outermost integers what a scale moves by when it is rounded to bfloat16 (2 ** -9).
        # What is below the smallest scale becomes zero.
        bound = found.steps * (0.5 + half * 2.0**-8)
        negligible = np.abs(weights) < half * np.finfo(np.float32).smallest_normal
        assert (np.abs(found.weights - weights) <= np.where(negligible, np.abs(weights), bound)).all()


@given(rows=st.integers(2, 9), columns=COLUMNS, asked=PRECISIONS, seed=st.integers(0, 99))
def test_a_layer_of_any_precision_and_width_runs_and_the_manifest_says_how_it_is_stored(
    tmp_path: Path, rows: int, columns: int, asked: Precision, seed: int
) -> None:
    weights = some_weights(rows, columns, seed)
    matrix = given_matrix(tmp_path, weights, asked)
    path = tmp_path / "layer.tflite"
    (filled,) = fill_places(one_layer((rows, columns), 2), [matrix], path)
    x = np.random.default_rng(seed).integers(-128, 128, (1, 2, columns)).astype(np.float32)
    # Rounding such inputs to 8 bits changes nothing.
    x[..., 0], x[..., -1] = (-128, 127) if columns > 1 else (127, 127)
    found = interpret(path, "layer", x=x)["y"]
    kept = stored(matrix).weights
    error = 1e-6 * np.abs(x.astype(np.float64)) @ np.abs(kept.T) + 1e-30
    assert (np.abs(found - x.astype(np.float64) @ kept.T) <= error).all()
    applied = matrix.applied
    assert applied.tensor == TENSOR
    assert applied.symmetric
    assert filled.values.stride * 8 == columns * applied.bits
    if not asked.is_integer:
        assert (applied.bits, applied.block_size, applied.scale_bits, filled.scales) == (32, 0, 0, None)
        return
    assert applied.algorithm == ("nearest" if asked.algorithm == "nearest" else "mse")
    assert filled.scales is not None
    assert filled.scale_storage == f"float{applied.scale_bits}"
    assert filled.scales.stride * 8 == columns // applied.block_size * applied.scale_bits


@given(
    weights=arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 130)), elements=WEIGHTS),
    bits=st.sampled_from([2, 4, 8]),
)
def test_searching_for_positive_scales_never_makes_the_square_error_larger(weights: np.ndarray, bits: int) -> None:
    errors = []
    for algorithm in ("nearest", "mse"):
        precision = Precision(bits, 32, algorithm=algorithm, positive_scales=True)  # type: ignore[arg-type]
        found = dequantize_matrix(quantize_matrix(weights, precision), weights.shape[1], precision)
        errors.append(float(np.square(found.astype(np.float64) - weights).sum()))
    assert errors[1] <= errors[0] * (1 + 1e-5) + 1e-12


def test_small_weights_keep_their_precision_beside_large_ones(tmp_path: Path) -> None:
    small = np.float32(2.0**-14)
    weights = some_weights(4, 64, 0)
    weights[:, 32:] *= small
    found = stored(given_matrix(tmp_path, weights, Precision(4, 32)))
    error = np.abs(found.weights - weights).max(axis=0)
    assert error[32:].max() < 0.5 * np.abs(weights[:, 32:]).max() / 6
    assert error[:32].max() < 0.5 * np.abs(weights[:, :32]).max() / 6


@pytest.mark.parametrize("largest", [1e6, -1e6])
def test_weights_beyond_half_precision_are_refused_by_4_bits_in_blocks_only(tmp_path: Path, largest: float) -> None:
    weights = some_weights(4, 64, 0)
    weights[1, 40] = largest
    with refused(CheckpointError, TENSOR, "too large", "int8"):
        stored(given_matrix(tmp_path, weights, Precision(4, 32)))
    kept = stored(given_matrix(tmp_path, weights, RECIPES["int8"].precision(TENSOR)))
    assert kept.weights[1, 40] == pytest.approx(largest, rel=0.01)


def test_floating_point_is_carried_over_bit_by_bit(tmp_path: Path) -> None:
    weights = some_weights(5, 33, 1)
    matrix = given_matrix(tmp_path, weights, Precision(16))
    assert b"".join(part.values.tobytes() for part in matrix.parts()) == weights.tobytes()
