from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoint import small_config
from refusals import refused
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from cabochon.log_mel import LogMelParameters
from cabochon.manifest import Sampling
from cabochon.tokenizer import Tokenizer
from cabochon.waveform_frames import WaveformFrameParameters
from cabochon_convert.audio_config import AudioConfig, WaveformConfig
from cabochon_convert.audio_frontend import AudioFrontend, read_audio_frontend
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config import ModelConfig, read_config
from cabochon_convert.processor import (
    ImageFrontend,
    check_vocabulary,
    read_chat_template,
    read_image_frontend,
    read_sampling,
    read_tokenizer,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return read_config(small_config())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(TINY / "tokenizer.json")


def audio_config() -> AudioConfig:
    audio = read_config(small_config()).audio
    assert isinstance(audio, AudioConfig)
    return audio


def frontend_of(folder: Path, **processor: Any) -> AudioFrontend:
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return read_audio_frontend(folder, audio_config())


def waveform_frontend_of(folder: Path, **processor: Any) -> AudioFrontend:
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return read_audio_frontend(folder, WaveformConfig(640, 1e-6))


def image_frontend_of(folder: Path, config: ModelConfig, **processor: Any) -> ImageFrontend:
    assert config.vision is not None
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return read_image_frontend(folder, config.vision)


def sampling_of(folder: Path, config: ModelConfig, tokenizer: Tokenizer, **generation: Any) -> Sampling:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_sampling(folder, config, tokenizer)


def test_a_checkpoint_that_says_nothing_about_audio_gets_the_default_and_a_note(tmp_path: Path) -> None:
    frontend = read_audio_frontend(tmp_path, audio_config())
    assert isinstance(frontend.frames, LogMelParameters)
    assert (frontend.frames.sample_rate, frontend.frames.mel_bins) == (16_000, 128)
    assert frontend.max_samples == 30 * 16_000
    assert "default" in frontend.note
    assert frontend_of(tmp_path, feature_extractor={}).note == ""


@pytest.mark.parametrize(
    "setting",
    [
        {"surprise": 1},
        {"dither": 0.1},
        {"preemphasis": 0.97},
        {"per_bin_mean": [0.0]},
        {"hop_length": 0},
        {"hop_length": None},
        {"hop_length": float("inf")},
        {"fft_length": 100},
        {"max_frequency": 9000},
        {"mel_floor": float("inf")},
        {"sampling_rate": "fast"},
        {"feature_size": 80},
    ],
    ids=str,
)
def test_a_frontend_that_is_not_implemented_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with refused(CheckpointError, "processor_config.json"):
        frontend_of(tmp_path, feature_extractor=setting)


@pytest.mark.parametrize("length", [0, -750, None, float("inf"), []])
def test_an_impossible_length_of_clips_is_refused(tmp_path: Path, length: Any) -> None:
    with refused(CheckpointError, "processor_config.json"):
        frontend_of(tmp_path, audio_seq_length=length)


def test_samples_are_cut_as_the_extractor_that_transformers_saves_says(tmp_path: Path) -> None:
    saved = transformers.Gemma4UnifiedAudioFeatureExtractor().to_dict()
    frontend = waveform_frontend_of(tmp_path, feature_extractor=saved)
    frames = WaveformFrameParameters(sample_rate=16_000, frame_length=640)
    assert frontend == AudioFrontend(frames, 30 * 16_000, "")
    silent = waveform_frontend_of(tmp_path)
    assert (silent.frames, silent.max_samples) == (frames, 30 * 16_000)
    assert "default" in silent.note


def test_settings_of_log_mels_change_nothing_where_samples_are_heard(tmp_path: Path) -> None:
    frontend = waveform_frontend_of(tmp_path, feature_extractor={"hop_length": 160, "dither": 0.0, "fft_length": 512})
    assert frontend.frames == WaveformFrameParameters(sample_rate=16_000, frame_length=640)


@pytest.mark.parametrize(
    "setting", [{"surprise": 1}, {"audio_samples_per_token": 320}, {"sampling_rate": 0}, {"sampling_rate": []}], ids=str
)
def test_samples_that_are_cut_in_another_way_are_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    with refused(CheckpointError, "processor_config.json"):
        waveform_frontend_of(tmp_path, feature_extractor=setting)


def test_an_image_makes_as_many_tokens_as_the_processor_says(tmp_path: Path, config: ModelConfig) -> None:
    settings = {"patch_size": 4, "pooling_kernel_size": 3, "max_soft_tokens": 560, "rescale_factor": 1 / 255}
    frontend = image_frontend_of(tmp_path, config, image_processor=settings, image_seq_length=140)
    assert frontend == ImageFrontend((70, 140, 280, 560, 1120), 560, "")
    del settings["max_soft_tokens"]
    frontend = image_frontend_of(tmp_path, config, image_processor=settings, image_seq_length=140)
    assert frontend.default_soft_token_budget == 140


def test_a_checkpoint_that_says_nothing_about_images_gets_the_default_and_a_note(
    tmp_path: Path, config: ModelConfig
) -> None:
    frontend = image_frontend_of(tmp_path, config)
    assert frontend.default_soft_token_budget == 280
    assert "images" in frontend.note
    assert "default" in frontend.note


def test_the_processor_that_transformers_saves_is_understood(tmp_path: Path, config: ModelConfig) -> None:
    Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert image_frontend_of(tmp_path, config, image_processor=saved).default_soft_token_budget == 70


@pytest.mark.parametrize(
    "setting",
    [
        {"surprise": 1},
        {"do_normalize": True},
        {"do_resize": False},
        {"resample": 2},
        {"rescale_factor": 1 / 127.5},
        {"patch_size": 14},
        {"pooling_kernel_size": 4},
        {"max_soft_tokens": 256},
        {"max_soft_tokens": 280.0},
        {"max_soft_tokens": [280]},
    ],
    ids=str,
)
def test_images_that_are_cut_in_another_way_are_refused(
    tmp_path: Path, config: ModelConfig, setting: dict[str, Any]
) -> None:
    with refused(CheckpointError, str(tmp_path)):
        image_frontend_of(tmp_path, config, image_processor=setting)


def test_a_position_table_too_short_for_a_strip_of_tokens_is_refused(tmp_path: Path) -> None:
    config = small_config()
    config["vision_config"]["position_embedding_size"] = 3 * 1120 - 1
    with refused(CheckpointError, "position_embedding_size", "3359", "3360"):
        image_frontend_of(tmp_path, read_config(config))


def test_an_answer_stops_at_the_end_of_a_turn_even_if_the_checkpoint_forgot(
    tmp_path: Path, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    shutil.copy(TINY / "tokenizer_config.json", tmp_path)
    end_of_turn = tokenizer.encode("<turn|>")[0]
    assert end_of_turn in sampling_of(tmp_path, config, tokenizer, eos_token_id=1).stop_tokens


def test_without_generation_defaults_the_published_ones_are_used(
    tmp_path: Path, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    sampling = read_sampling(tmp_path, config, tokenizer)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 64, 0.95)
    assert sampling.suppress_tokens == (19, 22)
    assert sampling_of(tmp_path, config, tokenizer, do_sample=False, temperature=0.7).temperature == 0.0


@pytest.mark.parametrize(
    "setting",
    [
        {"eos_token_id": 3072},
        {"eos_token_id": [None]},
        {"suppress_tokens": [-1]},
        {"suppress_tokens": 7},
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "temperature": float("inf")},
        {"top_k": float("inf")},
        {"top_p": 0},
    ],
    ids=str,
)
def test_impossible_generation_settings_are_refused(
    tmp_path: Path, config: ModelConfig, tokenizer: Tokenizer, setting: dict[str, Any]
) -> None:
    with refused(CheckpointError, "generation_config.json"):
        sampling_of(tmp_path, config, tokenizer, **setting)


@given(
    st.sampled_from(["eos_token_id", "suppress_tokens", "temperature", "top_k", "top_p", "do_sample"]),
    st.sampled_from(["hop_length", "mel_floor", "feature_size", "sampling_rate", "max_frequency", "dither"]),
    st.sampled_from(["max_soft_tokens", "patch_size", "resample", "do_resize", "rescale_factor", "image_mean"]),
    JSON_VALUES,
)
def test_any_value_of_any_setting_is_read_or_refused(
    tmp_path: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    generation_key: str,
    audio_key: str,
    image_key: str,
    value: Any,
) -> None:
    try:
        sampling = sampling_of(tmp_path, config, tokenizer, **{generation_key: value})
        frontend = frontend_of(tmp_path, feature_extractor={audio_key: value})
        images = image_frontend_of(tmp_path, config, image_processor={image_key: value})
    except CheckpointError:
        return
    assert max(sampling.stop_tokens) < config.text.vocabulary_size
    assert frontend.max_samples > 0
    assert images.default_soft_token_budget in images.soft_token_budgets


def test_an_older_checkpoint_keeps_its_template_in_the_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ bos_token }}"}))
    assert read_chat_template(tmp_path) == "{{ bos_token }}"
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert read_chat_template(tmp_path) == "newer"


def test_a_checkpoint_without_template_or_tokenizer_is_refused(tmp_path: Path) -> None:
    with refused(CheckpointError, "chat_template.jinja"):
        read_chat_template(tmp_path)
    with refused(CheckpointError, "tokenizer.json"):
        read_tokenizer(tmp_path)


def test_a_template_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with refused(CheckpointError, "chat_template.jinja"):
        read_chat_template(tmp_path)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(random_checkpoint: Path) -> None:
    config = small_config(vocab_size=1024, vocab_size_per_layer_input=1024)
    with refused(CheckpointError, "token 3071", "1024"):
        check_vocabulary(read_tokenizer(random_checkpoint), read_config(config))
