"""Writes the corpus anew: small inputs of every kind that the parsers take, and of some that once broke one.

    python tests/fuzz/make_corpus.py

What a fuzzer found is kept beside them, in files whose names begin with `found-`.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import soundfile
from fuzz.parsers import MODEL, REPOSITORY, TINY

from cabochon.backend import CacheRows
from cabochon.cache_file import write_cache_file

CORPUS = Path(__file__).parent / "corpus"
GOLDEN = json.loads((REPOSITORY / "tests" / "golden" / "manifest.json").read_text(encoding="utf-8"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SINE = (np.sin(np.arange(2400) / 6) * 0.4).astype(np.float32)


def as_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def manifests() -> Iterator[tuple[str, bytes]]:
    small = json.loads(json.dumps(GOLDEN))
    yield "golden", as_bytes(small)
    table = small["engines"]["onnx"]["token_embeddings"]
    small["text"] |= {"vocabulary_size": 32, "per_layer_input_size": 0}
    small["engines"]["onnx"]["per_layer_embeddings"] = None
    table |= {"rows": 32, "columns": 64, "storage": "int8", "block_size": 32, "scale_storage": "float16"}
    table |= {name: {"file": "table.bin", "offset": 0, "stride": 64} for name in ("values", "scales")}
    small["files"].append({"path": "table.bin", "size": 2048, "sha256": "0" * 64})
    yield "table", as_bytes(small)
    yield "without_senses", as_bytes(small | {"audio": None, "vision": None})
    yield "escape", as_bytes(small | {"tokenizer_file": "../tokenizer.json"})
    yield "nested", b"[" * 5000
    yield "long_number", b'{"format_version": ' + b"9" * 5000 + b"}"


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    def file(header: Any, values: bytes, length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else as_bytes(header)
        return struct.pack("<Q", len(text) if length is None else length) + text + values

    def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    whole = {"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32)}
    yield "two", file(whole, bytes(range(32)))
    yield "packed", file({"a": entry("U8", [3], 0, 3), "b": entry("I64", [1], 3, 11)}, bytes(11))
    yield "empty", file({"a": entry("F32", [0, 5], 0, 0)}, b"")
    yield "overlapping", file({"a": entry("F32", [8], 0, 32), "b": entry("F32", [8], 4, 36)}, bytes(36))
    yield "outside", file({"a": entry("F32", [2**40], 0, 2**42)}, bytes(32))
    yield "long_header", file(whole, bytes(32), 2**63 - 1)
    yield "many_dimensions", file({"a": entry("F32", [1] * 64, 0, 4)}, bytes(4))
    yield "nested", file(b"[" * 3000, b"")
    yield "name_of_two_lines", file({"a\n\x1b[2J": entry("F32", [3], 0, 24)}, bytes(24))


def safetensors_indexes() -> Iterator[tuple[str, bytes]]:
    both = {"1": "model-1.safetensors", "2": "model-2.safetensors"}
    yield "both", as_bytes({"metadata": {"total_size": 16}, "weight_map": both})
    yield "missing", as_bytes({"weight_map": {"1": "model-3.safetensors"}})
    yield "escape", as_bytes({"weight_map": {"1": "../model-1.safetensors", "2": ".."}})
    yield "no_names", as_bytes({"weight_map": {"1": None, "2": ["model-1.safetensors"]}})


def checkpoint_files() -> Iterator[tuple[str, bytes]]:
    names = ("config.json", "processor_config.json", "generation_config.json", "tokenizer_config.json")
    files = {name: json.loads((TINY / name).read_text(encoding="utf-8")) for name in names}
    yield "tiny", as_bytes(files)
    for name in ("e2b", "small", "unified"):
        config = json.loads((REPOSITORY / "tests" / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        yield name, as_bytes({"config.json": config})
    adapter = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    yield "adapter", as_bytes(files | {"adapter_config.json": adapter})


def sounds() -> Iterator[tuple[str, bytes]]:
    kinds = "WAV PCM_16, WAV PCM_U8, WAV MS_ADPCM, FLAC PCM_16, OGG VORBIS, AIFF PCM_16, AU ULAW, MP3 MPEG_LAYER_III"
    for suffix, subtype in map(str.split, kinds.split(", ")):
        buffer = io.BytesIO()
        soundfile.write(buffer, SINE, 16_000, format=suffix, subtype=subtype)
        yield f"{suffix}_{subtype}".lower(), buffer.getvalue()
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(SINE[:600, None], 4, axis=1), 44_100, format="WAV", subtype="FLOAT")
    wide = buffer.getvalue()
    yield "four_channels", wide
    plain = wav(1, 16_000, bytes(600))
    yield "plain", plain
    yield "streamed", plain.replace(struct.pack("<I", 600), struct.pack("<I", 0xFFFFFFFF))
    yield "absurd_rate", wav(1, 0x7FFFFFFF, bytes(600))
    yield "slow_rate", wav(1, 1, bytes(600))
    yield "thousand_channels", wav(1000, 16_000, bytes(6000))


def wav(channels: int, rate: int, content: bytes) -> bytes:
    shape = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(content)) + b"WAVEfmt \x10\0\0\0" + shape
    return head + b"data" + struct.pack("<I", len(content)) + content


def images() -> Iterator[tuple[str, bytes]]:
    gradient = PIL.Image.fromarray(np.arange(24 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(24, 32, 3))
    for name, mode in (("png", "RGB"), ("png", "RGBA"), ("png", "P"), ("png", "I;16"), ("jpeg", "L"), ("jpeg", "CMYK"),
                       ("gif", "P"), ("bmp", "1"), ("webp", "RGB"), ("tiff", "F"), ("ppm", "RGB"), ("ico", "RGBA"),
                       ("tga", "RGB"), ("pcx", "L"), ("jpeg2000", "RGB"), ("dds", "RGB"), ("sgi", "RGB")):  # fmt: skip
        buffer = io.BytesIO()
        source = gradient.convert("I").convert("I;16") if mode == "I;16" else gradient.convert(mode)
        source.save(buffer, format=name)
        yield f"{name}_{mode.replace(';', '')}".lower(), buffer.getvalue()
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    gradient.save(buffer, format="jpeg", exif=exif)
    yield "turned", buffer.getvalue()
    buffer = io.BytesIO()
    gradient.save(buffer, format="gif", save_all=True, append_images=[gradient.rotate(90)] * 3)
    yield "animated", buffer.getvalue()
    yield "huge", b"P6\n100000 100000\n255\n"
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/etc/passwd) run\n"


def videos() -> Iterator[tuple[str, bytes]]:
    import av

    for name, codec in (
        ("mp4", "mpeg4"),
        ("avi", "mjpeg"),
        ("gif", "gif"),
        ("matroska", "mpeg4"),
        ("mpegts", "mpeg2video"),
    ):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=name) as container:
            stream = container.add_stream(codec, rate=5 if codec != "mpeg2video" else 25)
            stream.width, stream.height = 32, 24
            stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            for number in range(8):
                frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 30 * number, np.uint8), format="rgb24")
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode())
        yield name, buffer.getvalue()
    yield "playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"


def cache_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    rows = CacheRows(2, (np.ones((1, 2, 4), np.float32), np.zeros((1, 2, 4), np.float32)))
    path = folder / "rows.npz"
    turns = json.loads(conversation(-5))
    write_cache_file(path, MODEL, [1, 2], rows, json.dumps(turns), [np.ones((2, 4), np.float32)])
    yield "conversation", path.read_bytes()
    write_cache_file(path, MODEL, [1, 2], rows)
    yield "prefix", path.read_bytes()
    tokens = np.array([1, 2])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, model=np.array(MODEL), about=np.array(""), tokens=tokens, rows_0=np.zeros(100_000))
    yield "compressed", buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, model=np.array(MODEL), about=np.array(""), tokens=np.array([1, {}], object))
    yield "pickled", buffer.getvalue()
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<U0", "fortran_order": False, "shape": (10**12,)})
    yield "texts_of_no_length", _npz(tokens=head.getvalue())
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)})
    yield "claims_terabytes", _npz(tokens=np_bytes(tokens), rows_0=head.getvalue())


def np_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in {"model": np_bytes(np.array(MODEL)), "about": np_bytes(np.array("")), **members}.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def conversation(mark: int) -> bytes:
    message = {"role": "user", "text": "hello", "has_audio": False, "tool_calls": [], "tool_name": ""}
    called = {"name": "find", "arguments": {"city": "Bonn"}}
    turns = [
        {"message": message, "images": [mark], "videos": [], "sound": None},
        {"message": message | {"role": "assistant", "tool_calls": [called]}, "images": [], "videos": [], "sound": None},
        {"message": message | {"role": "tool", "tool_name": "find"}, "images": [], "videos": [], "sound": None},
    ]
    return as_bytes(turns)


def turns() -> Iterator[tuple[str, bytes]]:
    yield "image", conversation(-5)
    yield "mark_of_a_token", conversation(5)
    heard = {"role": "user", "text": "", "has_audio": True, "tool_calls": [], "tool_name": ""}
    yield "sound", as_bytes([{"message": heard, "images": [], "videos": [], "sound": -1}])
    video = {"marks": [-3], "seconds": [0.0]}
    plain = heard | {"has_audio": False}
    yield "video", as_bytes([{"message": plain, "images": [], "videos": [video], "sound": None}])
    yield "nested", b'[{"message":' * 3000


def transcripts() -> Iterator[tuple[str, bytes]]:
    part = {"start": 0.5, "end": 2.25, "transcript": "hello", "translation": "hallo", "complete": True}
    yield "parts", as_bytes({"summary": "a greeting", "parts": [part, part | {"start": 1e300, "end": 1e308}]})
    yield "part", as_bytes(part)
    yield "note", as_bytes({"question": "what?", "note": "this"})
    yield "backwards", as_bytes({"parts": [part | {"start": 3}]})


def tokenizers() -> Iterator[tuple[str, bytes]]:
    whole = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    model = whole["model"]
    bytes_and_letters = {text: number for text, number in model["vocab"].items() if number < 300 or len(text) == 1}
    vocabulary = {text: number for number, text in enumerate(bytes_and_letters)}
    merges = [pair for pair in model["merges"] if all(each in vocabulary for each in (*pair, "".join(pair)))]
    small = whole | {"model": model | {"vocab": vocabulary, "merges": merges}}
    small["added_tokens"] = [each | {"id": vocabulary[each["content"]]} for each in whole["added_tokens"][:8]]
    yield "letters", as_bytes(small)
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tiny = {"type": "BPE", "vocab": {"a": 0, "b": 1, "▁": 2, "<unk>": 3}, "merges": [], "unk_token": "<unk>"}
    smallest = small | {"model": tiny, "added_tokens": []}
    yield "smallest", as_bytes(smallest)
    yield "pattern", as_bytes(smallest | {"pre_tokenizer": split})
    yield "no_unknown", as_bytes(smallest | {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}})
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
    yield "unigram", as_bytes(smallest | {"model": unigram})
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    strip = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    token = added | {"id": 4, "content": "he"}
    yield "without_spaces", as_bytes(smallest | {"normalizer": strip, "added_tokens": [token]})


def texts() -> Iterator[tuple[str, bytes]]:
    yield "control_tokens", b"<bos><|turn>user\n<|audio|> <tu<turn|>rn|> <|channel>"
    yield "letters", "Grüße, 你好, été, \U0001f600\u200d\n\n".encode()
    yield "stray_bytes", b"\xff\xfe<pad>\x00 \xed\xa0\x80"


def templates() -> Iterator[tuple[str, bytes]]:
    yield "tiny", (TINY / "chat_template.jinja").read_bytes()
    from tool_package import TEMPLATE

    yield "tools", TEMPLATE.encode()
    yield "repeated", b"{{ 'a' * 10**10 }}"
    yield "loops", b"{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}"
    yield "recursion", b"{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(60) }}"
    doubled = "{% set n = namespace(x=['ab']) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
    yield "doubled", doubled.encode()
    yield "widths", b"{{ '%9d' % 1 }}{{ '{}'.format(2) }}{{ 'a'|indent(4)|replace('a', 'b')|tojson(indent=2) }}"
    yield "blocks", b"{% block a %}{% set x %}{% filter upper %}a{% endfilter %}{% endset %}{{ x[:1] }}{% endblock %}"
    yield "inside", b"{{ ''.__class__.__mro__ }}{{ messages|map(attribute='role')|join(',') }}{{ range(3)|sum }}"


def forms() -> Iterator[tuple[str, bytes]]:
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "n": {"enum": [1, "a", None]}}}
    yield "schema", as_bytes(city | {"required": ["city"], "additionalProperties": False})
    yield (
        "recursive",
        as_bytes({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}),
    )
    yield "pattern", b"r[a-z]{1,9}( [0-9]+)*"
    yield "grammar", b'gstart: "a" item+\nitem: /[0-9]+/ | "(" start ")"\n'


def tool_calls() -> Iterator[tuple[str, bytes]]:
    yield "call", b'<|tool_call>call:find{city:<|"|>Bonn<|"|>,days:2,near:[1.5,None],size:{wide:true}}<tool_call|>'
    yield "nested", b"<|tool_call>call:find{a:" + b"[" * 400 + b"<tool_call|>"
    yield "number", b"<|tool_call>call:find{a:1e999,b:-0.5," + b"c:" + b"9" * 900 + b"}<tool_call|>"


def requests() -> Iterator[tuple[str, bytes]]:
    head = b"Host: 127.0.0.1:8642\r\n"

    def post(path: str, content: bytes, kind: str = "application/json") -> bytes:
        lines = f"POST {path} HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n".encode()
        return lines + head + b"\r\n" + content

    def chat(**wishes: Any) -> bytes:
        question = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        return post("/v1/chat/completions", as_bytes(question | wishes))

    def part(name: str, content: bytes, more: str = "") -> bytes:
        return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"

    yield "page", b"GET / HTTP/1.1\r\n" + head + b"\r\nGET /v1/models HTTP/1.1\r\n" + head + b"\r\n"
    yield "chat", chat()
    yield "stream", chat(stream=True, stream_options={"include_usage": True}, stop=["e"], temperature=0.5, seed=3)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    yield "image", chat(messages=[{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}])
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRgAA", "format": "wav"}}
    yield "sound", chat(messages=[{"role": "user", "content": [sound]}])
    function = {"name": "find", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    yield "tools", chat(tools=[{"type": "function", "function": function}], tool_choice="required")
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    yield "schema", chat(response_format=schema)
    called = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "[" * 2000}}
    yield "nested_arguments", chat(messages=[{"role": "assistant", "tool_calls": [called]}])
    yield "nested", post("/v1/chat/completions", b"[" * 20_000)
    body = part("file", wav(1, 16_000, bytes(1600)), '; filename="a.wav"') + part("language", b"en") + b"--x--\r\n"
    yield "transcription", post("/v1/audio/transcriptions", body, "multipart/form-data; boundary=x")
    spoken = (
        part("file", wav(1, 16_000, bytes(64)), '; filename="../a"') + part("target", b"de") + part("language", b"en")
    )
    yield "translation", post("/v1/audio/translations", spoken + b"--x--\r\n", "multipart/form-data; boundary=x")
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    yield "chunked", b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + head + b"\r\n" + chunks
    yield "too_large", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 999999999999\r\n" + head + b"\r\n"
    yield "other_host", b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n"
    yield "not_whole", b"POST /v1/audio/transcriptions HTTP/1.1\r\n" + head + b"Content-Length: 50\r\n\r\n--x\r\n"
    yield "no_http", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def wyoming_events() -> Iterator[tuple[str, bytes]]:
    def event(kind: Any, data: Any = None, payload: bytes = b"", **more: Any) -> bytes:
        return as_bytes({"type": kind, "data": data, "payload_length": len(payload), **more}) + b"\n" + payload

    shape = {"rate": 16_000, "width": 2, "channels": 1}
    chunk = event("audio-chunk", shape, bytes(640))
    yield (
        "speech",
        event("transcribe", {"language": "en"}) + event("audio-start", shape) + chunk + event("audio-stop", {}),
    )
    yield (
        "translation",
        event("transcribe", {"name": "tiny-to-German", "language": "en"}) + chunk + event("audio-stop", {}),
    )
    yield "describe", event("describe", {})
    yield "changed_rate", chunk + event("audio-chunk", shape | {"rate": 8000}, bytes(64)) + event("audio-stop", {})
    yield "odd_shapes", event("audio-chunk", {"rate": 16000.5, "width": True, "channels": 1.0}, bytes(64))
    yield "lengths", event("audio-chunk", shape, payload_length=10**12) + event("x", {}, data_length=-5)
    yield "data_apart", b'{"type": "transcribe", "data_length": 18}\n{"language": "de"}' + event("audio-stop", {})
    yield "no_language", event("transcribe", {"language": "{source}"}) + chunk + event("audio-stop", {})
    yield "nested", b'{"type": "describe", "data": ' + b"[" * 20_000 + b"\n"
    yield "unended", chunk * 3


def write_corpus(corpus: Path = CORPUS) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        made = {
            "manifest": manifests(), "safetensors": safetensors_files(), "safetensors_index": safetensors_indexes(),
            "checkpoint_files": checkpoint_files(), "sound": sounds(), "image": images(), "video": videos(),
            "cache_file": cache_files(Path(scratch)), "turns": turns(), "transcript": transcripts(),
            "tokenizer": tokenizers(), "text": texts(), "template": templates(), "form": forms(),
            "tool_calls": tool_calls(), "http": requests(), "wyoming": wyoming_events(),
        }  # fmt: skip
        for parser, inputs in made.items():
            folder = corpus / parser
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                if not old.name.startswith("found-"):
                    old.unlink()
            for name, content in inputs:
                (folder / name).write_bytes(content)


if __name__ == "__main__":
    write_corpus()
