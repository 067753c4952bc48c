"""Sound as it is spoken: PortAudio by sounddevice, or ALSA's arecord where that is not installed."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import AudioError, RequestError
from cabochon.wav import SoundFile

BLOCK_SECONDS = 0.1
HELD_SECONDS = 60.0
"""What is spoken while the model works waits; of more than this the newest is lost."""


class Source(Protocol):
    """Something that gives samples at its own pace."""

    @property
    def failure(self) -> str:
        """Why it ended by itself although there may be more; empty where it did not."""

    def start(self, give: Callable[[Float32Array], None], end: Callable[[], None]) -> None:
        """Begin; `give` takes float32 [samples], `end` says that there are no more. Both may be called by a thread."""

    def stop(self) -> None:
        """End, and wait until nothing more is given."""


class Recording:
    """What a source gives, in a queue that holds a minute. Use it as a context manager."""

    def __init__(self, source: Source, sample_rate: int) -> None:
        self._source = source
        self._sample_rate = sample_rate
        self._blocks: queue.SimpleQueue[Float32Array | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = self._lost = 0
        self._muted = False

    def __enter__(self) -> Self:
        self._source.start(self._give, lambda: self._blocks.put(None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop recording; what was recorded can still be read."""
        self._source.stop()
        self._blocks.put(None)

    @property
    def waiting_seconds(self) -> float:
        """Of sound that was not read yet."""
        with self._lock:
            return self._held / self._sample_rate

    @property
    def failure(self) -> str:
        """Why it ended although nobody stopped it; empty where that is not so."""
        return self._source.failure

    def lost_seconds(self) -> float:
        """Of sound for which there was no room since this was last asked."""
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost / self._sample_rate

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Within it, nothing is recorded: so a machine does not hear itself speak."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def __iter__(self) -> Iterator[Float32Array]:
        return self

    def __next__(self) -> Float32Array:
        block = self._blocks.get()
        if block is None:
            self._blocks.put(None)
            raise StopIteration
        with self._lock:
            self._held -= len(block)
        return block

    def _give(self, samples: Float32Array) -> None:
        if self._muted:
            return
        with self._lock:
            if self._held + len(samples) > HELD_SECONDS * self._sample_rate:
                self._lost += len(samples)
                return
            self._held += len(samples)
        self._blocks.put(samples)


def open_microphone(sample_rate: int, device: str | None = None) -> Source:
    """The system's microphone.

    Args:
        sample_rate: samples per second wanted.
        device: its name or a part of it, as `python -m sounddevice` and `arecord -L` list them.

    Raises:
        RequestError: there is neither sounddevice nor arecord.
        AudioError: there is no such microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError):  # OSError: PortAudio itself is missing
        if shutil.which("arecord") is None:
            raise RequestError(
                "there is no way to a microphone: install cabochon with its extra 'mic' and PortAudio "
                "(Debian: apt install libportaudio2), or alsa-utils."
            ) from None
        return CommandSource(arecord_command(sample_rate, device))
    return PortAudioSource(sounddevice, sample_rate, device)


def arecord_command(sample_rate: int, device: str | None) -> list[str]:
    """ALSA's recorder, writing 16-bit samples to its standard output."""
    chosen = ["--device", device] if device else []
    return ["arecord", "--quiet", *chosen, "--format", "S16_LE", "--channels", "1", "--rate", str(sample_rate),
            "--file-type", "raw"]  # fmt: skip


class PortAudioSource:
    """A microphone that sounddevice knows."""

    def __init__(self, sounddevice: Any, sample_rate: int, device: str | None) -> None:
        self._sounddevice = sounddevice
        self._settings = {"samplerate": sample_rate, "device": device, "channels": 1, "dtype": "float32"}
        self._block = round(BLOCK_SECONDS * sample_rate)
        self._stream: Any = None
        self._stopped = False

    @property
    def failure(self) -> str:
        """See `Source.failure`."""
        return "" if self._stopped else "the microphone is gone"

    def start(self, give: Callable[[Float32Array], None], end: Callable[[], None]) -> None:
        """See `Source.start`."""

        def hear(samples: Float32Array, *_: object) -> None:
            give(samples[:, 0].copy())

        try:
            self._stream = self._sounddevice.InputStream(
                **self._settings, blocksize=self._block, callback=hear, finished_callback=end
            )
            self._stream.start()
        except (self._sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(
                f"the microphone cannot be opened ({' '.join(str(error).split())}): "
                "choose another with --device, as `python -m sounddevice` lists them."
            ) from None

    def stop(self) -> None:
        """See `Source.stop`."""
        self._stopped = True
        if self._stream is not None:
            self._stream.close()


class CommandSource:
    """A command that writes 16-bit samples, low byte first, to its standard output."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self, give: Callable[[Float32Array], None], end: Callable[[], None]) -> None:
        """See `Source.start`."""
        # In a session of its own, or Ctrl-C would reach it before what it recorded was read.
        process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._process = process

        def read() -> None:
            assert process.stdout is not None
            rest = b""
            with process.stdout as output:
                while content := os.read(output.fileno(), 4096):
                    content = rest + content
                    whole = len(content) - len(content) % 2
                    rest = content[whole:]
                    give(np.multiply(np.frombuffer(content[:whole], "<i2"), 1 / 32768, dtype=np.float32))
            end()

        self._thread = threading.Thread(target=read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """See `Source.stop`."""
        if self._process is not None and self._thread is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()

    @property
    def failure(self) -> str:
        """See `Source.failure`."""
        # It is stopped by a signal, whose status is negative.
        status = self._process.wait() if self._process else 0
        return f"{self._command[0]} ended with status {status}" if status > 0 else ""


class FileSource:
    """A sound file at the pace of its speech, as if it were spoken now."""

    def __init__(self, path: Path, sample_rate: int, speed: float = 1.0) -> None:
        """Args: speed: of its pace."""
        self._file = SoundFile(path, sample_rate)
        self._sample_rate, self._speed = sample_rate, speed
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def failure(self) -> str:
        """See `Source.failure`."""
        return ""

    def start(self, give: Callable[[Float32Array], None], end: Callable[[], None]) -> None:
        """See `Source.start`."""
        size = round(BLOCK_SECONDS * self._sample_rate)

        def play() -> None:
            began, given = time.monotonic(), 0
            for block in self._file.blocks():
                for start in range(0, len(block), size):
                    due = began + given / self._sample_rate / self._speed
                    if self._stopping.wait(max(0.0, due - time.monotonic())):
                        return
                    piece = block[start : start + size]
                    give(piece)
                    given += len(piece)
            end()

        self._thread = threading.Thread(target=play, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """See `Source.stop`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
