"""Loading a package with one of the engines; an engine's library is imported only when it is asked for."""

from __future__ import annotations

from cabochon.backend import EngineSettings, Session
from cabochon.errors import RequestError
from cabochon.package import Package


def open_session(package: Package, engine: str, settings: EngineSettings) -> Session:
    """Load the graphs of a package with the engine of that name.

    Raises:
        RequestError: the package has no graphs for this engine.
        MissingDependencyError: the engine's library is not installed.
    """
    engines = package.manifest.engines
    if engine not in engines:
        raise RequestError(f"the package has no graphs for the engine {engine!r}, only for {', '.join(engines)}.")
    if engine == "onnx":
        from cabochon.backend_onnx import open_onnx_session

        return open_onnx_session(package, settings)
    raise RequestError(f"this cabochon cannot run the engine {engine!r}: install a newer one.")
