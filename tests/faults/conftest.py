"""What the tests of faults share."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import convert_tiny

FAULTY_CALLS = Path(__file__).resolve().parent.parent / "faulty_calls.c"
SMALL_DISK = 'mount -t tmpfs -o size="$1" none "$2" && cd "$2" && shift 2 && exec "$@"'


@pytest.fixture(scope="session")
def faulty_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of faulty_calls.c, for LD_PRELOAD."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the tests of faults need a C compiler (Debian: apt install gcc)"
    library = tmp_path_factory.mktemp("library") / "faulty_calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, FAULTY_CALLS, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str | Path]]:
    """The beginning of a command that runs in a file system of its own of so many bytes, and is its working folder."""
    begin: list[str | Path] = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*begin, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no user namespaces, so that no small disk can be made")
    place = tmp_path_factory.mktemp("small-disk")
    return lambda size: [*begin, "sh", "-c", SMALL_DISK, "sh", size, place]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny for onnxruntime, shared: nothing may change it."""
    return convert_tiny("int4-mixed", tmp_path_factory)
