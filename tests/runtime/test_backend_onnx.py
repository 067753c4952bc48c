"""What the engine asks of onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cabochon.backend import EngineSettings
from cabochon.backend_onnx import open_onnx_session
from cabochon.package import open_package


def test_activations_are_rounded_per_block_on_arm_as_on_x86(random_package: Path) -> None:
    decoder: Any = open_onnx_session(open_package(random_package), EngineSettings()).decoder
    options = decoder._session.get_session_options()
    assert options.get_session_config_entry("mlas.disable_kleidiai") == "1"
