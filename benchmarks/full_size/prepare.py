"""Everything that is measured: a random checkpoint of E2B's shape, packages of it, and llama.cpp with the same weights.

What is there already is kept, so that a second run begins to measure at once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
"""Its source distribution holds the whole of llama.cpp."""
CONTEXT_LENGTH = 9216
BUNDLE_CONTEXT = 2048
"""One of the lengths that the package has caches for."""
SAMPLE_RATE = 16_000
NEEDED_BYTES = 30e9


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where everything lies."""

    checkpoint: Path
    packages: dict[str, Path]
    """By recipe, after the engine's name where it is not onnxruntime: `litert int4`."""
    llama_worker: Path
    gguf: Path
    projector: Path
    read_bandwidth: Path
    sound: Path
    """Float32 samples."""


def prepare(folder: Path, names: list[str], seconds_of_sound: float) -> Prepared:
    """Make what is missing; takes half an hour and 30 GB at first."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = _checkpoint(folder)
    llama_cpp = _llama_cpp(folder)
    return Prepared(
        checkpoint=checkpoint,
        packages={name: _package(folder, checkpoint, name) for name in names},
        llama_worker=_llama_worker(folder, llama_cpp),
        gguf=_gguf(folder, llama_cpp, checkpoint),
        projector=_projector(folder, llama_cpp, checkpoint),
        read_bandwidth=_read_bandwidth(folder),
        sound=_sound(folder, seconds_of_sound),
    )


def _checkpoint(folder: Path) -> Path:
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        free = shutil.disk_usage(folder).free
        if free < NEEDED_BYTES:
            sys.exit(f"{folder} has {free / 1e9:.0f} GB free, {NEEDED_BYTES / 1e9:.0f} GB are needed")
        beside = folder / "checkpoint.part"
        shutil.rmtree(beside, ignore_errors=True)
        _run([sys.executable, REPOSITORY / "tests" / "random_checkpoint.py", "e2b", beside])
        _fill_vocabulary(beside)
        beside.rename(checkpoint)
    return checkpoint


def _fill_vocabulary(checkpoint: Path) -> None:
    """Names for all tokens: llama.cpp would cut its matrices to those that the small tokenizer has."""
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    size = json.loads((checkpoint / "config.json").read_text())["text_config"]["vocab_size"]
    vocabulary = tokenizer["model"]["vocab"]
    named = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    vocabulary |= {f"<filler{token}>": token for token in range(size) if token not in named}
    path.write_text(json.dumps(tokenizer))
    # Its converter asks for means and deviations of pixels, which Gemma 4 does not use.
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.0] * 3, "image_std": [1.0] * 3}))


def _package(folder: Path, checkpoint: Path, name: str) -> Path:
    package = folder / f"package-{name.replace(' ', '-')}"
    if not package.is_dir():
        target, _, recipe = name.rpartition(" ")
        converter = Path(sys.executable).parent / "cabochon-convert"
        options = ["--target", target or "onnx", "--recipe", recipe, "--context-length", str(CONTEXT_LENGTH)]
        _run([converter, checkpoint, package, *options])
    return package


def bundle_litertlm(package: Path) -> Path:
    """The package as one file for LiteRT-LM, made when it is missing."""
    bundle = package.with_name(f"{package.name}.litertlm")
    if not bundle.exists():
        converter = Path(sys.executable).parent / "cabochon-convert"
        _run([converter, "litertlm", package, bundle, "--context-length", str(BUNDLE_CONTEXT)])
    return bundle


def _llama_cpp(folder: Path) -> Path:
    """llama.cpp's tree, built for this machine."""
    tree = folder / "llama_cpp"
    if not tree.is_dir():
        downloads = folder / "downloads"
        # fmt: off
        _run([sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--dest", downloads,
              LLAMA_CPP_PYTHON])
        # fmt: on
        (archive,) = downloads.glob("llama_cpp_python-*.tar.gz")
        unpacked = folder / "llama_cpp.part"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        _run(["tar", "--extract", "--file", archive, "--directory", unpacked])
        (sources,) = unpacked.glob("*/vendor/llama.cpp")
        left_out = ["BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER", "CURL", "OPENSSL"]
        flags = ["-DLLAMA_BUILD_TOOLS=ON", *(f"-DLLAMA_{part}=OFF" for part in left_out)]
        _run(
            ["cmake", "-S", sources, "-B", sources / "build", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *flags]
        )
        targets = ["llama-quantize", "llama-mtmd-cli"]
        _run(["cmake", "--build", sources / "build", "-j", str(os.cpu_count()), "--target", *targets])
        sources.rename(tree)
    return tree


def _llama_worker(folder: Path, tree: Path) -> Path:
    worker, source, libraries = folder / "llama_cpp_worker", HERE / "llama_cpp_worker.cpp", tree / "build" / "bin"
    if not worker.exists() or worker.stat().st_mtime < source.stat().st_mtime:
        headers = [f"-I{tree / part}" for part in ("include", "ggml/include", "tools/mtmd")]
        # The build's own paths are from before the tree was moved.
        linked = [f"-L{libraries}", "-lllama", "-lmtmd", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
        _run(["c++", "-O2", "-std=c++17", *headers, source, "-o", worker, *linked, "-Wl,--disable-new-dtags"])
    return worker


def _gguf(folder: Path, tree: Path, checkpoint: Path) -> Path:
    gguf, wide = folder / "q4_0.gguf", folder / "bf16.gguf"
    if not gguf.exists():
        _convert_gguf(tree, checkpoint, "--outtype", "bf16", "--outfile", str(wide))
        beside = folder / "q4_0.part"
        _run([tree / "build" / "bin" / "llama-quantize", "--pure", wide, beside, "q4_0"], _library_path(tree))
        wide.unlink()
        beside.rename(gguf)
    return gguf


def _projector(folder: Path, tree: Path, checkpoint: Path) -> Path:
    projector = folder / "projector.gguf"
    if not projector.exists():
        beside = folder / "projector.part"
        _convert_gguf(tree, checkpoint, "--mmproj", "--outtype", "q8_0", "--outfile", str(beside))
        beside.rename(projector)
    return projector


def _convert_gguf(tree: Path, checkpoint: Path, *options: str) -> None:
    script = tree / "convert_hf_to_gguf.py"
    _run([sys.executable, script, checkpoint, *options], {"PYTHONPATH": str(tree / "gguf-py")})


def _library_path(tree: Path) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(tree / "build" / "bin")}


def _read_bandwidth(folder: Path) -> Path:
    program = folder / "read_bandwidth"
    _run(["cc", "-O3", "-march=native", HERE / "read_bandwidth.c", "-o", program, "-lpthread"])
    return program


def _sound(folder: Path, seconds: float) -> Path:
    """Noise: how fast an answer comes does not depend on what was said."""
    path = folder / "sound.f32"
    generator = np.random.default_rng(0)
    (0.1 * generator.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32).tofile(path)
    return path


def _run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    print("+ " + " ".join(map(str, command)), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | (environment or {}))
