"""Runs atheris (https://github.com/google/atheris) on what reads input from elsewhere.

    python tests/fuzz/run.py 60                   every parser for a minute
    python tests/fuzz/run.py 600 image template   two of them for ten minutes each

Each parser runs in a process of its own, which starts from the inputs in `corpus` and may take 2 GB of memory, and
15 s for an input. What breaks one is written to build/fuzz/PARSER: copy it to `corpus/PARSER` as `found-WHAT`, where
the tests replay it, and mend the parser. Status 1 tells that something was found.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CORPUS = HERE / "corpus"
LONGEST_SECONDS, MOST_MEGABYTES = 15, 2048
_MEASURED = ["cabochon", "cabochon_convert", "jinja2", "starlette", "python_multipart", "h11", "wyoming"]
"""Packages in which a new path of the program makes an input interesting."""


def main(arguments: list[str]) -> int:
    """Fuzz, and print a line for each parser: inputs that were tried, seconds, and what was found."""
    from fuzz.parsers import FILE_PARSERS
    from fuzz.servers import SERVER_PARSERS

    known = [*FILE_PARSERS, *SERVER_PARSERS]
    if not arguments or not arguments[0].isdigit() or not set(arguments[1:]) <= set(known):
        print(f"usage: run.py SECONDS [PARSER ...], of {', '.join(known)}", file=sys.stderr)
        return 2
    broken = 0
    print(f"{'parser':18} {'inputs':>9} {'seconds':>8}  found", flush=True)
    for name in arguments[1:] or known:
        folder = REPOSITORY / "build" / "fuzz" / name
        (folder / "corpus").mkdir(parents=True, exist_ok=True)
        before = set(folder.iterdir())
        began = time.monotonic()
        output = _run(name, int(arguments[0]), folder)
        found = sorted(path.name for path in set(folder.iterdir()) - before if path.name != "log")
        counted = re.findall(r"stat::number_of_executed_units:\s*(\d+)|^#(\d+)\s", output, re.MULTILINE)
        inputs = max((int(one or other) for one, other in counted), default=0)
        print(f"{name:18} {inputs:9} {time.monotonic() - began:8.0f}  {', '.join(found) or 'nothing'}", flush=True)
        broken += bool(found) or inputs == 0
    return 1 if broken else 0


def _run(name: str, seconds: int, folder: Path) -> str:
    """What atheris prints, which is kept in the file `log`."""
    command = [
        sys.executable, str(HERE / "run.py"), "--here", name, str(folder / "corpus"), str(CORPUS / name),
        f"-max_total_time={seconds}", f"-timeout={LONGEST_SECONDS}", f"-rss_limit_mb={MOST_MEGABYTES}",
        f"-artifact_prefix={folder}/", "-print_final_stats=1", "-max_len=65536",
    ]  # fmt: skip
    # Freed memory goes back at once, or what it counts were not what is held; one thread, because others fuzz too.
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "100000", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, env=environment, cwd=REPOSITORY, check=False)
    output = (ended.stdout + ended.stderr).decode("utf-8", "replace")
    (folder / "log").write_text(output, encoding="utf-8")
    return output


def _fuzz_here(name: str, options: list[str]) -> None:
    """Never returns."""
    import tempfile

    import atheris  # of which there are wheels for Linux on x86-64 only

    with atheris.instrument_imports(include=_MEASURED):
        from fuzz.parsers import FILE_PARSERS
        from fuzz.servers import SERVER_PARSERS, convert_small_model

        from cabochon.errors import CabochonError
    # Not removed at the end, for which libFuzzer leaves no time: the next run writes over it.
    scratch = Path(tempfile.gettempdir()) / f"cabochon-fuzz-{name}"
    scratch.mkdir(exist_ok=True)
    if name in FILE_PARSERS:
        parse = FILE_PARSERS[name](scratch)
    else:
        parse = SERVER_PARSERS[name](convert_small_model(scratch / "package"))

    def try_input(data: bytes) -> None:
        with contextlib.suppress(CabochonError):
            parse(data)

    atheris.Setup([sys.argv[0], *options], try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(REPOSITORY)]
    if sys.argv[1:2] == ["--here"]:
        _fuzz_here(sys.argv[2], sys.argv[3:])
    sys.exit(main(sys.argv[1:]))
