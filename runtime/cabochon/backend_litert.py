"""The LiteRT engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import (
    CacheRows,
    EngineSettings,
    Session,
    choose_capacity,
    refuse_impossible_run,
    refuse_unfitting_rows,
    rows_needed,
)
from cabochon.backend_litert_drafter import LitertDrafter, drafting_lengths
from cabochon.backend_litert_encoders import LitertAudioEncoder, LitertVisionEncoder
from cabochon.backend_litert_models import (
    LIBRARY,
    load_model,
    run_signature,
    zeroed_buffer,
)
from cabochon.cache_lengths import ANY_LENGTH, cache_lengths, shortest_cache
from cabochon.errors import PackageError
from cabochon.manifest import Engine
from cabochon.package import Package

UNSEEN = -1e4
"""Added to the score of a position that must not be attended to."""
HIDDEN_STATES = "hidden_states"
SHORTEST_PADDED_SHARE = 8
"""A rest of fewer positions than this fraction of the shortest prefill runs position by position, which is sooner."""


def open_litert_session(package: Package, settings: EngineSettings) -> Session:
    """Load the decoder of a package; its audio encoder is loaded when it first hears something."""
    engine = package.manifest.engines["litert"]
    encoder = None
    if engine.audio_encoder is not None:
        encoder = LitertAudioEncoder(package, engine.audio_encoder, engine.audio_projector, settings)
    if engine.drafter is None:
        return Session(LitertDecoder(package, engine, settings), encoder, LIBRARY)
    model = load_model(package, engine.drafter.graph, settings)
    lengths = drafting_lengths(model, engine.drafter.cache_layers)
    decoder = LitertDecoder(package, engine, settings, sorted(lengths))
    return Session(decoder, encoder, LIBRARY, LitertDrafter(model, engine.drafter.cache_layers, lengths, decoder))


def open_litert_vision_encoder(package: Package, settings: EngineSettings) -> LitertVisionEncoder:
    """Load the vision encoder of a package that has one, and its projector."""
    engine, vision = package.manifest.engines["litert"], package.manifest.vision
    if engine.vision_encoder is None or engine.vision_projector is None or vision is None:
        raise PackageError(f"{package.folder} lacks a part of its vision encoder: convert the checkpoint again.")
    encoder, projector = (
        load_model(package, each, settings) for each in (engine.vision_encoder, engine.vision_projector)
    )
    return LitertVisionEncoder(encoder, projector, vision)


class LitertDecoder:
    """Text decoder whose caches have one of some lengths: a step costs what its whole cache costs.

    Positions move to the next longer caches when they no longer fit. Signatures are resized to them, or, in packages of
    older versions, each length has its own.

    Args:
        lengths: that caches may have, where something else has to fit them.
    """

    def __init__(self, package: Package, engine: Engine, settings: EngineSettings, lengths: Sequence[int] = ()) -> None:
        text = package.manifest.text
        self._capacity = choose_capacity(settings, text.context_length)
        self._model = load_model(package, engine.decoder, settings)
        self._layer_shape = (text.layer_count, text.per_layer_input_size)
        lengths = lengths or cache_lengths(text.context_length, shortest_cache(cache.window for cache in engine.caches))
        steps = _resizable_steps(self._model, engine, lengths) or _steps(self._model, engine)
        self._steps = sorted(steps, key=lambda steps: steps.length)
        if self._steps[-1].length < self._capacity:
            raise PackageError(
                f"{package.path(engine.decoder.file)} has caches of {self._steps[-1].length} positions, but the "
                f"manifest says {text.context_length}: convert the checkpoint again."
            )
        self._current = self._steps[0]
        self._caches = engine.caches
        self._earliest_position = 0
        self._logits = np.zeros((0, text.vocabulary_size), np.float32)
        self.hidden_states: Float32Array = np.zeros((0, text.hidden_size), np.float32)
        """See `Drafter.hidden_states`; only where the package has a drafter."""

    @property
    def capacity(self) -> int:
        """Positions that the cache can hold."""
        return self._capacity

    @property
    def earliest_position(self) -> int:
        """See `Decoder.earliest_position`."""
        return self._earliest_position

    @property
    def shortest_run(self) -> int:
        """See `Decoder.shortest_run`."""
        return self._current.shortest_run

    def run(
        self, inputs_embeds: Float32Array, per_layer_inputs: Float32Array, position: int, logits_to_keep: int = 1
    ) -> Float32Array:
        """See `Decoder.run`."""
        count = len(inputs_embeds)
        refuse_impossible_run(position, count, logits_to_keep, self._capacity)
        if position > self._current.length:
            raise ValueError(f"position {position} comes before those from {self._current.length} on were run")
        self._make_room(position, count)
        per_layer = per_layer_inputs.reshape(count, *self._layer_shape)
        if len(self._logits) != logits_to_keep:
            self._logits, self.hidden_states = (
                np.empty((logits_to_keep, each.shape[1]), np.float32) for each in (self._logits, self.hidden_states)
            )
        done, silent = 0, count - logits_to_keep
        while done < silent:
            run = self._current.fitting(silent - done, position + done)
            rows = slice(done, min(done + run.length, silent))
            run.start(inputs_embeds[rows], per_layer[rows], position + done)
            done = rows.stop
        while done < count:
            run = self._current.answering(count - done, position + done)
            rows = slice(done, min(done + run.length, count))
            run.start(inputs_embeds[rows], per_layer[rows], position + done)
            run.read_outputs(self._logits[done - silent : rows.stop - silent], "logits")
            if run.gives_hidden_states:
                run.read_outputs(self.hidden_states[done - silent : rows.stop - silent], HIDDEN_STATES)
            done = rows.stop
        return self._logits

    def bound_caches(self, layer: int) -> tuple[int, Any, Any]:
        """The length of the caches in use, and where the keys and values of a layer's lie."""
        cache = next(cache for cache in self._caches if cache.layer == layer)
        return self._current.length, self._current.buffer(cache.past_key), self._current.buffer(cache.past_value)

    def read_caches(self, end: int) -> CacheRows:
        """See `Decoder.read_caches`."""
        pairs = [(rows_needed(cache, end), (cache.past_key, cache.past_value)) for cache in self._caches]
        rows = [self._current.rows(name)[end - count : end].swapaxes(0, 1) for count, names in pairs for name in names]
        return CacheRows(end, tuple(map(np.ascontiguousarray, rows)))

    def write_caches(self, rows: CacheRows) -> None:
        """See `Decoder.write_caches`."""
        refuse_unfitting_rows(rows, self._caches, self._capacity)
        self._change_to(next(steps for steps in self._steps if steps.length >= rows.end), 0)
        given = iter(rows.rows)
        for cache in self._caches:
            for name in (cache.past_key, cache.past_value):
                values = next(given)
                self._current.write_rows(name, rows.end - values.shape[1], values.swapaxes(0, 1))
        is_whole = all(rows_needed(cache, rows.end) == rows.end for cache in self._caches)
        self._earliest_position = 0 if is_whole else rows.end

    def _make_room(self, position: int, count: int) -> None:
        """Choose the caches that the positions fit into, and take along what is before them."""
        needed = next(steps for steps in self._steps if steps.length >= position + count)
        if position == 0:
            self._earliest_position = 0
            self._change_to(needed, 0)
        elif needed.length > self._current.length:
            self._change_to(needed, position)

    def _change_to(self, steps: _Steps, count: int) -> None:
        """Work with other caches, and take along the first positions."""
        if steps is self._current:
            return
        if count:
            steps.copy_caches(self._current, count)
        if self._current.is_resizable:
            self._current.forget()
        self._current = steps


class _Steps:
    """Signatures with caches of one length, and these caches: buffers that all of them read and write in place.

    Args:
        length: that the caches are resized to before anything runs; None where they stay as they are.
    """

    def __init__(self, model: Any, keys: Sequence[str], engine: Engine, length: int | None = None) -> None:
        self._model, self._keys, self._engine = model, keys, engine
        # Rows of keys are positions, and of values they are columns.
        self._axes = {cache.past_key: 2 for cache in engine.caches} | {cache.past_value: 3 for cache in engine.caches}
        self._caches: dict[str, Any] = {}
        self._runs: list[_Run] = []
        self.is_resizable = length is not None
        self.length = length or int(model.get_input_tensor_details(keys[0])["mask"]["shape"][-1])

    @property
    def shortest_run(self) -> int:
        """Positions of the shortest silent run; 1 where there is none."""
        return next((run.length for run in self._all_runs() if not run.gives_logits), 1)

    def fitting(self, count: int, position: int) -> _Run:
        """The shortest that takes so many positions, or the longest; single steps where rows would leave the cache."""
        fitting = self._with_room(position, gives_logits=False)
        if not fitting or count * SHORTEST_PADDED_SHARE < fitting[0].length:
            return self.answering(1, position)
        return next((run for run in fitting if run.length >= count), fitting[-1])

    def answering(self, count: int, position: int) -> _Run:
        """The same of those that give logits, of which one takes a single position."""
        fitting = self._with_room(position, gives_logits=True)
        return next((run for run in fitting if run.length >= count), fitting[-1])

    def _with_room(self, position: int, *, gives_logits: bool) -> list[_Run]:
        # A padded run writes rows behind its last position, and beyond the end it would write over older ones.
        runs = (run for run in self._all_runs() if position + run.length <= self.length)
        return [run for run in runs if run.gives_logits == gives_logits]

    def buffer(self, name: str) -> Any:
        """Of one cache."""
        self._all_runs()
        return self._caches[name]

    def copy_caches(self, shorter: _Steps, count: int) -> None:
        """Take over the first positions of shorter caches."""
        for name in self._axes:
            self._write(name, 0, shorter._read(name)[:count])

    def forget(self) -> None:
        """Free the caches and all other buffers; they are made again when they are needed."""
        self._caches, self._runs = {}, []

    def rows(self, name: str) -> Float32Array:
        """Of one cache: [positions, heads, head size]."""
        rows: Float32Array = self._read(name)[:, 0]
        return rows

    def write_rows(self, name: str, first: int, rows: Float32Array) -> None:
        """Of one cache, [positions, heads, head size]; all others become zero."""
        self._write(name, first, rows[:, None])

    def _read(self, name: str) -> Float32Array:
        """[positions, 1, heads, head size]"""
        self._all_runs()
        shape = self._shapes(self._keys[0])[name]
        values: Float32Array = self._caches[name].read(prod(shape), np.float32).reshape(shape)
        return np.moveaxis(values, self._axes[name], 0)

    def _write(self, name: str, first: int, rows: Float32Array) -> None:
        self._all_runs()
        values = np.zeros(self._shapes(self._keys[0])[name], np.float32)
        np.moveaxis(values, self._axes[name], 0)[first : first + len(rows)] = rows
        self._caches[name].write(values)

    def _all_runs(self) -> list[_Run]:
        """By length; buffers are made when they are first used."""
        if not self._runs:
            shapes = {key: self._shapes(key) for key in self._keys}
            if self.is_resizable:
                for key in self._keys:
                    for name in (*self._axes, "mask"):
                        # Strictly, only what a graph says is resizable, which LiteRT would prepare anew each time.
                        self._model.resize_input_tensor_by_name(key, name, shapes[key][name], strict=False)
            first = self._keys[0]
            self._caches = {name: zeroed_buffer(self._model, first, name, shapes[first][name]) for name in self._axes}
            runs = (_Run(self._model, key, shapes[key], self._caches) for key in self._keys)
            self._runs = sorted(runs, key=lambda run: run.length)
        return self._runs

    def _shapes(self, key: str) -> dict[str, list[int]]:
        """Of the inputs of a signature, when its caches have this length."""
        details = self._model.get_input_tensor_details(key)
        shapes = {name: list(map(int, each["shape"])) for name, each in details.items()}
        for name, axis in {**self._axes, "mask": 3}.items():
            shapes[name][axis] = self.length
        return shapes


def _steps(model: Any, engine: Engine) -> list[_Steps]:
    """Signatures by the length of their caches."""
    by_length: dict[int, list[str]] = {}
    for key in model.get_signature_list():
        length = int(model.get_input_tensor_details(key)["mask"]["shape"][-1])
        by_length.setdefault(length, []).append(key)
    return [_Steps(model, keys, engine) for keys in by_length.values()]


def _resizable_steps(model: Any, engine: Engine, lengths: Sequence[int]) -> list[_Steps]:
    """All lengths of the same signatures; none where they cannot be resized."""
    keys = [key for key in model.get_signature_list() if key.endswith(ANY_LENGTH)]
    return [_Steps(model, keys, engine, length) for length in lengths] if keys else []


class _Run:
    """One signature of the decoder with its buffers."""

    def __init__(self, model: Any, key: str, shapes: Mapping[str, Sequence[int]], caches: Mapping[str, Any]) -> None:
        self._model, self._key = model, key
        inputs, outputs = (model.get_signature_list()[key][side] for side in ("inputs", "outputs"))
        self.length = shapes["input_pos"][0]
        self._embeddings = np.zeros(shapes["embeddings"], np.float32)
        self._per_layer = np.zeros(shapes["per_layer_embeddings"], np.float32)
        self._mask = np.full(shapes["mask"], UNSEEN, np.float32)
        self._seen = 0
        own = {name: model.create_input_buffer_by_name(key, name) for name in inputs if name not in caches}
        self._inputs = own | {name: caches[name] for name in inputs if name in caches}
        self._outputs = {name: caches.get(name) or model.create_output_buffer_by_name(key, name) for name in outputs}
        self.gives_logits, self.gives_hidden_states = "logits" in outputs, HIDDEN_STATES in outputs

    def start(self, embeddings: Float32Array, per_layer: Float32Array, position: int) -> None:
        """Run it; fewer rows than it has are filled up."""
        count = len(embeddings)
        self._embeddings[0, :count], self._embeddings[0, count:] = embeddings, 0
        self._per_layer[0, :count], self._per_layer[0, count:] = per_layer, 0
        self._see(position)
        positions = np.arange(position, position + self.length, dtype=np.int32)
        for name, values in (
            ("embeddings", self._embeddings),
            ("per_layer_embeddings", self._per_layer),
            ("input_pos", positions),
            ("mask", self._mask),
        ):
            self._inputs[name].write(values)
        run_signature(self._model, self._key, self._inputs, self._outputs)

    def read_outputs(self, rows: Float32Array, name: str) -> None:
        """Fill an array [positions, values] with an output of the first positions."""
        rows[:] = self._outputs[name].read(rows.size, np.float32).reshape(rows.shape)

    def _see(self, position: int) -> None:
        """Each row of the mask sees everything up to its own position."""
        rows = self._mask[0, 0]
        if self.length == 1:
            # One more position is all that changes from step to step.
            first, last = sorted((self._seen, position + 1))
            rows[0, first:last] = 0 if self._seen <= position else UNSEEN
            self._seen = position + 1
            return
        ends = np.arange(position + 1, position + 1 + self.length)
        rows[:] = np.where(np.arange(rows.shape[1]) < ends[:, None], np.float32(0), np.float32(UNSEEN))
