"""Attention that reads of a cache what a layer with a sliding window can see, however long the cache is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from cabochon.cache_lengths import window_rows
from cabochon_convert.litert_torch_parts import ir, lowerings, stablehlo, transposed_attention

WINDOWED_ATTENTION = "cabochon_windowed_attention"
"""Its name among transformers' implementations of attention; for caches of litert-torch's layout."""
_UNSEEN = -1e4
"""Added to the score of a position that must not be attended to, as in the mask itself."""

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
    place = stablehlo.reshape(ir.RankedTensorType.get([1], ir.IntegerType.get_signless(32)), start)
    zero = stablehlo.constant(ir.DenseElementsAttr.get(np.zeros(1, np.int32)))
    begin = stablehlo.concatenate([place if each == axis else zero for each in range(len(shape))], 0)
    # StableHLO's own slice would compare the start with what is constant here: the length of the cache.
    return stablehlo.custom_call(
        result=[ir.RankedTensorType.get(shape, x.type.element_type)],
        inputs=[x, begin, stablehlo.constant(ir.DenseElementsAttr.get(np.array(shape, np.int32)))],
        call_target_name=ir.StringAttr.get("tfl.slice"),
        has_side_effect=ir.BoolAttr.get(False),
        backend_config=ir.StringAttr.get("{}"),
    )


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
        attention_mask: [1, 1, N, C], without any window.
        position_ids: [1, N], consecutive.
        sliding_window: positions that one sees, itself included; None for layers without a window.
    """
    if sliding_window is not None:
        count, length = attention_mask.shape[-2:]
        rows, first = window_rows(sliding_window, count), position_ids[0, :1]
        if rows < length:
            # They end with the run, so that none lies behind a cache that has room for it.
            start = torch.clamp(first + (count - rows), min=0)
            key = torch.ops.cabochon.rows(key, start, k_ts_idx, rows)
            value = torch.ops.cabochon.rows(value, start, v_ts_idx, rows)
            attention_mask = torch.ops.cabochon.rows(attention_mask, start, 3, rows)
            first = first - start
        # Where a row lies behind the first position of a run, less how far the one that looks does.
        behind = (
            torch.arange(attention_mask.shape[-1], dtype=torch.int32) - torch.arange(count, dtype=torch.int32)[:, None]
        )
        attention_mask = attention_mask + torch.where(behind[None, None] > first - sliding_window, 0.0, _UNSEEN)
    output, _ = transposed_attention(
        module, query, key, value, attention_mask, k_ts_idx=k_ts_idx, v_ts_idx=v_ts_idx, **others
    )
    return output, None


transformers.AttentionInterface.register(WINDOWED_ATTENTION, windowed_attention)
