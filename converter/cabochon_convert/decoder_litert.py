"""The text decoder as a LiteRT graph that Google's LiteRT-LM runs as well.

Signatures are `prefill_N_any_cache` and `decode_any_cache`, whose caches of C positions may be resized: a step costs
what its whole cache costs, in layers without a sliding window. A short context has `prefill_N` and `decode`, which
stay as they are.

    embeddings            float32 [1, N, hidden]
    per_layer_embeddings  float32 [1, N, layers, width]
    input_pos             int32   [N]; consecutive
    mask                  float32 [1, 1, N, C]; 0 where a position sees another, -1e4 where not; sliding windows
                          are cut out of it inside
    kv_cache_k_i          float32 [1, heads, C, head size], for each layer that owns a cache
    kv_cache_v_i          float32 [1, heads, head size, C]

and the same caches as outputs, which may be the same buffers: a run writes rows input_pos[0] to input_pos[0] + N.
`decode` has N = 1 and gives `logits` [1, 1, vocabulary], soft-capped. Prefill leaves out what only logits need: the
layers that share a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cabochon.cache_lengths import ANY_LENGTH, PREFILL_LENGTH, shortest_cache
from cabochon.manifest import KeyValueCache
from cabochon_convert.attention_litert import WINDOWED_ATTENTION
from cabochon_convert.cache_axes_litert import STAND_IN, set_cache_length
from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.flatbuffer_litert import FilledMatrix
from cabochon_convert.graph_litert import Places, Signature, convert_graph
from cabochon_convert.litert_torch_parts import (
    DecodeModule,
    ExportableModuleConfig,
    ExportTask,
    PrefillModule,
    patch_builtin_tuple_for_export,
)
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.matrices_litert import CheckpointMatrix
from cabochon_convert.model_litert import build_model, fill_graph, patched_transformers, read_small_tensors
from cabochon_convert.recipes import EMBEDDING, HEAD
from cabochon_convert.text_config import TextConfig

LAYERS = "model.language_model."


@dataclass(frozen=True, slots=True)
class BuiltLitertDecoder:
    """What the manifest has to say about it."""

    caches: tuple[KeyValueCache, ...]
    matrices: tuple[CheckpointMatrix, ...]
    head: FilledMatrix


class _Step(torch.nn.Module):
    """A run whose attention cuts its own windows, with the soft cap that litert-torch 0.10 leaves to the reader."""

    def __init__(self, step: torch.nn.Module, cap: float) -> None:
        super().__init__()
        self._step, self._cap = step, cap

    def forward(self, embeddings: Any, per_layer_embeddings: Any, input_pos: Any, kv_cache: Any, mask: Any) -> Any:
        """See the module's description."""
        # Else litert-torch makes a mask of windows as long as the cache, which could not be resized.
        outputs = self._step(embeddings, per_layer_embeddings, input_pos, kv_cache, mask, local_mask=mask)
        if self._cap and "logits" in outputs:
            outputs["logits"] = self._cap * torch.tanh(outputs["logits"] / self._cap)
        return outputs


def build_litert_decoder(
    checkpoint: Checkpoint,
    config: TextConfig,
    settings: LinearSettings,
    context_length: int,
    path: Path,
) -> BuiltLitertDecoder:
    """Write the decoder to a file.

    Raises:
        CheckpointError: the model has no per-layer embeddings.
    """
    if not config.per_layer_input_size:
        raise CheckpointError(
            "models without per-layer embeddings cannot be converted for litert yet: choose the target onnx."
        )
    head = EMBEDDING if config.ties_embeddings else HEAD
    with patched_transformers("gemma4"):
        model = build_model(checkpoint, "text_config", WINDOWED_ATTENTION)
        places = _take_places(model, checkpoint, head)
        cap, resizes = config.final_logit_softcap, is_resizable(config, context_length)
        length, ending = (STAND_IN, ANY_LENGTH) if resizes else (context_length, "")
        signatures = _signatures(model, checkpoint.folder, length, cap, ending)
        with patch_builtin_tuple_for_export():
            graph = convert_graph(signatures, places)
        if resizes:
            graph = set_cache_length(graph, context_length)
        matrices, filled = fill_graph(graph, places, checkpoint, settings, path)
    (head_filled,) = (place for place, matrix in zip(filled, matrices, strict=True) if matrix.tensor == head)
    return BuiltLitertDecoder(_caches(config), matrices, head_filled)


def is_resizable(config: TextConfig, context_length: int) -> bool:
    """Whether the context is longer than the shortest caches, so that there are several lengths."""
    windows = [config.sliding_window for layer in config.layers if layer.kind == "sliding"]
    return STAND_IN > shortest_cache(windows) < context_length


def decode_signature(config: TextConfig, context_length: int) -> str:
    """The one that gives logits."""
    return f"decode{ANY_LENGTH}" if is_resizable(config, context_length) else "decode"


def _take_places(model: Any, checkpoint: Checkpoint, head: str) -> Places:
    """The decoder without its tables, which belong to graphs of their own."""
    decoder, places = model.model.language_model, Places()
    del decoder.embed_tokens, decoder.embed_tokens_per_layer
    places.take(decoder, lambda name: f"{LAYERS}{name}.weight")
    # Its name, when embeddings are tied, is that of the table.
    places.take(model, lambda name: head if name == "lm_head" else None)
    read_small_tensors(decoder, checkpoint, LAYERS)
    return places


def _signatures(model: Any, folder: Path, cache_length: int, cap: float, ending: str) -> list[Signature]:
    export = ExportableModuleConfig(
        model=str(folder),
        task=ExportTask.TEXT_GENERATION,
        externalize_embedder=True,
        single_token_embedder=True,
        prefill_lengths=[min(PREFILL_LENGTH, cache_length)],
        cache_length=cache_length,
        quantization_recipe=None,
    )
    config = model.config.text_config
    prefill, step = PrefillModule(model, export), DecodeModule(model, export)
    return [
        Signature(f"{name}{ending}", _Step(module, cap), inputs)
        for module in (prefill, step)
        for name, (inputs, _) in module.get_sample_inputs(config).items()
    ]


def _caches(config: TextConfig) -> tuple[KeyValueCache, ...]:
    """Caches keep the whole context in sliding layers too."""
    caches = []
    for index, layer in enumerate(config.layers):
        if index in config.sharing_layers:
            continue
        key, value = f"kv_cache_k_{index}", f"kv_cache_v_{index}"
        caches.append(
            KeyValueCache(
                layer=index,
                kind=layer.kind,
                window=config.sliding_window if layer.kind == "sliding" else 0,
                heads=layer.kv_heads,
                head_size=layer.head_size,
                past_key=key,
                past_value=value,
                present_key=key,
                present_value=value,
            )
        )
    return tuple(caches)
