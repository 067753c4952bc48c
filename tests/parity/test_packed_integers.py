"""T2: what compressed-tensors packs is carried over: the integers, scales and outputs are those of its own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationStatus
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme
from compressed_tensors.utils.match import is_match, match_targets
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from packed_checkpoint import (
    IGNORED,
    W4A16,
    Packing,
    quantized_modules,
    quiet_transformers,
    write_packed_checkpoint,
)
from quantized_checkpoint import integers_of, stored_weights
from refusals import refused

from cabochon.package import open_package
from cabochon_convert.checkpoint import CheckpointError, open_checkpoint
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.packed_integers import PackedIntegers
from cabochon_convert.progress import Silence
from cabochon_convert.quantization_config import CompressedTensorsQuantization, read_quantization
from cabochon_convert.questions import QuestionWriter, made_up_clips
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.verify import verify_packages

AS_TRAINED = ConversionSettings(RECIPES["as-trained"], accuracy_level=0)
PACKINGS = {
    "as published": W4A16,
    "one scale a channel": (Packing(("Linear",), 4, None),),
    "several schemes": (
        Packing(("Linear",), 4, 16),
        Packing((r"re:.*\.mlp\.down_proj$",), 8, None),
        Packing((r"re:.*\.mlp\.(gate|up)_proj$",), 2, 64),
        Packing(("model.language_model.layers.1.mlp.down_proj",), 2, 32),
    ),
}
TARGETS = (
    "Linear",
    "Embedding",
    "Module",
    "re:.*mlp.*",
    "re:mlp",
    r"re:model\.a\.",
    r"re:.*(?<!up)_proj$",
    "model.a.mlp.up_proj",
    "model.a.mlp",
    "model.a",
)
NAMES = ("model.a.mlp.up_proj", "model.a.mlp.down_proj", "model.a.self_attn.q_proj", "mlp", "lm_head")
EVERY_BITS = st.sampled_from([2, 4, 8])


@pytest.fixture(scope="module", params=sorted(PACKINGS))
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and package."""
    folder = tmp_path_factory.mktemp("packed")
    checkpoint = write_packed_checkpoint(folder / "checkpoint", PACKINGS[request.param])
    convert_checkpoint(checkpoint, folder / "package", AS_TRAINED)
    return checkpoint, folder / "package"


def load(checkpoint: Path) -> Any:
    """As transformers' own loader reads it, with compressed-tensors."""
    quiet_transformers()
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32)
    return model.requires_grad_(False).eval()


def reference_logits(model: Any, tokens: Any, log_mel: np.ndarray | None) -> np.ndarray:
    inputs: dict[str, Any] = {}
    if log_mel is not None:
        inputs["input_features"] = torch.from_numpy(log_mel[None])
        inputs["input_features_mask"] = torch.ones((1, len(log_mel)), dtype=torch.bool)
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([tokens]), **inputs).logits[0])


def test_every_integer_and_scale_is_the_one_that_is_packed(converted: tuple[Path, Path]) -> None:
    checkpoint, _ = converted
    integers = integers_of(checkpoint)
    modules = quantized_modules(load(checkpoint))
    assert len(modules) > 40
    for name, module in modules.items():
        rows, columns = module.weight_shape.tolist()
        bits = module.quantization_scheme.weights.num_bits
        expected = unpack_from_int32(module.weight_packed.data, bits, torch.Size((rows, columns)))
        parts = list(integers.rows(f"{name}.weight", (rows, columns), range(rows)))
        values = np.concatenate([part.values for part in parts]).astype(np.int64) - 2 ** (bits - 1)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(np.concatenate([part.scales for part in parts]), module.weight_scale)


def test_every_matrix_has_the_very_weights_that_transformers_computes_with(converted: tuple[Path, Path]) -> None:
    checkpoint, package = converted
    integers, model = integers_of(checkpoint), load(checkpoint)
    reference_logits(model, [2, 5], None)  # unpacks
    modules = quantized_modules(model)
    for name, module in modules.items():
        shape = (module.weight.shape[0], module.weight.shape[1])
        np.testing.assert_array_equal(stored_weights(integers, f"{name}.weight", shape), module.weight)
    applied = {entry.tensor: entry for entry in open_package(package).manifest.recipe.precisions}
    for tensor, entry in applied.items():
        module = modules.get(tensor.removesuffix(".weight"))
        assert (entry.algorithm == "as-trained") == (module is not None), tensor
        assert entry.bits == (module.quantization_scheme.weights.num_bits if module else entry.bits), tensor
    stored = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    kept = [tensor for tensor, entry in applied.items() if entry.bits >= 16]
    assert len(kept) > 20
    assert all(tensor in stored for tensor in kept)


def test_logits_are_those_of_transformers(converted: tuple[Path, Path]) -> None:
    checkpoint, package = converted
    model, opened = load(checkpoint), open_package(package)
    found, writer = ConvertedModel(opened, "onnx"), QuestionWriter(opened)
    for prompt in (writer.probe(made_up_clips(opened.manifest.audio)[2]), writer.probe(None)):
        expected = reference_logits(model, prompt.tokens, prompt.frames)
        logits = found.logits(prompt, len(prompt.tokens))
        # float32 sums in another order.
        assert np.abs(logits - expected).mean() / np.abs(expected).mean() <= 1e-5


def test_the_reference_unpacks_what_it_needs(converted: tuple[Path, Path]) -> None:
    checkpoint, package = converted
    prompt = QuestionWriter(open_package(package)).probe(None)
    # No room for weights that stay: layers are unpacked whenever they run.
    reference = ReferenceModel(checkpoint, Silence(), memory=0)
    ((_, logits),) = reference.logits([prompt], [len(prompt.tokens)])
    np.testing.assert_allclose(logits, reference_logits(load(checkpoint), prompt.tokens, None), atol=1e-4)


@pytest.mark.parametrize("converted", ["as published"], indirect=True)
def test_such_a_package_is_verified_against_its_own_checkpoint(converted: tuple[Path, Path]) -> None:
    checkpoint, package = converted
    (report,) = verify_packages([package], checkpoint, Silence())
    assert report.passed
    assert report.recipe == "as-trained"


def test_another_recipe_does_not_round_what_is_packed(converted: tuple[Path, Path], tmp_path: Path) -> None:
    with refused(CheckpointError, "already quantized", "int4", "as-trained"):
        convert_checkpoint(converted[0], tmp_path / "package", ConversionSettings(RECIPES["int4"]))


@given(st.data(), EVERY_BITS, st.integers(1, 5), st.integers(1, 300))
def test_what_compressed_tensors_packs_is_unpacked_at_any_width(
    tmp_path: Path, data: st.DataObject, bits: int, rows: int, columns: int
) -> None:
    half = 1 << (bits - 1)
    values = data.draw(arrays(np.int8, (rows, columns), elements=st.integers(-half, half - 1)))
    scales = data.draw(arrays(np.float32, (rows, 1), elements=st.floats(-10, 10, width=32)))
    tensors = {
        "a.weight_packed": pack_to_int32(torch.from_numpy(values), bits).numpy(),
        "a.weight_scale": scales,
        "a.weight_shape": np.array([rows, columns]),
    }
    (tmp_path / "config.json").write_text("{}")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    integers = PackedIntegers(open_checkpoint(tmp_path), read(Packing(("Linear",), bits, None)))
    found = stored_weights(integers, "a.weight", (rows, columns))
    np.testing.assert_array_equal(found, values.astype(np.float32) * scales)


def read(*packings: Packing, ignored: tuple[str, ...] = IGNORED) -> CompressedTensorsQuantization:
    """compressed-tensors' own words for schemes, read."""
    config = QuantizationConfig(
        config_groups={f"group_{index}": packing.scheme() for index, packing in enumerate(packings)},
        format="pack-quantized",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(ignored),
    )
    found = read_quantization(config.model_dump(mode="json"))
    assert isinstance(found, CompressedTensorsQuantization)
    return found


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3), EVERY_BITS), min_size=1, max_size=3),
    st.lists(st.sampled_from(TARGETS), max_size=2),
    st.sampled_from(NAMES),
    st.booleans(),
)
def test_of_several_schemes_the_one_counts_that_compressed_tensors_takes(
    groups: list[tuple[list[str], int]], ignored: list[str], name: str, is_embedding: bool
) -> None:
    module = torch.nn.Embedding(1, 1) if is_embedding else torch.nn.Linear(1, 1)
    bits_of = {target: bits for targets, bits in groups for target in targets}
    matched = [] if is_match(name, module, ignored) else match_targets(name, module, bits_of)
    quantization = read(*(Packing(tuple(targets), bits, 32) for targets, bits in groups), ignored=tuple(ignored))
    scheme = quantization.scheme_of(name, is_embedding=is_embedding)
    assert (scheme.bits if scheme else None) == (bits_of[matched[0]] if matched else None)


@pytest.mark.parametrize("name", sorted(PRESET_SCHEMES))
def test_of_the_presets_of_compressed_tensors_those_are_read_that_the_engine_can_represent(name: str) -> None:
    scheme = preset_name_to_scheme(name, ["Linear"])
    form = infer_module_format(torch.nn.Linear, scheme).value
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status=QuantizationStatus.COMPRESSED
    )
    section = config.model_dump(mode="json")
    if name in ("W2A16", "W4A16", "W8A16"):
        read_quantization(section)
        return
    with refused(CheckpointError, "quantization_config", "unquantized"):
        read_quantization(section)


def test_a_cache_of_integers_is_refused() -> None:
    config = QuantizationConfig(
        config_groups={"group_0": W4A16[0].scheme()},
        format="pack-quantized",
        quantization_status=QuantizationStatus.COMPRESSED,
        kv_cache_scheme=QuantizationArgs(num_bits=8, type="float", strategy="tensor"),
    )
    with refused(CheckpointError, "kv_cache_scheme", "float"):
        read_quantization(config.model_dump(mode="json"))
