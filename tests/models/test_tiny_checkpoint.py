"""The committed small model and the phrasebook that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import TINY
from models.tiny.training.phrasebook import split
from models.tiny.training.prompts import AFTER_AUDIO, BEGIN_OF_AUDIO, END_OF_AUDIO, before_audio
from models.tiny.training.tokenizer import train_tokenizer

from cabochon.package import open_package
from cabochon.prompt import Message, PromptWriter, translation_instruction
from cabochon.tokenizer import Tokenizer
from cabochon_convert.checkpoint import open_checkpoint

CONTROL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]


def test_the_checkpoint_is_small_enough_for_a_repository() -> None:
    assert sum(file.stat().st_size for file in TINY.iterdir() if file.is_file()) < 10e6


def test_every_clipped_linear_has_finite_bounds_around_zero() -> None:
    checkpoint = open_checkpoint(TINY)
    names = [name for name in checkpoint.names if name.endswith(("_min", "_max"))]
    assert len(names) == 160
    for name in names:
        bound = float(checkpoint.read(name, ()))
        assert np.isfinite(bound)
        assert bound < 0 if name.endswith("_min") else bound > 0


def test_no_held_out_sentence_was_trained_on() -> None:
    training, held_out = split()
    trained = {sentence.written["en"] for sentence in training.all_sentences()}
    tested = [sentence.written["en"] for sentence in held_out.all_sentences()]
    assert len(tested) > 4000
    assert trained.isdisjoint(tested)


def test_demo_sentences_were_held_out_and_their_wavs_are_what_the_model_hears() -> None:
    _, held_out = split()
    tested = {sentence.written["en"]: sentence.written["de"] for sentence in held_out.all_sentences()}
    references = json.loads((TINY / "demo" / "references.json").read_text(encoding="utf-8"))
    for reference in references:
        assert tested[reference["en"]] == reference["de"]
        sound = soundfile.info(TINY / "demo" / reference["file"])
        assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "PCM_16")


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("Where is the bridge?", "Wo ist die Brücke?"),
        ("How do I get to the post office?", "Wie komme ich zur Post?"),
        ("I need an umbrella.", "Ich brauche einen Regenschirm."),
        ("The key is in the kitchen.", "Der Schlüssel ist in der Küche."),
        ("I cannot find my bag.", "Ich kann meine Tasche nicht finden."),
        ("Turn on the light in the hallway.", "Schalte das Licht im Flur ein."),
    ],
)
def test_german_sentences_have_the_right_articles(english: str, german: str) -> None:
    pairs = {s.written["en"]: s.written["de"] for book in split() for s in book.all_sentences()}
    assert pairs[english] == german


def test_the_committed_tokenizer_is_the_one_that_the_script_trains() -> None:
    committed = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(train_tokenizer().to_str()) == committed
    assert [train_tokenizer().id_to_token(index) for index in range(len(CONTROL_TOKENS))] == CONTROL_TOKENS


def test_training_prompts_are_what_the_runtime_sends(tiny_package: Path) -> None:
    package = open_package(tiny_package)
    tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    instruction = translation_instruction(package.manifest.prompts, "en", "de")
    sent = PromptWriter(package, tokenizer).write([Message("user", instruction, has_audio=True)], audio_tokens=1)
    trained = before_audio("en", "de") + "<|audio|>" + AFTER_AUDIO
    assert BEGIN_OF_AUDIO in trained
    assert END_OF_AUDIO in trained
    assert sent == tokenizer.encode(trained)
