"""Reading a Hugging Face checkpoint folder tensor by tensor: config files and safetensors, without torch.

A tensor is mapped, copied and unmapped again, so that converting ten gigabytes needs the memory of one tensor.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array, widen_bfloat16
from cabochon.errors import CabochonError, named_file
from cabochon.package import file_chunks

BITS = {"F32": 32, "F16": 16, "BF16": 16}
"""Storage types of floating-point tensors, by their safetensors names."""
INTEGER_TYPES = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64}
"""Storage types of integers."""
_ALL_BITS = BITS | {storage: np.dtype(dtype).itemsize * 8 for storage, dtype in INTEGER_TYPES.items()}
# The reference implementation refuses longer headers: https://github.com/huggingface/safetensors (format, "100MB").
MAX_HEADER_BYTES = 100_000_000
# Enough to keep numpy busy, little enough that a few copies in float32 stay far below a gigabyte.
VALUES_AT_ONCE = 8 << 20
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
RowIndex = slice | npt.NDArray[np.int64]
"""Rows of a matrix: a run of them, or one after the other."""
RowMerge = Callable[[Float32Array, RowIndex], Float32Array]
"""Takes rows of a matrix as stored, and which ones they are; returns them changed."""


class CheckpointError(CabochonError, ValueError):
    """A checkpoint that cannot be converted: missing, damaged, or of another architecture."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where one tensor lies."""

    name: str
    file: Path
    offset: int
    """Byte of its first value in the file."""
    shape: tuple[int, ...]
    storage: str
    """Safetensors' name of the type: BF16 …"""

    @property
    def row_bytes(self) -> int:
        """Bytes of one step of the first dimension."""
        return math.prod(self.shape[1:]) * _ALL_BITS.get(self.storage, 8) // 8

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * _ALL_BITS.get(self.storage, 8) // 8


class WeightChange(Protocol):
    """What an adapter does to a matrix."""

    def open(self) -> RowMerge:
        """Read what the change needs in memory."""


class Checkpoint:
    """A checkpoint folder whose files were found complete; remembers which tensors were read."""

    has_own_head = False
    """Whether an adapter has parted an output matrix from the token embeddings that config.json ties it to."""

    def __init__(
        self, folder: Path, records: dict[str, TensorRecord], on_read: Callable[[int], None] | None = None
    ) -> None:
        self.folder = folder
        self.files = tuple(sorted({record.file for record in records.values()}))
        """The checkpoint's own weight files, in name order."""
        self.changed_names: tuple[str, ...] = ()
        """Tensors that an adapter replaces or changes, in name order."""
        self._records = records
        self._changes: Mapping[str, WeightChange] = {}
        self._on_read = on_read or (lambda _: None)
        self._read_names: set[str] = set()

    def changed(
        self, replaced: Mapping[str, TensorRecord], changes: Mapping[str, WeightChange], *, has_own_head: bool
    ) -> Checkpoint:
        """The same checkpoint with some tensors from elsewhere, and some matrices changed while they are read."""
        other = Checkpoint(self.folder, {**self._records, **replaced}, self._on_read)
        other.files, other._changes, other.has_own_head = self.files, changes, has_own_head
        other.changed_names = tuple(sorted({*replaced, *changes}))
        return other

    def __contains__(self, name: str) -> bool:
        return name in self._records

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in name order."""
        return tuple(sorted(self._records))

    @property
    def unread_names(self) -> tuple[str, ...]:
        """Tensors that nobody asked for so far."""
        return tuple(sorted(self._records.keys() - self._read_names))

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def value_count(self) -> int:
        """Numbers in all tensors together."""
        return sum(math.prod(record.shape) for record in self._records.values())

    def size_of(self, prefix: str) -> int:
        """Bytes of the tensors whose names start so."""
        return sum(record.size for name, record in self._records.items() if name.startswith(prefix))

    def record(self, name: str) -> TensorRecord:
        """The record of a tensor that must exist. Where an adapter changes it, reading gives float32."""
        if name not in self._records:
            raise CheckpointError(f"{self.folder} has no tensor {name}, which its config.json asks for.")
        record = self._records[name]
        return replace(record, storage="F32") if name in self._changes else record

    def row_merge(self, name: str) -> RowMerge | None:
        """What has to be done to rows of a matrix that were read by its record; None if nothing."""
        return self._changes[name].open() if name in self._changes else None

    def read(self, name: str, shape: tuple[int, ...], *, may_be_infinite: bool = False) -> Float32Array:
        """A whole tensor as float32; CheckpointError unless it has the shape that the config leads to expect."""
        record = self._expect(name, shape)
        values = _read_values(record, 0, math.prod(shape))
        if not may_be_infinite:
            _refuse_not_finite(record, values)
        merge = self.row_merge(name)
        self._on_read(record.size)
        return merge(values.reshape(shape), slice(None)) if merge else values.reshape(shape)

    def read_rows(self, name: str, shape: tuple[int, int], rows: range | None = None) -> Iterator[Float32Array]:
        """Some or all rows of a matrix as float32, a few megabytes at a time: [some rows, columns]."""
        record, merge = self._expect(name, shape), self.row_merge(name)
        for part in _row_parts(range(shape[0]) if rows is None else rows, shape[1]):
            values = _read_values(record, part.start * shape[1], len(part) * shape[1])
            _refuse_not_finite(record, values)
            values = values.reshape(len(part), shape[1])
            yield merge(values, slice(part.start, part.stop)) if merge else values
            self._on_read(len(part) * record.row_bytes)

    def read_stored_rows(self, name: str, shape: tuple[int, int]) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of a matrix as its record has them, a few megabytes at a time: uint8 [some rows, row bytes]."""
        if name in self._changes:
            yield from (part.view(np.uint8) for part in self.read_rows(name, shape))
            return
        record = self._expect(name, shape)
        for part in _row_parts(range(shape[0]), shape[1]):
            yield read_bytes(record, part.start * record.row_bytes, len(part) * record.row_bytes).reshape(len(part), -1)
            self._on_read(len(part) * record.row_bytes)

    def read_integer_rows(
        self, name: str, shape: tuple[int, int], storage: str, rows: range | None = None
    ) -> Iterator[npt.NDArray[np.integer]]:
        """Some or all rows of a matrix of integers of this storage type, a few megabytes at a time."""
        record = self._expect(name, shape, (storage,))
        # A byte may hold four values.
        for part in _row_parts(range(shape[0]) if rows is None else rows, 4 * shape[1]):
            found = read_bytes(record, part.start * record.row_bytes, len(part) * record.row_bytes)
            yield found.view(INTEGER_TYPES[storage]).reshape(len(part), shape[1])
            self._on_read(len(part) * record.row_bytes)

    def read_integers(self, name: str, shape: tuple[int, ...], storage: str) -> npt.NDArray[np.integer]:
        """A whole tensor of integers of this storage type, which fits in memory."""
        record = self._expect(name, shape, (storage,))
        found = read_bytes(record, 0, record.size).view(INTEGER_TYPES[storage]).reshape(shape)
        self._on_read(record.size)
        return found

    def _expect(self, name: str, shape: tuple[int, ...], storages: Collection[str] = tuple(BITS)) -> TensorRecord:
        self.record(name)
        record = self._records[name]
        self._read_names.add(name)
        if record.shape != shape:
            raise CheckpointError(
                f"the tensor {name} has shape {list(record.shape)}, but config.json leads to {list(shape)}: "
                "the weights do not belong to this config."
            )
        if record.storage not in storages:
            raise CheckpointError(
                f"the tensor {name} is stored as {record.storage}, expected {' or '.join(storages)}: "
                "convert an unquantized checkpoint."
            )
        return record


def open_checkpoint(folder: Path, on_read: Callable[[int], None] | None = None) -> Checkpoint:
    """Find all tensors of a checkpoint folder: one `model.safetensors`, or shards with an index.

    Args:
        folder: the checkpoint.
        on_read: called with the number of bytes whenever some were read.

    Raises:
        CheckpointError: no checkpoint, a missing shard, a damaged header, a truncated file.
    """
    records: dict[str, TensorRecord] = {}
    try:
        _refuse_other_folders(folder)
        for file in _weight_files(folder):
            with named_file(file):
                records.update(read_header(file))
        _check_index(folder, records)
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}).") from None
    return Checkpoint(folder, records, on_read)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError when it is no such thing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: copy the whole checkpoint folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return value


def hash_checkpoint(checkpoint: Checkpoint, progress: Callable[[int], None]) -> str:
    """SHA-256 over config.json and the weight files, in this order; reports the bytes it went through."""
    digest = hashlib.sha256()
    for path in (checkpoint.folder / "config.json", *checkpoint.files):
        with reading(path):
            for chunk in file_chunks(path):
                digest.update(chunk)
                progress(len(chunk))
    return digest.hexdigest()


def _refuse_other_folders(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: expected a Hugging Face checkpoint that lies on this disk.")
    if not (folder / "config.json").is_file():
        kind = (
            "a LoRA adapter: name its model, and the adapter with --lora"
            if (folder / "adapter_config.json").is_file()
            else None
        )
        raise CheckpointError(f"{folder} is {kind or 'not a Hugging Face checkpoint: it has no config.json'}.")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX_NAME).is_file():
        weight_map = read_json(folder / INDEX_NAME).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise CheckpointError(f"{folder / INDEX_NAME} has no usable weight_map.")
        files = [folder / name for name in sorted(set(names))]
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"the shard {file} is missing, but {INDEX_NAME} lists it: download it again.")
        return files
    if not (folder / SINGLE_NAME).is_file():
        raise CheckpointError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}: expected safetensors weights.")
    return [folder / SINGLE_NAME]


def _check_index(folder: Path, records: dict[str, TensorRecord]) -> None:
    if (folder / INDEX_NAME).is_file():
        for name, file in read_json(folder / INDEX_NAME)["weight_map"].items():
            if name not in records or records[name].file.name != file:
                raise CheckpointError(f"{INDEX_NAME} says that {file} holds {name}, but it does not: get it again.")


def read_record(record: TensorRecord) -> Float32Array:
    """A whole tensor of floating-point numbers as float32; CheckpointError unless all are finite."""
    if record.storage not in BITS:
        raise CheckpointError(f"the tensor {record.name} is stored as {record.storage}, expected {' or '.join(BITS)}.")
    values = _read_values(record, 0, math.prod(record.shape)).reshape(record.shape)
    _refuse_not_finite(record, values)
    return values


def read_header(path: Path) -> dict[str, TensorRecord]:
    """Records of one safetensors file: 8 bytes of header length, a JSON header, the values."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{path} is truncated or not a safetensors file: download it again.")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise CheckpointError(f"{path} has a damaged safetensors header: download it again.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a damaged safetensors header: download it again.")
    header.pop("__metadata__", None)
    records = {name: _read_record(path, name, entry, 8 + length, size) for name, entry in header.items()}
    _refuse_overlaps(path, records)
    return records


def _read_record(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> TensorRecord:
    try:
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        storage = entry["dtype"]
        whole = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
        # numpy has 32 dimensions at most, and a product of thousands of numbers would take its time.
        sound = whole and isinstance(storage, str) and begin <= end and len(shape) <= 32
        sound = sound and (storage not in _ALL_BITS or (end - begin) * 8 == math.prod(shape) * _ALL_BITS[storage])
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path} describes the tensor {name!r} wrongly: download it again.")
    if data_start + end > file_size:
        missing = data_start + end - file_size
        raise CheckpointError(f"{path} is truncated: {name!r} ends {missing} bytes behind its end, download it again.")
    return TensorRecord(name, path, data_start + begin, shape, storage)


def _refuse_overlaps(path: Path, records: dict[str, TensorRecord]) -> None:
    """A small file could claim any number of large tensors; the reference implementation takes no such file either."""
    filled = sorted((each for each in records.values() if each.storage in _ALL_BITS and each.size), key=_offset)
    for before, after in itertools.pairwise(filled):
        if before.offset + before.size > after.offset:
            raise CheckpointError(f"{path} holds {before.name!r} and {after.name!r} in the same place: get it again.")


def _offset(record: TensorRecord) -> int:
    return record.offset


def _refuse_not_finite(record: TensorRecord, values: Float32Array) -> None:
    # A sum shows at little cost whether any value is infinite or not a number.
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = not np.isfinite(values.sum())
    if suspicious and not np.isfinite(values).all():
        raise CheckpointError(f"the tensor {record.name} holds values that are not finite: the training went wrong.")


def _row_parts(rows: range, columns: int) -> Iterator[range]:
    """Cut rows into parts of at most 8 M values."""
    step = max(1, VALUES_AT_ONCE // columns)
    for start in range(rows.start, rows.stop, step):
        yield range(start, min(start + step, rows.stop))


def _read_values(record: TensorRecord, first: int, count: int) -> Float32Array:
    """Some consecutive values of a tensor as float32."""
    item = BITS[record.storage] // 8
    stored = np.dtype({"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[record.storage])
    if count == 0:
        return np.zeros(0, np.float32)
    found = read_bytes(record, first * item, count * item).view(stored)
    return widen_bfloat16(found) if record.storage == "BF16" else found.astype(np.float32, copy=False)


def read_bytes(record: TensorRecord, start: int, count: int) -> npt.NDArray[np.uint8]:
    """Some consecutive bytes of a tensor.

    They are read, not mapped: where a file is cut or its disk fails, the system ends a process that has it mapped.

    Raises:
        CheckpointError: the file cannot be read, or became shorter.
    """
    found = np.empty(count, np.uint8)
    rest = found.data
    with reading(record.file), record.file.open("rb", buffering=0) as file:
        file.seek(record.offset + start)
        while rest:
            read = file.readinto(rest)
            if not read:
                raise ValueError(f"it ends {len(rest)} bytes too early")
            rest = rest[read:]
    return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """CheckpointError where a file cannot be read within."""
    try:
        yield
    except (OSError, ValueError) as error:  # numpy's ValueError: the file became shorter
        raise CheckpointError(f"{path} cannot be read ({error}): has it changed meanwhile?") from None


def checkpoint_name(folder: Path) -> str:
    """How the package names its source: the folder's own name, without the path of this machine."""
    return folder.resolve().name
