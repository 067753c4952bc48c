"""Beginnings of prompts are run once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from counting_decoder import EMBEDDER, CountingDecoder
from refusals import refused

from cabochon.backend import CacheRows
from cabochon.cache_file import write_cache_file
from cabochon.errors import RequestError
from cabochon.kept_prefixes import IN_MEMORY, ON_DISK, KeptPrefixes

INSTRUCTION = [4, 5, 6, 7]


def test_an_instruction_is_run_once() -> None:
    decoder = CountingDecoder(100)
    prefixes = KeptPrefixes(decoder, EMBEDDER, "mine", None)
    for _ in range(3):
        decoder.held = [9.0]
        prefixes.run(INSTRUCTION)
        assert decoder.held == INSTRUCTION
    assert decoder.runs == [(0, 4)]
    assert decoder.logits_given == [0]
    prefixes.run([])
    assert len(decoder.runs) == 1


def test_the_next_start_finds_it_on_disk_and_another_model_does_not(tmp_path: Path) -> None:
    KeptPrefixes(CountingDecoder(100), EMBEDDER, "mine", tmp_path / "new").run(INSTRUCTION)
    later, other = CountingDecoder(100), CountingDecoder(100)
    KeptPrefixes(later, EMBEDDER, "mine", tmp_path / "new").run(INSTRUCTION)
    assert (later.held, later.runs) == (INSTRUCTION, [])
    KeptPrefixes(other, EMBEDDER, "yours", tmp_path / "new").run(INSTRUCTION)
    assert other.runs == [(0, 4)]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_damaged_files_are_made_again(tmp_path: Path, content: bytes | None) -> None:
    KeptPrefixes(CountingDecoder(100), EMBEDDER, "mine", tmp_path).run(INSTRUCTION)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] if content is None else content)
    decoder = CountingDecoder(100)
    KeptPrefixes(decoder, EMBEDDER, "mine", tmp_path).run(INSTRUCTION)
    assert (decoder.held, decoder.runs) == (INSTRUCTION, [(0, 4)])
    later = CountingDecoder(100)
    KeptPrefixes(later, EMBEDDER, "mine", tmp_path).run(INSTRUCTION)
    assert later.runs == []


def test_rows_that_do_not_fit_are_made_again(tmp_path: Path) -> None:
    KeptPrefixes(CountingDecoder(100), EMBEDDER, "mine", tmp_path).run(INSTRUCTION)
    (file,) = tmp_path.iterdir()
    write_cache_file(file, "mine", INSTRUCTION, CacheRows(4, (np.zeros((1, 3, 1), np.float32),)))
    decoder = CountingDecoder(100)
    KeptPrefixes(decoder, EMBEDDER, "mine", tmp_path).run(INSTRUCTION)
    assert decoder.runs == [(0, 4)]


def test_memory_and_disk_have_a_bound(tmp_path: Path) -> None:
    decoder = CountingDecoder(100)
    in_memory = KeptPrefixes(decoder, EMBEDDER, "mine", None)
    for token in range(IN_MEMORY + 1):
        in_memory.run([token])
    decoder.runs.clear()
    in_memory.run([IN_MEMORY])
    assert decoder.runs == []
    in_memory.run([0])
    assert decoder.runs == [(0, 1)]
    on_disk = KeptPrefixes(decoder, EMBEDDER, "mine", tmp_path)
    for token in range(ON_DISK + 5):
        on_disk.run([token])
    assert len(list(tmp_path.iterdir())) == ON_DISK


def test_a_folder_that_cannot_be_written_to_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    decoder = CountingDecoder(100)
    KeptPrefixes(decoder, EMBEDDER, "mine", tmp_path / "file" / "folder").run(INSTRUCTION)
    assert decoder.held == INSTRUCTION


def test_an_instruction_that_leaves_no_room_is_refused() -> None:
    decoder = CountingDecoder(4)
    with refused(RequestError, "4 of 4 positions"):
        KeptPrefixes(decoder, EMBEDDER, "mine", None).run(INSTRUCTION)
    assert decoder.runs == []
