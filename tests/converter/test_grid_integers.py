from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quantized_checkpoint import round_to_q4_0, to_bfloat16
from refusals import refused

from cabochon_convert.checkpoint import CheckpointError, open_checkpoint
from cabochon_convert.grid_integers import GRID_BLOCK, GridIntegers, find_grids, recover_blocks
from cabochon_convert.progress import Silence
from cabochon_convert.quantize import dequantize_matrix
from cabochon_convert.trained_integers import to_blocks

NAME = "model.language_model.layers.0.mlp.up_proj.weight"
BLOCKS = st.integers(1, 6)
MAGNITUDES = st.floats(2**-20, 2**10, width=32)


def again(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return to_bfloat16((values.astype(np.float32) - 8) * steps[:, None])


def normal_blocks(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, GRID_BLOCK)).astype(np.float32) * np.float32(0.02)


@given(st.data(), BLOCKS, MAGNITUDES)
def test_whatever_q4_0_leaves_of_any_weights_is_found_and_given_again_bit_by_bit(
    data: st.DataObject, count: int, magnitude: float
) -> None:
    elements = st.floats(-1, 1, width=32, allow_subnormal=False)
    weights = data.draw(arrays(np.float32, (count, GRID_BLOCK), elements=elements)) * np.float32(magnitude)
    integers, steps = round_to_q4_0(weights)
    assume(np.isfinite(steps).all())
    stored = to_bfloat16(integers * steps[:, None])
    found = recover_blocks(stored)
    assert found.found.all()
    np.testing.assert_array_equal(again(found.values, found.steps), stored)


@given(
    st.data(),
    arrays(np.float32, 3, elements=st.floats(2**-30, 2**30, width=32)),
    st.sampled_from([1, -1]),
    st.integers(1, 8),
)
def test_a_grid_is_found_whatever_its_step_and_however_little_of_it_is_used(
    data: st.DataObject, steps: np.ndarray, sign: int, reach: int
) -> None:
    elements = st.integers(-reach, min(reach, 7))
    integers = data.draw(arrays(np.int8, (3, GRID_BLOCK), elements=elements))
    stored = to_bfloat16(integers * steps[:, None] * np.float32(sign))
    found = recover_blocks(stored)
    assert found.found.all()
    np.testing.assert_array_equal(again(found.values, found.steps), stored)


@given(arrays(np.float32, (4, GRID_BLOCK), elements=st.floats(-1, 1, width=16)))
def test_what_is_claimed_of_any_weights_is_true(weights: np.ndarray) -> None:
    stored = to_bfloat16(weights)
    found = recover_blocks(stored)
    claimed = found.found
    np.testing.assert_array_equal(again(found.values, found.steps)[claimed], stored[claimed])
    # Beyond 16 values no grid of 4 bits can be.
    for block in stored[claimed]:
        assert len(np.unique(block)) <= 16


@given(st.integers(0, GRID_BLOCK - 1), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_one_weight_aside_takes_a_block_from_its_grid(place: int, distance: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    integers = generator.integers(-8, 8, GRID_BLOCK).astype(np.float32)
    integers[:16] = np.arange(-8, 8)  # all levels are used, so that no other grid fits
    generator.shuffle(integers)
    block = to_bfloat16(integers * np.float32(0.011))[None]
    # By a tenth of a step and more.
    block[0, place] = to_bfloat16(block[0, place : place + 1] + np.float32(0.011 * (0.1 + 0.02 * distance)))[0]
    is_other_level = np.any(block[0, place] == to_bfloat16(np.arange(-8, 8) * np.float32(0.011)))
    assert recover_blocks(block).found[0] == is_other_level


def test_of_q4_0_the_integers_are_those_of_ggml_and_the_steps_those_that_bfloat16_left() -> None:
    integers, steps = round_to_q4_0(normal_blocks(5000, seed=2))
    found = recover_blocks(to_bfloat16(integers * steps[:, None]))
    np.testing.assert_array_equal(found.values, integers + 8)
    np.testing.assert_allclose(found.steps, steps, rtol=2**-8)
    # In half precision as in GGML; which one of a few, bfloat16 has left open.
    assert (found.steps == found.steps.astype(np.float16)).mean() > 0.99
    assert (found.steps == steps).mean() > 0.3


def test_no_block_of_ordinary_weights_is_taken_for_integers() -> None:
    assert not recover_blocks(to_bfloat16(normal_blocks(50_000, seed=4))).found.any()


def test_a_block_of_zeros_stays_so() -> None:
    found = recover_blocks(np.zeros((2, GRID_BLOCK), np.float32))
    assert found.found.all()
    assert set(found.values.ravel().tolist()) == {8}
    assert found.steps.tolist() == [0, 0]


def write(folder: Path, **tensors: np.ndarray) -> GridIntegers | None:
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return find_grids(open_checkpoint(folder), Silence())


def on_grid(rows: int, columns: int, seed: int = 5) -> np.ndarray:
    integers, steps = round_to_q4_0(normal_blocks(rows * columns // GRID_BLOCK, seed))
    return (integers * steps[:, None]).reshape(rows, columns)


@pytest.mark.parametrize("storage", [ml_dtypes.bfloat16, np.float32])
def test_a_matrix_on_a_grid_is_carried_over_exactly_part_by_part(tmp_path: Path, storage: type) -> None:
    weights = on_grid(300, 128).astype(ml_dtypes.bfloat16)
    grids = write(tmp_path, **{NAME: weights.astype(storage)})
    assert grids is not None
    assert grids.notes == ()
    precision = grids.precision(NAME, (300, 128))
    assert precision is not None
    assert (precision.bits, precision.block_size, precision.symmetric) == (4, GRID_BLOCK, True)
    assert precision.algorithm == "as-trained"
    for rows in (range(300), range(7, 130)):
        parts = [to_blocks(part, precision) for part in grids.rows(NAME, (300, 128), rows)]
        found = np.concatenate([dequantize_matrix(part, 128, precision) for part in parts])
        np.testing.assert_array_equal(found.astype(ml_dtypes.bfloat16), weights[rows.start : rows.stop])
    assert (grids.activation_scales(NAME).input, grids.activation_scales(NAME).output) == (0, 0)


@pytest.mark.parametrize("row", [0, 3, 299])
def test_a_single_block_beside_its_grid_keeps_the_matrix_floating_point_and_is_said(tmp_path: Path, row: int) -> None:
    weights = on_grid(300, 128)
    weights[row, 32:64] = normal_blocks(1, seed=6)[0]
    weights = weights.astype(ml_dtypes.bfloat16)
    grids = write(tmp_path, **{NAME: weights, "lm_head.weight": on_grid(64, 32).astype(ml_dtypes.bfloat16)})
    assert grids is not None
    assert grids.precision(NAME, (300, 128)) is None
    assert grids.precision("lm_head.weight", (64, 32)) is not None
    (note,) = grids.notes
    assert note.startswith("1 weight matrices")
    assert NAME in note


@pytest.mark.parametrize(
    "weights",
    [
        normal_blocks(400, seed=7).reshape(100, 128).astype(ml_dtypes.bfloat16),
        on_grid(4, 40 * 4).reshape(16, 40).astype(ml_dtypes.bfloat16),
        np.zeros((8, 64), np.float32),
        np.zeros((0, 64), np.float32),
        np.zeros((8, 0), np.float32),
        np.ones((8, 64), np.int8),
        np.ones(64, np.float32),
    ],
    ids=["ordinary", "rows that blocks do not fill", "zeros", "no rows", "no columns", "integers", "vector"],
)
def test_a_checkpoint_without_a_matrix_on_a_grid_holds_none(tmp_path: Path, weights: np.ndarray) -> None:
    assert write(tmp_path, **{NAME: weights}) is None


def test_a_checkpoint_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    grids = write(tmp_path, **{NAME: on_grid(64, 64).astype(ml_dtypes.bfloat16)})
    assert grids is not None
    other = normal_blocks(128, seed=8).reshape(64, 64).astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file({NAME: other}, tmp_path / "model.safetensors")
    with refused(CheckpointError, NAME, "changed"):
        list(grids.rows(NAME, (64, 64), range(64)))


def test_looking_for_grids_uses_no_tensor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    safetensors.numpy.save_file({NAME: on_grid(64, 64).astype(ml_dtypes.bfloat16)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert find_grids(checkpoint, Silence()) is not None
    assert checkpoint.unread_names == (NAME,)
