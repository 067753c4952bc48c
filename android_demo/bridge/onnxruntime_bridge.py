"""onnxruntime for another process: commands come as lines, tensors lie in a file that both have mapped.

python onnxruntime_bridge.py MEMORY

    open PATH                          → opened ID
    run ID
    input|output NAME TYPE OFFSET DIMENSIONS    (as many as there are; dimensions are joined by commas)
    end                                → done

A failure is answered by `failed` and a sentence. Outputs are written where they lie, perhaps into an input's memory, as
onnxruntime's Java interface does on a phone.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import IO

import numpy as np

# It reads the variable when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


def main() -> None:
    """Answer commands until the other side closes its end."""
    with Path(sys.argv[1]).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        sessions: list[onnxruntime.InferenceSession] = []
        for line in sys.stdin:
            command, _, argument = line.rstrip("\n").partition(" ")
            try:
                if command == "open":
                    sessions.append(_open(argument))
                    reply = f"opened {len(sessions) - 1}"
                else:
                    _run(sessions[int(argument)], memory, sys.stdin)
                    reply = "done"
            except Exception as error:
                reply = "failed " + " ".join(str(error).split())
            print(reply, flush=True)


def _open(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, memory: mmap.mmap, commands: IO[str]) -> None:
    binding = session.io_binding()
    arrays = []
    for line in commands:
        if line == "end\n":
            break
        kind, name, dtype, offset, *shape = line.split()
        dimensions = [int(size) for size in shape[0].split(",")] if shape else []
        array: np.ndarray = np.ndarray(dimensions, dtype, memory, int(offset))
        arrays.append(array)
        bind = binding.bind_input if kind == "input" else binding.bind_output
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)


if __name__ == "__main__":
    main()
