"""What is tried on the emulated Raspberry Pi, with Python's own library only: inside.py STEP…

Prints a line for each step; the first that fails ends it with status 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import wave
from collections.abc import Callable
from pathlib import Path

HOME = Path("/home/pi")
PREFIX, UNITS = Path("/opt/cabochon"), Path("/etc/systemd/system")
CABOCHON = "/usr/local/bin/cabochon"
PYTHON = PREFIX / "current/venv/bin/python"
SOUND, LANGUAGE, TARGET = HOME / "demo/german_unseen_voice.wav", "de", "en"
EXPOSURE = 30
"""Ten times the most that `systemd-analyze security` may say."""
PORT = 10300
UNIT, HTTP_PORT, SEAM = "cabochon-http.service", 8650, "cabochon-test-seam"
SERVICE_SECONDS = 60.0
ALSA_SETTINGS = Path("/root/.asoundrc")
# Where nobody is kept waiting: an emulated program takes a hundred times as long.
PATIENCE = 400.0


class StepError(Exception):
    """What was expected, and what was found."""


def run(*command: object, status: int = 0) -> str:
    """Standard output of a command that ends with this status."""
    outcome = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE)
    if outcome.returncode != status:
        raise StepError(f"{' '.join(map(str, command))}: status {outcome.returncode}\n{outcome.stdout}{outcome.stderr}")
    return outcome.stdout


def expect(found: object, expected: object) -> None:
    """Raise where they differ."""
    if found != expected:
        raise StepError(f"expected {expected!r}, found {found!r}")


def models() -> list[Path]:
    """Of the bundle."""
    return sorted((PREFIX / "current/models").iterdir())


def reference() -> dict[str, str]:
    """What is said in the sound, by language."""
    references = json.loads((HOME / "demo/references.json").read_text(encoding="utf-8"))
    return next(each for each in references if each["file"] == SOUND.name)


def install() -> str:
    """The bundle, with its services, without the network that this namespace does not have."""
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    expect(interfaces, ["lo"])
    (bundle,) = HOME.glob("*/install.sh")
    # Byte code of a hundred thousand lines takes an emulator minutes; the full test lets it be made.
    options = [] if "CABOCHON_FULL" in os.environ else ["--no-compile"]
    run(bundle, "--service", "http", "--service", "wyoming", *options)
    expect(run(bundle, *options).count("installed already"), 1)
    return run(CABOCHON, "--version").strip()


def units() -> str:
    """Services that systemd accepts, as closed as promised."""
    found = sorted(UNITS.glob("cabochon-*.service"))
    expect(len(found), 2)
    run("systemd-analyze", "verify", "--man=no", *found)
    for unit in found:
        last = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", unit).strip()
    return last.splitlines()[-1].strip()


def doctor() -> str:
    """Nothing on this machine keeps any package from running."""
    for model in models():
        findings = json.loads(run(CABOCHON, "doctor", model, "--json"))["findings"]
        problems = [each for each in findings if each["status"] == "problem"]
        expect(problems, [])
    warnings = [each["name"] for each in findings if each["status"] == "warning"]
    return f"{len(findings)} findings, warnings: {', '.join(warnings) or 'none'}"


def answers() -> str:
    """Recorded here for the machine outside, which compares them with its own."""
    for model in models():
        run(PYTHON, HOME / "test/record_answers.py", model, HOME / "demo", HOME / f"answers-{model.name}.npz")
    return ", ".join(model.name for model in models())


def translate() -> str:
    """The command, on every engine."""
    for model in models():
        found = json.loads(run(CABOCHON, "translate", model, SOUND, "--from", LANGUAGE, "--to", TARGET, "--json"))
        expect(found["transcript"], reference()[LANGUAGE])
        expect(found["translation"], reference()[TARGET])
    return found["translation"]


def speak(pipe: Path, sound: bytes) -> None:
    """16-bit samples at 16 kHz, at a fifth of their pace, because the listener is emulated.

    PortAudio opens each device to see what it can, and closes it again: whoever opens it anew hears the beginning.
    """
    size = 3200
    while True:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            for start in range(0, len(sound), size):
                file.write(sound[start : start + size])
                time.sleep(0.5)


def microphone() -> str:
    """Somebody speaks into ALSA's default device, which PortAudio hears."""
    with wave.open(str(SOUND)) as file:
        expect((file.getframerate(), file.getsampwidth(), file.getnchannels()), (16000, 2, 1))
        spoken = file.readframes(file.getnframes())
    silence = bytes(2 * 16000)
    # ALSA's file reads as fast as it can, and would leave the listener no time: so a pipe sets the pace.
    pipe = HOME / "microphone"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    threading.Thread(target=speak, args=(pipe, silence[:16000] + spoken + 600 * silence), daemon=True).start()
    device = f'{{ type file; slave.pcm "null"; file "/dev/null"; infile "{pipe}"; format "raw" }}'
    slave = 'pcm "spoken" format S16_LE rate 16000 channels 1'
    ALSA_SETTINGS.write_text(f"pcm.spoken {device}\npcm.!default {{ type plug; slave {{ {slave} }} }}\n")
    command = [CABOCHON, "listen", str(models()[-1]), "--from", LANGUAGE, "--to", TARGET, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(int(PATIENCE))
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.kill()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, guard)
        if not line:
            raise StepError(process.stderr.read())
    found = json.loads(line)
    expect((found["transcript"], found["translation"]), (reference()[LANGUAGE], reference()[TARGET]))
    return found["transcript"]


def wyoming() -> str:
    """A server with the unit's own command, and a client as Home Assistant's."""
    unit = (UNITS / "cabochon-wyoming.service").read_text()
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
    options = ["--language", LANGUAGE, "--to", TARGET]
    command = [word for word in start.split() if word != "$CABOCHON_OPTIONS"] + options
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = []
            while "tcp://" not in (line := server.stderr.readline()):
                said.append(line)
                if not line:
                    raise StepError(f"{' '.join(command)} ended with status {server.wait()}\n{''.join(said)}")
            served = (PREFIX / "current/model").resolve().name
            names, answer = run(
                PYTHON, HOME / "test/ask_wyoming.py", PORT, f"{served}-to-English", LANGUAGE, SOUND
            ).splitlines()
        finally:
            server.kill()
    expect(names.split(), [served, f"{served}-to-English"])
    expect(answer, reference()[TARGET])
    return answer


def services() -> str:
    """Under a systemd that runs: they answer, come back after a crash, and give up where only the owner can help."""
    options = {name: Path(f"/etc/default/cabochon-{name}") for name in ("http", "wyoming")}
    options["http"].write_text(f"CABOCHON_OPTIONS=--port {HTTP_PORT}\n")
    options["wyoming"].write_text(f"CABOCHON_OPTIONS=--language {LANGUAGE} --to {TARGET}\n")
    (bundle,) = HOME.glob("*/install.sh")
    run(bundle, "--service", "http", "--service", "wyoming", "--no-compile")
    expect(transcribed(), reference()[LANGUAGE])
    served = (PREFIX / "current/model").resolve().name
    ask = (PYTHON, HOME / "test/ask_wyoming.py", PORT, f"{served}-to-English", LANGUAGE, SOUND)
    expect(run(*ask).splitlines()[-1], reference()[TARGET])
    run("systemctl", "kill", "--signal=KILL", UNIT)
    wait_until("NRestarts", "1")
    expect(transcribed(), reference()[LANGUAGE])
    options["http"].write_text("CABOCHON_OPTIONS=--port nonsense\n")
    run("systemctl", "restart", UNIT)
    wait_until("ActiveState", "failed")
    expect(shown("ExecMainStatus"), "2")
    said = run("journalctl", "--unit", UNIT, "--lines", 5, "--output", "cat")
    expect("nonsense" in said, True)
    time.sleep(8)  # longer than RestartSec
    expect(shown("ActiveState"), "failed")
    options["http"].write_text(f"CABOCHON_OPTIONS=--port {HTTP_PORT}\n")
    run("systemctl", "start", UNIT)
    expect(transcribed(), reference()[LANGUAGE])
    expect([path.name for path in Path("/var/cache/private/cabochon").iterdir()], ["cabochon"])
    run("systemctl", "stop", UNIT, "cabochon-wyoming.service")
    expect(shown("Result"), "success")
    run("systemctl", "start", UNIT)
    run(PREFIX / "uninstall.sh")
    expect(shown("LoadState"), "not-found")
    expect(Path("/var/cache/private/cabochon").exists(), False)
    return "started, killed, misconfigured, stopped, removed"


def shown(name: str) -> str:
    """A property of the HTTP service."""
    return run("systemctl", "show", "--value", "--property", name, UNIT).strip()


def wait_until(name: str, value: str) -> None:
    """Until the HTTP service has this property."""
    deadline = time.monotonic() + SERVICE_SECONDS
    while (found := shown(name)) != value:
        if time.monotonic() > deadline:
            raise StepError(f"expected {name} {value}, found {found}\n{run('systemctl', 'status', UNIT, status=3)}")
        time.sleep(0.2)


def transcribed() -> str:
    """What the HTTP service says is said in the sound, as soon as it answers at all."""
    deadline = time.monotonic() + SERVICE_SECONDS
    fields = b"".join(
        f'--{SEAM}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (("model", "any"), ("language", LANGUAGE))
    )
    head = f'--{SEAM}\r\nContent-Disposition: form-data; name="file"; filename="sound.wav"\r\n\r\n'.encode()
    body = fields + head + SOUND.read_bytes() + f"\r\n--{SEAM}--\r\n".encode()
    address = f"http://127.0.0.1:{HTTP_PORT}/v1/audio/transcriptions"
    request = urllib.request.Request(address, body, {"Content-Type": f"multipart/form-data; boundary={SEAM}"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=SERVICE_SECONDS) as answer:
                return str(json.load(answer)["text"])
        except OSError as error:
            if time.monotonic() > deadline:
                raise StepError(f"{error}\n{run('journalctl', '--unit', UNIT, '--lines', 20)}") from None
            time.sleep(0.2)


def uninstall() -> str:
    """Nothing is left, and what was not installed stays."""
    (PREFIX / "my-notes.txt").write_text("mine")
    run(PREFIX / "uninstall.sh")
    expect([path.name for path in PREFIX.iterdir()], ["my-notes.txt"])
    shutil.rmtree(PREFIX)
    left = [str(path) for path in (*UNITS.glob("cabochon-*"), *Path("/etc/default").glob("cabochon-*"))]
    expect(left, [])
    expect(os.path.lexists(CABOCHON), False)
    return "nothing left"


STEPS: dict[str, Callable[[], str]] = {
    step.__name__: step
    for step in (install, units, doctor, answers, translate, microphone, wyoming, services, uninstall)
}


def main(names: list[str]) -> int:
    """Run steps by name."""
    # What maintainer scripts would have done.
    subprocess.run(["/sbin/ldconfig"], check=True)
    # An earlier run's microphone, into which nobody speaks any more: whoever opens it would wait for ever.
    ALSA_SETTINGS.unlink(missing_ok=True)
    for name in names:
        started = time.monotonic()
        try:
            found = STEPS[name]()
        except (StepError, OSError, subprocess.TimeoutExpired, ValueError, StopIteration) as error:
            print(
                f"  {name}: failed after {time.monotonic() - started:.0f} s: {error or type(error).__name__}",
                flush=True,
            )
            return 1
        print(f"  {name}: {found} ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
