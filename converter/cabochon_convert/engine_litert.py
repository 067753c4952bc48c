"""The LiteRT part of a package: decoder, encoders and embedding tables, each a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cabochon.audio_model import AudioModel
from cabochon.manifest import AppliedPrecision, Engine, Graph, Manifest
from cabochon.vision_model import VisionModel
from cabochon_convert import audio_encoder_litert, vision_encoder_litert
from cabochon_convert.audio_config import AudioConfig
from cabochon_convert.audio_encoder_litert import (
    build_litert_audio_encoder,
    build_litert_audio_projector,
    token_counts,
)
from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.config import ModelConfig
from cabochon_convert.decoder_litert import build_litert_decoder, decode_signature, lengths_in_use, verified_positions
from cabochon_convert.drafter_litert import build_litert_drafter
from cabochon_convert.drafter_source import DrafterSource
from cabochon_convert.embedder_litert import build_embedder, table_of_matrix
from cabochon_convert.flatbuffer_litert import describe_graph
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.matrices_litert import CheckpointMatrix
from cabochon_convert.progress import Progress
from cabochon_convert.recipes import EMBEDDING, PER_LAYER_EMBEDDING
from cabochon_convert.vision_encoder_litert import build_litert_vision_encoder, build_litert_vision_projector


@dataclass(frozen=True, slots=True)
class _Encoder:
    """What was written of one encoder; without graphs where the model has none."""

    matrices: tuple[CheckpointMatrix, ...]
    encoder: Graph | None
    projector: Graph | None


def build_litert_engine(
    checkpoint: Checkpoint,
    config: ModelConfig,
    draft: Manifest,
    settings: LinearSettings,
    folder: Path,
    progress: Progress,
    drafter: DrafterSource | None = None,
    kv_cache: str = "float32",
) -> tuple[Engine, tuple[AppliedPrecision, ...]]:
    """Write LiteRT graphs into a folder; returns what the manifest says about them."""
    if kv_cache != "float32":
        raise ValueError("integer caches are not for litert")
    text, context_length = config.text, draft.text.context_length
    table_size = checkpoint.size_of(PER_LAYER_EMBEDDING.removesuffix("weight"))
    progress.start("text decoder", checkpoint.size_of("model.language_model.") - table_size, "B")
    verified = verified_positions(drafter.recommended_drafts) if drafter else 0
    decoder = build_litert_decoder(checkpoint, text, settings, context_length, folder / "decoder.tflite", verified)
    matrices = list(decoder.matrices)
    rows, columns = text.vocabulary_size, text.hidden_size
    scale = float(columns**0.5)
    if text.ties_embeddings:
        head = next(matrix for matrix in matrices if matrix.tensor == EMBEDDING)
        tokens = table_of_matrix(head, decoder.head, scale)
    else:
        table = CheckpointMatrix(checkpoint, settings, EMBEDDING, rows, columns)
        tokens = build_embedder(table, scale, (columns,), folder / "embedder.tflite")
        matrices.append(table)
    progress.start("per-layer embeddings", table_size, "B")
    width = text.per_layer_input_size
    table = CheckpointMatrix(checkpoint, settings, PER_LAYER_EMBEDDING, rows, len(text.layers) * width)
    per_layer = build_embedder(
        table, float(width**0.5), (len(text.layers), width), folder / "per_layer_embedder.tflite"
    )
    matrices.append(table)
    audio = vision = _Encoder((), None, None)
    if draft.audio is not None:
        audio = _build_audio(checkpoint, config, draft.audio, settings, folder, progress)
    if draft.vision is not None:
        vision = _build_vision(checkpoint, draft.vision, settings, folder, progress)
    matrices += (*audio.matrices, *vision.matrices)
    applied = {matrix.tensor: matrix.applied for matrix in matrices}
    built_drafter = None
    if drafter is not None:
        progress.start("drafter", drafter.checkpoint.size, "B")
        built_drafter = build_litert_drafter(
            drafter.checkpoint,
            drafter.config,
            settings,
            lengths_in_use(text, context_length),
            folder / "drafter.tflite",
        )
        applied |= built_drafter.applied
    engine = Engine(
        decoder=describe_graph(folder / "decoder.tflite", decode_signature(text, context_length)),
        caches=decoder.caches,
        audio_encoder=audio.encoder,
        audio_projector=audio.projector,
        vision_encoder=vision.encoder,
        vision_projector=vision.projector,
        token_embeddings=tokens,
        per_layer_embeddings=per_layer,
        drafter=drafter.describe(built_drafter.graph) if drafter and built_drafter else None,
    )
    return engine, tuple(applied[name] for name in sorted(applied))


def _build_audio(
    checkpoint: Checkpoint,
    config: ModelConfig,
    audio: AudioModel,
    settings: LinearSettings,
    folder: Path,
    progress: Progress,
) -> _Encoder:
    if audio.log_mel is None or not isinstance(config.audio, AudioConfig):
        raise CheckpointError("models that hear without an encoder cannot be converted for litert yet: choose onnx.")
    parts = audio_encoder_litert.TOWER, audio_encoder_litert.PROJECTOR
    progress.start("audio encoder", sum(checkpoint.size_of(part) for part in parts), "B")
    counts, step = token_counts(audio.log_mel, audio.max_samples), config.audio.chunk_size
    encoder, projector = folder / "audio_encoder.tflite", folder / "audio_projector.tflite"
    matrices = build_litert_audio_encoder(checkpoint, settings, counts, step, audio.log_mel.mel_bins, encoder)
    matrices += build_litert_audio_projector(checkpoint, settings, (step, *counts), projector)
    signatures = f"audio_{counts[-1]}", f"audio_adapter_{counts[-1]}"
    return _Encoder(matrices, describe_graph(encoder, signatures[0]), describe_graph(projector, signatures[1]))


def _build_vision(
    checkpoint: Checkpoint, vision: VisionModel, settings: LinearSettings, folder: Path, progress: Progress
) -> _Encoder:
    parts = vision_encoder_litert.TOWER, vision_encoder_litert.PROJECTOR
    progress.start("vision encoder", sum(checkpoint.size_of(part) for part in parts), "B")
    encoder, projector = folder / "vision_encoder.tflite", folder / "vision_projector.tflite"
    matrices = build_litert_vision_encoder(checkpoint, settings, vision, encoder)
    matrices += build_litert_vision_projector(checkpoint, settings, vision.soft_token_budgets, projector)
    budget = vision.default_soft_token_budget
    return _Encoder(
        matrices,
        describe_graph(encoder, f"vision_{budget}"),
        describe_graph(projector, f"vision_adapter_{budget}"),
    )
