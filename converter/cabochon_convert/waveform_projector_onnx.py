"""Hearing without an encoder as an ONNX graph: waveform_frames [1, N, samples] → audio_embeddings [1, N, hidden].

This is how Gemma 4 12B hears. The maths is that of transformers' `Gemma4UnifiedMultimodalEmbedder`: each frame of
samples is normed, then projected into the decoder's space.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cabochon_convert.audio_config import WaveformConfig
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.graph_onnx import OnnxGraph
from cabochon_convert.linear_onnx import BuiltEncoder, LinearWriter
from cabochon_convert.matrices import LinearSettings, MatrixRows
from cabochon_convert.recipes import RECIPES

PROJECTION = "model.embed_audio.embedding_projection.weight"


def build_waveform_projector(
    checkpoint: Checkpoint, config: WaveformConfig, hidden_size: int, settings: LinearSettings, path: Path
) -> BuiltEncoder:
    """Write the graph to `path` and its weights beside it; `hidden_size` is the decoder's.

    The matrix stays in float32, unless it was trained as integers: it is all that lies between samples and decoder, and
    10 MB of 12B.
    """
    with OnnxGraph(path) as graph:
        writer = LinearWriter(graph, checkpoint, replace(settings, recipe=RECIPES["float"]))
        frames = graph.input("waveform_frames", "float32", (1, "N", config.frame_length))
        ones = graph.weight("projector.ones", np.ones(config.frame_length, np.float32))
        normed = writer.norm_with(frames, ones, "projector.norm", config.norm_epsilon)
        writer.linear(normed, MatrixRows.whole(PROJECTION, hidden_size, config.frame_length), "audio_embeddings")
        graph.output("audio_embeddings", "float32", (1, "N", hidden_size))
        return BuiltEncoder(graph.finish(), writer.applied)
