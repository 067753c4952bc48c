"""A drafter on LiteRT: it reads the decoder's caches where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import Guess
from cabochon.backend_litert_models import run_signature


class BoundCaches(Protocol):
    """What a drafter needs to know of `LitertDecoder`."""

    @property
    def hidden_states(self) -> Float32Array:
        """See `Drafter.hidden_states`."""

    def bound_caches(self, layer: int) -> tuple[int, Any, Any]:
        """The length of the caches in use, and where the keys and values of a layer's lie."""


def drafting_lengths(model: Any, cache_layers: Mapping[str, int]) -> dict[int, str]:
    """Names of the signatures of a drafter by the length of the caches that they read."""
    kind = next(iter(cache_layers))
    return {
        int(model.get_input_tensor_details(key)[f"keys_{kind}"]["shape"][2]): key for key in model.get_signature_list()
    }


class LitertDrafter:
    """See `Drafter`; it has a signature for each length of the decoder's caches.

    Args:
        cache_layers: by kind of cache that it reads, the decoder's layer that owns it.
        keys: names of signatures, see `drafting_lengths`.
    """

    def __init__(
        self, model: Any, cache_layers: Mapping[str, int], keys: Mapping[int, str], decoder: BoundCaches
    ) -> None:
        self._model, self._decoder = model, decoder
        self._cache_layers, self._keys = dict(cache_layers), dict(keys)
        self._current: _Signature | None = None

    @property
    def hidden_states(self) -> Float32Array:
        """See `Drafter.hidden_states`."""
        return self._decoder.hidden_states

    def start(self, position: int) -> None:
        """See `Drafter.start`."""
        caches = {}
        for kind, layer in self._cache_layers.items():
            length, caches[f"keys_{kind}"], caches[f"values_{kind}"] = self._decoder.bound_caches(layer)
        # The decoder makes new caches when it changes their length.
        if self._current is None or not self._current.is_bound_to(caches):
            self._current = _Signature(self._model, self._keys[length], caches)
        self._current.write("position", np.array([position], np.int32))

    def guess(self, embedding: Float32Array, hidden: Float32Array) -> Guess:
        """See `Drafter.guess`."""
        current = self._current
        if current is None:
            raise ValueError("a guess before a start")
        current.write("embedding", embedding[None, None])
        current.write("hidden", hidden[None, None])
        found = current.run()
        candidates = found["candidates"].astype(np.int64) if "candidates" in found else None
        return Guess(found["logits"][0, 0], candidates, found["next_hidden"][0, 0])


class _Signature:
    """One signature with its buffers, and with the decoder's."""

    def __init__(self, model: Any, key: str, caches: Mapping[str, Any]) -> None:
        self._model, self._key = model, key
        names = model.get_signature_list()[key]
        self._inputs = {
            name: caches.get(name) or model.create_input_buffer_by_name(key, name) for name in names["inputs"]
        }
        self._outputs = {name: model.create_output_buffer_by_name(key, name) for name in names["outputs"]}
        self._details = {
            name: (tuple(details["shape"]), np.dtype(details["dtype"]))
            for name, details in model.get_output_tensor_details(key).items()
        }

    def is_bound_to(self, caches: Mapping[str, Any]) -> bool:
        """Whether it reads these very buffers."""
        return all(self._inputs[name] is buffer for name, buffer in caches.items())

    def write(self, name: str, values: np.ndarray) -> None:
        """Fill one of the inputs."""
        self._inputs[name].write(values)

    def run(self) -> dict[str, np.ndarray]:
        """Outputs by name."""
        run_signature(self._model, self._key, self._inputs, self._outputs)
        return {
            name: self._outputs[name].read(int(np.prod(shape)), kind).reshape(shape)
            for name, (shape, kind) in self._details.items()
        }
