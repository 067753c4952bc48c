"""Converts the small model beside this file and lets it translate held-out sentences: what `make demo` runs.

python models/tiny/demo.py [--recipe int8] [--engine litert]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import cabochon
from cabochon.engines import ENGINES
from cabochon.languages import language_name
from cabochon_convert.recipes import DEFAULT_RECIPE, RECIPES

TINY = Path(__file__).resolve().parent
REPOSITORY = TINY.parent.parent


def main() -> int:
    """Convert, load, translate every demo sound, print what came out beside what was said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(name for name, recipe in RECIPES.items() if not (recipe.is_calibrated or recipe.keeps_integers))
    parser.add_argument("--recipe", choices=names, default=DEFAULT_RECIPE, help="quantization (default: %(default)s)")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what runs it (default: %(default)s)")
    arguments = parser.parse_args()
    recipe, engine = arguments.recipe, arguments.engine
    package = REPOSITORY / "build" / (f"tiny-{recipe}" if engine == ENGINES[0] else f"tiny-{recipe}-{engine}")
    command = ["cabochon-convert", TINY.relative_to(REPOSITORY), package.relative_to(REPOSITORY), "--recipe", recipe]
    command += ["--target", engine]
    print("$", *command, "--replace", flush=True)
    executable = Path(sys.executable).parent / "cabochon-convert"
    subprocess.run([executable, *command[1:], "--replace"], cwd=REPOSITORY, check=True)

    started = time.perf_counter()
    model = cabochon.load(package)
    load_seconds = time.perf_counter() - started
    references = json.loads((TINY / "demo" / "references.json").read_text(encoding="utf-8"))
    # The first run of a graph also lays out its memory, so it is not the one to be timed.
    _answer(model, references[0]).finish()
    answers = [_translate(model, reference) for reference in references]
    checkpoint_size = (TINY / "model.safetensors").stat().st_size
    correct = sum(
        (answer.transcript == reference[reference["source"]]) + (answer.translation == reference[reference["target"]])
        for answer, reference in zip(answers, references, strict=True)
    )
    print()
    print(f"exactly right     {correct} of {2 * len(references)} lines")
    print(f"package size      {model.package.size / 1e6:.1f} MB (checkpoint {checkpoint_size / 1e6:.1f} MB)")
    print(f"load time         {load_seconds:.2f} s")
    print(f"real-time factor  {median(answer.statistics.real_time_factor for answer in answers):.3f} (median)")
    print(
        f"decode speed      {median(answer.statistics.tokens_per_second for answer in answers):.0f} tokens/s (median)"
    )
    return 0


def _answer(model: cabochon.Model, reference: dict[str, str]) -> cabochon.Translation:
    sound = TINY / "demo" / reference["file"]
    return model.translate(sound, source=reference["source"], target=reference["target"])


def _translate(model: cabochon.Model, reference: dict[str, str]) -> cabochon.Translation:
    answer = _answer(model, reference)
    answer.finish()
    source, target = reference["source"], reference["target"]
    print()
    print(f"{reference['file']}, {answer.statistics.audio_seconds:.1f} s, voice {reference['voice']}")
    print(f"  said         {reference[source]}")
    print(f"  transcript   {answer.transcript}")
    print(f"  {language_name(target):<13}{reference[target]}")
    print(f"  translation  {answer.translation}")
    return answer


if __name__ == "__main__":
    sys.exit(main())
