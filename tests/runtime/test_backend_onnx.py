"""What the engine asks of onnxruntime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from refusals import refused

import cabochon
from cabochon.backend import EngineSettings
from cabochon.backend_onnx import _load, open_onnx_session
from cabochon.errors import PackageError
from cabochon.package import open_package
from cabochon.prompt import Message


def test_activations_are_rounded_per_block_on_arm_as_on_x86(random_package: Path) -> None:
    decoder: Any = open_onnx_session(open_package(random_package), EngineSettings()).decoder
    options = decoder._session.get_session_options()
    assert options.get_session_config_entry("mlas.disable_kleidiai") == "1"


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "in/../../secret", "link", "folder/secret", "*/_ORT_MEM_ADDR_/*"]
)
def test_a_graph_reads_weights_of_no_file_outside_its_folder(tmp_path: Path, location: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (package / "link").symlink_to(tmp_path / "secret")
    (package / "folder").symlink_to(tmp_path)
    (package / "own").write_bytes(bytes(16))
    write_identity(package / "good.onnx", "own")
    assert onnxruntime.InferenceSession(str(package / "good.onnx")).run(None, {})[0].shape == (4,)
    write_identity(package / "bad.onnx", location)
    with refused(PackageError, "onnxruntime cannot load"):
        _load(BarePackage(package), SimpleNamespace(file="bad.onnx"), EngineSettings())  # type: ignore[arg-type]


class BarePackage:
    """A folder that nobody has described."""

    manifest = SimpleNamespace(files=())

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def is_in_place(self, _name: str) -> bool:
        return True

    def refuse_changed(self) -> None:
        pass


def write_identity(path: Path, location: str) -> None:
    """A graph that gives back its weights, which lie in another file."""
    weights = onnx.TensorProto(name="w", dims=[4], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    output = onnx.helper.make_tensor_value_info("y", 1, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"past_key": "nothing"}, "nothing"),
        ({"present_value": "nothing"}, "nothing"),
        ({"heads": 3}, "invalid dimensions"),
        ({"head_size": 8}, "invalid dimensions"),
        ({"storage": "int8"}, "data type"),
    ],
)
def test_a_manifest_that_does_not_fit_its_graph_is_told_about_in_one_sentence(
    random_package: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    folder = Path(shutil.copytree(random_package, tmp_path / "package"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engines"]["onnx"]["caches"][0] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with refused(PackageError, "onnxruntime cannot run a graph of the package", words):
        cabochon.load(folder).chat([Message("user", "hello")]).finish()
