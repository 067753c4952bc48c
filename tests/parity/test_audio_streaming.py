"""A sound that comes piece by piece gives the embeddings of the whole, whatever the pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cabochon.audio_model import AudioModel
from cabochon.audio_stream import AudioStream
from cabochon.backend import AudioEncoder, EngineSettings
from cabochon.engines import choose_engine, open_session
from cabochon.package import open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference import ReferenceModel

RATE = 16_000


def opened(folder: Path) -> tuple[AudioModel, AudioEncoder]:
    package = open_package(folder)
    encoder = open_session(package, choose_engine(package), EngineSettings()).audio_encoder
    assert package.manifest.audio is not None
    assert encoder is not None
    return package.manifest.audio, encoder


def converted(checkpoint: Path, folder: Path, recipe: str, engine: str) -> Path:
    settings = ConversionSettings(RECIPES[recipe], target=engine, context_length=1000, without_vision=True)
    return convert_checkpoint(checkpoint, folder, settings).folder


@pytest.fixture(scope="module", params=["onnx tiny", "onnx random", "litert tiny", "litert random"])
def float_encoder(
    request: pytest.FixtureRequest, random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AudioModel, AudioEncoder]:
    engine, weights = request.param.split()
    shared = {"onnx random": "random_package", "litert tiny": "tiny_litert_float_package"}
    if request.param in shared:
        return opened(request.getfixturevalue(shared[request.param]))
    folder = tmp_path_factory.mktemp("streaming") / "float"
    return opened(converted(TINY if weights == "tiny" else random_checkpoint, folder, "float", engine))


@pytest.fixture(scope="module", params=["onnx", "litert"])
def rounded_encoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AudioModel, AudioEncoder]:
    if request.param == "litert":
        return opened(request.getfixturevalue("tiny_litert_package"))
    return opened(converted(TINY, tmp_path_factory.mktemp("streaming") / "int4", "int4-mixed", "onnx"))


def noise(samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def streamed(audio: AudioModel, encoder: AudioEncoder, waveform: np.ndarray, sizes: list[int]) -> np.ndarray:
    stages = encoder.start_stream()
    assert stages is not None
    stream, pieces, position, turn = AudioStream(audio, stages), [], 0, 0
    while position < len(waveform):
        pieces.append(stream.push(waveform[position : position + sizes[turn % len(sizes)]]))
        position, turn = position + sizes[turn % len(sizes)], turn + 1
    pieces.append(stream.finish())
    return np.concatenate([piece for piece in pieces if len(piece)])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(RATE // 10, 6 * RATE), st.lists(st.integers(1, RATE), min_size=1, max_size=4), st.integers(0, 99))
def test_any_pieces_of_a_sound_give_its_embeddings(
    float_encoder: tuple[AudioModel, AudioEncoder], samples: int, sizes: list[int], seed: int
) -> None:
    audio, encoder = float_encoder
    waveform = noise(samples, seed)
    whole = encoder.encode(audio.make_frames(waveform))
    found = streamed(audio, encoder, waveform, sizes)
    assert found.shape == whole.shape
    # float32 sums of matrix products with other numbers of rows.
    assert np.abs(found - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_piece_may_have_any_number_of_blocks(float_encoder: tuple[AudioModel, AudioEncoder], blocks: int) -> None:
    audio, encoder = float_encoder
    log_mel = audio.make_frames(noise(5 * RATE + 77, 0))
    whole, stream = encoder.encode(log_mel), encoder.start_stream()
    assert stream is not None
    frames = blocks * stream.block_frames
    pieces = [stream.encode(log_mel[start : start + frames]) for start in range(0, len(log_mel), frames)]
    assert np.abs(np.concatenate(pieces) - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("frames", [4, 20, 100])
def test_an_onnx_graph_may_be_given_any_multiple_of_four_frames(random_package: Path, frames: int) -> None:
    audio, encoder = opened(random_package)
    log_mel = audio.make_frames(noise(5 * RATE + 77, 0))
    whole, stream = encoder.encode(log_mel), encoder.start_stream()
    assert stream is not None
    pieces = [stream.encode(log_mel[start : start + frames]) for start in range(0, len(log_mel), frames)]
    assert np.abs(np.concatenate(pieces) - whole).max() <= 1e-5 * np.abs(whole).max()


def test_a_litert_graph_refuses_what_would_follow_a_piece_that_it_filled_up(tiny_litert_float_package: Path) -> None:
    audio, encoder = opened(tiny_litert_float_package)
    log_mel, stream = audio.make_frames(noise(RATE, 0)), encoder.start_stream()
    assert stream is not None
    stream.encode(log_mel[:20])
    with pytest.raises(ValueError, match="ended the sound"):
        stream.encode(log_mel[20:])


def test_a_sound_in_pieces_gives_the_embeddings_of_transformers(
    float_encoder: tuple[AudioModel, AudioEncoder], random_checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    audio, encoder = float_encoder
    checkpoint = random_checkpoint if "random" in request.node.callspec.id else TINY
    waveform = noise(7 * RATE + 123, 2)
    (expected,) = ReferenceModel(checkpoint, Silence()).audio_embeddings([audio.make_frames(waveform)])
    found = streamed(audio, encoder, waveform, [1600, 7])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_rounded_encoders_round_a_stream_as_they_round_the_whole(
    rounded_encoder: tuple[AudioModel, AudioEncoder],
) -> None:
    audio, encoder = rounded_encoder
    waveform = noise(7 * RATE, 1)
    whole = encoder.encode(audio.make_frames(waveform))
    # Of 8-bit activations one that tips over is a hundred times what float32 loses.
    assert np.abs(streamed(audio, encoder, waveform, [1600]) - whole).max() <= 1e-4 * np.abs(whole).max()


def test_streams_do_not_disturb_each_other(float_encoder: tuple[AudioModel, AudioEncoder]) -> None:
    audio, encoder = float_encoder
    log_mels = [audio.make_frames(noise(3 * RATE, seed)) for seed in (0, 1)]
    alone = [encoder.encode(log_mel) for log_mel in log_mels]
    streams = [encoder.start_stream(), encoder.start_stream()]
    pieces: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(log_mels[0]), 48):
        for index, stream in enumerate(streams):
            assert stream is not None
            pieces[index].append(stream.encode(log_mels[index][start : start + 48]))
        encoder.encode(log_mels[0])
    for found, whole in zip(pieces, alone, strict=True):
        assert np.abs(np.concatenate(found) - whole).max() <= 1e-5 * np.abs(whole).max()
