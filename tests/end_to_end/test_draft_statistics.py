"""Every command that tells what it cost tells what drafts were worth, in the same way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import CABOCHON, run_command
from conftest import TINY
from random_checkpoint import small_config
from random_drafter import drafter_config, random_drafter, write_drafter

from cabochon.answer import Statistics, StatisticsSum
from cabochon.draft_length import DraftCounts
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

SOUND = TINY / "demo" / "english_unseen_voice.wav"
SHORT = ("--max-tokens", "12", "--drafts", "2")
DRAFTS = re.compile(r"^drafts  (\d+) of (\d+) accepted", re.MULTILINE)


@pytest.fixture(scope="module")
def package(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafting")
    config = drafter_config(small_config())
    drafter = write_drafter(folder / "drafter", config, random_drafter(config))
    wishes = ConversionSettings(RECIPES["float"], drafter=drafter)
    return convert_checkpoint(random_checkpoint, folder / "package", wishes).folder


def test_each_command_tells_the_same_of_its_drafts(package: Path, tmp_path: Path) -> None:
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("transcribe", package, SOUND),
        ("translate", package, SOUND, "--source", "en", "--target", "de"),
        ("transcribe", package, SOUND, "--output", tmp_path / "long.srt", "--replace"),
        ("summarize", package, SOUND),
    )
    for command in commands:
        shown = run_command(CABOCHON, *command, *SHORT, "--statistics", "--json")
        assert shown.returncode == 0, shown.stderr
        ((accepted, drafted),) = DRAFTS.findall(shown.stderr)
        drafts = json.loads(shown.stdout)["statistics"]["drafts"]
        assert (drafts["accepted"], drafts["drafted"]) == (int(accepted), int(drafted))
        assert 0 <= drafts["accepted"] <= drafts["drafted"]
        # One answer of 12 tokens is drafted in 4 rounds at least; a summary has that of the sound besides.
        assert drafts["drafted"] >= (14 if command[0] == "summarize" else 7)


def test_nothing_is_said_of_drafts_without_a_drafter(random_package: Path) -> None:
    command = ("transcribe", random_package, SOUND, "--max-tokens", "4", "--statistics", "--json")
    shown = run_command(CABOCHON, *command)
    assert "drafts" not in shown.stderr
    assert json.loads(shown.stdout)["statistics"]["drafts"] is None


def test_info_and_doctor_tell_of_a_drafter(package: Path) -> None:
    facts = json.loads(run_command(CABOCHON, "info", package, "--json").stdout)
    assert facts["drafter"] == "drafter"
    stored = sum(size for name, size in facts["file_sizes"].items() if name.startswith("drafter"))
    assert facts["memory"]["onnx"]["drafter_weights_bytes"] == pytest.approx(1.11 * stored, rel=1e-3)
    assert facts["memory"]["onnx"]["drafter_activations_bytes"] > 0
    assert " drafter" in run_command(CABOCHON, "doctor", package).stdout


def test_what_answers_cost_is_summed_up_while_they_come() -> None:
    spent = StatisticsSum()
    assert spent.total() == Statistics()
    first, second = Statistics(new_tokens=3, decode_seconds=1.0), Statistics(audio_seconds=2.0, encode_seconds=0.5)
    spent.begin(first)
    first.new_tokens = 4
    first.drafts = DraftCounts(5, 2, 0.5)
    assert spent.total() == Statistics(new_tokens=4, decode_seconds=1.0, drafts=DraftCounts(5, 2, 0.5))
    spent.begin(second)
    second.drafts = DraftCounts(1, 1)
    second.new_tokens, second.decode_seconds = 2, 1.0
    total = spent.total()
    assert (total.new_tokens, total.audio_seconds, total.drafts) == (6, 2.0, DraftCounts(6, 3, 0.5))
    assert total.draft_speed_up == 1.5
    assert first.drafts == DraftCounts(5, 2, 0.5)
