from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.errors import AudioError
from cabochon.wav import Sound, SoundFile, read_sound

RATE = 16_000
MAX_SAMPLES = 30 * RATE
TONE_HZ = 440.0
AMPLITUDE = 0.5


def read(path: Path) -> Sound:
    return read_sound(path, RATE, MAX_SAMPLES)


def sine(rate: int, seconds: float = 1.0, frequency: float = TONE_HZ) -> np.ndarray:
    return AMPLITUDE * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def write_sine(path: Path, rate: int, subtype: str, channels: int = 1) -> Path:
    samples = np.repeat(sine(rate)[:, None], channels, axis=1)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def wav_header(data_bytes: int, rate: int = RATE, bits: int = 16, channels: int = 1) -> bytes:
    frame = channels * bits // 8
    shape = struct.pack("<HHIIHH", 1, channels, rate, rate * frame, frame, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + data_bytes)
        + b"WAVEfmt \x10\0\0\0"
        + shape
        + b"data"
        + struct.pack("<I", data_bytes)
    )


@pytest.mark.parametrize(
    ("rate", "subtype", "channels", "note"),
    [
        (16_000, "PCM_16", 1, ""),
        (16_000, "PCM_U8", 1, "8-bit"),
        (16_000, "PCM_24", 1, ""),
        (16_000, "PCM_32", 1, ""),
        (16_000, "FLOAT", 1, ""),
        (16_000, "DOUBLE", 1, ""),
        (96_000, "PCM_16", 1, "resampled from 96000 Hz"),
        (44_100, "PCM_16", 1, "resampled from 44100 Hz"),
        (8_000, "PCM_16", 1, "resampled from 8000 Hz"),
        (16_000, "PCM_16", 2, "2 channels"),
        (48_000, "PCM_24", 6, "6 channels"),
    ],
)
def test_a_sine_keeps_its_frequency_and_loudness_in_every_format(
    tmp_path: Path, rate: int, subtype: str, channels: int, note: str
) -> None:
    sound = read(write_sine(tmp_path / "sine.wav", rate, subtype, channels))
    assert sound.waveform.dtype == np.float32
    assert len(sound.waveform) == pytest.approx(RATE, abs=1)
    assert sound.seconds == pytest.approx(1.0, abs=1e-3)
    middle = sound.waveform[2000:-2000]
    expected = sine(RATE)[2000 : 2000 + len(middle)]
    np.testing.assert_allclose(middle, expected, atol=1e-2 if subtype == "PCM_U8" else 1e-3)
    assert note in sound.note
    assert bool(note) == bool(sound.note)


def test_all_that_was_done_to_a_sound_is_said_in_one_sentence(tmp_path: Path) -> None:
    note = read(write_sine(tmp_path / "sine.wav", 96_000, "PCM_U8", 2)).note
    assert note.count(".wav") == note.count("96000 Hz") == note.count("2 channels") == note.count("8-bit") == 1
    assert len(note.splitlines()) == 1
    assert note.endswith(".")


def test_channels_are_averaged(tmp_path: Path) -> None:
    samples = np.stack([sine(RATE), np.zeros(RATE)], axis=1)
    soundfile.write(tmp_path / "left.wav", samples, RATE)
    np.testing.assert_allclose(read(tmp_path / "left.wav").waveform, sine(RATE) / 2, atol=1e-4)


@pytest.mark.parametrize("name", ["sine.flac", "sine.ogg", "sine.mp3"])
def test_other_formats_than_wav_are_read(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, sine(RATE), RATE)
    waveform = read(tmp_path / name).waveform
    spectrum = np.abs(np.fft.rfft(waveform[:RATE]))  # bins of 1 Hz
    assert np.argmax(spectrum) == pytest.approx(TONE_HZ, abs=2)


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_float_samples_beyond_full_scale_are_clipped(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "loud.wav", np.full((rate, 2), 3e38, np.float32), rate, subtype="FLOAT")
    waveform = read(tmp_path / "loud.wav").waveform
    np.testing.assert_allclose(waveform[2000:-2000], 1.0, atol=1e-3)
    assert np.abs(waveform).max() <= 1


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "not a file"), (tmp_path / "missing.wav", "does not exist")):
        with refused(AudioError, str(path), reason):
            read(path)


@pytest.mark.parametrize(
    "content",
    [b"RIFF", b"RIFF\x24\0\0\0WAVE", wav_header(32_000)[:30], b"\0" * 1000, "Grüße, ich bin Text.\n".encode() * 50],
    ids=["4 bytes", "no format", "half a header", "zeros", "text"],
)
@pytest.mark.parametrize("name", ["sound.wav", "sound.raw", "sound.mp3", "sound"])
def test_a_file_that_is_no_sound_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(AudioError, name):
        read(tmp_path / name)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with refused(AudioError, "empty.wav", "0 bytes"):
        read(tmp_path / "empty.wav")


def test_a_wav_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "silent.wav").write_bytes(wav_header(0))
    with refused(AudioError, "silent.wav", "no samples"):
        read(tmp_path / "silent.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    samples = sine(RATE).astype(np.float32)
    samples[77] = value
    soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype="FLOAT")
    with refused(AudioError, "nan.wav", "finite"):
        read(tmp_path / "nan.wav")


@pytest.mark.parametrize("rate", [RATE, 96_000])
def test_forty_minutes_are_refused_before_they_are_read(tmp_path: Path, rate: int) -> None:
    data_bytes = 40 * 60 * rate * 2
    with (tmp_path / "long.wav").open("wb") as file:
        file.write(wav_header(data_bytes, rate))
        file.truncate(44 + data_bytes)
    with refused(AudioError, "2400 s", "at most 30 s"):
        read(tmp_path / "long.wav")


def test_exactly_the_longest_clip_is_read_and_a_sample_more_is_not(tmp_path: Path) -> None:
    for samples in (MAX_SAMPLES, MAX_SAMPLES + 1):
        soundfile.write(tmp_path / f"{samples}.wav", np.zeros(samples), RATE)
    assert len(read(tmp_path / f"{MAX_SAMPLES}.wav").waveform) == MAX_SAMPLES
    with refused(AudioError, "30 s"):
        read(tmp_path / f"{MAX_SAMPLES + 1}.wav")


def test_a_wav_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    whole = write_sine(tmp_path / "sine.wav", RATE, "PCM_16").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: 44 + RATE])
    with refused(AudioError, "cut.wav", f"{RATE} bytes"):
        read(tmp_path / "cut.wav")


@pytest.mark.parametrize("placeholder", [0x7FFF_F000, 0x7FFF_FFFF, 0xFFFF_FFFF, 0])
def test_a_wav_that_came_through_a_pipe_is_read(tmp_path: Path, placeholder: int) -> None:
    content = bytearray(write_sine(tmp_path / "sine.wav", RATE, "PCM_16").read_bytes())
    content[40:44] = placeholder.to_bytes(4, "little")
    (tmp_path / "piped.wav").write_bytes(content)
    if placeholder:
        np.testing.assert_allclose(read(tmp_path / "piped.wav").waveform, sine(RATE), atol=1e-4)
    else:
        with refused(AudioError, "no samples"):
            read(tmp_path / "piped.wav")


@given(st.binary(max_size=200), st.sampled_from(["wav", "flac", "ogg", "mp3", "raw", "aiff", "voc"]))
def test_random_bytes_are_read_or_refused_but_nothing_else(tmp_path: Path, content: bytes, suffix: str) -> None:
    _read_or_refuse(tmp_path / f"random.{suffix}", content)


@given(st.data())
def test_a_damaged_header_is_read_or_refused_but_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(wav_header(3200) + bytes(range(200)) * 16)
    for position in data.draw(st.lists(st.integers(0, 43), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    _read_or_refuse(tmp_path / "damaged.wav", bytes(content))


def _read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        waveform = read(path).waveform
    except AudioError:
        return
    assert np.isfinite(waveform).all()
    assert np.abs(waveform).max(initial=0) <= 1


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_blocks_of_a_long_file_are_what_reading_it_at_once_gives(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "long.wav"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (25 * rate, channels))
    soundfile.write(path, samples, rate)
    whole, file = read(path), SoundFile(path, RATE)
    blocks = list(file.blocks())
    assert max(map(len, blocks)) <= 11 * RATE
    assert (file.seconds, file.note) == (25, whole.note)
    waveform = np.concatenate(blocks)
    assert waveform.dtype == np.float32
    assert len(waveform) == len(whole.waveform)
    # soxr's own difference between a stream and a whole.
    assert np.abs(waveform - whole.waveform).max() < 1e-4


def test_blocks_can_begin_later(tmp_path: Path) -> None:
    path = write_sine(tmp_path / "tone.wav", RATE, "FLOAT")
    whole = np.concatenate(list(SoundFile(path, RATE).blocks()))
    assert np.array_equal(np.concatenate(list(SoundFile(path, RATE).blocks(4321))), whole[4321:])
    assert sum(map(len, SoundFile(path, RATE).blocks(10**9))) == 0


@pytest.mark.parametrize("content", [b"", b"not a sound", wav_header(0)])
def test_a_long_file_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with refused(AudioError, "bad.wav"):
        SoundFile(tmp_path / "bad.wav", RATE)


@pytest.mark.parametrize("rate", [0, 1, 999, 384_001, 0x7FFFFFFF])
def test_a_sample_rate_that_no_speech_has_is_refused_before_anything_is_read(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "rate.wav"
    header = wav_header(2000)
    path.write_bytes(header[:24] + struct.pack("<I", rate) + header[28:] + bytes(2000))
    for look in (read, lambda each: SoundFile(each, RATE)):
        with refused(AudioError, "rate.wav"):
            look(path)


def test_a_thousand_channels_are_read_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, largest = tmp_path / "wide.wav", [0]
    soundfile.write(path, np.repeat(sine(RATE)[:, None], 1000, axis=1), RATE, subtype="PCM_16")
    original = soundfile.SoundFile.read

    def note_and_read(file: soundfile.SoundFile, frames: int = -1, **options: object) -> np.ndarray:
        channels: np.ndarray = original(file, frames, **options)
        largest[0] = max(largest[0], channels.size)
        return channels

    monkeypatch.setattr(soundfile.SoundFile, "read", note_and_read)
    assert np.abs(read(path).waveform - sine(RATE)).max() < 1e-3
    assert largest[0] <= 4_000_000
