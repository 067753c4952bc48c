"""LiteRT-LM as a worker of measure.py: BUNDLE THREADS CONTEXT.

LiteRT-LM measures itself, and starts anew each time; its cache of weights is kept. `fill N` only notes the length of
the prompt, and `decode N` runs both: so the answer to `fill` comes from a run of its own with one token.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import litert_lm


class Worker:
    """A bundle."""

    def __init__(self, bundle: Path, threads: int, context: int, cache: str) -> None:
        self._settings = {
            "model_path": str(bundle),
            "backend": litert_lm.Backend.CPU(thread_count=threads),
            "max_num_tokens": context,
            "cache_dir": cache,
        }
        self._prompt = 1

    def fill(self, count: int) -> dict[str, float]:
        """See workers.py."""
        self._prompt = count
        return {"seconds": count / self._run(1).last_prefill_tokens_per_second}

    def decode(self, count: int) -> dict[str, list[float]]:
        """See workers.py."""
        return {"each": [1 / self._run(count).last_decode_tokens_per_second]}

    def _run(self, tokens: int) -> litert_lm.BenchmarkInfo:
        return litert_lm.Benchmark(prefill_tokens=self._prompt, decode_tokens=tokens, **self._settings).run()


def main() -> None:
    """Answer until the pipe closes."""
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
    with tempfile.TemporaryDirectory() as cache:
        worker = Worker(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), cache)
        print(json.dumps({"load_seconds": 0}), flush=True)
        for line in sys.stdin:
            match line.split():
                case ["fill", count]:
                    print(json.dumps(worker.fill(int(count))), flush=True)
                case ["decode", count]:
                    print(json.dumps(worker.decode(int(count))), flush=True)
                case _:
                    sys.exit(f"unknown command {line!r}")


if __name__ == "__main__":
    main()
