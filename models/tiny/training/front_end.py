"""The encoder's convolutions applied once per utterance: frozen in later training, they would be half of every step.

What they give for an utterance is its front-end features, float16 [audio tokens, channels · frequencies]; the encoder
goes on from there with a linear projection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioSubSampleConvProjection


def fingerprint(front_end: Gemma4AudioSubSampleConvProjection) -> str:
    """Names the convolutions' weights: features of other weights are of no use."""
    digest = hashlib.sha256()
    for layer in (front_end.layer0, front_end.layer1):
        for name, weights in sorted(layer.state_dict().items()):
            digest.update(name.encode() + weights.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.inference_mode()
def convolve(
    front_end: Gemma4AudioSubSampleConvProjection, log_mel: npt.NDArray[np.float16]
) -> npt.NDArray[np.float16]:
    """Features of one utterance's [frames, mel bins]: in batches, the intermediate values would outgrow the caches."""
    hidden = torch.from_numpy(log_mel.astype(np.float32))[None, None]
    for layer in (front_end.layer0, front_end.layer1):
        hidden, _ = layer(hidden)
    features: npt.NDArray[np.float16] = hidden[0].permute(1, 2, 0).flatten(1).half().numpy()
    return features


def features_path(base: Path, weights: str) -> Path:
    """Where the features of a shard of speech.py are kept."""
    return base.with_name(f"{base.name}.{weights}.npy")


def write_features(
    front_end: Gemma4AudioSubSampleConvProjection, base: Path, spectrograms: Sequence[npt.NDArray[np.float16]]
) -> Path:
    """Writes float16 [audio tokens of all utterances, width] beside the shard, where they are missing."""
    path = features_path(base, fingerprint(front_end))
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.concatenate([convolve(front_end, log_mel) for log_mel in spectrograms]))
        partial.rename(path)
    return path


def skip_convolutions(front_end: Gemma4AudioSubSampleConvProjection) -> None:
    """From now on the front end takes features and the mask of audio tokens in place of log-mel spectrograms."""

    def project(features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return front_end.input_proj_linear(features), mask

    front_end.forward = project


def take_spectrograms(front_end: Gemma4AudioSubSampleConvProjection) -> None:
    """Undoes `skip_convolutions`, where it was called."""
    vars(front_end).pop("forward", None)
