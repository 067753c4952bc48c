"""What `cabochon-convert android` writes: deterministic, complete, and checked again before a build."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, TINY
from refusals import refused

import cabochon
from cabochon.errors import RequestError
from cabochon.log_mel import mel_filters
from cabochon.package import Package, hash_file, open_package
from cabochon_convert.android_assets import (
    ASSETS_FOLDER,
    GOLDEN_FOLDER,
    PUSH_FOLDER,
    AndroidSettings,
    refuse_stale_assets,
    write_android_assets,
)
from cabochon_convert.android_delivery import pack_files
from cabochon_convert.android_golden import SpokenExample
from cabochon_convert.cli import main
from cabochon_convert.work_folder import OutputError

EXAMPLE = SpokenExample(TINY / "demo" / "german_unseen_voice.wav", "German", "English")
SETTINGS = AndroidSettings(languages=("English", "German"), examples=(EXAMPLE,))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("android") / "tiny"
    assert main([str(TINY), str(folder)]) == 0
    return open_package(folder)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "android_demo"
    (folder / "core").mkdir(parents=True)
    (folder / "settings.gradle.kts").touch()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_package_gives_the_same_bytes(package: Package, app: Path) -> None:
    write_android_assets(package, app, SETTINGS)
    first = contents(app)
    write_android_assets(package, app, SETTINGS)
    assert contents(app) == first
    refuse_stale_assets(package, app, SETTINGS)


def test_every_asset_is_listed_with_its_hash_and_a_small_model_is_there_whole(package: Package, app: Path) -> None:
    files = write_android_assets(package, app, SETTINGS)
    assets = app / ASSETS_FOLDER
    assert {file.path for file in files} | {"assets.json"} == set(contents(assets))
    assert all(hash_file(assets / file.path) == file.sha256 and file.delivery == "asset" for file in files)
    engine = package.manifest.engines["onnx"]
    assert {engine.decoder.file, f"{engine.decoder.file}.data", engine.token_embeddings.values.file} <= set(
        contents(assets)
    )
    assert "decoder_genai.onnx" not in contents(assets)
    assert not contents(app / PUSH_FOLDER)
    log_mel = package.manifest.audio.log_mel
    filters = np.frombuffer((assets / "mel_filters.bin").read_bytes(), "<f8")
    assert (filters == mel_filters(log_mel).ravel()).all()


def test_golden_vectors_hold_what_the_runtime_answers(package: Package, app: Path) -> None:
    write_android_assets(package, app, SETTINGS)
    golden = json.loads((app / GOLDEN_FOLDER / "golden.json").read_text())
    (spoken,) = golden["spoken"]
    answer = cabochon.load(package.folder).translate(EXAMPLE.sound, source="de", target="en")
    assert spoken["text"] == answer.finish()
    assert (spoken["transcript"], spoken["translation"]) == (answer.transcript, answer.translation)
    for matrix in spoken["matrices"].values():
        assert (app / GOLDEN_FOLDER / matrix["file"]).stat().st_size == 4 * np.prod(matrix["shape"])


def test_large_files_are_to_be_pushed_and_small_ones_stay_assets(package: Package, app: Path) -> None:
    bundle = app / "model.litertlm"
    bundle.write_bytes(b"bundle")
    files = write_android_assets(package, app, AndroidSettings(("English", "German"), (), 1_000_000, bundle))
    pushed = {file.path for file in files if file.delivery == "push"}
    assert {"decoder.onnx.data", "token_embeddings.bin", "model.litertlm"} <= pushed
    assert not {"manifest.json", "tokenizer.json", "mel_filters.bin", "prompts.json"} & pushed
    push = app / PUSH_FOLDER
    assert set(contents(push)) == pushed | {"push.sh", "ASSET_PACKS.md"}
    script = (push / "push.sh").read_text()
    assert all(f"adb push {path} " in script for path in pushed)
    assert (push / "push.sh").stat().st_mode & stat.S_IXUSR
    assert "model_pack_1" in (push / "ASSET_PACKS.md").read_text()


def test_a_made_up_tone_stands_in_for_speech(package: Package, app: Path) -> None:
    write_android_assets(package, app, AndroidSettings(("English", "German")))
    golden = json.loads((app / GOLDEN_FOLDER / "golden.json").read_text())
    assert [spoken["sound"] for spoken in golden["spoken"]] == ["made_up.wav"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda app: (app / ASSETS_FOLDER / "prompts.json").write_text("{}"), "prompts.json is stale"),
        (lambda app: (app / ASSETS_FOLDER / "decoder.onnx").unlink(), "decoder.onnx is missing"),
        (lambda app: (app / GOLDEN_FOLDER / "extra.bin").touch(), "extra.bin is left over"),
    ],
)
def test_a_stale_asset_is_told_in_one_sentence(package: Package, app: Path, change, words: str) -> None:
    write_android_assets(package, app, SETTINGS)
    change(app)
    with refused(OutputError, words):
        refuse_stale_assets(package, app, SETTINGS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda assets: (assets / "prompts.json").write_text("{}"), "prompts.json is stale"),
        (lambda assets: (assets / "decoder.onnx").unlink(), "decoder.onnx is stale"),
        (lambda assets: (assets / "old.bin").touch(), "old.bin is in no list"),
        (lambda assets: (assets / "assets.json").unlink(), "no model assets"),
    ],
)
def test_an_apk_is_not_built_of_stale_assets(
    package: Package, app: Path, monkeypatch: pytest.MonkeyPatch, change, words: str
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "android_demo"))
    from debian_apk import StaleAssetError
    from debian_apk import refuse_stale_assets as refuse_to_build

    write_android_assets(package, app, SETTINGS)
    refuse_to_build(app / ASSETS_FOLDER)
    change(app / ASSETS_FOLDER)
    with refused(StaleAssetError, words):
        refuse_to_build(app / ASSETS_FOLDER)


def test_files_of_somebody_else_are_not_replaced(package: Package, app: Path) -> None:
    mine = app / ASSETS_FOLDER / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with refused(OutputError, "did not write"):
        write_android_assets(package, app, SETTINGS)
    assert mine.read_text() == "mine"
    assert not [path for path in app.iterdir() if path.name.startswith(".assets.")]


def test_impossible_wishes_are_refused(package: Package, app: Path, tmp_path: Path) -> None:
    with refused(RequestError, "settings.gradle.kts"):
        write_android_assets(package, tmp_path, SETTINGS)
    with refused(RequestError, "at least two languages"):
        AndroidSettings(languages=("English",))
    twice = AndroidSettings(("English", "German"), (EXAMPLE, EXAMPLE))
    with refused(RequestError, "same file name"):
        write_android_assets(package, app, twice)


def test_files_are_packed_into_as_few_packs_as_play_allows() -> None:
    files = [("a", 1_400_000_000), ("b", 1_000_000_000), ("c", 400_000_000), ("d", 90_000_000), ("e", 2_590_000_000)]
    packs, left_out = pack_files(files)
    assert packs == [["a", "d"], ["b", "c"]]
    assert left_out == ["e"]


def test_the_command_says_what_it_wrote_and_what_is_stale(
    package: Package, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["android", str(package.folder), "--app", str(app), "--languages", "en,de"]
    assert main(words) == 0
    assert "delivery asset" in capsys.readouterr().out
    assert main([*words, "--check"]) == 0
    assert main(["android", str(package.folder), "--app", str(app), "--check"]) == 2  # of more languages
    assert "assets.json is stale" in capsys.readouterr().err


def test_the_repository_holds_no_generated_assets() -> None:
    ignored = (REPOSITORY / "android_demo" / ".gitignore").read_text()
    assert "app/src/main/assets/model/" in ignored
    assert "core/src/test/resources/golden/" in ignored
