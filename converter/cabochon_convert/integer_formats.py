"""Which format a checkpoint has its integers in, if it has any."""

from __future__ import annotations

from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.config import ModelConfig
from cabochon_convert.gemma_integers import GemmaIntegers
from cabochon_convert.grid_integers import find_grids
from cabochon_convert.packed_integers import PackedIntegers
from cabochon_convert.progress import Progress
from cabochon_convert.quantization_config import CompressedTensorsQuantization
from cabochon_convert.recipes import Recipe
from cabochon_convert.trained_integers import TrainedIntegers


def open_integers(
    checkpoint: Checkpoint, config: ModelConfig, recipe: Recipe, progress: Progress
) -> TrainedIntegers | None:
    """The checkpoint's integers, None where all of its weights are floating point.

    Raises:
        CheckpointError: the recipe would round integers again, or keeps integers and there are none.
    """
    if config.quantization is not None:
        if not recipe.keeps_integers:
            raise CheckpointError(
                f"the checkpoint is already quantized, and the recipe {recipe.name} would round its integers again: "
                "choose the recipe as-trained, or convert its unquantized (bf16) original."
            )
        if isinstance(config.quantization, CompressedTensorsQuantization):
            return PackedIntegers(checkpoint, config.quantization)
        return GemmaIntegers(checkpoint, config.quantization)
    if not recipe.keeps_integers:
        return None
    grids = find_grids(checkpoint, progress)
    if grids is None:
        raise CheckpointError(
            f"the recipe {recipe.name} is for checkpoints of quantization-aware training, but this one holds no "
            "trained integers, and none of its matrices lies on a grid of 4 bits: choose another recipe."
        )
    return grids
