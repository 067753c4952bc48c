from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN_MANIFEST
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.audio_model import AudioModel
from cabochon.errors import PackageError
from cabochon.log_mel import LogMelParameters
from cabochon.manifest import (
    FORMAT_VERSION,
    AppliedPrecision,
    AppliedRecipe,
    EmbeddingTable,
    Engine,
    FileRecord,
    Graph,
    KeyValueCache,
    Manifest,
    Prompts,
    RowRegion,
    Sampling,
    SourceAdapter,
    SourceCheckpoint,
    Tensor,
    TextModel,
    is_safe_path,
)
from cabochon.manifest_file import manifest_from_text, manifest_to_text, read_manifest
from cabochon.vision_model import VisionModel
from cabochon.waveform_frames import WaveformFrameParameters

# A manifest is written as UTF-8, which has no surrogates.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
SIZES = st.integers(1, 1 << 40)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?\.bin", fullmatch=True), min_size=3, unique=True))
    tokens = st.integers(0, 255)
    text = TextModel(
        vocabulary_size=256,
        hidden_size=draw(st.sampled_from([16, 64])),
        layer_count=draw(st.integers(1, 4)),
        per_layer_input_size=draw(st.sampled_from([16, 32])),
        context_length=draw(SIZES),
        final_logit_softcap=draw(st.floats(0, 100)),
    )
    tensor = st.builds(
        Tensor,
        name=TEXTS,
        dtype=TEXTS,
        shape=st.lists(st.integers() | TEXTS, max_size=3).map(tuple),
    )
    graph = st.builds(
        Graph,
        file=st.sampled_from(names),
        inputs=st.lists(tensor, max_size=2).map(tuple),
        outputs=st.lists(tensor, max_size=2).map(tuple),
    )
    window = draw(SIZES)
    cache = st.sampled_from([("sliding", window), ("full", 0)]).flatmap(
        lambda kind: st.builds(
            KeyValueCache,
            layer=st.integers(0, 99),
            kind=st.just(kind[0]),
            window=st.just(kind[1]),
            heads=SIZES,
            head_size=SIZES,
            past_key=TEXTS,
            past_value=TEXTS,
            present_key=TEXTS,
            present_value=TEXTS,
        )
    )
    per_layer_columns = text.layer_count * text.per_layer_input_size
    vision = draw(st.none() | vision_models(tokens))
    encoder = draw(st.none() | graph)
    engine = st.builds(
        Engine,
        decoder=graph,
        caches=st.lists(cache, max_size=2).map(tuple),
        audio_encoder=st.just(encoder),
        audio_projector=st.none() | graph if encoder else st.none(),
        vision_encoder=graph if vision else st.none(),
        vision_projector=st.none() | graph if vision else st.none(),
        token_embeddings=tables(names, text.vocabulary_size, text.hidden_size),
        per_layer_embeddings=tables(names, text.vocabulary_size, per_layer_columns),
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        created_by=draw(TEXTS),
        source=draw(
            st.builds(
                SourceCheckpoint,
                name=TEXTS,
                revision=st.none() | TEXTS,
                architecture=TEXTS,
                sha256=TEXTS,
                skipped_tensors=st.lists(TEXTS, max_size=2).map(tuple),
                adapter=st.none() | st.builds(SourceAdapter, name=TEXTS, revision=st.none() | TEXTS, sha256=TEXTS),
            )
        ),
        recipe=draw(
            st.builds(
                AppliedRecipe,
                name=TEXTS,
                precisions=st.lists(
                    st.builds(
                        AppliedPrecision,
                        tensor=TEXTS,
                        bits=st.sampled_from([2, 4, 8, 32]),
                        block_size=SIZES,
                        symmetric=st.booleans(),
                        scale_bits=st.sampled_from([0, 16, 32]),
                        algorithm=st.sampled_from(["nearest", "mse", "gptq"]),
                    )
                ).map(tuple),
            )
        ),
        text=text,
        audio=draw(st.none() | audio_models(tokens)),
        vision=vision,
        bos_token=draw(tokens),
        pad_token=draw(tokens),
        prompts=Prompts(
            transcribe=draw(TEXTS) + "{source}",
            transcribe_unknown_language=draw(TEXTS),
            translate=draw(TEXTS) + "{source} {target}",
            translation_marker="{target}" + draw(TEXTS),
        ),
        sampling=Sampling(
            temperature=draw(st.floats(0, 10)),
            top_k=draw(st.integers(0, 1000)),
            top_p=draw(st.floats(0, 1, exclude_min=True)),
            stop_tokens=tuple(draw(st.lists(tokens, min_size=1, max_size=3))),
            suppress_tokens=tuple(draw(st.lists(tokens, max_size=3))),
        ),
        tokenizer_file=draw(st.sampled_from(names)),
        chat_template_file=draw(st.sampled_from(names)),
        engines=draw(st.dictionaries(TEXTS, engine, min_size=1, max_size=2)),
        files=tuple(
            FileRecord(path=name, size=draw(SIZES), sha256=draw(st.from_regex(r"[0-9a-f]{64}", fullmatch=True)))
            for name in names
        ),
    )


@st.composite
def tables(draw: st.DrawFn, names: list[str], rows: int, columns: int) -> EmbeddingTable:
    region = st.builds(RowRegion, file=st.sampled_from(names), offset=st.integers(0, 1 << 40), stride=SIZES)
    storage = draw(st.sampled_from(["float32", "float16", "bfloat16", "int8", "int4", "int2"]))
    is_integer = storage.startswith("int")
    signed = is_integer and draw(st.booleans())
    return EmbeddingTable(
        rows=rows,
        columns=columns,
        storage=storage,
        values=draw(region),
        block_size=16 if is_integer else 0,
        scales=draw(region) if is_integer else None,
        scale_storage=draw(st.sampled_from(["float32", "float16"])) if is_integer else None,
        zero_points=None if signed or not is_integer else draw(st.none() | region),
        signed=signed,
        row_scale=draw(st.floats(allow_nan=False, allow_infinity=False)),
    )


def audio_models(tokens: st.SearchStrategy[int]) -> st.SearchStrategy[AudioModel]:
    parameters = st.builds(
        LogMelParameters,
        sample_rate=st.integers(16_000, 96_000),
        frame_length=st.integers(1, 400),
        hop_length=SIZES,
        fft_length=st.sampled_from([512, 1024]),
        mel_bins=SIZES,
        min_frequency=st.floats(0, 100),
        max_frequency=st.floats(1000, 8000),
        mel_floor=st.floats(1e-9, 1),
    )
    samples = st.builds(WaveformFrameParameters, sample_rate=SIZES, frame_length=SIZES)
    frontends = st.tuples(parameters, st.none()) | st.tuples(st.none(), samples)
    return frontends.flatmap(lambda pair: audio_models_of(*pair, tokens))


def audio_models_of(
    log_mel: LogMelParameters | None, waveform_frames: WaveformFrameParameters | None, tokens: st.SearchStrategy[int]
) -> st.SearchStrategy[AudioModel]:
    return st.builds(
        AudioModel,
        log_mel=st.just(log_mel),
        waveform_frames=st.just(waveform_frames),
        max_samples=SIZES,
        frames_per_token=SIZES,
        begin_token=tokens,
        soft_token=tokens,
        end_token=tokens,
    )


def vision_models(tokens: st.SearchStrategy[int]) -> st.SearchStrategy[VisionModel]:
    budgets = st.lists(st.integers(1, 1000), min_size=1, max_size=4, unique=True).map(sorted)
    return budgets.flatmap(
        lambda choices: st.builds(
            VisionModel,
            patch_size=SIZES,
            pooling_kernel_size=st.integers(1, 4),
            position_limit=st.integers(4000, 1 << 40),
            soft_token_budgets=st.just(tuple(choices)),
            default_soft_token_budget=st.sampled_from(choices),
            begin_token=tokens,
            soft_token=tokens,
            end_token=tokens,
        )
    )


def golden_value() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(GOLDEN_MANIFEST.read_text())
    return value


def all_keys(value: Any, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    places: list[tuple[str | int, ...]] = []
    for key, inner in items:
        places += [(*above, key), *all_keys(inner, (*above, key))]
    return places


def container(value: Any, place: tuple[str | int, ...]) -> Any:
    for key in place[:-1]:
        value = value[key]
    return value


PLACES = all_keys(golden_value())


@given(manifests())
def test_a_manifest_survives_writing_and_reading(manifest: Manifest) -> None:
    assert manifest_from_text(manifest_to_text(manifest), "manifest.json") == manifest


def test_the_written_bytes_are_those_of_format_version_4() -> None:
    golden = GOLDEN_MANIFEST.read_bytes()
    assert manifest_to_text(manifest_from_text(golden.decode(), "golden")).encode() == golden


@pytest.mark.parametrize("version", [0, -1, 5, 99, "1", "4", [], None, 1.5, True, 1.0])
def test_another_format_version_is_refused_before_anything_else_is_read(version: Any) -> None:
    with refused(PackageError, "manifest.json", "format"):
        manifest_from_text(json.dumps({"format_version": version, "whatever": 1}), "manifest.json")
    with refused(PackageError, "manifest.json", "format"):
        manifest_from_text(json.dumps(golden_value() | {"format_version": version}), "manifest.json")


@pytest.mark.parametrize("place", [place for place in PLACES if isinstance(place[-1], str)], ids=str)
def test_a_missing_key_is_refused_and_named(place: tuple[str | int, ...]) -> None:
    value = golden_value()
    del container(value, place)[place[-1]]
    with refused(PackageError, "no engine" if place == ("engines", "onnx") else str(place[-1])):
        manifest_from_text(json.dumps(value), "manifest.json")


@pytest.mark.parametrize("section", ["audio", "vision", "text", "prompts", "sampling", "source"])
def test_an_unknown_key_is_refused_and_named(section: str) -> None:
    value = golden_value()
    value[section]["surprise"] = 1
    with refused(PackageError, f"{section}.surprise"):
        manifest_from_text(json.dumps(value), "manifest.json")


@given(st.sampled_from(PLACES), JSON_VALUES)
def test_any_value_in_any_place_gives_a_manifest_or_a_refusal(place: tuple[str | int, ...], replacement: Any) -> None:
    value = golden_value()
    container(value, place)[place[-1]] = replacement
    try:
        manifest = manifest_from_text(json.dumps(value), "manifest.json")
    except PackageError:
        return
    assert manifest_from_text(manifest_to_text(manifest), "again") == manifest


@given(st.integers(0, len(GOLDEN_MANIFEST.read_text()) - 2))
def test_a_truncated_manifest_is_refused(length: int) -> None:
    with refused(PackageError, "manifest.json"):
        manifest_from_text(GOLDEN_MANIFEST.read_text()[:length], "manifest.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "1",
        '"text"',
        "[]",
        "{}",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format_version": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"format_version": ' + "1" * 10_000 + "}",
        '{"format_version": NaN}',
        '{"format_version": 1e999}',
        '{"format_version": 1}',
        '{"format_version": true}',
        "\ufeff{}",
        "\x00" * 100,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_hostile_json_is_refused(text: str) -> None:
    with refused(PackageError, "manifest.json"):
        manifest_from_text(text, "manifest.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    text = GOLDEN_MANIFEST.read_text().replace('"final_logit_softcap": 30.0', f'"final_logit_softcap": {number}')
    with refused(PackageError, "text.final_logit_softcap"):
        manifest_from_text(text, "manifest.json")


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a\\b", "C:x", "a/../../x", "..", ".", "", "a//b", "./a", "a/", "a\nb", "a\x00b", "\ud800"],
)
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    assert not is_safe_path(path)
    value = golden_value()
    value["files"][0]["path"] = path
    with refused(PackageError, "manifest.json"):
        manifest_from_text(json.dumps(value), "manifest.json")


def test_the_manifest_cannot_list_itself() -> None:
    assert not is_safe_path("manifest.json")
    assert is_safe_path("graphs/manifest.json")


def _use_an_unlisted_file(value: dict[str, Any]) -> None:
    value["tokenizer_file"] = "elsewhere.json"


def _list_a_file_twice(value: dict[str, Any]) -> None:
    value["files"].append(value["files"][0])


def _name_a_token_outside(value: dict[str, Any]) -> None:
    value["sampling"]["stop_tokens"] = [value["text"]["vocabulary_size"]]


def _halve_a_table(value: dict[str, Any]) -> None:
    value["engines"]["onnx"]["token_embeddings"]["rows"] //= 2


def _make_odd_int4_rows(value: dict[str, Any]) -> None:
    table = value["engines"]["onnx"]["per_layer_embeddings"]
    table["columns"] = table["block_size"] = 3


def _forget_the_vision_encoder(value: dict[str, Any]) -> None:
    value["engines"]["onnx"]["vision_encoder"] = None


def _see_without_vision(value: dict[str, Any]) -> None:
    value["vision"] = None


def _see_with_an_unlisted_file(value: dict[str, Any]) -> None:
    value["engines"]["onnx"]["vision_encoder"]["file"] = "elsewhere.onnx"


def _project_without_encoder(value: dict[str, Any]) -> None:
    engine = value["engines"]["onnx"]
    engine |= {"vision_projector": engine["vision_encoder"], "vision_encoder": None}
    value["vision"] = None


def _project_with_an_unlisted_file(value: dict[str, Any]) -> None:
    engine = value["engines"]["onnx"]
    engine["vision_projector"] = engine["vision_encoder"] | {"file": "elsewhere.tflite"}


def _name_an_image_token_outside(value: dict[str, Any]) -> None:
    value["vision"]["soft_token"] = value["text"]["vocabulary_size"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_forget_the_vision_encoder, "vision"),
        (_see_without_vision, "vision_encoder"),
        (_see_with_an_unlisted_file, "elsewhere.onnx"),
        (_project_without_encoder, "a projector has no vision encoder"),
        (_project_with_an_unlisted_file, "elsewhere.tflite"),
        (_name_an_image_token_outside, "outside the vocabulary"),
        (_use_an_unlisted_file, "elsewhere.json"),
        (_list_a_file_twice, "twice"),
        (_name_a_token_outside, "outside the vocabulary"),
        (_halve_a_table, "token_embeddings"),
        (_make_odd_int4_rows, "blocks do not fill"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change: Callable[[dict[str, Any]], None], words: str) -> None:
    value = golden_value()
    change(value)
    with refused(PackageError, words):
        manifest_from_text(json.dumps(value), "manifest.json")


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"\x80", b"{"])
def test_a_manifest_file_that_is_not_json_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with refused(PackageError, str(tmp_path)):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_a_file_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file", tmp_path / "nothing"):
        with refused(PackageError, str(folder), "cabochon-convert"):
            read_manifest(folder)


def test_a_manifest_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(3 << 30)
    with refused(PackageError, "too long"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("frontends", [("log_mel", "waveform_frames"), ()], ids=["both", "none"])
def test_a_model_that_hears_in_two_ways_or_in_none_is_refused(frontends: tuple[str, ...]) -> None:
    value = golden_value()
    samples = {"sample_rate": 16_000, "frame_length": 640}
    known = {"log_mel": value["audio"]["log_mel"], "waveform_frames": samples}
    value["audio"] |= {name: known[name] if name in frontends else None for name in known}
    with refused(PackageError, "either log_mel or waveform_frames"):
        manifest_from_text(json.dumps(value), "manifest.json")


def test_audio_tokens_count_a_started_token_as_whole() -> None:
    audio = manifest_from_text(GOLDEN_MANIFEST.read_text(), "golden").audio
    assert audio is not None
    four = replace(audio, frames_per_token=4)
    assert [four.token_count(frames) for frames in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
