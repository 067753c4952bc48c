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
from cabochon.decode import prefill
from cabochon.embedder import open_embedder
from cabochon.engines import choose_engine, open_session
from cabochon.package import open_package
from cabochon.sampling import Sampler, SamplingSettings


class Worker:
    """A loaded package."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        self._package = open_package(folder)  # the first opening hashes the files, later ones remember
        self._folder, self._threads, self._context = folder, threads, context
        started = time.perf_counter()
        engine = choose_engine(self._package)
        self._decoder = open_session(self._package, engine, EngineSettings(threads, context)).decoder
        self._embedder = open_embedder(self._package, engine)
        print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
        self._vocabulary_size = self._package.manifest.text.vocabulary_size
        sampling = self._package.manifest.sampling
        self._sampler = Sampler(SamplingSettings(), sampling.suppress_tokens, 0.0)
        self._generator = np.random.default_rng(0)
        self._position = 0
        self._model: cabochon.Model | None = None

    def prefill(self, count: int) -> dict[str, float]:
        """See workers.py."""
        tokens = self._random_tokens(count)
        started = time.perf_counter()
        prefill(self._decoder, self._embedder.embed(tokens))
        self._position = count
        return {"seconds": time.perf_counter() - started}

    def fill(self, count: int) -> dict[str, float]:
        """See workers.py."""
        tokens = self._random_tokens(count)
        started = time.perf_counter()
        prompt = self._embedder.embed(tokens)
        for start in range(0, count, LONGEST_RUN):
            run = slice(start, start + LONGEST_RUN)
            self._decoder.run(prompt.inputs_embeds[run], prompt.per_layer_inputs[run], start, logits_to_keep=0)
        self._position = count
        return {"seconds": time.perf_counter() - started}

    def decode(self, count: int) -> dict[str, list[float]]:
        """See workers.py."""
        each = []
        for token in self._random_tokens(count):
            started = time.perf_counter()
            step = self._embedder.embed([token])
            logits = self._decoder.run(step.inputs_embeds, step.per_layer_inputs, self._position)[-1]
            self._sampler.choose(logits)
            each.append(time.perf_counter() - started)
            self._position += 1
        return {"each": each}

    def hear(self, path: str, count: int) -> dict[str, float]:
        """See workers.py."""
        if self._model is None:
            # Only one of both is kept in memory.
            del self._decoder
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

    def _random_tokens(self, count: int) -> list[int]:
        return [int(token) for token in self._generator.integers(1000, self._vocabulary_size, count)]


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
