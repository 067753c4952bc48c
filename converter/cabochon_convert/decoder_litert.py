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

Where a drafter reads them, `decode` also gives `hidden_states` float32 [1, 1, hidden], behind the last norm, and
`verify_N_any_cache` (or `verify_N`) gives logits and hidden states of N positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cabochon.cache_lengths import ANY_LENGTH, PREFILL_LENGTH, cache_lengths, shortest_cache
from cabochon.draft_length import LONGEST_DRAFT
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
VERIFY = "verify"
LEAST_DRAFTS = 3
"""One run verifies: two to five positions of E2B's output matrix take the same time (x86, 4 bits: 1.2 to 1.4 times one;
nine 2.6 times), and XNNPACK's kernels for Arm take four at once."""


@dataclass(frozen=True, slots=True)
class BuiltLitertDecoder:
    """What the manifest has to say about it."""

    caches: tuple[KeyValueCache, ...]
    matrices: tuple[CheckpointMatrix, ...]
    head: FilledMatrix


class _Step(torch.nn.Module):
    """A run whose attention cuts its own windows, with its output matrix where it gives logits.

    And with the soft cap that litert-torch 0.10 leaves to the reader, and LiteRT-LM leaves out.
    """

    def __init__(self, step: torch.nn.Module, matrix: torch.nn.Module, cap: float, gives_hidden_states: bool) -> None:
        super().__init__()
        self._step, self._matrix, self._cap = step, matrix, cap
        self._gives_hidden_states = gives_hidden_states

    def forward(self, embeddings: Any, per_layer_embeddings: Any, input_pos: Any, kv_cache: Any, mask: Any) -> Any:
        """See the module's description."""
        # Else litert-torch makes a mask of windows as long as the cache, which could not be resized.
        outputs = self._step(embeddings, per_layer_embeddings, input_pos, kv_cache, mask, local_mask=mask)
        if "logits" not in outputs:
            return outputs
        # The step's own head hands them on.
        hidden_states = outputs["logits"]
        logits = self._matrix(hidden_states)
        outputs["logits"] = self._cap * torch.tanh(logits / self._cap) if self._cap else logits
        if self._gives_hidden_states:
            outputs["hidden_states"] = hidden_states
        return outputs


def build_litert_decoder(
    checkpoint: Checkpoint,
    config: TextConfig,
    settings: LinearSettings,
    context_length: int,
    path: Path,
    verified_positions: int = 0,
) -> BuiltLitertDecoder:
    """Write the decoder to a file.

    Args:
        verified_positions: of which one run is to give logits and hidden states, for a drafter; 0 without one.

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
        output_matrix, model.lm_head = model.lm_head, torch.nn.Identity()
        resizes = is_resizable(config, context_length)
        length, ending = (STAND_IN, ANY_LENGTH) if resizes else (context_length, "")
        exporter = _Exporter(model, output_matrix, checkpoint.folder, config.final_logit_softcap, verified_positions)
        signatures = exporter.signatures(length, ending)
        with patch_builtin_tuple_for_export():
            graph = convert_graph(signatures, places)
        if resizes:
            graph = set_cache_length(graph, context_length)
        matrices, filled = fill_graph(graph, places, checkpoint, settings, path)
    (head_filled,) = (place for place, matrix in zip(filled, matrices, strict=True) if matrix.tensor == head)
    return BuiltLitertDecoder(_caches(config), matrices, head_filled)


def verified_positions(recommended_drafts: int) -> int:
    """Of which one run is to give logits: those of as many drafts as a drafter's checkpoint recommends, and one more.

    Fewer drafts fill it up, more take several runs.
    """
    return 1 + min(max(recommended_drafts, LEAST_DRAFTS), LONGEST_DRAFT)


def is_resizable(config: TextConfig, context_length: int) -> bool:
    """Whether the context is longer than the shortest caches, so that there are several lengths."""
    return STAND_IN > _shortest_cache(config) < context_length


def lengths_in_use(config: TextConfig, context_length: int) -> tuple[int, ...]:
    """Of the caches, one after another."""
    return cache_lengths(context_length, _shortest_cache(config))


def _shortest_cache(config: TextConfig) -> int:
    return shortest_cache(config.sliding_window for layer in config.layers if layer.kind == "sliding")


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


@dataclass(frozen=True, slots=True)
class _Exporter:
    """Makes the signatures of caches of one length."""

    model: Any
    output_matrix: torch.nn.Module
    folder: Path
    cap: float
    verified_positions: int

    def signatures(self, cache_length: int, ending: str) -> list[Signature]:
        """Prefill and decode, and verify for a drafter. Args: ending: of their names."""
        config, count = self.model.config.text_config, self.verified_positions
        prefill = PrefillModule(self.model, self._settings(cache_length, min(PREFILL_LENGTH, cache_length)))
        decode = DecodeModule(self.model, self._settings(cache_length, 1))
        inputs = prefill.get_sample_inputs(config) | decode.get_sample_inputs(config)
        if count:
            # Such a run takes what a prefill of as many positions takes.
            several = PrefillModule(self.model, self._settings(cache_length, min(count, cache_length)))
            inputs |= {f"{VERIFY}_{count}": each for each in several.get_sample_inputs(config).values()}
        silent, answering = (
            _Step(each, self.output_matrix, self.cap, gives_hidden_states=count > 0) for each in (prefill, decode)
        )
        return [
            Signature(f"{name}{ending}", silent if name.startswith("prefill") else answering, sample)
            for name, (sample, _) in inputs.items()
        ]

    def _settings(self, cache_length: int, positions: int) -> Any:
        return ExportableModuleConfig(
            model=str(self.folder),
            task=ExportTask.TEXT_GENERATION,
            externalize_embedder=True,
            single_token_embedder=True,
            prefill_lengths=[positions],
            cache_length=cache_length,
            quantization_recipe=None,
        )


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
