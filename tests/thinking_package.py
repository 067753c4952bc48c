"""A package whose template knows thoughts, and a model that writes what it is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

THINK_SWITCH = "{% if enable_thinking %}<|think|>{% endif %}"


def convert_with_thoughts(folder: Path) -> Path:
    """models/tiny with a template that knows thoughts."""
    shutil.copytree(TINY, folder / "checkpoint", ignore=shutil.ignore_patterns("training", "demo"))
    template = folder / "checkpoint" / "chat_template.jinja"
    template.write_text(THINK_SWITCH + template.read_text(encoding="utf-8"), encoding="utf-8")
    return convert_checkpoint(folder / "checkpoint", folder / "package", ConversionSettings(RECIPES["int8"])).folder


def script(monkeypatch: pytest.MonkeyPatch, tokens: Sequence[int]) -> None:
    """Let models prefer these tokens, one after the other, in every answer that begins."""

    class Scripted:
        def __init__(self, *_: object) -> None:
            self._wanted: Iterator[int] = iter(tokens)

        def choose(self, _: np.ndarray) -> int:
            return next(self._wanted)

    monkeypatch.setattr("cabochon.answer_writer.Sampler", Scripted)
