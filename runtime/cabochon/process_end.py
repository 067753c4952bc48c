"""How a process ends that others end: what it was writing is tidied up, and somebody says why."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHELL = Path("/bin/sh")
_RELAY = """
IFS= read -r first || exit 0
case $first in
  *'Bus error'*) printf '%s\\n' "$1" ;;
  *Aborted*) printf '%s\\n' "$2" ;;
  *) printf '%s\\n' "$first"; cat ;;
esac >&2
"""
"""A process that was hit by such a signal cannot print; Python can still write to a file, in C."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: what is under way ends as at Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def tidy_termination() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP raise `Terminated`, unless somebody wants them ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    # nohup has SIGHUP ignored.
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def stop(number: int, _: object) -> None:
        for each in numbers:  # a second one, of either kind, would interrupt the tidying up
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def end_as_signalled(number: int) -> None:
    """End as if the signal had ended the process, which is what a shell and systemd ask about."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def explain_crashes(program: str) -> None:
    """Should a mapped file lose its pages (SIGBUS) or an engine give up (SIGABRT), a shell says so in one sentence.

    Nothing happens where there is no such shell, or where somebody else looks after crashes.
    """
    if faulthandler.is_enabled() or not SHELL.exists() or not hasattr(os, "posix_spawn"):
        return
    sentences = (
        f"{program}: the system ended the program (bus error), because a file that it uses was cut or cannot be read: "
        "check the disk, and run  cabochon info PACKAGE --check.",
        f"{program}: the engine ended the program (abort), mostly because memory or a disk is full: close other "
        "programs, ask for a shorter --context-length, or free some space.",
    )
    read, write = os.pipe()
    words = [str(SHELL), "-c", _RELAY, str(SHELL), *sentences]
    try:
        # In a session of its own, or Ctrl-C would end it first.
        os.posix_spawn(SHELL, words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)], setsid=True)
        faulthandler.enable(os.fdopen(write, "w"), all_threads=False)
    except (OSError, NotImplementedError):
        os.close(write)
    finally:
        os.close(read)
