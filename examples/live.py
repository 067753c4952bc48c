"""Translates what a microphone hears: guesses while somebody speaks, and each part when its speaker pauses.

python examples/live.py PACKAGE --from German --to English                     # until Ctrl-C
python examples/live.py PACKAGE --from German --to English --file hello.wav    # as if it were spoken now
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cabochon
from cabochon.live_speech import Confirmed, Lost, Pending, listen
from cabochon.long_speech import start_segmenter
from cabochon.microphone import FileSource, Recording, open_microphone
from cabochon.speech_task import SpeechTask


def main() -> None:
    """Hear, cut at pauses, ask the model, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder that cabochon-convert wrote")
    parser.add_argument("--from", dest="source", required=True, metavar="LANGUAGE", help="that is spoken")
    parser.add_argument("--to", dest="target", required=True, metavar="LANGUAGE", help="to translate into")
    parser.add_argument("--file", type=Path, help="a sound file in place of the microphone, at the pace of its speech")
    arguments = parser.parse_args()

    model = cabochon.load(arguments.package)
    task = SpeechTask(model, arguments.source, arguments.target)
    audio = model.audio_model
    segmenter = start_segmenter(audio)
    source = FileSource(arguments.file, audio.sample_rate) if arguments.file else open_microphone(audio.sample_rate)
    with Recording(source, audio.sample_rate) as recording:
        for event in listen(recording, segmenter, task.question(), audio.sample_rate):
            match event:
                case Pending(text):  # may still change
                    print(f"… {' '.join(text.split())}", file=sys.stderr)
                case Confirmed(part, delay):
                    print(f"{part.transcript}\n{part.translation}", flush=True)
                    print(f"({delay:.1f} s after the last word)", file=sys.stderr)
                case Lost(seconds):
                    print(f"{seconds:.1f} s were not heard: the model is slower than the speech", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except cabochon.CabochonError as error:  # one sentence: what was found, what was expected, what to do
        sys.exit(str(error))
