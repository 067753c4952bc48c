"""The ONNX part of a package: decoder, encoders and embedding tables."""

from __future__ import annotations

from pathlib import Path

from cabochon.manifest import AppliedPrecision, EmbeddingTable, Engine, Manifest
from cabochon_convert.audio_config import WaveformConfig
from cabochon_convert.audio_encoder_onnx import build_audio_encoder
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.config import ModelConfig
from cabochon_convert.decoder_onnx import BuiltDecoder, build_decoder
from cabochon_convert.drafter_onnx import build_drafter
from cabochon_convert.drafter_source import DrafterSource
from cabochon_convert.embeddings import stored_precision, table_of_head, write_table
from cabochon_convert.genai_onnx import write_genai
from cabochon_convert.matrices import LinearSettings, apply_precision
from cabochon_convert.progress import Progress
from cabochon_convert.recipes import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from cabochon_convert.trained_integers import hold_the_same
from cabochon_convert.vision_encoder_onnx import build_vision_encoder
from cabochon_convert.waveform_projector_onnx import build_waveform_projector


def build_onnx_engine(
    checkpoint: Checkpoint,
    config: ModelConfig,
    draft: Manifest,
    settings: LinearSettings,
    folder: Path,
    progress: Progress,
    drafter: DrafterSource | None = None,
    kv_cache: str = "float32",
) -> tuple[Engine, tuple[AppliedPrecision, ...]]:
    """Write ONNX graphs and tables into a folder; returns what the manifest says about them."""
    text = config.text
    table_size = checkpoint.size_of(PER_LAYER_EMBEDDING.removesuffix("weight")) if text.per_layer_input_size else 0
    progress.start("text decoder", checkpoint.size_of("model.language_model.") - table_size, "B")
    decoder = build_decoder(
        checkpoint, text, settings, draft.text.context_length, folder / "decoder.onnx",
        gives_hidden_states=drafter is not None, kv_cache=kv_cache,
    )  # fmt: skip
    token_table = _token_table(checkpoint, config, settings, decoder, folder)
    per_layer_table = None
    if text.per_layer_input_size:
        progress.start("per-layer embeddings", table_size, "B")
        per_layer_table = _per_layer_table(checkpoint, config, settings, folder)
    audio_encoder = vision_encoder = None
    applied = dict(decoder.applied)
    if config.audio is not None and draft.audio is not None:
        sizes = (checkpoint.size_of(f"model.{part}.") for part in ("audio_tower", "embed_audio"))
        progress.start("audio encoder", sum(sizes), "B")
        path, hidden_size = folder / "audio_encoder.onnx", text.hidden_size
        if isinstance(config.audio, WaveformConfig):
            audio_encoder = build_waveform_projector(checkpoint, config.audio, hidden_size, settings, path)
        else:
            audio_encoder = build_audio_encoder(checkpoint, config.audio, hidden_size, settings, path)
        applied |= audio_encoder.applied
    if config.vision is not None and draft.vision is not None:
        progress.start("vision encoder", checkpoint.size_of("model.vision_tower."), "B")
        path, limit = folder / "vision_encoder.onnx", draft.vision.position_limit
        vision_encoder = build_vision_encoder(checkpoint, config.vision, limit, text.hidden_size, settings, path)
        applied |= vision_encoder.applied
    built_drafter = None
    if drafter is not None:
        progress.start("drafter", drafter.checkpoint.size, "B")
        built_drafter = build_drafter(drafter.checkpoint, drafter.config, settings, folder / "drafter.onnx")
        applied |= built_drafter.applied
    for tensor, table in ((EMBEDDING, token_table), (PER_LAYER_EMBEDDING, per_layer_table)):
        if table is not None:
            precision = settings.precision(tensor, (table.rows, table.columns))
            applied.setdefault(tensor, apply_precision(tensor, stored_precision(table, precision)))
    engine = Engine(
        decoder=decoder.graph,
        caches=decoder.caches,
        audio_encoder=audio_encoder.graph if audio_encoder else None,
        audio_projector=None,
        vision_encoder=vision_encoder.graph if vision_encoder else None,
        vision_projector=None,
        token_embeddings=token_table,
        per_layer_embeddings=per_layer_table,
        drafter=drafter.describe(built_drafter.graph) if drafter and built_drafter else None,
    )
    # onnxruntime-genai 0.18 knows nothing of outputs that share a buffer.
    if kv_cache == "float32":
        write_genai(draft, engine, text, folder)
    return engine, tuple(applied[name] for name in sorted(applied))


def _token_table(
    checkpoint: Checkpoint, config: ModelConfig, settings: LinearSettings, decoder: BuiltDecoder, folder: Path
) -> EmbeddingTable:
    """Token embeddings, scaled by hidden ** 0.5 when they are looked up."""
    text = config.text
    rows, columns, scale = text.vocabulary_size, text.hidden_size, float(text.hidden_size**0.5)
    integers, shape = settings.integers, (rows, columns)
    is_head = text.ties_embeddings or (integers is not None and hold_the_same(integers, HEAD, EMBEDDING, shape))
    table = table_of_head(decoder.head, rows, columns, scale) if is_head else None
    precision = settings.precision(EMBEDDING, shape)
    path = folder / "token_embeddings.bin"
    return table or write_table(checkpoint, EMBEDDING, shape, precision, scale, path, integers)


def _per_layer_table(
    checkpoint: Checkpoint, config: ModelConfig, settings: LinearSettings, folder: Path
) -> EmbeddingTable:
    """Per-layer embeddings, scaled by width ** 0.5, and by the 2 ** -0.5 of the sum that the decoder makes of them."""
    text = config.text
    shape = (text.vocabulary_size, len(text.layers) * text.per_layer_input_size)
    scale = float((text.per_layer_input_size / 2) ** 0.5)
    precision = settings.precision(PER_LAYER_EMBEDDING, shape)
    path = folder / "per_layer_embeddings.bin"
    return write_table(checkpoint, PER_LAYER_EMBEDDING, shape, precision, scale, path, settings.integers)
