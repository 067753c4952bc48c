"""The array type that everything passes around, and the number format that numpy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
CacheArray = npt.NDArray[Any]
"""Keys or values as a cache stores them: float32 or int8."""


def widen_bfloat16(values: npt.NDArray[np.uint16]) -> Float32Array:
    """Bfloat16 values, given as their bits, to float32: a bfloat16 is the upper half of a float32."""
    bits = values.astype(np.uint32)
    bits <<= 16
    widened: Float32Array = bits.view(np.float32)
    return widened
