"""Looking into the graphs of a package: hidden states behind each layer, and how far they are from the reference's.

A copy of the graph, in memory, has the layers' values as outputs; its weights stay in the package's data file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from cabochon.arrays import Float32Array
from cabochon.embedder import open_embedder
from cabochon.errors import missing_dependency
from cabochon.package import Package
from cabochon.telemetry import refuse_telemetry
from cabochon_convert.questions import Prompt

refuse_telemetry()
try:
    import onnxruntime
except ImportError:
    raise missing_dependency("onnxruntime", "onnx") from None

ENGINE = "onnx"
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, slots=True)
class LayerOutputs:
    """Hidden states behind each layer, for one prompt."""

    audio: tuple[Float32Array, ...]
    """Per layer of the audio encoder [tokens, audio hidden]; none without sound."""
    decoder: tuple[Float32Array, ...]
    """Per layer of the decoder [positions, hidden]."""


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """Root mean square of the difference behind each layer, over that of the reference."""

    audio: tuple[float, ...]
    decoder: tuple[float, ...]


def layer_errors(ours: LayerOutputs, theirs: LayerOutputs) -> LayerErrors:
    """Compare two models layer by layer."""
    audio, decoder = (
        tuple(_relative_rms(*pair) for pair in zip(getattr(ours, part), getattr(theirs, part), strict=True))
        for part in ("audio", "decoder")
    )
    return LayerErrors(audio, decoder)


def read_layer_outputs(package: Package, prompt: Prompt) -> LayerOutputs:
    """Run one prompt through both graphs of a package; each is loaded only while it runs."""
    engine = package.manifest.engines[ENGINE]
    audio: tuple[Float32Array, ...] = ()
    embeddings = None
    if prompt.frames is not None:
        assert engine.audio_encoder is not None  # a package without one has no prompts with sound
        path, (graph_input,) = package.path(engine.audio_encoder.file), engine.audio_encoder.inputs
        *filled_up, embeddings = _run(path, {graph_input.name: prompt.frames[None]}, ["audio_embeddings"])
        # The encoder fills the last block of tokens up.
        audio = tuple(hidden[: len(embeddings)] for hidden in filled_up)
    embedded = open_embedder(package, ENGINE).embed(prompt.tokens, package.manifest.audio, embeddings)
    count = len(prompt.tokens)
    inputs: dict[str, Any] = {
        "inputs_embeds": embedded.inputs_embeds[None],
        "per_layer_inputs": embedded.per_layer_inputs[None],
        "total_length": np.array(count, np.int32),
        "window_length": np.array(count, np.int32),
        "logits_to_keep": np.array([count], np.int64),
    }
    for cache in engine.caches:
        shape = (1, cache.heads, count, cache.head_size)
        inputs |= {name: np.zeros(shape, cache.storage) for name in (cache.past_key, cache.past_value)}
    return LayerOutputs(audio, tuple(_run(package.path(engine.decoder.file), inputs, [])))


def _run(path: Path, inputs: dict[str, Any], outputs: list[str]) -> list[Float32Array]:
    """The hidden states behind all layers of a graph and some of its outputs, each without its first dimension."""
    model = onnx.load(str(path), load_external_data=False)
    made = {name for node in model.graph.node for name in node.output}
    layers: list[str] = []
    while (name := f"layers.{len(layers)}.output") in made:
        layers.append(name)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in layers)
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(EXTERNAL_FOLDER, str(path.parent.resolve()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    values = session.run([*layers, *outputs], {name: value for name, value in inputs.items() if name in known})
    return [value[0] for value in values]


def _relative_rms(ours: Float32Array, theirs: Float32Array) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
