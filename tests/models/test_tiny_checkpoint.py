"""The committed small model and the phrasebook in four languages that it was trained on."""

from __future__ import annotations

import functools
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY
from models.tiny.training import phrasebook
from models.tiny.training.architecture import reopen_model
from models.tiny.training.dialogues import Exchange
from models.tiny.training.front_end import convolve, skip_convolutions, take_spectrograms
from models.tiny.training.parallel import average_gradients, run_workers
from models.tiny.training.phrasebook import (
    Sentence,
    draw,
    fillers,
    patterns,
    render,
    sentence_count,
)
from models.tiny.training.prompts import (
    AFTER_AUDIO,
    BEGIN_OF_AUDIO,
    END_OF_AUDIO,
    before_audio,
    before_typed_answer,
)
from models.tiny.training.tokenizer import train_tokenizer
from models.tiny.training.words import LANGUAGES, rows

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


def drawn(count: int, *, held_out: bool) -> list[Sentence]:
    generator = random.Random(6)
    return [draw(generator, held_out) for _ in range(count)]


def test_no_held_out_sentence_is_drawn_for_training() -> None:
    trained = {tuple(sentence.written.values()) for sentence in drawn(20_000, held_out=False)}
    tested = {tuple(sentence.written.values()) for sentence in drawn(4_000, held_out=True)}
    assert len(tested) > 2000
    assert trained.isdisjoint(tested)


def test_every_language_has_a_thousand_words_and_two_hundred_thousand_sentences() -> None:
    sentences = drawn(20_000, held_out=False)
    for language in LANGUAGES:
        assert len({word for sentence in sentences for word in sentence.spoken_words(language)}) > 1000
    assert sentence_count() > 200_000


def test_every_word_of_the_tables_is_unique_in_its_language() -> None:
    for table in (Path(phrasebook.__file__).parent / "words").glob("*.txt"):
        for number, language in enumerate(LANGUAGES):
            column = [row[number] for row in rows(table.stem)]
            assert len(set(column)) == len(column), (table.name, language)


@pytest.mark.parametrize(
    ("pattern", "english", "german", "french", "spanish"),
    [
        ("where", "Where is the bridge?", "Wo ist die Brücke?", "Où est le pont?", "¿Dónde está el puente?"),
        (
            "way",
            "How do I get to the church?",
            "Wie komme ich zur Kirche?",
            "Comment aller à l'église?",
            "¿Cómo se llega a la iglesia?",
        ),
        (
            "need",
            "I need an umbrella.",
            "Ich brauche einen Regenschirm.",
            "J'ai besoin d'un parapluie.",
            "Necesito un paraguas.",
        ),
        (
            "call",
            "Call my neighbor at 8:40.",
            "Rufe meinen Nachbarn um 8:40 Uhr an.",
            "Appelle mon voisin à 8h40.",
            "Llama a mi vecino a las 8:40.",
        ),
        (
            "mine",
            "My watch is broken.",
            "Meine Armbanduhr ist kaputt.",
            "Ma montre est cassée.",
            "Mi reloj está roto.",
        ),
        (
            "colored",
            "I am looking for a red shirt.",
            "Ich suche ein rotes Hemd.",
            "Je cherche une chemise rouge.",
            "Busco una camisa roja.",
        ),
        (
            "arrive",
            "The train from Amsterdam arrives at 1:15.",
            "Der Zug aus Amsterdam kommt um 1:15 Uhr an.",
            "Le train en provenance d'Amsterdam arrive à 1h15.",
            "El tren de Ámsterdam llega a la 1:15.",
        ),
    ],
)
def test_articles_endings_and_elisions_are_right(
    pattern: str, english: str, german: str, french: str, spanish: str
) -> None:
    (found,) = (candidate for candidate in patterns() if candidate.name == pattern)
    sentences = (
        render(found, dict(zip(found.slots(), filled, strict=True)))
        for filled in itertools.product(*(fillers(slot) for slot in found.slots()))
    )
    written = next(sentence.written for sentence in sentences if sentence.written["en"] == english)
    assert tuple(written.values()) == (english, german, french, spanish)


def test_numbers_are_spoken_as_words_and_written_as_digits() -> None:
    for sentence in drawn(2_000, held_out=True):
        for language in LANGUAGES:
            assert not any(letter.isdigit() for letter in sentence.spoken[language])


def test_the_committed_tokenizer_is_the_one_that_the_script_trains() -> None:
    committed = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(train_tokenizer().to_str()) == committed
    assert [train_tokenizer().id_to_token(index) for index in range(len(CONTROL_TOKENS))] == CONTROL_TOKENS


def test_demo_sentences_were_held_out_and_their_wavs_are_what_the_model_hears() -> None:
    references = json.loads((TINY / "demo" / "references.json").read_text(encoding="utf-8"))
    assert {reference["source"] for reference in references} == set(LANGUAGES)
    trained = {sentence.written[language] for sentence in drawn(20_000, held_out=False) for language in LANGUAGES}
    for reference in references:
        assert not trained & {reference[language] for language in LANGUAGES}
        sound = soundfile.info(TINY / "demo" / reference["file"])
        assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "PCM_16")


def test_training_prompts_are_what_the_runtime_sends(tiny_onnx_package: Path) -> None:
    package = open_package(tiny_onnx_package)
    tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    instruction = translation_instruction(package.manifest.prompts, "en", "de")
    sent = PromptWriter(package, tokenizer).write([Message("user", instruction, has_audio=True)], audio_tokens=1)
    trained = before_audio("en", "de") + "<|audio|>" + AFTER_AUDIO
    assert BEGIN_OF_AUDIO in trained
    assert END_OF_AUDIO in trained
    assert sent == tokenizer.encode(trained)


def test_typed_training_prompts_are_what_the_runtime_sends(tiny_onnx_package: Path) -> None:
    package = open_package(tiny_onnx_package)
    tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    messages = [Message("user", "Hallo."), Message("assistant", "Guten Tag."), Message("user", "Wo ist der Zug?")]
    sent = PromptWriter(package, tokenizer).write(messages)
    trained = before_typed_answer([Exchange("Hallo.", "Guten Tag."), Exchange("Wo ist der Zug?", "Dort.")])
    assert sent == tokenizer.encode(trained)


def spectrogram(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(-2, 2, (frames, 128)).astype(np.float16)


def test_behind_frozen_convolutions_the_encoder_hears_what_it_hears_from_spectrograms() -> None:
    encoder = reopen_model(TINY).model.audio_tower.eval()
    clips = [spectrogram(87), spectrogram(120)]
    mask = torch.arange(120)[None] < torch.tensor([[87], [120]])
    log_mel = torch.zeros(2, 120, 128)
    tokens = torch.zeros(2, 30, 256)
    for row, clip in enumerate(clips):
        log_mel[row, : len(clip)] = torch.from_numpy(clip.astype(np.float32))
        features = convolve(encoder.subsample_conv_projection, clip)
        tokens[row, : len(features)] = torch.from_numpy(features.astype(np.float32))
    with torch.no_grad():
        whole = encoder(log_mel, mask)
        skip_convolutions(encoder.subsample_conv_projection)
        behind = encoder(tokens, whole.attention_mask)
        take_spectrograms(encoder.subsample_conv_projection)
        again = encoder(log_mel, mask)
    heard = whole.attention_mask
    # The kept features are rounded to half precision.
    assert (behind.last_hidden_state - whole.last_hidden_state)[heard].abs().max() < 0.02
    assert torch.equal(again.last_hidden_state, whole.last_hidden_state)


def _average_own_rank(folder: str, rank: int, workers: int) -> None:
    used, unused = torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)
    used.grad = torch.full((3,), float(rank))
    average_gradients([used, unused], workers)
    assert unused.grad is None
    Path(folder, str(rank)).write_text(str(used.grad.tolist()))


def test_workers_in_training_share_the_mean_of_their_gradients(tmp_path: Path) -> None:
    run_workers(2, functools.partial(_average_own_rank, str(tmp_path)))
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[0.5, 0.5, 0.5]"] * 2
