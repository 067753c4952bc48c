"""LiteRT's models: loading them, and calling their signatures."""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.backend import EngineSettings
from cabochon.errors import NoMemoryError, PackageError, RequestError, memory_errors, missing_dependency
from cabochon.freed_memory import drop_file_pages, return_freed_memory
from cabochon.kept_weights import kept_weights
from cabochon.machine import Processor, find_processor
from cabochon.manifest import Graph
from cabochon.package import Package, cache_folder
from cabochon.quiet import quiet
from cabochon.thread_placement import placed_threads

try:
    import ai_edge_litert
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.cpu_options import CpuOptions
    from ai_edge_litert.environment import Environment
    from ai_edge_litert.options import Options
except ImportError as error:
    raise missing_dependency(str(error.name), "litert") from None

LIBRARY = f"ai-edge-litert {ai_edge_litert.__version__}"


WEIGHTS_SIZE = 1.1
"""Of a file of sorted weights at most, by the size of its graph: 1.003 for E2B's decoder in `int4`, less for others."""
GPU_LIBRARY = Path(ai_edge_litert.__file__).parent / "libLiteRtWebGpuAccelerator.so"
GPU_LIBRARY_NEEDS = frozenset({"asimdhp", "asimddp"})
"""Features of Arm processors that it was compiled with, as /proc/cpuinfo calls them: half precision, dot products."""


def refuse_fatal_library(processor: Processor, library: Path = GPU_LIBRARY) -> None:
    """LiteRT 2.3 opens its library for graphics processors whatever its options say, and that library ends the program
    with SIGILL on a processor with less than it was compiled for, such as a Raspberry Pi 4's.

    Raises:
        RequestError: it would.
    """
    lacks = GPU_LIBRARY_NEEDS - set(processor.features)
    if processor.architecture.lower() in ("aarch64", "arm64") and processor.features and lacks and library.exists():
        raise RequestError(
            f"this processor lacks {', '.join(sorted(lacks))}, which {library} needs or else ends the program: "
            "delete that file (it is for graphics processors only), or use the engine onnx."
        )


def load_model(package: Package, graph: Graph, settings: EngineSettings) -> Any:
    """A graph of a package, ready to run; PackageError where LiteRT cannot load it."""
    refuse_fatal_library(find_processor())
    package.refuse_changed()
    weights, path = _weight_file(package, graph), package.path(graph.file)
    try:
        with memory_errors(f"memory ran out before {package.folder / graph.file} was loaded"):
            model = _compile_with(path, settings, weights)
    except NoMemoryError:
        raise
    except Exception as error:  # the wrapper raises RuntimeError, and others for what it does not know
        reason = str(error).strip().splitlines()[0]
        raise PackageError(f"LiteRT cannot load {package.folder / graph.file} ({reason}).") from None
    # XNNPACK read all scales to check them; what it calculates with is in the file of the weights.
    drop_file_pages(path)
    return_freed_memory()
    return model


def _compile_with(path: Path, settings: EngineSettings, weights: Path | None) -> Any:
    # XNNPACK ends the program where it cannot write all of the file.
    with kept_weights(weights, room=round(WEIGHTS_SIZE * path.stat().st_size)) as kept:
        # LiteRT 2.3 reports accelerators on standard error, twenty lines a model, and has no setting against it.
        cpu = CpuOptions(num_threads=settings.thread_count, xnnpack_weight_cache_path=kept)
        with quiet(2), placed_threads(pinned=settings.pinned):
            model = CompiledModel.from_file(str(path), environment=_environment(), options=Options(cpu_options=cpu))
            # The first array that is written makes LiteRT look for accelerators once more.
            key, names = next(iter(model.get_signature_list().items()))
            details = model.get_input_tensor_details(key)[names["inputs"][0]]
            values = np.zeros(details["shape"], np.dtype(details["dtype"]))
            model.create_input_buffer_by_name(key, names["inputs"][0]).write(values)
    return model


@functools.cache
def _environment() -> Any:
    """One for all models, without the accelerators and compilers that LiteRT would look for."""
    nowhere = str(Path(__file__).parent / "no-accelerators")
    environment = Environment.create(runtime_path=nowhere, compiler_plugin_path=nowhere, dispatch_library_path=nowhere)
    # What was registered later, and may have something to say, runs before it.
    atexit.register(_say_no_more)
    return environment


def _say_no_more() -> None:
    """LiteRT 2.3 reports the end of its accelerators on standard error when the process ends."""
    if sys.stderr is not None:
        sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _weight_file(package: Package, graph: Graph) -> Path | None:
    """A file for weights in the order of the kernels; None where there is no place.

    Another version of LiteRT has a file of its own: XNNPACK would write over the one that somebody else has mapped.
    """
    digest = next(record.sha256 for record in package.manifest.files if record.path == graph.file)
    try:
        folder = cache_folder() / "xnnpack"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder / f"{digest[:32]}-{ai_edge_litert.__version__}.weights" if os.access(folder, os.W_OK) else None


def shortest_signature(model: Any, name: str, count: int, keys: Iterable[str] = ()) -> tuple[int, str]:
    """Of those whose input has room for so many rows, or else the longest of all: its rows and its key.

    Args:
        keys: to choose from; all signatures where there are none.
    """
    keys = keys or model.get_signature_list()
    signatures = sorted((int(model.get_input_tensor_details(key)[name]["shape"][1]), key) for key in keys)
    return next((each for each in signatures if each[0] >= count), signatures[-1])


def call_signature(model: Any, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a signature by name."""
    names = model.get_signature_list()[key]
    inputs = {name: model.create_input_buffer_by_name(key, name) for name in names["inputs"]}
    outputs = {name: model.create_output_buffer_by_name(key, name) for name in names["outputs"]}
    for name, buffer in inputs.items():
        buffer.write(arrays[name])
    run_signature(model, key, inputs, outputs)
    found = {}
    for name, details in model.get_output_tensor_details(key).items():
        shape = tuple(details["shape"])
        found[name] = outputs[name].read(int(np.prod(shape)), np.dtype(details["dtype"])).reshape(shape)
    return found


def run_signature(model: Any, key: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Run a signature on buffers.

    Raises:
        NoMemoryError: LiteRT allocates what a signature needs when it first runs, and there was too little.
    """
    with memory_errors():
        model.run_by_name(key, inputs, outputs)


def zeroed_buffer(model: Any, key: str, name: str, shape: Sequence[int]) -> Any:
    """What was never written must be numbers: a weight of zero times anything else is not zero."""
    buffer = model.create_input_buffer_by_name(key, name)
    buffer.write(np.zeros(shape, np.float32))
    return buffer
