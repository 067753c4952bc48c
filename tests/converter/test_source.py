from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import CONVERT, assert_refused, run_command
from conftest import TINY
from hub_server import COMMIT, DOWN, GATED, MODEL, PRIVATE, Hub, serve_hub
from refusals import refused

from cabochon.errors import RequestError
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.source import CheckpointSource, find_source

NEEDED = {path.name for path in TINY.iterdir() if path.is_file()} - {".gitignore", "README.md", "demo.py"}
NEEDED -= {"evaluation.json"}
OTHER_FORMS = (
    "README.md", "consolidated.safetensors", "model.gguf", "original/consolidated.00.pth", "original/model.safetensors",
    "pytorch_model.bin",
)  # fmt: skip
DEAD_END = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: (TINY / name).read_bytes() for name in NEEDED} | dict.fromkeys(OTHER_FORMS, b"not wanted")


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with serve_hub(dict(files)) as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the hub's cache lies."""
    return tmp_path / "home"


@pytest.fixture
def cached(hub: Hub, home: Path, tmp_path: Path) -> Path:
    """The folder in the cache after a first conversion."""
    result = run_command(CONVERT, MODEL, tmp_path / "first", **hub.variables(home))
    assert (result.returncode, result.stderr) == (0, "")
    return home / "hub" / "models--org--tiny" / "snapshots" / COMMIT


def written_source(package: Path) -> dict[str, object]:
    source: dict[str, object] = json.loads((package / "manifest.json").read_text())["source"]
    return source


def test_a_model_of_the_hub_becomes_the_package_of_its_folder(hub: Hub, cached: Path, tmp_path: Path) -> None:
    assert sorted(hub.fetched) == sorted(NEEDED)
    assert {path.name for path in cached.iterdir()} == NEEDED
    run_command(CONVERT, TINY, tmp_path / "local")
    fetched, local = written_source(tmp_path / "first"), written_source(tmp_path / "local")
    assert (fetched["name"], fetched["revision"]) == (MODEL, COMMIT)
    assert (local["name"], local["revision"]) == ("tiny", None)
    assert fetched["sha256"] == local["sha256"]


def test_what_is_in_the_cache_is_not_fetched_again(hub: Hub, cached: Path, home: Path, tmp_path: Path) -> None:
    hub.fetched.clear()
    assert cached.is_dir()
    for number, variables in enumerate(
        (hub.variables(home), hub.variables(home, HF_HUB_OFFLINE="1"), hub.variables(home, HF_ENDPOINT=DEAD_END))
    ):
        package = tmp_path / f"again{number}"
        result = run_command(CONVERT, MODEL, package, **variables)
        assert (result.returncode, result.stderr) == (0, "")
        assert written_source(package) == written_source(tmp_path / "first")
    assert hub.fetched == []


def test_a_tag_is_pinned_to_the_commit_that_it_names(hub: Hub, home: Path, tmp_path: Path) -> None:
    result = run_command(CONVERT, MODEL, tmp_path / "package", "--revision", "v1", **hub.variables(home))
    assert result.returncode == 0, result.stderr
    assert written_source(tmp_path / "package")["revision"] == COMMIT


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, home: Path, tmp_path: Path) -> None:
    # The hub's library keeps what it has in steps of 10 MB.
    hub.files["model.safetensors"] += bytes(12_000_000)
    hub.cut_after = 15_000_000
    result = run_command(CONVERT, MODEL, tmp_path / "package", **hub.variables(home))
    assert (result.returncode, result.stderr) == (0, "")
    (rest,) = [name for name in hub.fetched if name.startswith("model.safetensors from")]
    assert 0 < int(rest.split()[-1]) <= 15_000_000
    (weights,) = home.glob("hub/*/snapshots/*/model.safetensors")
    assert weights.read_bytes() == hub.files["model.safetensors"]


def test_an_interrupted_download_goes_on_with_the_files_that_are_missing(
    hub: Hub, cached: Path, home: Path, tmp_path: Path
) -> None:
    (cached / "model.safetensors").resolve().unlink()
    (cached / "model.safetensors").unlink()
    hub.fetched.clear()
    for variables in (hub.variables(home, HF_HUB_OFFLINE="1"), hub.variables(home, HF_ENDPOINT=DEAD_END)):
        result = run_command(CONVERT, MODEL, tmp_path / "package", **variables)
        assert_refused(result, MODEL, "not completely in the cache")
    assert run_command(CONVERT, MODEL, tmp_path / "package", **hub.variables(home)).returncode == 0
    assert hub.fetched == ["model.safetensors"]


def test_half_a_cache_without_the_hubs_list_of_files_is_refused(
    hub: Hub, cached: Path, home: Path, tmp_path: Path
) -> None:
    shutil.rmtree(cached.parent.parent / "trees")
    (cached / "config.json").unlink()
    result = run_command(CONVERT, MODEL, tmp_path / "package", **hub.variables(home, HF_HUB_OFFLINE="1"))
    assert_refused(result, MODEL, "config.json", "network")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (GATED, ("licence", f"/{GATED}", "hf auth login", "HF_TOKEN")),
        (PRIVATE, (PRIVATE, "token")),
        (DOWN, (DOWN, "503", "later")),
        ("org/typo", ("org/typo", "folder", "hub", "hf auth login")),
        ("org/a--b", ("org/a--b", "id")),
    ],
)
def test_what_the_hub_does_not_give_is_said(
    hub: Hub, home: Path, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    assert_refused(run_command(CONVERT, name, tmp_path / "package", **hub.variables(home)), *words)
    assert not (tmp_path / "package").exists()


def test_an_unknown_revision_is_said(hub: Hub, home: Path, tmp_path: Path) -> None:
    for revision in ("v2", "f" * 40):
        command = (CONVERT, MODEL, tmp_path / "package", "--revision", revision)
        assert_refused(run_command(*command, **hub.variables(home)), MODEL, revision, "branch")


def test_without_network_and_cache_the_model_is_refused(hub: Hub, home: Path, tmp_path: Path) -> None:
    command = (CONVERT, MODEL, tmp_path / "package")
    assert_refused(run_command(*command, **hub.variables(home, HF_ENDPOINT=DEAD_END)), MODEL, "reached", "network")
    assert_refused(run_command(*command, **hub.variables(home, HF_HUB_OFFLINE="1")), MODEL, "HF_HUB_OFFLINE")


def test_verification_finds_its_checkpoint_on_the_hub_too(
    hub: Hub, home: Path, tiny_onnx_package: Path, tmp_path: Path
) -> None:
    command = (CONVERT, "verify", tiny_onnx_package, "--reference", GATED)
    assert_refused(run_command(*command, **hub.variables(home)), GATED, "licence")
    command = (CONVERT, "verify", tmp_path / "missing", "--reference", MODEL, "--revision", "v1")
    assert_refused(run_command(*command, **hub.variables(home)), str(tmp_path / "missing"))
    assert "model.safetensors" in hub.fetched


@pytest.mark.parametrize("limit", [1000, 4_000_000])
def test_a_disk_that_is_too_small_for_the_download_is_said(hub: Hub, home: Path, tmp_path: Path, limit: int) -> None:
    command = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    arguments = (sys.executable, "-c", command, str(limit), CONVERT, MODEL, tmp_path / "package")
    assert_refused(run_command(*arguments, **hub.variables(home)), "disk", str(home), "full", "HF_HOME")


def test_a_cache_that_cannot_be_written_is_said(hub: Hub, home: Path, tmp_path: Path) -> None:
    home.touch()
    assert_refused(run_command(CONVERT, MODEL, tmp_path / "package", **hub.variables(home)), str(home))


def test_whoever_converts_a_folder_needs_no_library_for_the_hub(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; from cabochon_convert.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )

    def convert(checkpoint: str) -> subprocess.CompletedProcess[str]:
        return run_command(sys.executable, "-c", code, checkpoint, tmp_path / "package")

    assert_refused(convert(MODEL), "huggingface_hub", "'convert'")
    assert convert(str(TINY)).returncode == 0


@pytest.mark.parametrize(
    "place",
    ["nothing", "./org/name", "../org/name", "/org/name", "org/name/more", "org/more/", "hf://org/name", "org/na me"],
)  # fmt: skip
def test_what_is_neither_a_folder_nor_an_id_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(CheckpointError, place, "folder", "google/gemma-4-E2B-it"):
        find_source(place)


@pytest.mark.parametrize("place", ["x" * 5000, "x" * 300 + "/y", "nul\x00", "org/nul\x00", "org/näme"])
def test_a_place_that_no_disk_and_no_hub_can_have_is_refused(place: str) -> None:
    with refused(CheckpointError, "folder", "hub"):
        find_source(place)


def test_a_folder_wins_over_a_model_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MODEL).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_source(MODEL) == CheckpointSource(Path(MODEL), "tiny")


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with refused(RequestError, "--revision v1", str(tmp_path)):
        find_source(str(tmp_path), "v1")
