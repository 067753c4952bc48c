"""cabochon at the other end of a pipe, see workers.py.

python cabochon_worker.py PACKAGE THREADS CONTEXT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

import cabochon
from cabochon.backend import LONGEST_RUN, EngineSettings
from cabochon.bench import LoadedPackage
from cabochon.package import open_package


class Worker:
    """A loaded package."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        package = open_package(folder)  # the first opening hashes the files, later ones remember
        self._folder, self._threads = folder, threads
        self._loaded = LoadedPackage(package, "", EngineSettings(threads, context))
        print(json.dumps({"load_seconds": self._loaded.load_seconds}), flush=True)
        self._model: cabochon.Model | None = None

    def prefill(self, count: int) -> dict[str, float]:
        """See workers.py."""
        return {"seconds": self._loaded.prefill(count)}

    def fill(self, count: int) -> dict[str, float]:
        """See workers.py."""
        return {"seconds": self._loaded.fill(count)}

    def decode(self, count: int) -> dict[str, list[float]]:
        """See workers.py."""
        return {"each": self._loaded.decode(count)}

    def hear(self, path: str, count: int) -> dict[str, float]:
        """See workers.py."""
        if self._model is None:
            # Only one of both is kept in memory.
            del self._loaded
            self._model = cabochon.load(self._folder, threads=self._threads, context_length=LONGEST_RUN * 4)
        samples = np.fromfile(path, np.float32)
        started = time.perf_counter()
        answer = self._model.translate(samples, source="German", target="English", max_tokens=count)
        answer.finish()
        seconds = time.perf_counter() - started
        statistics = answer.statistics
        if statistics.new_tokens != count:
            raise RuntimeError(f"the answer has {statistics.new_tokens} tokens, {count} were to be measured")
        return {"seconds": seconds, "positions": statistics.prompt_positions, "decode": statistics.decode_seconds}


def main() -> None:
    """Answer until the pipe closes."""
    worker = Worker(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    for line in sys.stdin:
        match line.split():
            case ["prefill", count]:
                print(json.dumps(worker.prefill(int(count))), flush=True)
            case ["fill", count]:
                print(json.dumps(worker.fill(int(count))), flush=True)
            case ["decode", count]:
                print(json.dumps(worker.decode(int(count))), flush=True)
            case ["hear", path, count]:
                print(json.dumps(worker.hear(path, int(count))), flush=True)
            case _:
                sys.exit(f"unknown command {line!r}")


if __name__ == "__main__":
    main()
