from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import CABOCHON, CONVERT, assert_refused, run_command
from conftest import TINY
from tool_package import convert_with_tools, declaration

RATE = 16_000
TONE = 0.3 * np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE)
LANGUAGES = ("--from", "English", "--to", "German")


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "tone.wav", TONE, RATE)
    return tmp_path / "tone.wav"


@pytest.fixture
def checkpoint(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(random_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def package(random_package: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(random_package, tmp_path / "package"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make_gemma3(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3")


def make_quantized(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})


def add_unknown_key(folder: Path) -> None:
    edit_json(folder / "config.json", rope_surprise=1)


def add_token_outside(folder: Path) -> None:
    edit_json(folder / "generation_config.json", suppress_tokens=[1 << 20])


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{" * 100_000)


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def become_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def remove_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncate_shard(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def empty_shard(folder: Path) -> None:
    os.truncate(folder / "model-00001-of-00002.safetensors", 0)


def change_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def garble_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\xff")


def forget_audio_in_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].role }}")


def attack_with_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")


def change_frontend(folder: Path) -> None:
    edit_json(folder / "processor_config.json", feature_extractor={"hop_length": 0})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (make_gemma3, "Gemma3ForConditionalGeneration"),
        (make_quantized, "quantized"),
        (add_unknown_key, "rope_surprise"),
        (add_token_outside, "generation_config.json"),
        (break_config, "config.json"),
        (remove_config, "config.json"),
        (become_adapter, "LoRA"),
        (remove_shard, "model-00002-of-00002.safetensors"),
        (truncate_shard, "truncated"),
        (empty_shard, "model-00001-of-00002.safetensors"),
        (change_size, "shape"),
        (remove_tokenizer, "tokenizer.json"),
        (break_tokenizer, "tokenizer.json"),
        (garble_template, "chat_template.jinja"),
        (forget_audio_in_template, "chat template"),
        (attack_with_template, "chat template"),
        (change_frontend, "processor_config.json"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(checkpoint)
    assert_refused(run_command(CONVERT, checkpoint, tmp_path / "output"), words)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_is_not_a_checkpoint_at_all_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "missing"):
        assert_refused(run_command(CONVERT, source, tmp_path / "output"), str(source))


@pytest.mark.parametrize("length", ["0", "-5"])
def test_a_context_of_no_positions_is_refused(random_checkpoint: Path, tmp_path: Path, length: str) -> None:
    result = run_command(CONVERT, random_checkpoint, tmp_path / "output", f"--context-length={length}")
    assert_refused(result, "--context-length", length)


def test_an_output_that_exists_is_refused(random_checkpoint: Path, package: Path, tmp_path: Path) -> None:
    assert_refused(run_command(CONVERT, random_checkpoint, package), "exists already", "--replace")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    assert_refused(run_command(CONVERT, random_checkpoint, tmp_path / "photos", "--replace"), "not a package")


def flip_byte(package: Path) -> None:
    content = bytearray((package / "decoder.onnx.data").read_bytes())
    content[len(content) // 2] ^= 1
    (package / "decoder.onnx.data").write_bytes(content)


def remove_graph(package: Path) -> None:
    (package / "audio_encoder.onnx").unlink()


def raise_version(package: Path) -> None:
    edit_json(package / "manifest.json", format_version=99)


def add_manifest_key(package: Path) -> None:
    edit_json(package / "manifest.json", surprise=1)


def escape_folder(package: Path) -> None:
    edit_json(package / "manifest.json", tokenizer_file="../tokenizer.json")


def nest_manifest(package: Path) -> None:
    (package / "manifest.json").write_text("[" * 200_000)


def remove_manifest(package: Path) -> None:
    (package / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_byte, "decoder.onnx.data"),
        (remove_graph, "audio_encoder.onnx"),
        (raise_version, "versions up to 4"),
        (add_manifest_key, "surprise"),
        (escape_folder, "../tokenizer.json"),
        (nest_manifest, "not valid JSON"),
        (remove_manifest, "manifest.json"),
    ],
)
def test_a_bad_package_is_refused_by_every_command(
    package: Path, sound: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(package)
    assert_refused(run_command(CABOCHON, "info", package), words)
    assert_refused(run_command(CABOCHON, "translate", package, sound, *LANGUAGES), words)


def write_nothing(path: Path) -> None:
    path.touch()


def write_text(path: Path) -> None:
    path.write_text("This is a text.\n" * 100)


def write_half_a_header(path: Path) -> None:
    path.write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt ")


def write_not_a_number(path: Path) -> None:
    soundfile.write(path, np.full(RATE, np.nan), RATE, subtype="FLOAT")


def write_no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0), RATE)


def write_five_milliseconds(path: Path) -> None:
    soundfile.write(path, TONE[:80], RATE)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_nothing, "0 bytes"),
        (write_text, "cannot be read as sound"),
        (write_half_a_header, "cannot be read as sound"),
        (write_not_a_number, "finite"),
        (write_no_samples, "no samples"),
        (write_five_milliseconds, "5 ms"),
        (Path.mkdir, "not a file"),
        (Path.exists, "does not exist"),
    ],
)
def test_a_bad_sound_is_refused(
    random_package: Path, tmp_path: Path, write: Callable[[Path], object], words: str
) -> None:
    write(tmp_path / "sound.wav")
    assert_refused(run_command(CABOCHON, "translate", random_package, tmp_path / "sound.wav", *LANGUAGES), words)


@pytest.mark.parametrize("language", ["xx", "12", "", "German; rm -rf /"])
def test_an_unknown_language_is_refused(random_package: Path, sound: Path, language: str) -> None:
    result = run_command(CABOCHON, "translate", random_package, sound, "--from", "English", "--to", language)
    assert_refused(result, "is not a language")
    assert_refused(
        run_command(CABOCHON, "transcribe", random_package, sound, "--language", language), "is not a language"
    )


def test_more_context_than_the_package_has_is_refused(random_package: Path, sound: Path) -> None:
    result = run_command(CABOCHON, "transcribe", random_package, sound, "--context-length", "100000")
    assert_refused(result, "100000", "--context-length")


@pytest.mark.parametrize("positions", [10**15, 10**30])
def test_more_context_than_the_memory_holds_is_refused(package: Path, positions: int) -> None:
    text = json.loads((package / "manifest.json").read_text())["text"]
    edit_json(package / "manifest.json", text=text | {"context_length": positions})
    assert_refused(run_command(CABOCHON, "chat", package, "hello"), str(positions), "memory")


def test_a_question_that_is_too_long_or_not_text_is_refused(random_package: Path) -> None:
    assert_refused(run_command(CABOCHON, "chat", random_package, "why? " * 1000), "positions")
    assert_refused(run_command(CABOCHON, "chat", random_package, b"caf\xe9"), "UTF-8")


def test_control_tokens_that_are_typed_are_text(random_package: Path) -> None:
    result = run_command(CABOCHON, "chat", random_package, "<|audio|>", "--max-tokens", "4")
    assert result.returncode == 0, result.stderr


def test_an_answer_keeps_to_a_schema_or_a_pattern(random_package: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}')
    result = run_command(CABOCHON, "chat", random_package, "hello", "--json-schema", schema, "--max-tokens", "400")
    assert result.returncode == 0, result.stderr
    assert result.stderr or json.loads(result.stdout)["a"] in (1, 2)
    assert result.stdout.startswith("{")
    result = run_command(CABOCHON, "chat", random_package, "hello", "--regex", "(yes|no), (sir|madam)!")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch("(yes|no), (sir|madam)!\n", result.stdout)


def test_forms_of_an_answer_that_cannot_be_are_refused(random_package: Path, tmp_path: Path) -> None:
    chat = (CABOCHON, "chat", random_package, "hello")
    file = tmp_path / "form.json"
    assert_refused(run_command(*chat, "--json-schema", file), "form.json", "cannot be read")
    file.write_text("{")
    assert_refused(run_command(*chat, "--tools", file), "form.json", "not JSON")
    file.write_text('{"type": "function"}')
    assert_refused(run_command(*chat, "--tools", file), "form.json", "list of tools")
    file.write_text('[{"type": "function", "function": {"name": "go"}}]')
    assert_refused(run_command(*chat, "--tools", file), "knows no tools")
    file.write_text('{"not": {}}')
    assert_refused(run_command(*chat, "--json-schema", file), "JSON schema", "not")
    assert_refused(run_command(*chat, "--regex", "("), "regular expression")


def test_a_model_that_may_call_tools_is_told_of_them(random_checkpoint: Path, tmp_path: Path) -> None:
    package = convert_with_tools(random_checkpoint, tmp_path)
    (tmp_path / "tools.json").write_text(json.dumps([declaration()]))
    result = run_command(CABOCHON, "chat", package, "hello", "--tools", tmp_path / "tools.json", "--max-tokens", "5")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("rate", "subtype", "channels", "words"),
    [
        (16_000, "PCM_U8", 1, "8-bit"),
        (96_000, "PCM_16", 1, "96000 Hz"),
        (16_000, "PCM_16", 2, "2 channels"),
    ],
)
def test_a_sound_in_another_format_is_converted_with_a_note(
    random_package: Path, tmp_path: Path, rate: int, subtype: str, channels: int, words: str
) -> None:
    tone = np.repeat(np.interp(np.arange(rate) / rate, np.arange(RATE) / RATE, TONE)[:, None], channels, axis=1)
    soundfile.write(tmp_path / "sound.wav", tone, rate, subtype=subtype)
    command = (CABOCHON, "translate", random_package, tmp_path / "sound.wav", *LANGUAGES, "--max-tokens", "3")
    result = run_command(*command)
    assert result.returncode == 0, result.stderr
    (note,) = [line for line in result.stderr.splitlines() if "sound.wav" in line]
    assert note.startswith("note: ")
    assert words in note
    assert result.stdout


def test_an_answer_that_was_cut_is_told_from_a_whole_one(random_package: Path, sound: Path) -> None:
    result = run_command(CABOCHON, "transcribe", random_package, sound, "--max-tokens", "3", "--json")
    assert (result.returncode, result.stderr) == (0, "note: the answer was cut after 3 tokens.\n")
    assert json.loads(result.stdout)["statistics"]["complete"] is False
    assert set(json.loads(result.stdout)) == {"transcript", "statistics"}


def test_text_that_the_terminal_cannot_show_is_escaped(tiny_onnx_package: Path) -> None:
    command = (CABOCHON, "translate", tiny_onnx_package, TINY / "demo" / "english_unseen_voice.wav", *LANGUAGES)
    result = run_command(*command, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "m\\xfcssen" in result.stdout


def test_verifying_what_cannot_be_verified_is_refused_before_converting(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    command = (CONVERT, random_checkpoint, tmp_path / "package", "--context-length", "100", "--verify")
    assert_refused(run_command(*command), "100", "--context-length")
    assert not (tmp_path / "package").exists()
