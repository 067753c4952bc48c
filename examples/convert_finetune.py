"""Converts a LoRA fine-tune and measures what rounding did to it.

python examples/convert_finetune.py google/gemma-4-E2B-it my-adapter my-int4
python examples/convert_finetune.py google/gemma-4-E2B-it my-adapter my-int4 --data my-recordings --language German
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import cabochon
from cabochon.languages import language_name
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.evaluation_data import read_evaluation_data
from cabochon_convert.progress_bars import ProgressBars
from cabochon_convert.recipes import DEFAULT_RECIPE, RECIPES
from cabochon_convert.source import find_adapter, find_source
from cabochon_convert.verify import verify_packages


def main() -> int:
    """Merge, round, write the package, run it beside the merged model in transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or hub id of the model that the adapter was trained on")
    parser.add_argument("adapter", help="folder or hub id of what peft saved")
    parser.add_argument("package", type=Path, help="folder to write")
    recipes = [name for name, recipe in RECIPES.items() if not (recipe.is_calibrated or recipe.keeps_integers)]
    parser.add_argument("--recipe", choices=recipes, default=DEFAULT_RECIPE, help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="folder of speech with texts to verify on: see docs/converting.md")
    parser.add_argument("--language", default="English", help="that is spoken in it (default: %(default)s)")
    arguments = parser.parse_args()

    data = read_evaluation_data(arguments.data, language_name(arguments.language)) if arguments.data else None
    source = replace(find_source(arguments.checkpoint), adapter=find_adapter(arguments.adapter))
    with ProgressBars() as progress:
        settings = ConversionSettings(RECIPES[arguments.recipe])
        conversion = convert_checkpoint(source, arguments.package, settings, progress)
        (report,) = verify_packages([conversion.folder], source, progress, data)
    for note in conversion.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{conversion.folder}: {conversion.manifest.size / 1e6:.1f} MB")
    for name, value in report.summary().items():
        print(f"{name}: {value}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except cabochon.CabochonError as error:  # one sentence: what was found, what was expected, what to do
        sys.exit(str(error))
