"""Nothing leaves this machine: onnxruntime is told so before it is imported."""

from __future__ import annotations

import os

SWITCH = "ORT_DISABLE_TELEMETRY"


def refuse_telemetry() -> None:
    """Keep onnxruntime from reporting its use, to be called before it is imported for the first time.

    Since 1.29 the published builds for Linux write an identifier of the machine and a database of events into the
    user's cache folder as soon as they are imported, and send them to Microsoft where there is a network
    (https://github.com/microsoft/onnxruntime/pull/27379). The variable is read once; a value of the user's own is kept.
    """
    os.environ.setdefault(SWITCH, "1")
