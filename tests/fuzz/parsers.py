"""What reads files and texts from elsewhere, as functions of bytes: each may raise a `CabochonError`, nothing else.

A function is made for a folder of its own, in which it may write what it reads as a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.cache_file import read_cache_file, read_media
from cabochon.constrained_decoding import Grammar, GrammarReader, JsonSchema, Regex
from cabochon.conversation import load_conversation
from cabochon.conversation_file import read_turns
from cabochon.embedding_table import EmbeddingRows
from cabochon.errors import CabochonError
from cabochon.image import read_image
from cabochon.manifest_file import manifest_to_text, read_manifest
from cabochon.prompt import ChatTemplate, Message
from cabochon.tokenizer import Tokenizer
from cabochon.tool_calls import ToolCallReader
from cabochon.tools import Tool, ToolCall
from cabochon.transcript import format_json, format_srt, format_vtt, read_transcript
from cabochon.unfinished import Unfinished
from cabochon.video import read_video
from cabochon.vision_model import VisionModel
from cabochon.wav import SoundFile, read_sound
from cabochon_convert.audio_frontend import read_audio_frontend
from cabochon_convert.checkpoint import open_checkpoint, read_header, read_json, read_record
from cabochon_convert.config import read_config
from cabochon_convert.lora_config import read_lora_config
from cabochon_convert.processor import read_chat_template, read_image_frontend, read_sampling

Parse = Callable[[bytes], None]
REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "models" / "tiny"
RATE = 16_000
VISION = VisionModel(
    patch_size=4, pooling_kernel_size=3, position_limit=3360, soft_token_budgets=(70,), default_soft_token_budget=70,
    begin_token=1, soft_token=2, end_token=3,
)  # fmt: skip
TOOL = Tool("find", "Find it.", {"type": "object", "properties": {"city": {"type": "string"}}})
CONVERSATION = [
    Message("system", "Be brief."),
    Message("user", "hello", has_audio=True),
    Message("assistant", "", tool_calls=(ToolCall("find", {"city": "Bonn", "days": [1, None]}),)),
    Message("tool", '{"found": 3}', tool_name="find"),
    Message("user", "and <|turn>?"),
]
MODEL = "the model"


def parse_manifest(folder: Path) -> Parse:
    """manifest.json of a package, and the tables that it describes."""
    (folder / "table.bin").write_bytes(bytes(range(256)) * 8)

    def parse(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        manifest = read_manifest(folder)
        (folder / "manifest.json").write_text(manifest_to_text(manifest), encoding="utf-8")
        assert read_manifest(folder) == manifest
        for engine in manifest.engines.values():
            with suppress(FileNotFoundError):  # a package is looked through before its tables are opened
                EmbeddingRows(folder.joinpath, engine.token_embeddings).look_up([0])

    return parse


def parse_safetensors(folder: Path) -> Parse:
    """model.safetensors of a checkpoint, and what it holds."""
    (folder / "config.json").write_text("{}")

    def parse(data: bytes) -> None:
        (folder / "model.safetensors").write_bytes(data)
        checkpoint = open_checkpoint(folder)
        for name in checkpoint.names:
            with suppress(CabochonError):
                read_record(checkpoint.record(name))

    return parse


def parse_safetensors_index(folder: Path) -> Parse:
    """model.safetensors.index.json of a checkpoint of two files."""
    (folder / "config.json").write_text("{}")
    for name in ("model-1.safetensors", "model-2.safetensors"):
        header = json.dumps({name[6]: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        assert read_header(folder / name)

    def parse(data: bytes) -> None:
        (folder / "model.safetensors.index.json").write_bytes(data)
        assert set(open_checkpoint(folder).names) <= {"1", "2"}

    return parse


def parse_checkpoint_files(folder: Path) -> Parse:
    """The JSON files of a checkpoint: one object of them by their names."""
    tokenizer = Tokenizer(TINY / "tokenizer.json")

    def parse(data: bytes) -> None:
        (folder / "all.json").write_bytes(data)
        for name, value in read_json(folder / "all.json").items():
            if name in ("config.json", "processor_config.json", "generation_config.json", "tokenizer_config.json"):
                (folder / name).write_text(json.dumps(value))
            elif name == "adapter_config.json" and isinstance(value, dict):
                with suppress(CabochonError):
                    read_lora_config(value)
        with suppress(CabochonError):
            read_chat_template(folder)
        config = read_config(read_json(folder / "config.json"))
        with suppress(CabochonError):
            read_sampling(folder, config, tokenizer)
        if config.audio is not None:
            with suppress(CabochonError):
                read_audio_frontend(folder, config.audio)
        if config.vision is not None:
            read_image_frontend(folder, config.vision)

    def parse_afresh(data: bytes) -> None:
        for path in folder.iterdir():
            path.unlink()
        parse(data)

    return parse_afresh


def parse_sound(folder: Path) -> Parse:
    """A sound file, whole and block by block."""
    path = folder / "sound"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(CabochonError):
            sound = read_sound(path, RATE, 30 * RATE)
            assert sound.waveform.ndim == 1
            assert (np.abs(sound.waveform) <= 1).all()
        file = SoundFile(path, RATE)
        heard = 0
        for block in file.blocks():
            heard += len(block)
            if heard > 60 * RATE:
                break

    return parse


def parse_image(_: Path) -> Parse:
    """An image file."""

    def parse(data: bytes) -> None:
        image = read_image(data, VISION, 70)
        assert image.patches(VISION).shape[2] == VISION.values_per_patch

    return parse


def parse_video(folder: Path) -> Parse:
    """A video file."""
    path = folder / "video"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_video(path, VISION, 70)

    return parse


def parse_cache_file(folder: Path) -> Parse:
    """Keys and values in a file, which are kept of instructions and conversations."""
    path = folder / "rows.npz"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        _, _, about = read_cache_file(path, MODEL)
        media = read_media(path)
        with suppress(ValueError, RecursionError, CabochonError):  # as in load_conversation
            read_turns(about, media, 4)

    return parse


def parse_turns(folder: Path) -> Parse:
    """The turns of a conversation, as a file of one holds them."""
    path = folder / "conversation.npz"
    package: Any = _NoPackage()

    def parse(data: bytes) -> None:
        about = np.array(data.decode("utf-8", "replace"))
        arrays: dict[str, Any] = {"media_0": np.ones((2, 4), np.float32)}
        np.savez(path, model=np.array(MODEL), about=about, tokens=np.zeros(0, np.int64), **arrays)
        load_conversation(package, path)

    return parse


class _NoPackage:
    """All that `load_conversation` asks of a model: whose files it may take, and how wide embeddings are."""

    identity = MODEL

    class package:  # noqa: N801
        class manifest:  # noqa: N801
            class text:  # noqa: N801
                hidden_size = 4


def parse_transcript(folder: Path) -> Parse:
    """A transcript, and what is left of one that was interrupted."""
    path, output = folder / "transcript.json", folder / "output.txt"

    def parse(data: bytes) -> None:
        output.with_name("output.txt.unfinished").write_bytes(b'{"work": 1}\n' + data + b"\n")
        Unfinished(output, {"work": 1}).forget()
        path.write_bytes(data)
        parts = read_transcript(path)
        for write in (format_json, format_srt, format_vtt):
            write(parts)

    return parse


def parse_tokenizer(folder: Path) -> Parse:
    """tokenizer.json of a package, and texts."""
    path = folder / "tokenizer.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        tokenizer = Tokenizer(path)
        for text in ("hello <bos> wörld\n\n", "a" * 40 + "b"):
            tokens = tokenizer.encode(tokenizer.break_control_tokens(text))
            tokenizer.decode_with_control_tokens(tokens)
            stream = tokenizer.start_stream()
            for token in tokens:
                stream.push(token)
            stream.finish()
        tokenizer.spell(min(tokenizer.largest_token + 1, 300))

    return parse


def parse_text(_: Path) -> Parse:
    """Texts of whoever asks, on their way into a prompt: nothing in them becomes a control token."""
    tokenizer = Tokenizer(TINY / "tokenizer.json")
    template = ChatTemplate((TINY / "chat_template.jinja").read_text(encoding="utf-8"), bos_token="<bos>")
    control = {token for token in tokenizer.control_tokens if tokenizer.token_text(token).strip()}

    def parse(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        quoted = tokenizer.break_control_tokens(text)
        assert control.isdisjoint(tokenizer.encode(quoted))
        prompt = template.render([Message("user", quoted)], quote=tokenizer.break_control_tokens)
        assert quoted in prompt

    return parse


def parse_template(_: Path) -> Parse:
    """chat_template.jinja of a package, with a conversation that has everything."""

    def parse(data: bytes) -> None:
        template = ChatTemplate(data.decode("utf-8", "replace"), bos_token="<bos>")
        with suppress(CabochonError):
            template.render(CONVERSATION[:1])
        template.render(CONVERSATION, [TOOL], thinking=True)

    return parse


def parse_form(_: Path) -> Parse:
    """The form of an answer, by its first letter a JSON schema, a pattern or a grammar."""
    reader = GrammarReader(Tokenizer(TINY / "tokenizer.json"), 3072, [1])

    def parse(data: bytes) -> None:
        text = data[1:].decode("utf-8", "replace")
        match data[:1]:
            case b"{":
                with suppress(ValueError, RecursionError):  # the server refuses what is no JSON
                    reader.read(JsonSchema(json.loads(data.decode("utf-8", "replace"))))
            case b"g":
                reader.read(Grammar(text))
            case _:
                reader.read(Regex(text))

    return parse


def parse_tool_calls(folder: Path) -> Parse:
    """What a model writes where it calls a function."""
    import tokenizers

    names = ("<|tool_call>", "<tool_call|>", "<|tool_response>", '<|"|>')
    model = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    model.add_special_tokens([tokenizers.AddedToken(name, special=False) for name in names])
    model.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder / "tokenizer.json")

    def parse(data: bytes) -> None:
        reader = ToolCallReader(tokenizer, ["find"])
        for token in tokenizer.encode(data.decode("utf-8", "replace")):
            reader.take(token)
        reader.finish()
        for call in reader.calls:
            json.dumps(call.arguments)

    return parse


FILE_PARSERS: dict[str, Callable[[Path], Parse]] = {
    "manifest": parse_manifest,
    "safetensors": parse_safetensors,
    "safetensors_index": parse_safetensors_index,
    "checkpoint_files": parse_checkpoint_files,
    "sound": parse_sound,
    "image": parse_image,
    "video": parse_video,
    "cache_file": parse_cache_file,
    "turns": parse_turns,
    "transcript": parse_transcript,
    "tokenizer": parse_tokenizer,
    "text": parse_text,
    "template": parse_template,
    "form": parse_form,
    "tool_calls": parse_tool_calls,
}
"""By name; their inputs lie in a folder of this name in `corpus`."""
