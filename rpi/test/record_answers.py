"""Answers of a package to the demo's sounds, and the logits they were chosen from: record_answers.py PACKAGE DEMO FILE.

Runs wherever cabochon is installed; two recordings say how far two machines' kernels are apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import cabochon


def main(package: Path, demo: Path, output: Path) -> None:
    """Writes an .npz of `texts` and, of each sound, `logits_N` [steps, vocabulary]."""
    model = cabochon.load(package)
    decoder = model._session.decoder
    run, steps = decoder.run, []

    def note(*arguments: object, **named: object) -> np.ndarray:
        logits = run(*arguments, **named)
        steps.append(np.array(logits[-1:], np.float32))
        return logits

    decoder.run = note
    texts, logits = [], {}
    for index, reference in enumerate(json.loads((demo / "references.json").read_text(encoding="utf-8"))):
        steps.clear()
        answer = model.translate(demo / reference["file"], source=reference["source"], target=reference["target"])
        texts.append(answer.finish())
        print(f"{package.name}: {' | '.join(texts[-1].split(chr(10)))}", flush=True)
        # The last run of the prompt and those of the answer; how a prompt is cut into runs does not matter.
        logits[f"logits_{index}"] = np.concatenate(steps)[-answer.statistics.new_tokens :]
    np.savez(output, texts=np.array(texts), **logits)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
