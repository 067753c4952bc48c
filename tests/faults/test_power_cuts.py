"""A power cut at any moment of our writing, with whatever of it was not forced onto the disk lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from power_cuts import DiskHistory, Tree, plant

from cabochon.kept_weights import kept_weights
from cabochon.long_speech import SpokenPart
from cabochon.transcript import format_json, read_transcript
from cabochon.unfinished import Unfinished
from cabochon.whole_file import replace_bytes, replace_text
from cabochon_convert.package import new_package
from cabochon_convert.work_folder import OutputError

WORK: dict[str, object] = {"sound": "1234"}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Path]:
    """What is found at the next start."""
    yield tmp_path / "found"
    shutil.rmtree(tmp_path / "found", ignore_errors=True)


def planted(history: DiskHistory, found: Path) -> Iterator[Tree]:
    """Each state that may be found, on a disk."""
    count = 0
    for tree in history.outcomes():
        shutil.rmtree(found, ignore_errors=True)
        plant(tree, found)
        count += 1
        yield tree
    assert count


def write_small_package(folder: Path, content: str) -> None:
    """Three files that belong together."""
    for name in ("a.bin", "b.bin"):
        (folder / name).write_text(content)
    manifest = {"format_version": 1, "created_by": "cabochon", "files": [{"path": "a.bin"}, {"path": "b.bin"}]}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"content": content}))


def content_of_package(folder: Path) -> str | None:
    """Of one that is whole; None where there is none, and AssertionError where there is half of one."""
    if not folder.exists():
        return None
    content: str = json.loads((folder / "manifest.json").read_text())["content"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.bin", "manifest.json"]
    assert [(folder / name).read_text() for name in ("a.bin", "b.bin")] == [content, content]
    return content


def test_the_model_of_a_disk_finds_what_careless_writing_loses(disk: Path) -> None:
    (disk / "file").write_text("old")
    careless = DiskHistory(disk)
    with careless.recorded():
        (disk / "new").write_text("new")
        (disk / "new").replace(disk / "file")
    assert {tree.get("file") for tree in careless.outcomes()} == {b"old", b"new", b""}


def test_a_file_is_old_or_new_and_there(disk: Path, found: Path) -> None:
    (disk / "file").write_text("old")
    history = DiskHistory(disk)
    with history.recorded():
        replace_text(disk / "file", "new")
    contents = [(found / "file").read_text() for _ in planted(history, found)]
    assert set(contents) == {"old", "new"}
    assert contents[-1] == "new"


def test_a_new_package_is_whole_or_missing_and_the_next_conversion_leaves_only_its_own(disk: Path, found: Path) -> None:
    history = DiskHistory(disk)
    with history.recorded(), new_package(disk / "package", replace=False) as beside:
        write_small_package(beside, "new")
    contents = set()
    for _ in planted(history, found):
        contents.add(content_of_package(found / "package"))
        with new_package(found / "package", replace=True) as beside:
            write_small_package(beside, "newer")
        assert content_of_package(found / "package") == "newer"
        assert [path.name for path in found.iterdir()] == ["package"]
    assert contents == {None, "new"}


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchanged", "moved away"])
def test_a_package_that_is_replaced_is_the_old_one_or_the_new_one(
    disk: Path, found: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr("cabochon_convert.package.exchange_folders", lambda _first, _second: False)
    with new_package(disk / "package", replace=False) as beside:
        write_small_package(beside, "old")
    history = DiskHistory(disk)
    with history.recorded(), new_package(disk / "package", replace=True) as beside:
        write_small_package(beside, "new")
    contents = set()
    for _ in planted(history, found):
        if exchanges:
            assert (found / "package").exists()
        else:
            # Where a disk cannot exchange folders, the next start of a conversion brings the old one back.
            with suppress(OutputError), new_package(found / "package", replace=False):
                raise OutputError
        contents.add(content_of_package(found / "package"))
    assert contents == {"old", "new"}


def test_no_part_of_a_transcript_is_lost_once_it_was_kept(disk: Path, found: Path) -> None:
    parts = [SpokenPart(float(number), number + 1.0, f"part {number}", "") for number in range(3)]
    output, history = disk / "long.json", DiskHistory(disk)

    def kept() -> Iterator[list[SpokenPart]]:
        for _ in planted(history, found):
            done = found / "long.json"
            yield read_transcript(done) if done.exists() else Unfinished(done, WORK).parts

    with history.recorded():
        unfinished = Unfinished(output, WORK)
        for number, part in enumerate(parts):
            unfinished.add(part)
            assert all(parts[: len(each)] == each and len(each) >= number for each in kept())
            history.forget_past()
        replace_text(output, format_json(unfinished.parts))
        unfinished.forget()
    assert all(each == parts for each in kept())


def test_sorted_weights_without_content_are_never_given_to_an_engine(disk: Path, found: Path) -> None:
    """An engine writes the file in place and forces nothing onto the disk; the length alone may survive."""
    weights = disk / "decoder.weights"
    history = DiskHistory(disk)
    with history.recorded(), kept_weights(weights) as file:
        Path(file).write_bytes(b"sorted")
    given = []
    for tree in planted(history, found):
        # A file on another disk has another inode; the note is of the one that the engine wrote.
        note = found / "decoder.weights.whole"
        if note.exists() and note.read_text():
            assert tree["decoder.weights"] == b"sorted"
        with kept_weights(found / "decoder.weights") as file:
            given.append(Path(file).read_bytes() if Path(file).exists() else None)
    assert set(given) <= {b"sorted", None}


def test_a_conversation_is_the_old_one_or_the_new_one(disk: Path, found: Path) -> None:
    replace_bytes(disk / "saved.npz", b"old")
    history = DiskHistory(disk)
    with history.recorded():
        replace_bytes(disk / "saved.npz", memoryview(b"new"))
    assert {(found / "saved.npz").read_bytes() for _ in planted(history, found)} == {b"old", b"new"}
