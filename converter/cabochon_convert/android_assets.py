"""What an Android app needs of a package: small files as assets, large ones to be pushed, and vectors to test against.

The app's `assets/model/assets.json` lists every file with its SHA-256. All that is written follows from the package
and its engine: the same package gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cabochon.engines import choose_engine
from cabochon.errors import RequestError
from cabochon.languages import LANGUAGE_NAMES
from cabochon.log_mel import mel_filters
from cabochon.manifest import MANIFEST_NAME, Engine, Manifest
from cabochon.package import Package, hash_file
from cabochon.whole_file import sync_folder
from cabochon_convert.android_delivery import write_delivery
from cabochon_convert.android_golden import SpokenExample, write_golden_vectors
from cabochon_convert.android_prompts import speech_prompt
from cabochon_convert.folder_exchange import exchange_folders
from cabochon_convert.genai_onnx import CONFIG_NAME as GENAI_CONFIG_NAME
from cabochon_convert.genai_onnx import GRAPH_NAME as GENAI_GRAPH_NAME
from cabochon_convert.processor import TOKENIZER_CONFIG_NAME
from cabochon_convert.work_folder import OutputError, output_errors, sync_files, work_folder

ASSETS_FORMAT = 1
"""Of assets.json; the app refuses any other."""
INDEX_NAME, PROMPTS_NAME, FILTERS_NAME = "assets.json", "prompts.json", "mel_filters.bin"
ASSETS_FOLDER = Path("app/src/main/assets/model")
GOLDEN_FOLDER = Path("core/src/test/resources/golden")
PUSH_FOLDER = Path("build/push")
DEFAULT_ASSET_BYTES = 64_000_000
"""A package whose files are larger together is not put into an APK."""

ALL_LANGUAGES = tuple(LANGUAGE_NAMES.values())


@dataclass(frozen=True, slots=True)
class AndroidSettings:
    """What to write for an app."""

    languages: tuple[str, ...] = ALL_LANGUAGES
    """To choose from, English names in this order."""
    examples: tuple[SpokenExample, ...] = ()
    """Sounds for the golden vectors; without one, a made-up sound."""
    asset_bytes: int = DEFAULT_ASSET_BYTES
    """Graphs and tables that are larger together are to be pushed."""
    bundle: Path | None = None
    """A `.litertlm` file of the same model, to be pushed with the rest."""

    def __post_init__(self) -> None:
        if len(self.languages) < 2 or len(set(self.languages)) < len(self.languages):
            raise RequestError("an app translates between at least two languages, each named once: name more of them.")


@dataclass(frozen=True, slots=True)
class DeliveredFile:
    """One file of the app's model folder."""

    path: str
    size: int
    sha256: str
    delivery: str
    """`asset`: it is in the APK; `push`: it comes by adb, download or asset pack."""


def write_android_assets(package: Package, app: Path, settings: AndroidSettings) -> tuple[DeliveredFile, ...]:
    """Write assets, golden vectors and what is to be pushed into an Android project.

    Raises:
        RequestError: the folder is no Android project of this repository, or the package does not hear.
        OutputError: it cannot be written.
    """
    _require_project(app)
    for place in _places(app).values():
        _refuse_foreign_files(place)
    with output_errors(app), work_folder(app / "assets") as parts:
        files = _build(package, settings, parts)
        sync_files(parts)
        for part, place in _places(app).items():
            _put_in_place(parts / part, place)
    return files


def refuse_stale_assets(package: Package, app: Path, settings: AndroidSettings) -> None:
    """Compare what lies in an Android project with what would be written now.

    Raises:
        OutputError: a file is missing, differs, or is one too many.
    """
    _require_project(app)
    with output_errors(app), work_folder(app / "assets") as parts:
        _build(package, settings, parts)
        for part, place in _places(app).items():
            expected, found = _hashes(parts / part), _hashes(place)
            for name in sorted(expected.keys() | found.keys()):
                if expected.get(name) != found.get(name):
                    what = "is missing" if name not in found else "is stale" if name in expected else "is left over"
                    raise OutputError(
                        f"{place / name} {what}: run  cabochon-convert android {package.folder} --app {app}  again."
                    )


def _places(app: Path) -> dict[str, Path]:
    return {"assets": app / ASSETS_FOLDER, "golden": app / GOLDEN_FOLDER, "push": app / PUSH_FOLDER}


def _require_project(app: Path) -> None:
    if not (app / "settings.gradle.kts").is_file() or not (app / "core").is_dir():
        raise RequestError(f"{app} has no settings.gradle.kts and core: name the folder android_demo of cabochon.")


def _build(package: Package, settings: AndroidSettings, parts: Path) -> tuple[DeliveredFile, ...]:
    manifest = package.manifest
    if manifest.audio is None or manifest.audio.log_mel is None:
        raise RequestError(f"{package.folder} has no audio encoder: the app hears speech, so convert one that does.")
    engine = choose_engine(package)
    assets, push = parts / "assets", parts / "push"
    for folder in (assets, push, parts / "golden"):
        folder.mkdir()
    shutil.copyfile(package.path(MANIFEST_NAME), assets / MANIFEST_NAME)
    filters = mel_filters(manifest.audio.log_mel)  # [fft_length // 2 + 1, mel_bins]
    (assets / FILTERS_NAME).write_bytes(np.ascontiguousarray(filters, "<f8").tobytes())
    prompts = {"languages": list(settings.languages), "speech": asdict(speech_prompt(package, settings.languages))}
    _write_json(assets / PROMPTS_NAME, prompts)
    files = [_delivered(assets / name, name, "asset") for name in (FILTERS_NAME, MANIFEST_NAME, PROMPTS_NAME)]
    small = {manifest.tokenizer_file, manifest.chat_template_file}
    used = _used_files(manifest, manifest.engines[engine])
    fits = sum(record.size for record in manifest.files if record.path in used) <= settings.asset_bytes
    for record in manifest.files:
        if record.path in used:
            delivery = "asset" if fits or record.path in small else "push"
            if delivery == "asset":
                _copy(package.path(record.path), assets / record.path)
            else:
                _link(package.path(record.path), push / record.path)
            files.append(DeliveredFile(record.path, record.size, record.sha256, delivery))
    if settings.bundle is not None:
        _link(settings.bundle, push / settings.bundle.name)
        files.append(_delivered(settings.bundle, settings.bundle.name, "push"))
    files.sort(key=lambda file: file.path)
    identity = hash_file(package.path(MANIFEST_NAME))
    index = {
        "format": ASSETS_FORMAT,
        "name": f"{manifest.source.name}-{manifest.recipe.name}",
        "package_sha256": identity,
        "engine": engine,
        "files": [asdict(file) for file in files],
    }
    _write_json(assets / INDEX_NAME, index)
    write_delivery(push, [(file.path, file.size) for file in files if file.delivery == "push"])
    write_golden_vectors(package, engine, parts / "golden", identity, settings.examples)
    return tuple(files)


def _used_files(manifest: Manifest, engine: Engine) -> set[str]:
    """Files that the app reads: not what is for images, drafts or onnxruntime-genai."""
    unused = [engine.vision_encoder, engine.vision_projector, engine.drafter.graph if engine.drafter else None]
    left_out = {name for graph in unused if graph for name in (graph.file, f"{graph.file}.data")}
    left_out |= {GENAI_CONFIG_NAME, GENAI_GRAPH_NAME, TOKENIZER_CONFIG_NAME}
    return {record.path for record in manifest.files} - left_out


def _delivered(path: Path, name: str, delivery: str) -> DeliveredFile:
    return DeliveredFile(name, path.stat().st_size, hash_file(path), delivery)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _link(source: Path, target: Path) -> None:
    """A hard link where the disk allows: graphs have gigabytes, and nothing writes to what is pushed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


def _record_of(place: Path) -> Path:
    """A file beside a folder that says who wrote it."""
    return place.parent / f".{place.name}.written"


def _refuse_foreign_files(place: Path) -> None:
    if place.is_dir() and any(place.iterdir()) and not _record_of(place).is_file():
        raise OutputError(f"{place} holds files that cabochon-convert did not write: move them away first.")


def _put_in_place(source: Path, place: Path) -> None:
    """Replace what an earlier run wrote; what had its name goes with the folder that the parts are built in."""
    place.parent.mkdir(parents=True, exist_ok=True)
    _record_of(place).touch()
    if place.exists() and not exchange_folders(source, place):
        place.rename(source.with_name(f"{source.name}-replaced"))
    if source.exists() and not place.exists():
        source.rename(place)
    sync_folder(place.parent)
