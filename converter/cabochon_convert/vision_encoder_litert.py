"""The vision encoder as LiteRT graphs that Google's LiteRT-LM runs as well, for several budgets of tokens.

Encoder, one signature `vision_N` for each budget of N tokens, with k for the pooling kernel and p for the patch size:

    images        float32 [1, k ** 2 N, 3 p ** 2]; patches as in `vision_encoder_onnx.py`, row by row
    positions_xy  int32   [1, k ** 2 N, 2]; column and row of each patch, -1 and -1 for what fills a smaller image up
    features      float32 [1, N, width]
    mask          bool    [1, N]; false for what is left of the budget

Projector, `vision_adapter_N`:

    soft_tokens   float32 [1, N, width]; features as above
    mm_embedding  float32 [1, N, hidden]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from cabochon.vision_model import VisionModel
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.graph_litert import Places, Signature
from cabochon_convert.litert_torch_parts import VisionAdapterModule, VisionEncoderModule
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.matrices_litert import CheckpointMatrix
from cabochon_convert.model_litert import build_model, patched_transformers, read_small_tensors, write_graph

TOWER, PROJECTOR = "model.vision_tower.", "model.embed_vision."
_UNSEEN = -1e4
"""Added to the score of a patch that is not there: nothing is left of its weight, and half precision can hold it."""


class _PatchEmbedder(torch.nn.Module):
    """transformers' `Gemma4VisionPatchEmbedder`, whose own forward asks for the data type of a matrix; and without the
    columns and rows that no image of the package can have: litert-torch's graph multiplies by the whole table.
    """

    def __init__(self, embedder: Any, position_limit: int) -> None:
        super().__init__()
        self._embedder = embedder
        table = embedder.position_embedding_table[:, :position_limit].clone()
        embedder.position_embedding_table = torch.nn.Parameter(table, requires_grad=False)
        embedder.position_embedding_size = position_limit

    def forward(
        self, pixel_values: torch.Tensor, pixel_position_ids: torch.Tensor, padding_positions: torch.Tensor
    ) -> torch.Tensor:
        """Patches [1, P, values], their columns and rows [1, P, 2], whether they fill up [1, P]."""
        centred = 2 * (pixel_values - 0.5)
        # A choice that depends on the image stands between factor and matrix, or the compiler would multiply the one
        # into the other, which is a place. A barrier (see `PlacedLinear`) does not keep it from that at E2B's width.
        centred = torch.where(padding_positions.unsqueeze(-1), 0.0, centred)
        projected: torch.Tensor = self._embedder.input_proj(centred)
        return projected + self._embedder._position_embeddings(pixel_position_ids, padding_positions)


class _MaskedLayers(torch.nn.Module):
    """The tower's transformer layers, which see no patches that fill the image up.

    In litert-torch 0.10, whose `LiteRTGemma4VisionEncoder.forward` this replaces, they are seen like any other: it puts
    zeros in the place of the mask, so that images which do not fill their budget come out wrong.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self._rotation, self._layers = encoder.rotary_emb, encoder.layers

    def forward(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, pixel_position_ids: torch.Tensor
    ) -> BaseModelOutput:
        """Patches [1, P, width], whether they are there [1, P], their columns and rows [1, P, 2]."""
        unseen = (1 - attention_mask.to(inputs_embeds.dtype))[:, None, None] * _UNSEEN
        rotation = self._rotation(inputs_embeds, pixel_position_ids)
        hidden = inputs_embeds
        for layer in self._layers:
            hidden = layer(hidden, attention_mask=unseen, position_embeddings=rotation, position_ids=pixel_position_ids)
        return BaseModelOutput(last_hidden_state=hidden)


def build_litert_vision_encoder(
    checkpoint: Checkpoint, settings: LinearSettings, vision: VisionModel, path: Path
) -> tuple[CheckpointMatrix, ...]:
    """Write the encoder to a file, with a signature for every budget of the manifest."""
    with patched_transformers("gemma4"):
        model = build_model(checkpoint, "vision_config", "eager")
        tower, places = model.model.vision_tower, Places()
        del model.model.embed_vision
        places.take(tower, lambda name: f"{TOWER}{name}.weight")
        read_small_tensors(tower, checkpoint, TOWER)
        tower.patch_embedder = _PatchEmbedder(tower.patch_embedder, vision.position_limit)
        tower.encoder = _MaskedLayers(tower.encoder)
        module = VisionEncoderModule(model, None)
        signatures = [
            Signature(f"vision_{count}", module, _encoder_inputs(count, vision)) for count in vision.soft_token_budgets
        ]
        matrices, _ = write_graph(signatures, places, checkpoint, settings, path)
    return matrices


def build_litert_vision_projector(
    checkpoint: Checkpoint, settings: LinearSettings, counts: Sequence[int], path: Path
) -> tuple[CheckpointMatrix, ...]:
    """Write the projector to a file.

    Args:
        counts: budgets of tokens.
    """
    with patched_transformers("gemma4"):
        model = build_model(checkpoint, "vision_config", "eager")
        projector, places = model.model.embed_vision, Places()
        del model.model.vision_tower
        places.take(projector, lambda name: f"{PROJECTOR}{name}.weight")
        (place,) = places
        read_small_tensors(projector, checkpoint, PROJECTOR)
        module = VisionAdapterModule(model, None, None)
        signatures = [
            Signature(f"vision_adapter_{count}", module, {"soft_tokens": torch.zeros(1, count, place.columns)})
            for count in counts
        ]
        matrices, _ = write_graph(signatures, places, checkpoint, settings, path)
    return matrices


def _encoder_inputs(count: int, vision: VisionModel) -> dict[str, Any]:
    patches = count * vision.pooling_kernel_size**2
    return {
        "images": torch.zeros(1, patches, vision.values_per_patch),
        "positions_xy": torch.zeros(1, patches, 2, dtype=torch.int32),
    }
