"""Translates a sound file of any length, part by part, each with its times.

python examples/translate_file.py PACKAGE hello.wav --from English --to German
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cabochon
from cabochon.long_speech import translate_long


def main() -> None:
    """Print what is said between two pauses as soon as it is understood."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder that cabochon-convert wrote")
    parser.add_argument("sound", type=Path, help="any file that libsndfile reads: wav, flac, ogg, mp3")
    parser.add_argument("--from", dest="source", required=True, metavar="LANGUAGE", help="that is spoken")
    parser.add_argument("--to", dest="target", required=True, metavar="LANGUAGE", help="to translate into")
    arguments = parser.parse_args()

    model = cabochon.load(arguments.package)
    speech = translate_long(model, arguments.sound, source=arguments.source, target=arguments.target)
    if speech.note:
        print(f"note: {speech.note}", file=sys.stderr)
    for part in speech:
        print(f"{part.start:.1f} to {part.end:.1f} s")
        print(f"  {part.transcript}")
        print(f"  {part.translation}", flush=True)
    spent = model.spent
    print(f"{speech.seconds:.1f} s of sound in {spent.total_seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except cabochon.CabochonError as error:  # one sentence: what was found, what was expected, what to do
        sys.exit(str(error))
