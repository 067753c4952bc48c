"""T3: Google's LiteRT-LM runs the bundle of a package, for text and for sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import litert_lm
import pytest
from ai_edge_litert.compiled_model import CompiledModel
from commands import CONVERT, assert_refused, run_command
from conftest import DRAFTING_CACHES, TINY
from litert_lm import Backend, Engine, SamplerConfig
from refusals import refused

import cabochon
from cabochon.errors import RequestError
from cabochon.package import open_package
from cabochon.prompt import Message, transcription_instruction, translation_instruction
from cabochon_convert.bundle_litertlm import _decoder, write_litertlm
from cabochon_convert.work_folder import OutputError

GREEDY = SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
SOUND = TINY / "demo" / "english_unseen_voice.wav"


@pytest.fixture(scope="module")
def bundle(tiny_litert_float_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny.litertlm"
    write_litertlm(open_package(tiny_litert_float_package), path)
    return path


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
    backend = Backend.CPU(thread_count=2)
    cache = tmp_path_factory.mktemp("litert-lm")
    with Engine(str(bundle), backend=backend, audio_backend=backend, cache_dir=str(cache)) as opened:
        yield opened


def answer(engine: Engine, message: object) -> str:
    with engine.create_conversation(sampler_config=GREEDY) as conversation:
        reply = conversation.send_message(message)
    return "".join(part["text"] for part in reply["content"])


def test_text_is_answered_like_by_our_own_loop(engine: Engine, tiny_litert_float_package: Path) -> None:
    model, greedy = cabochon.load(tiny_litert_float_package), cabochon.SamplingSettings()
    for question in (
        "Translate the following text from English into German: The train leaves at 8.",
        "Translate the following text from French into Spanish: La gare est près de la banque.",
    ):
        assert answer(engine, question).strip() == model.chat([Message("user", question)], greedy).finish().strip()


def test_a_sound_is_transcribed_and_translated(engine: Engine, tiny_litert_float_package: Path) -> None:
    # Not word for word: LiteRT-LM 0.18 has a log-mel frontend of its own.
    model = cabochon.load(tiny_litert_float_package)
    prompts = model.package.manifest.prompts
    transcript = model.transcribe(SOUND, "English").finish().strip()
    assert transcript == "We need to buy 7 oysters."
    instruction = transcription_instruction(prompts, "English")
    content = [{"type": "text", "text": instruction}, {"type": "audio", "path": str(SOUND)}]
    assert answer(engine, {"role": "user", "content": content}).strip() == transcript
    content[0] = {"type": "text", "text": translation_instruction(prompts, "English", "German")}
    assert "German: Wir müssen 7" in answer(engine, {"role": "user", "content": content})


def test_a_bundle_leaves_out_what_only_a_drafter_needs(drafting_litert_package: Path, tmp_path: Path) -> None:
    package = open_package(drafting_litert_package)
    path = _decoder(package, DRAFTING_CACHES[-1], tmp_path)
    assert set(CompiledModel.from_file(str(path)).get_signature_list()) == {"prefill_128", "decode"}


def test_a_bundle_may_have_caches_of_another_length(tiny_litert_float_package: Path, tmp_path: Path) -> None:
    package, path = open_package(tiny_litert_float_package), tmp_path / "shorter.litertlm"
    write_litertlm(package, path, 600)
    question = "Translate the following text from English into German: The train leaves at 8."
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
    with Engine(str(path), backend=Backend.CPU(thread_count=2), cache_dir=str(tmp_path)) as opened:
        found = answer(opened, question)
    wanted = cabochon.load(tiny_litert_float_package).chat([Message("user", question)], cabochon.SamplingSettings())
    assert found.strip() == wanted.finish().strip()


@pytest.mark.parametrize("length", [511, 1001])
def test_caches_that_the_package_cannot_have_are_refused(
    tiny_litert_float_package: Path, tmp_path: Path, length: int
) -> None:
    with refused(RequestError, "512", "1000", str(length)):
        write_litertlm(open_package(tiny_litert_float_package), tmp_path / "other.litertlm", length)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_not_replaced(bundle: Path, tiny_litert_float_package: Path) -> None:
    with refused(OutputError, "exists already"):
        write_litertlm(open_package(tiny_litert_float_package), bundle)


def test_the_command_bundles_packages_for_litert_only(
    tiny_litert_float_package: Path, random_package: Path, tmp_path: Path
) -> None:
    target = tmp_path / "tiny.litertlm"
    outcome = run_command(CONVERT, "litertlm", tiny_litert_float_package, target)
    assert outcome.returncode == 0, outcome.stderr
    assert f"{target}: " in outcome.stdout
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert_refused(run_command(CONVERT, "litertlm", random_package, tmp_path / "other.litertlm"), "--target litert")
    assert not (tmp_path / "other.litertlm").exists()
