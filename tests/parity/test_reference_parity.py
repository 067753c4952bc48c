"""T2: the converted graphs give what transformers gives for the same checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.report import Report
from cabochon_convert.verify import FLOAT_TOLERANCE, REPORT_NAME, verify_packages


def verify_package(package: Path, checkpoint: Path) -> Report:
    (report,) = verify_packages([package], checkpoint, Silence())
    return report


@pytest.fixture(scope="module")
def random_report(random_package: Path, random_checkpoint: Path) -> Report:
    return verify_package(random_package, random_checkpoint)


def test_audio_embeddings_of_a_float_package_equal_the_reference_at_every_length(random_report: Report) -> None:
    assert [comparison.tokens for comparison in random_report.audio] == [3, 13, 31, 81, 175]
    # float32 sums in another order; measured 8e-7.
    assert max(comparison.relative_error for comparison in random_report.audio) <= 1e-5


def test_logits_of_a_float_package_equal_the_reference_at_every_position(random_report: Report) -> None:
    # The longest prompt is several times the sliding window of 24. float32 sums in another order; measured 4e-6.
    assert max(comparison.positions for comparison in random_report.logits) > 4 * 24
    assert max(comparison.relative_error for comparison in random_report.logits) <= 2e-5


def test_greedy_tokens_of_a_float_package_are_the_references(random_report: Report) -> None:
    for comparison in random_report.logits:
        assert comparison.greedy_agreement == comparison.greedy_tokens


def test_hidden_states_of_a_float_package_equal_the_references_behind_every_layer(random_report: Report) -> None:
    assert (len(random_report.layers.audio), len(random_report.layers.decoder)) == (2, 7)
    # float32 sums in another order; measured 2e-6.
    assert max(*random_report.layers.audio, *random_report.layers.decoder) <= 1e-5


def test_the_report_file_says_what_was_measured(random_report: Report, random_package: Path) -> None:
    written = json.loads((random_package / REPORT_NAME).read_text())
    assert written["passed"] is True
    assert written["tolerance"] == FLOAT_TOLERANCE
    assert written["audio"][0]["relative_error"] == random_report.audio[0].relative_error


def test_verification_fails_when_a_weight_is_wrong(random_checkpoint: Path, tmp_path: Path) -> None:
    """A wrong package has to be told from a right one: convert a checkpoint in which one norm is scaled by 1.01."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in random_checkpoint.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    name = "model.language_model.layers.3.post_attention_layernorm.weight"
    shard = damaged / json.loads((damaged / "model.safetensors.index.json").read_text())["weight_map"][name]
    content = bytearray(shard.read_bytes())
    data_start = 8 + int.from_bytes(content[:8], "little")
    offsets = json.loads(content[8:data_start])[name]["data_offsets"]
    start, end = (data_start + offset for offset in offsets)
    content[start:end] = (np.frombuffer(content[start:end], np.float32) * np.float32(1.01)).tobytes()
    shard.write_bytes(content)
    convert_checkpoint(damaged, tmp_path / "package", ConversionSettings(RECIPES["float"]))
    report = verify_package(tmp_path / "package", random_checkpoint)
    assert not report.passed
    # The error is seen where it is made. float32 sums in another order; measured 2e-6.
    assert max(report.layers.decoder[:3]) <= 1e-5
    assert min(report.layers.decoder[3:]) >= 1e-4


@pytest.mark.parametrize(
    ("recipe", "cosine", "divergence", "same_top_token"),
    [
        # Weights of 8 bits and activations of 8 bits; 3 of the 53 positions of a prompt are near ties.
        ("int8", 0.99, 0.02, 0.93),
        # Decoder weights of 4 bits; the audio encoder stays at 8. Most positions lie inside the prompt, where the model
        # was never trained to predict anything and has no clear favourite.
        ("int4", 0.99, 0.4, 0.6),
        ("int4-mixed", 0.99, 0.3, 0.7),
        ("int2-mixed", 0.99, 1.5, 0.35),
    ],
)
def test_a_rounded_package_of_the_trained_model_stays_close_to_the_reference(
    recipe: str, cosine: float, divergence: float, same_top_token: float, tmp_path: Path
) -> None:
    convert_checkpoint(TINY, tmp_path / "package", ConversionSettings(RECIPES[recipe]))
    report = verify_package(tmp_path / "package", TINY)
    assert min(comparison.cosine for comparison in report.audio) >= cosine
    assert max(comparison.divergence for comparison in report.logits) <= divergence
    assert min(comparison.same_top_token for comparison in report.logits) >= same_top_token


def test_rounded_weights_without_rounded_activations_match_a_reference_with_the_same_weights(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    """int4 at accuracy level 0 is exact arithmetic on rounded weights, so only the rounding may differ from float."""
    settings = ConversionSettings(RECIPES["int8"], accuracy_level=0)
    convert_checkpoint(random_checkpoint, tmp_path / "package", settings)
    report = verify_package(tmp_path / "package", random_checkpoint)
    assert min(comparison.cosine for comparison in report.audio) >= 0.999
