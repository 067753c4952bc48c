"""The audio encoder as LiteRT graphs that Google's LiteRT-LM runs as well, for sounds of several lengths.

Encoder, one signature `audio_N` for each number N of tokens that it makes at most:

    src_inputs  float32 [1, 4 N, mel bins]
    mask        bool    [1, 1, 4 N]; false for what fills a shorter sound up
    features    float32 [1, N, features]
    mask        bool    [1, N]

Projector, `audio_adapter_N`: features and mask as above to

    features    float32 [1, N, hidden]; zeros where the mask is false

The encoder is causal, so that filling up on the right changes nothing, and a sound may come piece by piece. One more
signature `audio_step_N` takes the next 4 N frames, and the states that the step before it gave, zeros at the beginning;
`audio_adapter_N` is there for what it makes:

    src_inputs  float32 [1, 4 N, mel bins]
    mask        bool    [1, 1, 4 N]; false for what fills the last piece up
    past_frames float32 [1, 4, mel bins]                   before the piece
    past_mask   float32 [1, chunk]                         1 for each of the tokens before it that there was
    past_keys   float32 [layers, chunk, hidden]            of these tokens, newest last
    past_values float32 [layers, chunk, hidden]
    past_gated  float32 [layers, kernel size - 1, hidden]  what the convolution of each layer saw last
    features    float32 [1, N, features]
    mask        bool    [1, N]
    next_…      what each past_… becomes
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cabochon.log_mel import LogMelParameters
from cabochon_convert.audio_encoder_onnx import FRAMES_PER_TOKEN
from cabochon_convert.audio_step_litert import AudioStepModule
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.graph_litert import Places, Signature
from cabochon_convert.litert_torch_parts import AudioAdapterModule, AudioEncoderModule
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.matrices_litert import CheckpointMatrix
from cabochon_convert.model_litert import build_model, patched_transformers, read_small_tensors, write_graph

TOWER, PROJECTOR = "model.audio_tower.", "model.embed_audio."
_TOKEN_COUNTS = (256,)
"""Of 10 s of sound; the longest sound comes on top. Each costs minutes of conversion."""
_OF_CONSTANTS = "relative_k_proj"
"""Projects position embeddings, which are constant: so is what comes of them."""


def token_counts(log_mel: LogMelParameters, max_samples: int) -> tuple[int, ...]:
    """Tokens of the sounds that graphs are made for."""
    longest = -(-(max_samples // log_mel.hop_length) // FRAMES_PER_TOKEN)
    return (*(count for count in _TOKEN_COUNTS if count < longest), longest)


def build_litert_audio_encoder(
    checkpoint: Checkpoint, settings: LinearSettings, counts: Sequence[int], step: int, mel_bins: int, path: Path
) -> tuple[CheckpointMatrix, ...]:
    """Write the encoder to a file.

    Args:
        counts: tokens of whole sounds.
        step: tokens of a piece.
        mel_bins: of a frame.
    """
    with patched_transformers("gemma4"):
        model = build_model(checkpoint, "audio_config", "eager")
        tower, places = model.model.audio_tower, Places()
        del model.model.embed_audio
        places.take(tower, lambda name: None if _OF_CONSTANTS in name else f"{TOWER}{name}.weight")
        read_small_tensors(tower, checkpoint, TOWER)
        _project_positions(tower)
        module = AudioEncoderModule(model, None)
        signatures = [Signature(f"audio_{count}", module, _encoder_inputs(count, mel_bins)) for count in counts]
        steps = AudioStepModule(tower)
        inputs = _encoder_inputs(step, mel_bins) | steps.states(mel_bins)
        signatures.append(Signature(f"audio_step_{step}", steps, inputs))
        matrices, _ = write_graph(signatures, places, checkpoint, settings, path)
    return matrices


def build_litert_audio_projector(
    checkpoint: Checkpoint, settings: LinearSettings, counts: Sequence[int], path: Path
) -> tuple[CheckpointMatrix, ...]:
    """Write the projector to a file."""
    with patched_transformers("gemma4"):
        model = build_model(checkpoint, "audio_config", "eager")
        projector, places = model.model.embed_audio, Places()
        del model.model.audio_tower
        places.take(projector, lambda name: f"{PROJECTOR}{name}.weight")
        width = next(iter(places)).columns
        read_small_tensors(projector, checkpoint, PROJECTOR)
        module = AudioAdapterModule(model, None, None)
        signatures = [Signature(f"audio_adapter_{count}", module, _projector_inputs(count, width)) for count in counts]
        matrices, _ = write_graph(signatures, places, checkpoint, settings, path)
    return matrices


class _Constant(torch.nn.Module):
    """The same answer to every input."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """The value."""
        value: torch.Tensor = self.value
        return value


@torch.no_grad()
def _project_positions(tower: Any) -> None:
    """Put what each layer makes of the relative positions in the place of its projection."""
    positions = tower.rel_pos_enc(torch.zeros(1, 1, 1))
    for name, layer in list(tower.named_modules()):
        if name.endswith(_OF_CONSTANTS):
            tower.set_submodule(name, _Constant(layer(positions)))


def _encoder_inputs(count: int, mel_bins: int) -> dict[str, Any]:
    frames = count * FRAMES_PER_TOKEN
    return {"src_inputs": torch.zeros(1, frames, mel_bins), "mask": torch.ones(1, 1, frames, dtype=torch.bool)}


def _projector_inputs(count: int, width: int) -> dict[str, Any]:
    return {"features": torch.zeros(1, count, width), "mask": torch.ones(1, count, dtype=torch.bool)}
