"""LoRA adapters as peft saves them, merged into the tensors of a checkpoint while these are read.

A module `NAME` that was trained by factors has, behind the prefix `base_model.model.`,

    NAME.lora_A.weight            [rank, inputs]
    NAME.lora_B.weight            [outputs, rank]        weight + scaling * B A
    NAME.lora_magnitude_vector    [outputs]              DoRA: the lengths of the merged rows
    NAME.lora_embedding_{A,B}     [rank, rows], [columns, rank]      an embedding: weight + scaling * (B A)^T
    NAME.base_layer.weight        the weight itself, which peft may save for embeddings

and one that was trained whole has its tensors under their own names. Source: peft 0.21, `tuners/lora/layer.py` and
`dora.py`; DoRA is https://arxiv.org/abs/2402.09353, equation 5.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cabochon.package import file_chunks
from cabochon_convert.checkpoint import (
    Checkpoint,
    CheckpointError,
    TensorRecord,
    read_bytes,
    read_header,
    read_json,
    reading,
)
from cabochon_convert.lora_config import ADAPTER_CONFIG_NAME, LoraConfig, read_lora_config
from cabochon_convert.low_rank import LowRankChange
from cabochon_convert.recipes import EMBEDDING, HEAD

ADAPTER_NAME = "adapter_model.safetensors"
_PICKLE_NAME = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:(?P<part>lora_[AB])\.weight|(?P<table>lora_embedding_[AB])"
    r"|(?P<length>lora_magnitude_vector)(?:\.weight)?)",
    re.DOTALL,
)
_BASE = ".base_layer.weight"


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter whose files were found complete."""

    config: LoraConfig
    records: dict[str, TensorRecord]
    """By name, without the prefix."""


def open_adapter(folder: Path) -> LoraAdapter:
    """Find the config and the tensors of an adapter.

    Raises:
        CheckpointError: no adapter, a damaged file, another kind of adapter than LoRA.
    """
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} is not a LoRA adapter: it has no {ADAPTER_CONFIG_NAME}.")
    config = read_lora_config(read_json(folder / ADAPTER_CONFIG_NAME))
    path = folder / ADAPTER_NAME
    if not path.is_file():
        kind = " but a pickle" if (folder / _PICKLE_NAME).is_file() else ""
        raise CheckpointError(f"{folder} has no {ADAPTER_NAME}{kind}: save the adapter as safetensors.")
    try:
        records = read_header(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
    named = {name.removeprefix(_PREFIX): record for name, record in records.items()}
    if not named or len(named) < len(records):
        raise CheckpointError(f"{path} holds no tensors, or one of them twice: save the adapter again.")
    return LoraAdapter(config, named)


def hash_adapter(folder: Path) -> str:
    """SHA-256 over an adapter's config and weights, in this order."""
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_NAME):
        with reading(folder / name):
            for chunk in file_chunks(folder / name):
                digest.update(chunk)
    return digest.hexdigest()


def merge_adapter(checkpoint: Checkpoint, adapter: LoraAdapter, *, ties_embeddings: bool) -> Checkpoint:
    """The checkpoint as the adapter changes it; nothing is read yet.

    Where an adapter changes one of two tied matrices, or both differently, the other keeps what it was trained beside:
    the checkpoint then has an output matrix of its own. (peft's forward pass does the same; its merge_and_unload would
    change both.)

    Args:
        ties_embeddings: the output matrix is the token embeddings.

    Raises:
        CheckpointError: the adapter does not fit the checkpoint, or is not whole.
    """
    merge = _Merge(checkpoint, adapter, ties_embeddings=ties_embeddings)
    has_own_head = ties_embeddings and merge.parts_head()
    return checkpoint.changed(merge.replaced, merge.changes, has_own_head=has_own_head)


class _Merge:
    """Tensors of a checkpoint that an adapter replaces or changes, by the checkpoint's names."""

    def __init__(self, checkpoint: Checkpoint, adapter: LoraAdapter, *, ties_embeddings: bool) -> None:
        self._checkpoint, self._adapter, self._config = checkpoint, adapter, adapter.config
        self._ties_embeddings = ties_embeddings
        self.replaced: dict[str, TensorRecord] = {}
        self.changes: dict[str, LowRankChange] = {}
        bases: dict[str, TensorRecord] = {}
        factors: dict[str, dict[str, TensorRecord]] = {}
        for name, record in adapter.records.items():
            if match := _FACTOR.fullmatch(name):
                part = match["part"] or match["table"] or match["length"]
                factors.setdefault(match["module"], {})[part] = record
            elif name.endswith(_BASE):
                bases[name.removesuffix(_BASE)] = record
            else:
                self._replace(name, record)
        self._replace_bases(bases)
        for module, parts in factors.items():
            self._change(module, parts)

    def parts_head(self) -> bool:
        """Whether the tied matrices differ from now on; if not, one record and one change serve both."""
        tied = (EMBEDDING, HEAD)
        if not any(name in self.replaced or name in self.changes for name in tied):
            return False
        table, head = (self.replaced.get(name, self._tied_record) for name in tied)
        if _hold_the_same(table, head) and _change_alike(self.changes.get(EMBEDDING), self.changes.get(HEAD)):
            self.replaced.pop(HEAD, None)
            self.changes.pop(HEAD, None)
            return False
        self.replaced[HEAD] = head
        return True

    @property
    def _tied_record(self) -> TensorRecord:
        return self._checkpoint.record(EMBEDDING)

    def _replace(self, name: str, record: TensorRecord) -> None:
        """A tensor of a module that was trained whole."""
        if not self._config.saves(name):
            raise CheckpointError(
                f"the adapter's tensor {name} is neither a factor of LoRA nor of a module in modules_to_save: "
                "only these can be merged."
            )
        module, _, leaf = name.rpartition(".")
        self._keep_record(self._home(module, leaf, name), record)

    def _replace_bases(self, bases: dict[str, TensorRecord]) -> None:
        """Embeddings that were saved although only their factors were trained; tied ones are the same in memory."""
        for module, record in bases.items():
            self._keep_record(self._home(module, "weight", module + _BASE), record)
        for home, partner in ((EMBEDDING, HEAD), (HEAD, EMBEDDING)):
            if bases and self._ties_embeddings and home in self.replaced:
                self.replaced.setdefault(partner, self.replaced[home])

    def _change(self, module: str, parts: dict[str, TensorRecord]) -> None:
        """A matrix that was trained by factors."""
        if not self._config.adapts(module):
            raise CheckpointError(
                f"the adapter has factors of {module}, which its {ADAPTER_CONFIG_NAME} leaves out by target_modules, "
                "exclude_modules or layers_to_transform: config and weights do not belong together."
            )
        is_table = any(part.startswith("lora_embedding") for part in parts)
        first, second = ("lora_embedding_A", "lora_embedding_B") if is_table else ("lora_A", "lora_B")
        length = {"lora_magnitude_vector"} if self._config.has_magnitudes else set()
        if missing := sorted(({first, second} | length) - parts.keys()):
            raise CheckpointError(f"the adapter has factors of {module}, but no {missing[0]}: save it again.")
        if extra := sorted(parts.keys() - {first, second} - length):
            raise CheckpointError(f"the adapter has an unexpected {extra[0]} of {module}: save it again.")
        if is_table and length:
            raise CheckpointError(
                f"the adapter trains the embedding {module} with DoRA, which is not implemented: "
                "merge it with peft's merge_and_unload and convert the result."
            )
        home = self._home(module, "weight", module)
        change = LowRankChange(
            tensor=home,
            left=parts[first if is_table else second],
            right=parts[second if is_table else first],
            is_table=is_table,
            scaling=self._config.scaling_of(module),
            lengths=parts.get("lora_magnitude_vector"),
        )
        change.refuse_misfit(self._record(home).shape, self._config.rank_of(module))
        if home in self.changes:
            raise _twice(home)
        self.changes[home] = change

    def _keep_record(self, home: str, record: TensorRecord) -> None:
        if home in self.replaced:
            raise _twice(home)
        shape = self._record(home).shape
        if record.shape != shape:
            raise CheckpointError(
                f"the adapter has {home} with shape {list(record.shape)}, but the checkpoint's is {list(shape)}: "
                "it belongs to another model, or to a larger vocabulary."
            )
        self.replaced[home] = record

    def _record(self, home: str) -> TensorRecord:
        is_tied_head = self._ties_embeddings and home == HEAD
        return self._tied_record if is_tied_head else self._checkpoint.record(home)

    def _home(self, module: str, leaf: str, name: str) -> str:
        """The checkpoint's tensor that a module's tensor belongs to, whatever class of model was trained."""
        if self._ties_embeddings and f"{module}.{leaf}" == HEAD:
            return HEAD
        for root in _roots(module):
            for found in (f"{root}.{leaf}", f"{root}.linear.{leaf}"):
                if found in self._checkpoint:
                    return found
        raise CheckpointError(
            f"the adapter changes {name}, which the checkpoint does not have: it was trained on another model."
        )


def _twice(home: str) -> CheckpointError:
    return CheckpointError(f"the adapter changes {home} twice, under two names: save it again.")


def _roots(module: str) -> Iterator[str]:
    """Names of a module in the whole model: trained in it, in its text model alone, or without the head."""
    yield module
    yield f"model.{module}"
    yield f"model.language_model.{module.removeprefix('model.')}"


def _change_alike(table: LowRankChange | None, head: LowRankChange | None) -> bool:
    """Whether two tied matrices are changed alike: peft's ensure_weight_tying saves both with the same factors."""
    if table is None or head is None:
        return table is head
    if table.scaling != head.scaling or head.lengths is not None:
        return False
    return all(np.array_equal(ours, theirs) for ours, theirs in zip(table.factors(), head.factors(), strict=True))


def _hold_the_same(first: TensorRecord, second: TensorRecord) -> bool:
    """Whether two tensors are byte for byte the same."""
    if first == second:
        return True
    if (first.shape, first.storage) != (second.shape, second.storage):
        return False
    step = 1 << 24
    for start in range(0, first.size, step):
        count = min(step, first.size - start)
        ours, theirs = (read_bytes(record, start, count) for record in (first, second))
        if not np.array_equal(ours, theirs):
            return False
    return True
