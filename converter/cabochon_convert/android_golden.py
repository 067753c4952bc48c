"""Golden vectors for the app's own code: tokens, log-mels, embeddings, logits and text, as the runtime has them."""

from __future__ import annotations

import json
import shutil
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import EngineSettings, Session
from cabochon.decode import decode, prefill
from cabochon.embedder import Embedder, open_embedder
from cabochon.engines import open_session
from cabochon.errors import RequestError
from cabochon.languages import language_name
from cabochon.package import Package
from cabochon.prompt import Message, PromptWriter, split_translation, translation_instruction
from cabochon.sampling import Sampler, SamplingSettings
from cabochon.tokenizer import Tokenizer
from cabochon.wav import read_sound

GOLDEN_FORMAT = 1
LONGEST_ANSWER = 128
TEXTS = (
    "", " ", "Where is the train station?", "  two spaces,\nnew lines\n\n\nand\ttabs ", "Grüße aus Köln: 38 €, ¿qué?",
    "日本語 ไทย 🦊👩‍👧 e\u0301", "\x00\x7f\u200b\ufffd", "<|turn>user\nHello<turn|><|audio|>", "<|turn", "▁ ▁▁a",
    "aaaaaaaaaaaaaaaaaaaaaaaa", "Transcribe the following speech segment in German, then translate it into English.",
)  # fmt: skip
"""What tokenizers disagree about."""


@dataclass(frozen=True, slots=True)
class SpokenExample:
    """A sound and how it is to be translated."""

    sound: Path
    source: str
    target: str


def write_golden_vectors(
    package: Package, engine: str, folder: Path, identity: str, examples: tuple[SpokenExample, ...]
) -> None:
    """Write golden.json, the sounds it is about, and a file of little-endian float32 values for every matrix.

    Args:
        identity: of the package.
        examples: to be translated; without one, a made-up sound is.

    Raises:
        AudioError, RequestError: a sound or a language cannot be taken.
    """
    tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    texts = [_written(tokenizer, text) for text in TEXTS]
    session = open_session(package, engine, EngineSettings())
    embedder = open_embedder(package, engine)
    if not examples:
        examples = (_made_up_example(package, folder / "made_up.wav"),)
    names = [example.sound.stem for example in examples]
    if len(set(names)) < len(names):
        raise RequestError("two of the spoken examples have the same file name: rename one.")
    spoken = [_example(package, tokenizer, session, embedder, folder, example) for example in examples]
    golden = {"format": GOLDEN_FORMAT, "package_sha256": identity, "texts": texts, "spoken": spoken}
    content = json.dumps(golden, indent=1, ensure_ascii=True) + "\n"
    (folder / "golden.json").write_text(content, encoding="utf-8")


def _written(tokenizer: Tokenizer, text: str) -> dict[str, object]:
    """A text as tokens, and what becomes of these."""
    tokens = tokenizer.encode(text)
    return {
        "text": text,
        "tokens": tokens,
        "decoded": tokenizer.decode(tokens),
        "written": tokenizer.decode_with_control_tokens(tokens),
    }


def _example(
    package: Package, tokenizer: Tokenizer, session: Session, embedder: Embedder, folder: Path, example: SpokenExample
) -> dict[str, object]:
    manifest = package.manifest
    audio, encoder = manifest.audio, session.audio_encoder
    assert audio is not None  # a package that does not hear is refused before
    assert encoder is not None
    sound = read_sound(example.sound, audio.sample_rate, audio.max_samples)
    frames = audio.make_frames(sound.waveform)
    embeddings = encoder.encode(frames)
    instruction = translation_instruction(manifest.prompts, example.source, example.target)
    prompt = PromptWriter(package, tokenizer).write([Message("user", instruction, has_audio=True)], len(embeddings))
    inputs = embedder.embed(prompt, audio, embeddings)
    logits = prefill(session.decoder, inputs).copy()
    sampler = Sampler(SamplingSettings(), manifest.sampling.suppress_tokens, manifest.text.final_logit_softcap)
    stop_tokens = manifest.sampling.stop_tokens
    answer = list(decode(session.decoder, embedder, sampler, logits.copy(), len(prompt), stop_tokens, LONGEST_ANSWER))
    text = tokenizer.decode(answer)
    transcript, translation = split_translation(text, manifest.prompts, example.target)
    if example.sound.parent != folder:
        shutil.copyfile(example.sound, folder / example.sound.name)
    matrices = {
        "waveform": sound.waveform[None],
        "log_mel": frames,
        "audio_embeddings": embeddings,
        "inputs_embeds": inputs.inputs_embeds,
        "per_layer_inputs": inputs.per_layer_inputs,
        "logits": logits[None],
    }
    stem = example.sound.stem
    return {
        "sound": example.sound.name,
        "source": language_name(example.source),
        "target": language_name(example.target),
        "instruction": instruction,
        "prompt": prompt,
        "answer": answer,
        "text": text,
        "transcript": transcript,
        "translation": translation,
        "matrices": {name: _write_matrix(folder, f"{stem}.{name}.bin", each) for name, each in matrices.items()},
    }


def _write_matrix(folder: Path, name: str, matrix: Float32Array) -> dict[str, object]:
    (folder / name).write_bytes(np.ascontiguousarray(matrix, "<f4").tobytes())
    return {"file": name, "shape": list(matrix.shape)}


def _made_up_example(package: Package, path: Path) -> SpokenExample:
    """A second of a rising tone, of no language; what the model makes of it is as good a number as any."""
    audio = package.manifest.audio
    assert audio is not None
    time = np.arange(audio.sample_rate) / audio.sample_rate
    tone = 0.3 * np.sin(2 * np.pi * (150 + 400 * time) * time)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.sample_rate)
        file.writeframes(np.round(tone * 32767).astype("<i2").tobytes())
    return SpokenExample(path, "English", "German")
