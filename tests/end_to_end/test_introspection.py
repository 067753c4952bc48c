from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import CABOCHON, assert_refused, run_command

QUICK = ("--prompts", "8", "--depths", "16", "--tokens", "2", "--rounds", "2", "--seconds", "1")


def run_json(*command: str | Path, status: int = 0) -> dict[str, object]:
    outcome = run_command(CABOCHON, *command, "--json")
    assert outcome.returncode == status, outcome.stderr
    facts: dict[str, object] = json.loads(outcome.stdout)
    return facts


def lines(outcome: subprocess.CompletedProcess[str]) -> list[str]:
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.splitlines()


def test_info_tells_what_a_package_costs_in_memory_for_the_context_that_is_asked_for(random_package: Path) -> None:
    facts = run_json("info", random_package, "--context-length", "100")
    assert facts["layers"]  # what was told before still is
    assert facts["file_sizes"]["decoder.onnx.data"] == (random_package / "decoder.onnx.data").stat().st_size
    assert set(facts["memory"]) == {"onnx"}
    memory = facts["memory"]["onnx"]
    assert set(memory) == {
        "computed", "context_length", "runtime_bytes", "decoder_weights_bytes", "caches_bytes", "activations_bytes",
        "prompt_bytes",
        "audio_weights_bytes", "audio_activations_bytes", "vision_weights_bytes", "vision_activations_bytes",
        "cache_bytes_per_1000_positions", "mapped_bytes", "loading_bytes", "text_bytes", "sound_bytes", "image_bytes",
        "everything_bytes", "drafter_weights_bytes", "drafter_activations_bytes",
    }  # fmt: skip
    assert facts["drafter"] is facts["recommended_drafts"] is None
    assert memory["drafter_weights_bytes"] == memory["drafter_activations_bytes"] == 0
    assert re.match(r"llguidance \d+\.\d+.*, for tools", str(facts["tools_and_forms"]))
    assert memory["computed"] is True
    assert memory["context_length"] == 100
    whole = run_json("info", random_package)["memory"]["onnx"]
    assert whole["context_length"] == facts["context_length"]
    assert whole["caches_bytes"] > memory["caches_bytes"]


def test_info_for_people_names_the_same_sums(random_package: Path) -> None:
    shown = run_command(CABOCHON, "info", random_package).stdout
    for words in ("checkpoint", "decoder.onnx.data", "memory with onnx", "computed", "text only", "text and sound"):
        assert words in shown


def test_info_refuses_a_context_that_the_package_has_not(random_package: Path) -> None:
    assert_refused(run_command(CABOCHON, "info", random_package, "--context-length", "100000"), "100000")


def test_bench_measures_every_stage_of_a_package(tiny_package: Path) -> None:
    facts = run_json("bench", tiny_package, *QUICK, "--threads", "1")
    assert set(facts) == {
        "package", "recipe", "engine", "library", "threads", "context_length", "processor", "load_seconds",
        "loaded_bytes", "peak_bytes", "energy_source", "measurements", "skipped",
    }  # fmt: skip
    assert facts["threads"] == 1
    assert 0 < facts["loaded_bytes"] <= facts["peak_bytes"]
    assert facts["skipped"] == []
    kinds = [(each["name"], each["amount"], each["unit"], each["quantity"]) for each in facts["measurements"]]
    assert kinds == [
        ("prefill", 8, "positions", "positions/s"),
        ("decode", 16, "positions", "tokens/s"),
        ("first token", 32, "positions", "s"),
        ("audio", 1, "seconds", "x real time"),
        ("first token after sound", 1, "seconds", "s"),
    ]
    for each in facts["measurements"]:
        assert len(each["values"]) == 2
        assert 0 < each["lowest"] <= each["median"] <= each["highest"]


def test_bench_looks_at_images_where_the_package_sees(random_package: Path) -> None:
    facts = run_json("bench", random_package, *QUICK)
    assert [(each["amount"], each["unit"]) for each in facts["measurements"] if each["name"] == "image"] == [
        (70, "tokens")
    ]
    assert_refused_after_note(run_command(CABOCHON, "bench", random_package, *QUICK, "--image-tokens", "71"), "140")


def assert_refused_after_note(outcome: subprocess.CompletedProcess[str], words: str) -> None:
    note, sentence = outcome.stderr.splitlines()
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert note.startswith("note: ")
    assert words in sentence


def test_bench_prints_a_table_with_energy_where_a_command_tells_watts(random_package: Path) -> None:
    outcome = run_command(CABOCHON, "bench", random_package, *QUICK, "--markdown", "--watts", "echo 7")
    head, _, titles, rule, *rows = lines(outcome)
    assert "watts of the command echo" in head
    assert titles == "| what | median | range | joules |"
    assert rule == "|---|---|---|---|"
    assert all(row.count("|") == 5 and float(row.split("|")[4]) > 0 for row in rows)
    assert "2 rounds" in outcome.stderr


def test_bench_leaves_out_what_the_context_or_the_time_has_no_room_for(random_package: Path) -> None:
    facts = run_json("bench", random_package, *QUICK, "--context-length", "20", "--prompts", "8", "512")
    assert [each["name"] for each in facts["measurements"]] == ["prefill", "audio", "image"]
    assert any(each.startswith("prefill (512 positions)") for each in facts["skipped"])
    facts = run_json("bench", random_package, *QUICK, "--time-limit", "0.0001")
    assert facts["measurements"] == []
    assert all("time limit" in each for each in facts["skipped"])


@pytest.mark.parametrize("options", [("--time-limit", "0"), ("--watts", "false")])
def test_bench_refuses_what_it_cannot_measure_with(random_package: Path, options: tuple[str, ...]) -> None:
    outcome = run_command(CABOCHON, "bench", random_package, *options)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "Traceback" not in outcome.stderr


def test_doctor_finds_nothing_wrong_with_a_whole_package(random_package: Path) -> None:
    facts = run_json("doctor", random_package)
    assert facts["ok"] is True
    for finding in facts["findings"]:
        assert set(finding) == {"name", "status", "found", "advice"}
        assert finding["status"] in ("ok", "warning")
        assert finding["advice"] or finding["status"] == "ok"


def test_doctor_says_what_is_wrong_and_what_to_do_and_ends_with_status_1(random_package: Path, tmp_path: Path) -> None:
    package = shutil.copytree(random_package, tmp_path / "package")
    (package / "tokenizer.json").unlink()
    facts = run_json("doctor", package, status=1)
    assert facts["ok"] is False
    (problem,) = [finding for finding in facts["findings"] if finding["status"] == "problem"]
    assert problem["name"] == "package"
    assert "tokenizer.json" in problem["found"]
    outcome = run_command(CABOCHON, "doctor", package)
    assert (outcome.returncode, outcome.stderr) == (1, "")
    assert "problem  package: " in outcome.stdout


def test_doctor_looks_at_a_machine_without_a_package() -> None:
    shown = lines(run_command(CABOCHON, "doctor"))
    assert any(line.startswith("ok       python: ") for line in shown)
