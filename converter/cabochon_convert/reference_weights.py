"""Weights of the reference, straight from the checkpoint: as much as may stay in memory, the rest in passing.

transformers builds its own modules without memory for their weights. What is small is read at once. A layer's weights
are read as float32 right before it runs and, beyond the memory that may be used, dropped right after. Of embedding
tables only the rows of the prompt are read; the matrix of the head is multiplied part by part. The maths stays that of
transformers' modules: only where their weights come from changes.

(accelerate offloads layers too, but reads embedding tables whole, which for E2B is more than all of its layers.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.errors import missing_dependency
from cabochon_convert.checkpoint import Checkpoint, CheckpointError, RowMerge, read_json
from cabochon_convert.config import ARCHITECTURES
from cabochon_convert.packed_integers import PackedIntegers
from cabochon_convert.quantization_config import CompressedTensorsQuantization, read_quantization
from cabochon_convert.quantize import dequantize_matrix
from cabochon_convert.source import CheckpointSource, open_source
from cabochon_convert.trained_integers import to_blocks

try:
    import safetensors
    import torch
    import transformers
except ImportError as error:
    raise missing_dependency(str(error.name), "verify") from None

TOKEN_TABLE = "model.language_model.embed_tokens"
TABLES = (TOKEN_TABLE, "model.language_model.embed_tokens_per_layer")
DECODER_LAYERS, AUDIO_LAYERS = "model.language_model.layers", "model.audio_tower.layers"
VISION_PARTS = ("model.vision_tower.", "model.embed_vision.")
# 100 MB of float32 in E2B.
HEAD_ROWS_AT_ONCE = 1 << 14
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def resident_memory() -> int:
    """Bytes of float32 weights that may stay in memory: a quarter of the machine's memory, or of its container's.

    The rest is for the layer that is passing, for activations, and for the pages of the checkpoint, which are read
    again in every pass.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in (CONTROL_GROUPS / "memory.max", CONTROL_GROUPS / "memory" / "memory.limit_in_bytes"):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits) // 4


def load_model(checkpoint: CheckpointSource | Path, memory: int, on_layer: Callable[[], None]) -> Any:
    """transformers' Gemma 4 with its text and audio parts, in float32, ready to run.

    Args:
        checkpoint: the checkpoint, or its folder.
        memory: bytes of float32 weights that may stay in memory.
        on_layer: called whenever a layer of the decoder or the audio encoder has run.

    Raises:
        CheckpointError: a weight is missing or has another shape than the config asks for, or a file is damaged.
    """
    store = _Store(checkpoint)
    model = _build_without_weights(store.folder)
    decoder_layers, audio_layers = (_children(model, name) for name in (DECODER_LAYERS, AUDIO_LAYERS))
    tables = {name: model.get_submodule(name) for name in TABLES if _has(model, name)}
    for name, module in tables.items():
        _look_rows_up(module, store.matrix(f"{name}.weight", module.weight.shape))
    is_tied = model.config.tie_word_embeddings and not store.has_own_head
    head = f"{TOKEN_TABLE}.weight" if is_tied else "lm_head.weight"
    model.lm_head = _HeadInParts(store.matrix(head, model.lm_head.weight.shape))
    apart = tuple(f"{name}." for name in (*decoder_layers, *audio_layers, *tables))
    small = {name: value.shape for name, value in model.state_dict().items() if not name.startswith(apart)}
    model.load_state_dict({name: store.read(name, small[name]) for name in small}, strict=False, assign=True)
    # Every token goes through the decoder and the head, sound only once through the encoder.
    passing = [_PassingWeights(module, f"{name}.", store) for name, module in decoder_layers.items()]
    passing += [model.lm_head]
    passing += [_PassingWeights(module, f"{name}.", store) for name, module in audio_layers.items()]
    for weights in passing:
        if weights.size <= memory:
            memory -= weights.size
            weights.stay()
    for module in (*decoder_layers.values(), *audio_layers.values()):
        module.register_forward_hook(lambda *_: on_layer())
    return model.eval()


def load_vision(checkpoint: CheckpointSource | Path) -> Any:
    """transformers' Gemma 4 of which only the vision tower and its projection have weights, in float32, ready to see.

    Raises:
        CheckpointError: see `load_model`.
    """
    store = _Store(checkpoint)
    model = _build_without_weights(store.folder, with_vision=True)
    shapes = {name: value.shape for name, value in model.state_dict().items() if name.startswith(VISION_PARTS)}
    model.load_state_dict({name: store.read(name, shape) for name, shape in shapes.items()}, strict=False, assign=True)
    return model.eval()


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix as it is stored, whose pages are read when they are used, and what an adapter does to its rows then."""

    stored: Any
    merge: RowMerge | None

    def rows(self, rows: Any) -> Any:
        """Rows as float32, chosen by a slice or by their indices."""
        values = self.stored[rows].float()
        if self.merge is None:
            return values
        return torch.from_numpy(self.merge(values.numpy(), rows if isinstance(rows, slice) else rows.numpy()))


class _Store:
    """Tensors of a checkpoint, mapped into memory by safetensors."""

    def __init__(self, checkpoint: CheckpointSource | Path) -> None:
        self._checkpoint = open_source(checkpoint)
        self._integers = _packed_integers(self._checkpoint)
        self._files: dict[Path, Any] = {}

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return self._checkpoint.folder

    @property
    def has_own_head(self) -> bool:
        """See `Checkpoint.has_own_head`."""
        return self._checkpoint.has_own_head

    def matrix(self, name: str, shape: tuple[int, ...]) -> _Matrix:
        """A matrix that is too large to be read at once."""
        return _Matrix(self._stored(name, shape), self._checkpoint.row_merge(name))

    def read(self, name: str, shape: tuple[int, ...]) -> Any:
        """A tensor as float32; integers times their scales."""
        if len(shape) == 2 and self._integers is not None:
            rows_and_columns = (shape[0], shape[1])
            precision = self._integers.precision(name, rows_and_columns)
            if precision is not None:
                parts = self._integers.rows(name, rows_and_columns, range(shape[0]))
                weights = [dequantize_matrix(to_blocks(part, precision), shape[1], precision) for part in parts]
                return torch.from_numpy(np.concatenate(weights))
        values = self._stored(name, shape).float()
        merge = self._checkpoint.row_merge(name)
        return values if merge is None else torch.from_numpy(merge(values.numpy(), slice(None)))

    def _stored(self, name: str, shape: tuple[int, ...]) -> Any:
        """A tensor as it is stored: its pages are read when they are used."""
        record = self._checkpoint.record(name)
        if record.shape != tuple(shape):
            raise CheckpointError(
                f"the tensor {name} has shape {list(record.shape)}, but config.json leads to {list(shape)}: "
                "the weights do not belong to this config."
            )
        if record.file not in self._files:
            self._files[record.file] = safetensors.safe_open(str(record.file), framework="pt")
        return self._files[record.file].get_tensor(record.name)


def _packed_integers(checkpoint: Checkpoint) -> PackedIntegers | None:
    """What compressed-tensors packed; None where all weights are floating point.

    Raises:
        CheckpointError: another format, of which activations are rounded too.
    """
    quantization = read_quantization(read_json(checkpoint.folder / "config.json").get("quantization_config"))
    if quantization is None:
        return None
    if not isinstance(quantization, CompressedTensorsQuantization):
        raise CheckpointError(
            f"{checkpoint.folder} rounds activations to integers too, which the reference does not yet: "
            "verify against the unquantized (bf16) original."
        )
    return PackedIntegers(checkpoint, quantization)


class _PassingWeights:
    """The weights of one layer: there while it runs, or for good."""

    def __init__(self, module: Any, prefix: str, store: _Store) -> None:
        self._module, self._prefix, self._store = module, prefix, store
        self._absent = dict(module.state_dict())
        self._handles = (
            module.register_forward_pre_hook(lambda *_: self._read()),
            module.register_forward_hook(lambda *_: self._drop()),
        )

    @property
    def size(self) -> int:
        """Bytes as float32."""
        return sum(4 * int(value.numel()) for value in self._absent.values())

    def stay(self) -> None:
        """Read the weights and keep them."""
        for handle in self._handles:
            handle.remove()
        self._read()

    def _read(self) -> None:
        values = {name: self._store.read(self._prefix + name, value.shape) for name, value in self._absent.items()}
        self._module.load_state_dict(values, assign=True)

    def _drop(self) -> None:
        self._module.load_state_dict(self._absent, assign=True)


class _HeadInParts(torch.nn.Module):
    """The output matrix [vocabulary, hidden] as stored, widened part by part while it is multiplied."""

    def __init__(self, matrix: _Matrix) -> None:
        super().__init__()
        self._matrix = matrix

    @property
    def size(self) -> int:
        """Bytes as float32."""
        return 4 * int(self._matrix.stored.numel())

    def stay(self) -> None:
        """Keep the whole matrix as float32."""
        self._matrix = _Matrix(self._matrix.rows(slice(None)), None)

    def forward(self, hidden: Any) -> Any:
        """Hidden states [..., hidden] to logits [..., vocabulary]."""
        matrix = self._matrix
        if matrix.merge is None and matrix.stored.dtype == torch.float32:
            return torch.nn.functional.linear(hidden, matrix.stored)
        starts = range(0, len(matrix.stored), HEAD_ROWS_AT_ONCE)
        parts = (matrix.rows(slice(start, start + HEAD_ROWS_AT_ONCE)) for start in starts)
        return torch.cat([torch.nn.functional.linear(hidden, part) for part in parts], dim=-1)


def _build_without_weights(checkpoint: Path, *, with_vision: bool = False) -> Any:
    """The model on the meta device; only what no checkpoint holds (frequencies, scales, soft caps) has values."""
    config = transformers.AutoConfig.from_pretrained(str(checkpoint))
    if not with_vision:
        config.vision_config = None
    for part in (config, config.text_config, config.audio_config, config.vision_config):
        if part is not None:
            part.dtype = torch.float32
    with torch.device("meta"):
        model = getattr(transformers, ARCHITECTURES[config.model_type])(config).requires_grad_(False)
    stored = model.state_dict()
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_buffers(path, recurse=False) if name not in stored]
        for name in names:
            leaf = name.rpartition(".")[2]
            setattr(module, leaf, torch.empty_like(getattr(module, leaf), device="cpu"))
        if names:
            model._init_weights(module)  # what from_pretrained does with them
    return model


def _look_rows_up(module: Any, table: _Matrix) -> None:
    """Give an embedding module, while it runs, a matrix that holds only the rows that it is asked for."""

    def narrow(_: Any, arguments: tuple[Any]) -> tuple[Any]:
        tokens, places = arguments[0].unique(return_inverse=True)
        module.weight = torch.nn.Parameter(table.rows(tokens), requires_grad=False)
        return (places,)

    def widen(*_: Any) -> None:
        module.weight = torch.nn.Parameter(table.stored, requires_grad=False)

    widen()
    module.register_forward_pre_hook(narrow)
    module.register_forward_hook(widen)


def _children(model: Any, name: str) -> dict[str, Any]:
    """The members of a list of modules, by their full names; none where the model has no such list."""
    if not _has(model, name):
        return {}
    return {f"{name}.{index}": module for index, module in enumerate(model.get_submodule(name))}


def _has(model: Any, name: str) -> bool:
    return name in dict(model.named_modules())
