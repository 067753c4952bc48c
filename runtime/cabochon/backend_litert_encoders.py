"""Audio and vision encoders on LiteRT."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import EngineSettings
from cabochon.backend_litert_models import call_signature, load_model, shortest_signature
from cabochon.errors import RequestError
from cabochon.manifest import Graph
from cabochon.package import Package
from cabochon.vision_model import VisionModel

PAST, NEXT = "past_", "next_"
"""How names of states begin, as inputs and as what they become."""


class LitertAudioEncoder:
    """Audio encoder and projector, loaded at the first sound: a chat of text needs no memory for them."""

    def __init__(self, package: Package, encoder: Graph, projector: Graph | None, settings: EngineSettings) -> None:
        self._package, self._settings = package, settings
        self._graphs = [graph for graph in (encoder, projector) if graph is not None]
        self._models: list[Any] = []
        self._lock = threading.Lock()

    def encode(self, frames: Float32Array) -> Float32Array:
        """See `AudioEncoder.encode`."""
        encoder, projector = self._loaded()
        length, key = shortest_signature(encoder, "src_inputs", len(frames), _whole(encoder))
        if length < len(frames):
            raise RequestError(f"the sound has {len(frames)} frames, the package's encoder takes {length}.")
        return _embeddings(projector, call_signature(encoder, key, _filled_up(frames, length)))

    def start_stream(self) -> LitertAudioEncoderStream | None:
        """See `AudioEncoder.start_stream`."""
        encoder, projector = self._loaded()
        keys = [key for key in encoder.get_signature_list() if key not in _whole(encoder)]
        return LitertAudioEncoderStream(encoder, projector, keys[0]) if keys else None

    def _loaded(self) -> list[Any]:
        with self._lock:
            if not self._models:
                self._models = [load_model(self._package, graph, self._settings) for graph in self._graphs]
        return self._models


class LitertAudioEncoderStream:
    """A signature that hands states on: inputs `past_…`, zeros at the beginning, that become outputs `next_…`."""

    def __init__(self, encoder: Any, projector: Any, key: str) -> None:
        self._encoder, self._projector, self._key = encoder, projector, key
        inputs = encoder.get_input_tensor_details(key)
        self.block_frames = int(inputs["src_inputs"]["shape"][1])
        self._states = {
            name: np.zeros(details["shape"], np.dtype(details["dtype"]))
            for name, details in inputs.items()
            if name.startswith(PAST)
        }
        self._ended = False

    def encode(self, frames: Float32Array) -> Float32Array:
        """See `AudioEncoderStream.encode`; ValueError after a piece that did not fill its last block."""
        starts = range(0, len(frames), self.block_frames)
        return np.concatenate([self._step(frames[start : start + self.block_frames]) for start in starts])

    def _step(self, frames: Float32Array) -> Float32Array:
        if self._ended:
            raise ValueError(f"a piece that was not of {self.block_frames} frames has ended the sound")
        self._ended = len(frames) < self.block_frames
        found = call_signature(self._encoder, self._key, _filled_up(frames, self.block_frames) | self._states)
        self._states = {name: found.pop(name.replace(PAST, NEXT)) for name in self._states}
        return _embeddings(self._projector, found)


def _whole(encoder: Any) -> list[str]:
    """Signatures of an audio encoder that take whole sounds."""
    signatures: dict[str, Any] = encoder.get_signature_list()
    return [key for key, names in signatures.items() if not any(name.startswith(PAST) for name in names["inputs"])]


def _filled_up(frames: Float32Array, length: int) -> dict[str, np.ndarray]:
    """Inputs of an audio encoder that takes so many frames."""
    padded, heard = np.zeros((1, length, frames.shape[1]), np.float32), np.zeros((1, 1, length), np.bool_)
    padded[0, : len(frames)], heard[..., : len(frames)] = frames, True
    return {"src_inputs": padded, "mask": heard}


def _embeddings(projector: Any, features: Mapping[str, np.ndarray]) -> Float32Array:
    """Of the tokens that an audio encoder heard: [tokens, hidden]."""
    _, key = shortest_signature(projector, "features", features["features"].shape[1])
    embeddings: Float32Array = call_signature(projector, key, features)["features"][0][features["mask"][0]]
    return embeddings


class LitertVisionEncoder:
    """Vision encoder and projector."""

    def __init__(self, encoder: Any, projector: Any, vision: VisionModel) -> None:
        self._encoder, self._projector, self._vision = encoder, projector, vision

    def encode(self, patches: Float32Array) -> Float32Array:
        """See `VisionEncoder.encode`.

        Raises:
            RequestError: the image makes more tokens than the graphs have room for.
        """
        rows, columns, values = patches.shape
        count = rows * columns
        length, key = shortest_signature(self._encoder, "images", count)
        if length < count:
            tokens, most = (each // self._vision.pooling_kernel_size**2 for each in (count, length))
            raise RequestError(
                f"the image makes {tokens} tokens, the package's encoder takes {most}: scale the image down."
            )
        self._vision.require_fitting(rows, columns, values)
        images, places = np.zeros((1, length, values), np.float32), np.full((1, length, 2), -1, np.int32)
        images[0, :count] = patches.reshape(count, values)
        places[0, :count, 0] = np.tile(np.arange(columns), rows)
        places[0, :count, 1] = np.repeat(np.arange(rows), columns)
        seen = call_signature(self._encoder, key, {"images": images, "positions_xy": places})
        _, key = shortest_signature(self._projector, "soft_tokens", seen["features"].shape[1])
        embeddings = call_signature(self._projector, key, {"soft_tokens": seen["features"]})["mm_embedding"]
        seen_embeddings: Float32Array = embeddings[0][seen["mask"][0]]
        return seen_embeddings
