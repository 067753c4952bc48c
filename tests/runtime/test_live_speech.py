from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from refusals import refused

from cabochon.answer import Answer, Statistics
from cabochon.errors import AudioError, RequestError
from cabochon.live_speech import Confirmed, Lost, Pending, Question, listen
from cabochon.microphone import HELD_SECONDS, CommandSource, FileSource, Recording, arecord_command, open_microphone
from cabochon.segmentation import Segmentation, Segmenter

RATE = 16_000
FRAME = 512


@dataclass
class Given:
    """A source that gives these blocks at once."""

    blocks: list[np.ndarray]
    failure: str = ""
    stopped: int = field(default=0)

    def start(self, give: Callable[[np.ndarray], None], end: Callable[[], None]) -> None:
        for block in self.blocks:
            give(block)
        end()

    def stop(self) -> None:
        self.stopped += 1


class Loudness:
    frame_samples = FRAME

    def probability(self, frame: np.ndarray) -> float:
        return float(np.abs(frame).mean())


def segmenter() -> Segmenter:
    return Segmenter(Loudness(), RATE, 30 * RATE, Segmentation(pause=0.5))


def length_of(waveform: np.ndarray) -> Answer:
    """An answer in two pieces: how many tenths of a second are loud."""

    def pieces() -> Iterator[str]:
        yield "loud for "
        yield str(round((waveform > 0.1).sum() / RATE * 10))

    return Answer(pieces(), Statistics(complete=True))


def sound(*pieces: tuple[float, float]) -> np.ndarray:
    return np.concatenate([np.full(round(seconds * RATE), level, np.float32) for seconds, level in pieces])


TWO_PARTS = sound((1, 0), (1, 0.9), (1, 0), (2, 0.9), (0.2, 0))


def blocks_of(waveform: np.ndarray, size: int = 1600) -> list[np.ndarray]:
    return [waveform[start : start + size] for start in range(0, len(waveform), size)]


def test_parts_are_confirmed_in_order_and_the_last_one_when_the_recording_ends() -> None:
    with Recording(Given(blocks_of(TWO_PARTS)), RATE) as recording:
        events = list(listen(recording, segmenter(), Question(length_of), RATE, guess=False))
    confirmed = [event for event in events if isinstance(event, Confirmed)]
    assert [event.part.transcript for event in confirmed] == ["loud for 10", "loud for 20"]
    assert confirmed[0].part.start == pytest.approx(1.0, abs=0.05)
    assert all(event.delay > 0 for event in confirmed)
    # An answer is shown while it comes.
    assert [event.text for event in events if isinstance(event, Pending)][:2] == ["loud for ", "loud for 10"]


def test_what_is_still_spoken_is_guessed_at_and_corrected() -> None:
    class Slowly(Given):
        def start(self, give: Callable[[np.ndarray], None], end: Callable[[], None]) -> None:
            def play() -> None:
                for block in self.blocks:
                    give(block)
                    time.sleep(0.05)
                end()

            threading.Thread(target=play).start()

    with Recording(Slowly(blocks_of(sound((0.5, 0), (4, 0.9), (1, 0)))), RATE) as recording:
        events = list(listen(recording, segmenter(), Question(length_of), RATE))
    first = events[0]
    assert isinstance(first, Pending)
    assert first.text.startswith("loud for ")
    confirmed = [event.part.transcript for event in events if isinstance(event, Confirmed)]
    assert confirmed == ["loud for 40"]
    assert first.text != "loud for 40"


def test_sound_that_finds_no_room_is_counted_and_the_oldest_is_kept() -> None:
    spoken = sound((HELD_SECONDS, 0), (5, 0.9))
    with Recording(Given(blocks_of(spoken)), RATE) as recording:
        assert recording.waiting_seconds == HELD_SECONDS
        events = list(listen(recording, segmenter(), Question(length_of), RATE))
    assert events == [Lost(5.0)]


def test_what_is_recorded_comes_out_unchanged_unless_it_is_muted() -> None:
    class Kept(Given):
        def start(self, give: Callable[[np.ndarray], None], end: Callable[[], None]) -> None:
            self.give, self.end = give, end

    source = Kept([])
    with Recording(source, RATE) as recording:
        source.give(np.ones(3, np.float32))
        with recording.muted():
            source.give(np.full(3, 2, np.float32))
        source.give(np.full(2, 3, np.float32))
        source.end()
        assert np.concatenate(list(recording)).tolist() == [1, 1, 1, 3, 3]
    assert source.stopped == 1


def test_a_recording_that_was_stopped_can_be_read_to_its_end() -> None:
    recording = Recording(Given(blocks_of(TWO_PARTS)), RATE)
    with recording:
        recording.stop()
        assert np.array_equal(np.concatenate(list(recording)), TWO_PARTS)
        assert list(recording) == []


@pytest.mark.parametrize("size", [1, 2, 3, 4097, 100_000])
def test_a_command_is_heard_whatever_the_size_of_its_pieces(size: int) -> None:
    values = np.arange(-5000, 5000, dtype="<i2")
    code = (
        "import sys; content = bytes.fromhex(sys.argv[1]); out = sys.stdout.buffer\n"
        f"for start in range(0, len(content), {size}): out.write(content[start:start + {size}]); out.flush()"
    )
    source = CommandSource([sys.executable, "-c", code, values.tobytes().hex()])
    with Recording(source, RATE) as recording:
        heard = np.concatenate(list(recording))
    assert np.array_equal(heard * 32768, values)
    assert recording.failure == ""


def test_a_command_that_fails_is_named() -> None:
    with Recording(CommandSource([sys.executable, "-c", "import sys; sys.exit(3)"]), RATE) as recording:
        assert list(recording) == []
        assert "status 3" in recording.failure


def test_a_command_that_was_stopped_did_not_fail() -> None:
    endless = "import sys\nwhile True: sys.stdout.buffer.write(bytes(3200)); sys.stdout.flush()"
    with Recording(CommandSource([sys.executable, "-c", endless]), RATE) as recording:
        next(recording)
        recording.stop()
        assert recording.failure == ""


def test_a_file_is_heard_at_its_own_pace(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, TWO_PARTS, RATE, subtype="FLOAT")
    began = time.monotonic()
    with Recording(FileSource(path, RATE, speed=10), RATE) as recording:
        heard = np.concatenate(list(recording))
    assert np.array_equal(heard, TWO_PARTS)
    assert time.monotonic() - began > 0.4


def test_a_file_that_is_no_sound_is_refused_before_anything_is_heard(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    with refused(AudioError, "bad.wav"):
        FileSource(tmp_path / "bad.wav", RATE)


def test_without_any_way_to_a_microphone_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setenv("PATH", "")
    with refused(RequestError, "libportaudio2", "alsa-utils"):
        open_microphone(RATE)


def test_the_recorder_is_asked_for_what_the_model_hears() -> None:
    assert arecord_command(RATE, "hw:1") == [
        "arecord", "--quiet", "--device", "hw:1", "--format", "S16_LE", "--channels", "1", "--rate", "16000",
        "--file-type", "raw",
    ]  # fmt: skip
    assert "--device" not in arecord_command(RATE, None)


class Following:
    """A clip that notes what it was given."""

    def __init__(self) -> None:
        self.heard = np.zeros(0, np.float32)

    @property
    def samples(self) -> int:
        return len(self.heard)

    def push(self, samples: np.ndarray) -> None:
        self.heard = np.concatenate([self.heard, samples])

    def guess(self) -> str:
        return f"{self.samples} so far"


def follow(waveform: np.ndarray, **settings: float) -> tuple[list[Following], list[Confirmed], list[str]]:
    """Clips that were begun, parts that were confirmed, and how each was answered."""
    clips, ways = [], []

    def start() -> Any:
        clips.append(Following())
        return clips[-1]

    def whole(samples: np.ndarray) -> Answer:
        ways.append("whole")
        return length_of(samples)

    def finish(clip: Any) -> Answer:
        ways.append("followed")
        return length_of(clip.heard)

    cutter = Segmenter(Loudness(), RATE, 30 * RATE, Segmentation(**settings))
    with Recording(Given(blocks_of(waveform)), RATE) as recording:
        events = list(listen(recording, cutter, Question(whole, start, finish), RATE))
    return clips, [event for event in events if isinstance(event, Confirmed)], ways


def test_the_model_hears_a_part_while_it_is_spoken_and_exactly_that_part() -> None:
    clips, confirmed, ways = follow(TWO_PARTS, pause=0.5)
    assert ways == ["followed", "followed"]
    assert [event.part.transcript for event in confirmed] == ["loud for 10", "loud for 20"]
    for clip, event in zip(clips, confirmed, strict=True):
        start, end = (round(time * RATE) for time in (event.part.start, event.part.end))
        assert np.array_equal(clip.heard, TWO_PARTS[start:end])


def test_a_part_that_is_cut_is_answered_as_a_whole() -> None:
    clips, confirmed, ways = follow(sound((7, 0.9), (1, 0)), pause=0.5, longest=3.0)
    assert ways[0] == "whole"
    assert sum(int(event.part.transcript.rpartition(" ")[2]) for event in confirmed) == pytest.approx(70, abs=2)
    assert len(clips) >= len(confirmed)
