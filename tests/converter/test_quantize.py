from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cabochon_convert.compensation import error_spread
from cabochon_convert.quantize import Algorithm, Precision, dequantize_matrix, pack, quantize_matrix, unpack

BITS = st.sampled_from([2, 4, 8])
BLOCKS = st.sampled_from([16, 32, 64])
PRECISIONS = st.builds(Precision, BITS, BLOCKS)
ALL_PRECISIONS = st.builds(Precision, BITS, BLOCKS, st.booleans(), st.sampled_from(["nearest", "mse", "gptq"]))
# Checkpoints hold bfloat16: no weight is as small as float32's subnormal numbers.
WEIGHTS = st.floats(-1e4, 1e4, width=32).map(lambda value: value if abs(value) > 1e-20 else 0.0)
MATRICES = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 130)), elements=WEIGHTS)


def round_trip(weights: np.ndarray, precision: Precision, moments: np.ndarray | None = None) -> np.ndarray:
    if moments is None:
        moments = np.eye(weights.shape[1], dtype=np.float32)
    spread = error_spread(moments, precision.block_size)
    return dequantize_matrix(quantize_matrix(weights, precision, spread), weights.shape[1], precision)


def independent(weights: np.ndarray, precision: Precision) -> np.ndarray:
    """For inputs that do not vary together."""
    return error_spread(np.eye(weights.shape[1], dtype=np.float32), precision.block_size)


def square_error(weights: np.ndarray, precision: Precision) -> float:
    return float(np.square(round_trip(weights, precision).astype(np.float64) - weights).sum())


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


@given(MATRICES, ALL_PRECISIONS)
def test_zeros_stay_zeros_and_padding_is_zero(weights: np.ndarray, precision: Precision) -> None:
    quantized = quantize_matrix(weights, precision, independent(weights, precision))
    blocks = -(-weights.shape[1] // precision.block_size)
    padded = dequantize_matrix(quantized, blocks * precision.block_size, precision)
    assert (padded[:, : weights.shape[1]][weights == 0] == 0).all()
    assert (padded[:, weights.shape[1] :] == 0).all()


@given(MATRICES, PRECISIONS)
def test_rounding_twice_changes_nothing(weights: np.ndarray, precision: Precision) -> None:
    once = round_trip(weights, precision)
    np.testing.assert_allclose(round_trip(once, precision), once, rtol=1e-5)


@given(MATRICES, ALL_PRECISIONS)
def test_the_layout_is_that_of_the_operator(weights: np.ndarray, precision: Precision) -> None:
    quantized = quantize_matrix(weights, precision, independent(weights, precision))
    blocks = -(-weights.shape[1] // precision.block_size)
    assert quantized.values.shape == (len(weights), blocks, precision.block_size * precision.bits // 8)
    assert quantized.values.dtype == np.uint8
    assert quantized.scales.shape == (len(weights), blocks)
    assert quantized.scales.dtype == np.float32
    if precision.symmetric:
        assert quantized.zero_points is None
    else:
        assert quantized.zero_points is not None
        assert quantized.zero_points.shape == (len(weights), -(-blocks * precision.bits // 8))


@given(MATRICES, ALL_PRECISIONS)
def test_rows_do_not_depend_on_each_other(weights: np.ndarray, precision: Precision) -> None:
    spread = independent(weights, precision)
    whole = quantize_matrix(weights, precision, spread)
    for index in range(len(weights)):
        alone = quantize_matrix(weights[index : index + 1], precision, spread)
        np.testing.assert_array_equal(alone.values[0], whole.values[index])


@given(MATRICES, BITS, BLOCKS, st.booleans())
def test_searching_for_scales_never_makes_the_square_error_larger(
    weights: np.ndarray, bits: int, block: int, symmetric: bool
) -> None:
    nearest = square_error(weights, Precision(bits, block, symmetric))
    searched = square_error(weights, Precision(bits, block, symmetric, "mse"))
    assert searched <= nearest * (1 + 1e-5) + 1e-12


@given(MATRICES, BITS, BLOCKS, st.booleans(), st.sampled_from(["nearest", "mse"]))
def test_scales_of_half_precision_are_those_that_weights_are_rounded_with(
    weights: np.ndarray, bits: int, block: int, symmetric: bool, algorithm: Algorithm
) -> None:
    full = Precision(bits, block, symmetric, algorithm)
    half = replace(full, scale_bits=16)
    quantized = quantize_matrix(weights, half)
    assert (quantized.scales == quantized.scales.astype(np.float16)).all()
    # A scale off by 2 ** -11 moves the outermost values by about that share; the smallest are off by 2 ** -25 at least.
    extreme = np.abs(weights).max() * 2.0**-9 + 2.0**bits * 2.0**-24
    assert square_error(weights, half) <= (np.sqrt(square_error(weights, full)) + extreme * weights.size**0.5) ** 2


def test_weights_beyond_scales_of_half_precision_are_refused() -> None:
    with pytest.raises(OverflowError):
        quantize_matrix(np.full((1, 16), 1e6, np.float32), Precision(4, 16, scale_bits=16))


@pytest.mark.parametrize("algorithm", ["gptq", "as-trained"])
def test_half_precision_is_for_blocks_that_are_rounded_alone(algorithm: Algorithm) -> None:
    with pytest.raises(ValueError, match="16"):
        Precision(4, 32, algorithm=algorithm, scale_bits=16)
    with pytest.raises(ValueError, match="8"):
        Precision(4, 32, scale_bits=8)


@given(MATRICES, BITS, BLOCKS, st.booleans())
def test_without_correlated_inputs_compensation_changes_nothing(
    weights: np.ndarray, bits: int, block: int, symmetric: bool
) -> None:
    searched = round_trip(weights, Precision(bits, block, symmetric, "mse"))
    compensated = round_trip(weights, Precision(bits, block, symmetric, "gptq"))
    np.testing.assert_allclose(compensated, searched, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compensation_halves_the_error_of_products_with_correlated_inputs(bits: int, symmetric: bool) -> None:
    generator = np.random.default_rng(5)
    weights = generator.standard_normal((32, 128)).astype(np.float32)
    inputs = (generator.standard_normal((500, 12)) @ generator.standard_normal((12, 128))).astype(np.float32)
    moments = inputs.T @ inputs / len(inputs)

    def error_of_products(precision: Precision) -> float:
        return float(np.linalg.norm(inputs @ (round_trip(weights, precision, moments) - weights).T))

    compensated = error_of_products(Precision(bits, 32, symmetric, "gptq"))
    assert compensated < 0.5 * error_of_products(Precision(bits, 32, symmetric, "mse"))


@given(MATRICES)
def test_inputs_that_are_always_zero_do_no_harm(weights: np.ndarray) -> None:
    precision = Precision(4, 16, algorithm="gptq")
    moments = np.zeros((weights.shape[1], weights.shape[1]), np.float32)
    assert np.isfinite(round_trip(weights, precision, moments)).all()


def test_compensation_without_second_moments_is_an_error() -> None:
    with pytest.raises(ValueError, match="second moments"):
        quantize_matrix(np.ones((1, 16), np.float32), Precision(4, 16, algorithm="gptq"))


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 40))), BITS)
def test_packed_values_come_back(values: np.ndarray, bits: int) -> None:
    small = values & ((1 << bits) - 1)
    np.testing.assert_array_equal(unpack(pack(small, bits), bits)[:, : small.shape[1]], small)


def test_of_four_2_bit_values_the_first_lies_lowest() -> None:
    assert pack(np.array([[0, 1, 2, 3]], np.uint8), 2).tolist() == [[0b11100100]]


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


@pytest.mark.parametrize(("symmetric", "algorithm"), [(False, "nearest"), (True, "mse"), (True, "best")])
def test_floating_point_has_neither_zero_points_nor_an_algorithm(symmetric: bool, algorithm: str) -> None:
    with pytest.raises(ValueError, match=r"floating point|algorithms"):
        Precision(16, 0, symmetric, algorithm)  # type: ignore[arg-type]
