"""Attention that reads of a cache what a layer with a sliding window can see, however long the cache is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from cabochon_convert.litert_torch_parts import ir, lowerings, stablehlo, transposed_attention

WINDOWED_ATTENTION = "cabochon_windowed_attention"
"""Its name among transformers' implementations of attention; for caches of litert-torch's layout."""
_ALIGNMENT = 16
"""Rows that are read are a multiple, or kernels finish the last ones one by one."""

_LIBRARY = torch.library.Library("cabochon", "FRAGMENT")
_LIBRARY.define("rows(Tensor x, Tensor start, int axis, int count) -> Tensor")


@torch.library.impl(_LIBRARY, "rows", "CompositeExplicitAutograd")
def _rows(x: torch.Tensor, start: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    first = min(max(int(start), 0), x.shape[axis] - count)
    return torch.narrow(x, axis, first, count).clone()


@torch.library.register_fake("cabochon::rows", lib=_LIBRARY)
def _describe_rows(x: torch.Tensor, _: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    return x.new_empty([count if each == axis else size for each, size in enumerate(x.shape)])


@lowerings.lower(torch.ops.cabochon.rows.default)
def _lower_rows(_: Any, x: Any, start: Any, axis: int, count: int) -> Any:
    shape = [count if each == axis else size for each, size in enumerate(x.type.shape)]
    first = stablehlo.reshape(ir.RankedTensorType.get([], ir.IntegerType.get_signless(32)), start)
    zero = stablehlo.constant(ir.DenseElementsAttr.get(np.array(0, np.int32)))
    starts = [first if each == axis else zero for each in range(len(shape))]
    # It moves a start before the first row, or so late that rows would be missing, as `_rows` does.
    return stablehlo.dynamic_slice(x, starts, slice_sizes=shape)


def windowed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    position_ids: torch.Tensor,
    sliding_window: int | None = None,
    k_ts_idx: int,
    v_ts_idx: int,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """litert-torch's attention, over the rows of a sliding layer's caches that its mask can leave.

    Args:
        query: [1, heads, N, head size].
        key: [1, key-value heads, C, head size], positions on axis k_ts_idx.
        value: the same with positions on axis v_ts_idx.
        attention_mask: [1, 1, N, C].
        position_ids: [1, N], consecutive.
        sliding_window: positions that one sees, itself included; None for layers without a window.
    """
    if sliding_window is not None:
        count, length = attention_mask.shape[-2:]
        rows = -(-(sliding_window + count - 1) // _ALIGNMENT) * _ALIGNMENT
        if rows < length:
            start = position_ids[0, :1] - (sliding_window - 1)
            key = torch.ops.cabochon.rows(key, start, k_ts_idx, rows)
            value = torch.ops.cabochon.rows(value, start, v_ts_idx, rows)
            attention_mask = torch.ops.cabochon.rows(attention_mask, start, 3, rows)
    output, _ = transposed_attention(
        module, query, key, value, attention_mask, k_ts_idx=k_ts_idx, v_ts_idx=v_ts_idx, **others
    )
    return output, None


transformers.AttentionInterface.register(WINDOWED_ATTENTION, windowed_attention)
