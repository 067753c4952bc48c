from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from refusals import refused

import cabochon.package
from cabochon.errors import PackageError
from cabochon.manifest_file import read_manifest
from cabochon.package import hash_file, open_package

FILES = [
    "audio_encoder.onnx",
    "audio_encoder.onnx.data",
    "chat_template.jinja",
    "decoder.onnx",
    "decoder.onnx.data",
    "decoder_genai.onnx",
    "genai_config.json",
    "per_layer_embeddings.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "vision_encoder.onnx",
    "vision_encoder.onnx.data",
]


@pytest.fixture
def package(random_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may damage, with a memory of checked files of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(random_package, tmp_path / "package"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed so far."""
    names: list[str] = []

    def note_and_hash(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(cabochon.package, "hash_file", note_and_hash)
    return names


def flip_byte(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ 1]))


def test_the_listed_files_are_all_there_are(package: Path) -> None:
    assert [record.path for record in read_manifest(package).files] == FILES
    assert open_package(package).size == sum((package / name).stat().st_size for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_in_any_file_is_refused(package: Path, name: str) -> None:
    size = (package / name).stat().st_size
    for position in (0, size // 2, size - 1):
        flip_byte(package / name, position)
        with refused(PackageError, name, "altered"):
            open_package(package)
        flip_byte(package / name, position)
    open_package(package)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(package: Path, name: str) -> None:
    (package / name).unlink()
    with refused(PackageError, name, "missing"):
        open_package(package)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused(package: Path, change: int) -> None:
    path = package / "decoder.onnx.data"
    os.truncate(path, path.stat().st_size + change)
    with refused(PackageError, path.name, str(path.stat().st_size)):
        open_package(package)


def test_a_folder_in_place_of_a_file_is_refused(package: Path) -> None:
    (package / "tokenizer.json").unlink()
    (package / "tokenizer.json").mkdir()
    with refused(PackageError, "tokenizer.json"):
        open_package(package)


def test_a_link_out_of_the_folder_is_refused_even_to_the_right_bytes(package: Path, tmp_path: Path) -> None:
    (package / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (package / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with refused(PackageError, "tokenizer.json", "link"):
        open_package(package)


def test_a_link_within_the_folder_and_a_link_to_the_folder_are_fine(package: Path, tmp_path: Path) -> None:
    (package / "tokenizer.json").rename(package / "really.json")
    (package / "tokenizer.json").symlink_to("really.json")
    (tmp_path / "link").symlink_to(package)
    assert open_package(tmp_path / "link").path("tokenizer.json").is_file()


def test_a_link_in_a_circle_is_refused(package: Path) -> None:
    (package / "tokenizer.json").unlink()
    (package / "tokenizer.json").symlink_to("tokenizer.json")
    with refused(PackageError, "tokenizer.json"):
        open_package(package)


def test_a_file_name_too_long_for_the_disk_is_refused(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"].append(manifest["files"][0] | {"path": "x" * 5000})
    (package / "manifest.json").write_text(json.dumps(manifest))
    with refused(PackageError, "cannot be read"):
        open_package(package)


def test_a_file_that_passed_is_not_hashed_again(package: Path, hashed: list[str]) -> None:
    open_package(package)
    assert sorted(hashed) == FILES
    hashed.clear()
    open_package(package)
    assert hashed == []
    open_package(package, check_again=True)
    assert sorted(hashed) == FILES


def test_a_file_that_changed_after_it_passed_is_hashed_again(package: Path, hashed: list[str]) -> None:
    open_package(package)
    hashed.clear()
    path = package / "decoder.onnx.data"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    flip_byte(path, 5000)
    os.utime(path, ns=times)
    with refused(PackageError, path.name, "altered"):
        open_package(package)
    flip_byte(path, 5000)
    open_package(package)
    assert set(hashed) == {path.name}


def test_a_file_that_failed_is_not_remembered(package: Path) -> None:
    flip_byte(package / "tokenizer.json", 100)
    for _ in range(2):
        with refused(PackageError, "altered"):
            open_package(package)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff", b"[" * 100_000, b"{}", b"[1, null, {}]", b"null"])
def test_a_damaged_memory_costs_nothing_but_time(
    package: Path, hashed: list[str], tmp_path: Path, content: bytes
) -> None:
    memory = tmp_path / "cache" / "cabochon" / "checked-files.json"
    memory.parent.mkdir(parents=True)
    memory.write_bytes(content)
    open_package(package)
    assert sorted(hashed) == FILES
    hashed.clear()
    open_package(package)
    assert hashed == []


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(
    package: Path, hashed: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        open_package(package)
    assert sorted(hashed) == sorted(FILES * 2)
