"""Loading a package with one of the engines; an engine's library is imported only when it is asked for."""

from __future__ import annotations

from cabochon.backend import EngineSettings, Session, VisionEncoder
from cabochon.errors import RequestError
from cabochon.package import Package

ENGINES = ("onnx", "litert")
"""That this version can run."""


def choose_engine(package: Package, engine: str = "") -> str:
    """The engine of that name, or, without one, the first of `ENGINES` that the package has graphs for.

    Raises:
        RequestError: the package has no graphs for it.
    """
    name = engine or next((each for each in ENGINES if each in package.manifest.engines), ENGINES[0])
    _refuse_unknown(package, name)
    return name


def open_session(package: Package, engine: str, settings: EngineSettings) -> Session:
    """Load the graphs of a package with the engine of that name.

    Raises:
        RequestError: the package has no graphs for this engine.
        MissingDependencyError: the engine's library is not installed.
    """
    _refuse_unknown(package, engine)
    if engine == "litert":
        from cabochon.backend_litert import open_litert_session

        return open_litert_session(package, settings)
    from cabochon.backend_onnx import open_onnx_session

    return open_onnx_session(package, settings)


def open_vision_encoder(package: Package, engine: str, settings: EngineSettings) -> VisionEncoder:
    """Load the vision encoder of a package; apart from its other graphs, because few prompts hold an image.

    Raises:
        RequestError: the package has no vision encoder for this engine.
        MissingDependencyError: the engine's library is not installed.
    """
    _refuse_unknown(package, engine)
    if package.manifest.engines[engine].vision_encoder is None:
        raise RequestError("the package has no vision encoder: convert a checkpoint that has one without --no-vision.")
    if engine == "litert":
        from cabochon.backend_litert import open_litert_vision_encoder

        return open_litert_vision_encoder(package, settings)
    from cabochon.backend_onnx import open_onnx_vision_encoder

    return open_onnx_vision_encoder(package, settings)


def _refuse_unknown(package: Package, engine: str) -> None:
    engines = package.manifest.engines
    if engine not in engines:
        raise RequestError(f"the package has no graphs for the engine {engine!r}, only for {', '.join(engines)}.")
    if engine not in ENGINES:
        raise RequestError(f"this cabochon cannot run the engine {engine!r}: install a newer one.")
