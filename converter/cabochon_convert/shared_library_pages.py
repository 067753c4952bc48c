"""Whether a kernel with pages of 16 KB, such as that of a Raspberry Pi 5, can load the shared libraries in a wheel."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cabochon.errors import CabochonError

AARCH64, X86_64 = 183, 62
"""EM_AARCH64 and EM_X86_64 in the header of an ELF file."""
PAGES = {"aarch64": (AARCH64, 16384), "x86_64": (X86_64, 4096)}
"""Of each machine that a bundle may be for: its number, and the bytes of the largest pages that its kernels have."""
_HEAD = struct.Struct("<4sBB10xHHIQQQIHHH")
"""e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum."""
_SEGMENT = struct.Struct("<IIQQQQQQ")
"""p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align."""
_LOADED, _CLASS_64, _LITTLE_ENDIAN = 1, 2, 1


class LibraryError(CabochonError, ValueError):
    """A shared library that the device could not load."""


@dataclass(frozen=True, slots=True)
class SharedLibrary:
    """What an ELF file says about where it can be loaded."""

    machine: int
    """As in `AARCH64`."""
    alignment: int
    """Bytes: the smallest of its loaded segments; pages may not be larger. 0 where nothing is loaded."""


def read_shared_library(content: bytes) -> SharedLibrary | None:
    """What the head of a file says; None where it is no 64-bit little-endian ELF file.

    Args:
        content: the beginning of the file, with all program headers, which follow the file's header.

    Raises:
        LibraryError: it ends before its program headers do, or they are of another size.
    """
    if content[:4] != b"\x7fELF":
        return None
    if len(content) < _HEAD.size or content[4:6] != bytes([_CLASS_64, _LITTLE_ENDIAN]):
        raise LibraryError("a library is not a 64-bit little-endian ELF file: choose another version of it.")
    _, _, _, _, machine, _, _, offset, _, _, _, size, count = _HEAD.unpack_from(content)
    if (count and size != _SEGMENT.size) or offset + size * count > len(content):
        raise LibraryError("a library is cut off or has unknown program headers: choose another version of it.")
    segments = [_SEGMENT.unpack_from(content, offset + size * index) for index in range(count)]
    return SharedLibrary(machine, min((each[-1] for each in segments if each[0] == _LOADED), default=0))


def check_wheel(path: Path, machine: str) -> int:
    """Refuse a wheel with a library for another machine or for smaller pages; returns how many libraries it has.

    Args:
        machine: as `uname -m` says.
    """
    number, page = PAGES[machine]
    count = 0
    for name, content in _heads(path):
        try:
            library = read_shared_library(content)
        except LibraryError as error:
            raise LibraryError(f"{path.name}: {name}: {error}") from None
        if library is None:
            continue
        count += 1
        if library.machine != number:
            raise LibraryError(f"{path.name}: {name} is for machine {library.machine}, expected {number} ({machine}).")
        if library.alignment % page or not library.alignment:
            raise LibraryError(
                f"{path.name}: {name} is aligned to {library.alignment} bytes and cannot be loaded with pages of "
                f"{page}, which a kernel for {machine} may have (that of a Raspberry Pi 5 has pages of 16384): choose "
                "another version of it."
            )
    return count


def _heads(path: Path) -> Iterator[tuple[str, bytes]]:
    """Beginnings of the files of a wheel that may be libraries or programs."""
    try:
        with zipfile.ZipFile(path) as wheel:
            for entry in wheel.infolist():
                if not entry.is_dir() and not entry.filename.endswith((".py", ".pyi", ".txt", ".json")):
                    with wheel.open(entry) as file:
                        yield entry.filename, file.read(1 << 16)
    except (OSError, zipfile.BadZipFile) as error:
        raise LibraryError(f"{path} cannot be read as a wheel ({error}): make the bundle again.") from None
