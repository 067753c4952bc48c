"""transformers in bfloat16 at the other end of a pipe, see workers.py; it does not hear here.

python transformers_worker.py CHECKPOINT THREADS
"""

from __future__ import annotations

import json
import sys
import time

import torch
import transformers


class Worker:
    """The reference, as its users run it on a CPU."""

    def __init__(self, checkpoint: str, threads: int) -> None:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        self._model = transformers.Gemma4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
        self._model.eval()
        print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
        self._generator = torch.Generator().manual_seed(0)
        self._cache: transformers.Cache | None = None

    @torch.inference_mode()
    def run(self, count: int) -> float:
        """Run random tokens behind what is in the cache: seconds."""
        tokens = torch.randint(1000, self._model.config.text_config.vocab_size, (1, count), generator=self._generator)
        started = time.perf_counter()
        output = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        output.logits.argmax()
        self._cache = output.past_key_values
        return time.perf_counter() - started

    def forget(self) -> None:
        """Start over."""
        self._cache = None


def main() -> None:
    """Answer until the pipe closes."""
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        command, count = line.split()
        if command == "prefill":
            worker.forget()
            print(json.dumps({"seconds": worker.run(int(count))}), flush=True)
        else:
            print(json.dumps({"each": [worker.run(1) for _ in range(int(count))]}), flush=True)


if __name__ == "__main__":
    main()
