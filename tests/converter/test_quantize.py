from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cabochon_convert.quantize import Precision, dequantize_matrix, quantize_matrix

PRECISIONS = st.builds(Precision, st.sampled_from([4, 8]), st.sampled_from([16, 32, 64]))
# Checkpoints hold bfloat16: no weight is as small as float32's subnormal numbers.
WEIGHTS = st.floats(-1e4, 1e4, width=32).map(lambda value: value if abs(value) > 1e-20 else 0.0)
MATRICES = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 130)), elements=WEIGHTS)


def round_trip(weights: np.ndarray, precision: Precision) -> np.ndarray:
    return dequantize_matrix(quantize_matrix(weights, precision), weights.shape[1], precision)


def steps(weights: np.ndarray, precision: Precision) -> np.ndarray:
    """The distance of two neighbouring values in the block of each weight."""
    scales = np.abs(quantize_matrix(weights, precision).scales)
    return np.repeat(scales, precision.block_size, axis=1)[:, : weights.shape[1]]


@given(MATRICES, PRECISIONS)
def test_no_weight_moves_by_more_than_a_step_and_few_by_more_than_half(
    weights: np.ndarray, precision: Precision
) -> None:
    moved = np.abs(round_trip(weights, precision) - weights)
    step = steps(weights, precision)
    half = 1 << (precision.bits - 1)
    # Only what lies within half a step of the extreme's opposite has no integer of its own: it is cut to half - 1.
    opposite = np.abs(weights) > (half - 0.5) * step * (1 - 1e-5)
    tolerance = 1e-5 * half * step
    assert (moved <= np.where(opposite, step, step / 2) + tolerance).all()


@given(MATRICES, PRECISIONS)
def test_the_extreme_of_every_block_is_exact(weights: np.ndarray, precision: Precision) -> None:
    rounded = round_trip(weights, precision)
    for start in range(0, weights.shape[1], precision.block_size):
        for row, found in zip(weights[:, start:], rounded[:, start:], strict=True):
            place = np.abs(row[: precision.block_size]).argmax()
            assert found[place] == pytest.approx(row[place], rel=1e-6)


@given(MATRICES, PRECISIONS)
def test_zeros_stay_zeros_and_padding_is_zero(weights: np.ndarray, precision: Precision) -> None:
    quantized = quantize_matrix(weights, precision)
    blocks = -(-weights.shape[1] // precision.block_size)
    padded = dequantize_matrix(quantized, blocks * precision.block_size, precision)
    assert (padded[:, : weights.shape[1]][weights == 0] == 0).all()
    assert (padded[:, weights.shape[1] :] == 0).all()


@given(MATRICES, PRECISIONS)
def test_rounding_twice_changes_nothing(weights: np.ndarray, precision: Precision) -> None:
    once = round_trip(weights, precision)
    np.testing.assert_allclose(round_trip(once, precision), once, rtol=1e-5)


@given(MATRICES, PRECISIONS)
def test_the_layout_is_that_of_the_operator(weights: np.ndarray, precision: Precision) -> None:
    quantized = quantize_matrix(weights, precision)
    blocks = -(-weights.shape[1] // precision.block_size)
    assert quantized.values.shape == (len(weights), blocks, precision.block_size * precision.bits // 8)
    assert quantized.values.dtype == np.uint8
    assert quantized.scales.shape == (len(weights), blocks)
    assert quantized.scales.dtype == np.float32


@given(MATRICES, PRECISIONS)
def test_rows_do_not_depend_on_each_other(weights: np.ndarray, precision: Precision) -> None:
    whole = quantize_matrix(weights, precision)
    for index in range(len(weights)):
        alone = quantize_matrix(weights[index : index + 1], precision)
        np.testing.assert_array_equal(alone.values[0], whole.values[index])


def test_of_two_4_bit_values_the_first_lies_in_the_low_half() -> None:
    weights = np.zeros((1, 16), np.float32)
    weights[0, :4] = [-8, 7, 0, 3]
    quantized = quantize_matrix(weights, Precision(4, 16))
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.values[0, 0, :2].tolist() == [0 | 15 << 4, 8 | 11 << 4]
    assert set(quantized.values[0, 0, 2:].tolist()) == {8 | 8 << 4}


def test_a_scale_is_negative_where_the_extreme_is_positive() -> None:
    weights = np.zeros((1, 16), np.float32)
    weights[0, :2] = [127, -50]
    quantized = quantize_matrix(weights, Precision(8, 16))
    assert quantized.scales[0, 0] < 0
    assert quantized.values[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("bits", "block_size"), [(3, 32), (0, 32), (4, 0), (4, 8), (8, 24), (4, -32), (16, 32), (32, 16)]
)
def test_a_precision_that_no_engine_has_is_refused(bits: int, block_size: int) -> None:
    with pytest.raises(ValueError, match=r"expected|blocks"):
        Precision(bits, block_size)
