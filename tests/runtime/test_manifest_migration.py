"""Packages that earlier versions of cabochon wrote."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import convert_tiny
from hypothesis import given
from hypothesis import strategies as st

import cabochon
from cabochon.errors import PackageError
from cabochon.manifest import FORMAT_VERSION
from cabochon.manifest_file import manifest_from_text, manifest_to_text
from cabochon.manifest_migration import STEPS, migrate

GOLDEN = Path(__file__).parents[1] / "golden"
SOUND = Path(__file__).parents[2] / "models" / "tiny" / "demo" / "german_unseen_voice.wav"
EARLIER = range(1, FORMAT_VERSION)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def golden(version: int) -> dict[str, Any]:
    """What the converter of that format version wrote of models/tiny as it was then."""
    return dict(json.loads((GOLDEN / f"manifest-of-format-{version}.json").read_text(encoding="utf-8")))


def as_written_by(version: int, manifest: dict[str, Any]) -> dict[str, Any]:
    """Today's manifest of a package that has nothing which that version did not know."""
    value = copy.deepcopy(manifest) | {"format_version": version}
    for engine in value["engines"].values():
        if version < 4:
            assert (engine.pop("audio_projector"), engine.pop("vision_projector")) == (None, None)
            for name in ("token_embeddings", "per_layer_embeddings"):
                assert (engine[name].pop("signed"), engine[name].pop("zero_points")) == (False, None)
        if version < 2:
            assert engine.pop("vision_encoder") is None
    if version < 3:
        assert value["audio"].pop("waveform_frames") is None
    if version < 2:
        assert value.pop("vision") is None
        for precision in value["recipe"]["precisions"]:
            precision.pop("scale_bits")
    return value


@pytest.mark.parametrize("version", EARLIER)
def test_a_manifest_that_an_earlier_version_wrote_is_read_as_todays(version: int) -> None:
    manifest = manifest_from_text(json.dumps(golden(version)), "manifest.json")
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.engines["onnx"].decoder.file == "decoder.onnx"
    assert manifest.engines["onnx"].vision_encoder is None
    assert manifest_from_text(manifest_to_text(manifest), "manifest.json") == manifest


@pytest.mark.parametrize("version", EARLIER)
def test_a_package_of_an_earlier_version_answers_as_it_would_today(
    version: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = tmp_path / "package"
    shutil.copytree(convert_tiny("int4-mixed", tmp_path_factory), package)
    today = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    (package / "manifest.json").write_text(json.dumps(as_written_by(version, today)), encoding="utf-8")
    answer = cabochon.load(package).translate(SOUND, source="German", target="English")
    answer.finish()
    assert answer.translation == "The cocktail costs 38 euros."


def test_every_earlier_version_has_a_step_to_the_next_and_an_example() -> None:
    assert set(STEPS) == set(EARLIER)
    assert {path.name for path in GOLDEN.glob("manifest-of-*")} == {
        f"manifest-of-format-{each}.json" for each in EARLIER
    }


@pytest.mark.parametrize("version", EARLIER)
def test_nothing_that_a_manifest_says_is_changed_on_the_way(version: int) -> None:
    before = golden(version)
    kept = copy.deepcopy(before)
    after = migrate(before, FORMAT_VERSION)
    assert before == kept
    assert as_written_by(version, after) == kept


@given(st.sampled_from(EARLIER), st.dictionaries(st.sampled_from(sorted(golden(1))), JSON))
def test_whatever_stands_in_an_earlier_manifest_it_is_read_or_refused_in_a_sentence(
    version: int, changes: dict[str, Any]
) -> None:
    text = json.dumps(golden(version) | changes | {"format_version": version})
    with suppress(PackageError):
        assert manifest_from_text(text, "manifest.json").format_version == FORMAT_VERSION
