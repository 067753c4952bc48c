"""A disk that fails when it is read: one sentence that names the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import CABOCHON, CONVERT, assert_refused, run_command
from conftest import TINY
from served_process import SENTENCE, ServedProcess, assert_server_error

from cabochon.package import open_package
from cabochon_convert.checkpoint import CheckpointError, open_checkpoint


@pytest.mark.parametrize("name", ["manifest.json", "decoder.onnx.data"])
def test_a_package_on_a_failing_disk_is_refused_at_the_first_start(
    package: Path, faulty_calls: Path, tmp_path: Path, name: str
) -> None:
    faults = {"LD_PRELOAD": str(faulty_calls), "FAULTY_READS": f"/{name}", "XDG_CACHE_HOME": str(tmp_path)}
    assert_refused(run_command(CABOCHON, "transcribe", package, SENTENCE, **faults), name, "Input/output error")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "per_layer_embeddings.bin"])
def test_a_package_whose_hashes_are_known_is_refused_all_the_same(package: Path, faulty_calls: Path, name: str) -> None:
    open_package(package)
    faults = {"LD_PRELOAD": str(faulty_calls), "FAULTY_READS": f"/{name}"}
    assert_refused(run_command(CABOCHON, "transcribe", package, SENTENCE, **faults), name, "nput/output error")


def test_a_sound_on_a_failing_disk_is_refused(package: Path, faulty_calls: Path, tmp_path: Path) -> None:
    sound = tmp_path / "broken.wav"
    shutil.copy(SENTENCE, sound)
    faults = {"LD_PRELOAD": str(faulty_calls), "FAULTY_READS": "broken.wav"}
    assert_refused(run_command(CABOCHON, "transcribe", package, sound, **faults), "broken.wav", "cannot be read")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_checkpoint_on_a_failing_disk_is_refused(faulty_calls: Path, tmp_path: Path, name: str) -> None:
    faults = {"LD_PRELOAD": str(faulty_calls), "FAULTY_READS": f"tiny/{name}"}
    assert_refused(run_command(CONVERT, TINY, tmp_path / "package", **faults), name)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_becomes_shorter_while_it_is_converted_is_refused(tmp_path: Path) -> None:
    """A mapped file would end the process."""
    checkpoint = Path(shutil.copytree(TINY, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("demo", "training")))
    opened = open_checkpoint(checkpoint)
    name = "model.language_model.embed_tokens.weight"
    shape = opened.record(name).shape
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(CheckpointError, match="too early"):
        list(opened.read_rows(name, (shape[0], shape[1])))


def test_a_server_on_a_failing_disk_says_so_and_goes_on(package: Path, faulty_calls: Path) -> None:
    # Rows of the table are read when their tokens come up: the server starts without them.
    with ServedProcess(package, LD_PRELOAD=str(faulty_calls), FAULTY_READS="token_embeddings.bin") as server:
        assert_server_error(server.hear(), "token_embeddings.bin", "Input/output error", "disk")
        assert_server_error(server.chat("Hello"), "token_embeddings.bin")
        assert server.answers()
