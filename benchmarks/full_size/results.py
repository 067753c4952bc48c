"""What was measured, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import truediv
from pathlib import Path
from statistics import median

import onnx
from prepare import REPOSITORY

from cabochon.manifest_file import read_manifest

E2B_CONFIG = REPOSITORY / "tests" / "configs" / "e2b.json"


@dataclass(slots=True)
class Series:
    """Numbers of one kind, by program, one of each program a round."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Note the value of one round."""
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Over all rounds."""
        return median(self.values[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of the rounds' ratios."""
        return median(one / two for one, two in zip(self.values[name], self.values[other], strict=True))


@dataclass(slots=True)
class Results:
    """All that was measured."""

    prefill: dict[int, Series] = field(default_factory=dict)
    """Positions a second, by length of the prompt."""
    decode: dict[int, Series] = field(default_factory=dict)
    """Tokens a second, by positions before."""
    bandwidth: dict[int, list[float]] = field(default_factory=dict)
    """Bytes a second, in the same rounds as `decode`."""
    load: Series = field(default_factory=Series)
    """Seconds."""
    speech_title: str = ""
    speech: Series = field(default_factory=Series)
    """Seconds from samples to the last token."""
    resident: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """Bytes, by moment and program."""


def write_table(results: Results, weights: Mapping[str, int], rival: str) -> str:
    """Markdown.

    Args:
        results: of all programs.
        weights: bytes of weights that a token needs, by program; the rival last.
        rival: to which ratios are given.
    """
    names = list(weights)
    lines = [
        f"| | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
    ]
    for length, series in results.prefill.items():
        lines.append(_row(rival, f"prefill of {length}, positions/s", series, names, "{:.0f}"))
    for depth, series in results.decode.items():
        lines.append(_row(rival, f"decode at {depth}, tokens/s", series, names, "{:.1f}"))
    shallow, deep = min(results.decode), max(results.decode)
    first, last = results.decode[shallow], results.decode[deep]
    shares = [f"{last.median(name) / first.median(name):.0%}" for name in names]
    lines.append(f"| decode at {deep}, share of that at {shallow} | {' | '.join(shares)} |")
    lines.append(_row(rival, results.speech_title, results.speech, names, "{:.2f}"))
    lines.append(_row(rival, "load, s", results.load, names, "{:.2f}"))
    for moment, resident in results.resident.items():
        for key, words in (("VmRSS", "resident"), ("VmHWM", "peak resident"), ("RssAnon", "anonymous")):
            cells = [f"{resident[name][key] / 1e9:.2f}" for name in names]
            lines.append(f"| {words} GB, {moment} | {' | '.join(cells)} |")
    lines.append(f"| GB of weights read a token | {' | '.join(f'{weights[name] / 1e9:.2f}' for name in names)} |")
    for depth, series in results.decode.items():
        rates = results.bandwidth[depth]
        shares = [f"{median(map(truediv, series.values[name], rates)) * weights[name]:.0%}" for name in names]
        lines.append(f"| share of read bandwidth ÷ those bytes, decode at {depth} | {' | '.join(shares)} |")
    everything = [rate for rates in results.bandwidth.values() for rate in rates]
    lines += [
        "",
        f"Read bandwidth in the same rounds: {median(everything) / 1e9:.1f} GB/s "
        f"({min(everything) / 1e9:.1f} to {max(everything) / 1e9:.1f}). Peak resident memory of packages includes "
        "loading, when weights are in memory twice for a moment.",
        "",
    ]
    return "\n".join(lines)


def _row(rival: str, title: str, series: Series, names: Sequence[str], form: str) -> str:
    cells = []
    for name in names:
        ratio = "" if name == rival else f" ({series.ratio(name, rival):.2f}×)"
        cells.append(form.format(series.median(name)) + ratio)
    return f"| {title} | {' | '.join(cells)} |"


def decoder_bytes(package: Path) -> int:
    """Every matrix of the decoder is read for every token; of its rotations only one row is."""
    engines = read_manifest(package).engines
    if "litert" in engines:
        return (package / engines["litert"].decoder.file).stat().st_size
    decoder = package / engines["onnx"].decoder.file
    weights = onnx.load(str(decoder), load_external_data=False).graph.initializer
    lengths = ({entry.key: entry.value for entry in weight.external_data}.get("length", 0) for weight in weights)
    return sum(
        int(length) for weight, length in zip(weights, lengths, strict=True) if not weight.name.startswith("rotation.")
    )


def gguf_bytes(gguf: Path) -> int:
    """All but the per-layer embeddings, of which a token reads one row."""
    text = json.loads(E2B_CONFIG.read_text())["text_config"]
    table = text["vocab_size"] * text["num_hidden_layers"] * text["hidden_size_per_layer_input"]
    # Q4_0: 18 bytes for 32 values.
    return gguf.stat().st_size - table * 18 // 32


def describe_processor() -> str:
    """Its name and which instructions for small integers it has."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    found = set(facts.get("flags", facts.get("Features", "")).split())
    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "asimddp", "i8mm")
    return f"{facts.get('model name', 'an unnamed processor')} ({', '.join(name for name in known if name in found)})"
