from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from commands import CABOCHON, CONVERT, assert_refused, run_command
from hub_server import COMMIT, GATED, MODEL, serve_hub
from hypothesis import given
from hypothesis import strategies as st
from lora_adapters import DOWN, PREFIX, QUERY, RANK, factors, write_adapter
from quantized_checkpoint import MobileWeights, write_mobile_checkpoint, write_q4_0_checkpoint
from refusals import refused

from cabochon_convert.checkpoint import CheckpointError, open_checkpoint
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.lora import open_adapter
from cabochon_convert.lora_config import read_lora_config
from cabochon_convert.recipes import EMBEDDING, PER_LAYER_EMBEDDING, RECIPES
from cabochon_convert.source import AdapterSource, CheckpointSource, find_adapter, open_source

SHAPES = {QUERY: (64, 64), DOWN: (64, 96)}
AUDIO = "model.audio_tower.layers.0.self_attn.q_proj"
SCALING = 8 / RANK
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
CONFIG_KEYS = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "init_lora_weights",
    "ensure_weight_tying", "bias", "layer_replication", "surprise",
)  # fmt: skip


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter of two matrices."""
    return write_adapter(tmp_path / "adapter", small_tensors())


def small_tensors() -> dict[str, np.ndarray]:
    return factors(QUERY, *SHAPES[QUERY]) | factors(DOWN, *SHAPES[DOWN])


def with_adapter(checkpoint: Path, folder: Path) -> CheckpointSource:
    return CheckpointSource(checkpoint, checkpoint.name, adapter=AdapterSource(folder, folder.name))


def merged(weight: np.ndarray, tensors: dict[str, np.ndarray], module: str, scaling: float = SCALING) -> np.ndarray:
    """The formula on whole matrices."""
    left, right = (tensors[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "BA")
    return weight + (scaling * (left @ right)).astype(np.float32)


def read(checkpoint: Path, name: str) -> np.ndarray:
    opened = open_checkpoint(checkpoint)
    return opened.read(name, opened.record(name).shape)


def test_a_package_with_an_adapter_is_that_of_the_merged_checkpoint_bit_for_bit(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    projection = "model.language_model.per_layer_model_projection"  # read in two parts
    tensors = small_tensors() | factors(projection, 224, 64) | factors(f"{AUDIO}.linear", 64, 64)
    tables = {
        "model.language_model.embed_tokens_per_layer.lora_embedding_A": np.full((RANK, 3072), 0.1, np.float32),
        "model.language_model.embed_tokens_per_layer.lora_embedding_B": np.full((224, RANK), 0.3, np.float32),
        "model.language_model.norm.weight": np.full(64, 1.5, np.float32),
    }
    targets = ["q_proj", "down_proj", "linear", "per_layer_model_projection", "embed_tokens_per_layer"]
    write_adapter(
        tmp_path / "adapter",
        tensors | tables,
        target_modules=targets,
        modules_to_save=["language_model.norm"],
    )
    by_hand = Path(shutil.copytree(random_checkpoint, tmp_path / "by_hand"))
    for file in by_hand.glob("*.safetensors"):
        values = safetensors.numpy.load_file(file)
        for module in (*SHAPES, projection, f"{AUDIO}.linear"):
            if f"{module}.weight" in values:
                values[f"{module}.weight"] = merged(values[f"{module}.weight"], tensors, module)
        if PER_LAYER_EMBEDDING in values:
            first, second = (table.astype(np.float64) for table in list(tables.values())[:2])
            values[PER_LAYER_EMBEDDING] += (SCALING * (second @ first).T).astype(np.float32)
        if "model.language_model.norm.weight" in values:
            values["model.language_model.norm.weight"] = tables["model.language_model.norm.weight"]
        safetensors.numpy.save_file(values, file)
    for recipe in ("float", "int4"):
        settings = ConversionSettings(RECIPES[recipe])
        convert_checkpoint(by_hand, tmp_path / f"{recipe}-expected", settings)
        convert_checkpoint(
            with_adapter(random_checkpoint, tmp_path / "adapter"), tmp_path / f"{recipe}-found", settings
        )
        files = sorted(path.name for path in (tmp_path / f"{recipe}-expected").iterdir())
        assert sorted(path.name for path in (tmp_path / f"{recipe}-found").iterdir()) == files
        for name in set(files) - {"manifest.json"}:
            expected, found = (tmp_path / f"{recipe}-{kind}" / name for kind in ("expected", "found"))
            assert found.read_bytes() == expected.read_bytes(), name


def test_rows_are_merged_alike_however_they_are_cut(random_checkpoint: Path, adapter: Path) -> None:
    checkpoint = open_source(with_adapter(random_checkpoint, adapter))
    whole = checkpoint.read(f"{DOWN}.weight", SHAPES[DOWN])
    parts = [*checkpoint.read_rows(f"{DOWN}.weight", SHAPES[DOWN], range(5, 9))]
    np.testing.assert_array_equal(np.concatenate(parts), whole[5:9])
    stored = np.concatenate([*checkpoint.read_stored_rows(f"{DOWN}.weight", SHAPES[DOWN])])
    np.testing.assert_array_equal(stored.view(np.float32), whole)
    assert checkpoint.record(f"{DOWN}.weight").storage == "F32"
    merge = checkpoint.row_merge(f"{DOWN}.weight")
    assert merge is not None
    chosen = np.array([7, 3, 60])
    np.testing.assert_array_equal(merge(read(random_checkpoint, f"{DOWN}.weight")[chosen], chosen), whole[chosen])


@pytest.mark.parametrize(
    ("trained", "stored"),
    [
        ("model.layers.1.self_attn.q_proj", QUERY),  # the text model with its head
        ("layers.1.self_attn.q_proj", QUERY),  # the text model
        ("language_model.layers.1.self_attn.q_proj", QUERY),  # all without the head
        (AUDIO, f"{AUDIO}.linear"),  # training code that wraps clipped linears whole
    ],
)
def test_names_of_other_model_classes_find_their_tensors(
    random_checkpoint: Path, tmp_path: Path, trained: str, stored: str
) -> None:
    tensors = factors(trained, 64, 64)
    source = with_adapter(random_checkpoint, write_adapter(tmp_path / "adapter", tensors))
    found = open_source(source).read(f"{stored}.weight", (64, 64))
    np.testing.assert_array_equal(found, merged(read(random_checkpoint, f"{stored}.weight"), tensors, trained))


def test_the_manifest_and_the_info_command_name_the_adapter(
    random_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    result = run_command(CONVERT, random_checkpoint, tmp_path / "package", "--recipe", "float", "--lora", adapter)
    assert result.returncode == 0, result.stderr
    assert "adapter" not in result.stderr
    source = json.loads((tmp_path / "package" / "manifest.json").read_text())["source"]
    assert (source["adapter"]["name"], source["adapter"]["revision"]) == ("adapter", None)
    assert len(source["adapter"]["sha256"]) == 64
    shown = json.loads(run_command(CABOCHON, "info", tmp_path / "package", "--json").stdout)
    assert shown["adapter"] == "adapter"


def test_changes_of_tensors_that_the_package_leaves_out_are_a_note(random_checkpoint: Path, tmp_path: Path) -> None:
    shared = "model.language_model.layers.5.self_attn.k_proj"
    tensors = factors(QUERY, 64, 64) | factors(shared, 32, 64)
    write_adapter(tmp_path / "adapter", tensors, target_modules=["q_proj", "k_proj"])
    source = with_adapter(random_checkpoint, tmp_path / "adapter")
    conversion = convert_checkpoint(source, tmp_path / "package", ConversionSettings(RECIPES["int4"]))
    (note,) = [note for note in conversion.notes if "adapter" in note]
    assert f"no effect: {shared}.weight." in note


def remove_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{" * 100_000)


def remove_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def truncate_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def empty_weights(folder: Path) -> None:
    safetensors.numpy.save_file({}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "adapter"),
        (remove_config, "adapter_config.json"),
        (break_config, "adapter_config.json"),
        (remove_weights, "adapter_model.safetensors"),
        (pickle_weights, "pickle"),
        (truncate_weights, "truncated"),
        (empty_weights, "no tensors"),
    ],
)
def test_a_damaged_adapter_is_refused_and_nothing_is_written(
    random_checkpoint: Path, adapter: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(adapter)
    assert_refused(run_command(CONVERT, random_checkpoint, tmp_path / "output", "--lora", adapter), words)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, ("'LOHA'", "merge_and_unload")),
        ({"peft_type": None}, ("LORA",)),
        ({"trainable_token_indices": [5]}, ("trainable_token_indices",)),
        ({"layer_replication": [[0, 2]]}, ("layer_replication",)),
        ({"target_parameters": ["x"]}, ("target_parameters",)),
        ({"lora_bias": True}, ("lora_bias",)),
        ({"surprise": 1}, ("surprise",)),
        ({"init_lora_weights": "pissa_niter_4"}, ("pissa", "path_initial_model_for_weight_conversion")),
        ({"init_lora_weights": "loftq"}, ("loftq",)),
        ({"r": 8}, (QUERY, "8", "rank")),
        ({"r": 0}, ("r 0", "positive")),
        ({"r": True}, ("True",)),
        ({"lora_alpha": "16"}, ("lora_alpha", "number")),
        ({"lora_alpha": float("nan")}, ("lora_alpha", "finite")),
        ({"lora_alpha": 10**400}, ("lora_alpha", "finite")),
        ({"alpha_pattern": {"q_proj": float("inf")}}, ("alpha_pattern", "finite")),
        ({"rank_pattern": {"q_proj": 2}}, (QUERY, "2")),
        ({"rank_pattern": {"(": 2}}, ("rank_pattern", "regular expression")),
        ({"rank_pattern": [1]}, ("rank_pattern", "object")),
        ({"target_modules": ["down_proj"]}, (QUERY, "target_modules")),
        ({"target_modules": r".*\.k_proj"}, (QUERY, "target_modules")),
        ({"target_modules": "*"}, ("target_modules", "regular expression")),
        ({"target_modules": 5}, ("target_modules", "names")),
        ({"exclude_modules": ["q_proj"]}, (QUERY, "exclude_modules")),
        ({"layers_to_transform": [1]}, (DOWN, "layers_to_transform")),
        ({"layers_to_transform": 2}, (QUERY, "layers_to_transform")),
        ({"layers_to_transform": ["1"]}, ("layers_to_transform",)),
        ({"layers_to_transform": [1, 2], "layers_pattern": "blocks"}, ("layers_to_transform",)),
        ({"layers_to_transform": [1, 2], "target_modules": ".*"}, ("layers_to_transform", "pattern")),
        ({"use_dora": True}, (QUERY, "lora_magnitude_vector")),
        ({"use_rslora": "yes"}, ("use_rslora",)),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_merged_exactly_is_refused(
    random_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    write_adapter(tmp_path / "adapter", small_tensors(), **changes)
    with refused(CheckpointError, *words):
        open_source(with_adapter(random_checkpoint, tmp_path / "adapter"))


def without(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors[name]

    return change


def adding(name: str, *shape: int) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


def twice(tensors: dict[str, np.ndarray]) -> None:
    tensors |= factors(QUERY.replace("model.language_model.", "model."), 64, 64)


def transposed(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{DOWN}.lora_A.weight"] = tensors[f"{DOWN}.lora_A.weight"].T


TABLE = EMBEDDING.removesuffix(".weight")
NORM = "model.language_model.norm"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(f"{QUERY}.lora_A.weight"), (QUERY, "no lora_A")),
        (without(f"{QUERY}.lora_B.weight"), (QUERY, "no lora_B")),
        (adding(f"{QUERY}.lora_magnitude_vector", 64), (QUERY, "lora_magnitude_vector")),
        (adding(f"{QUERY}.lora_embedding_A", RANK, 64), (QUERY, "lora_embedding_B")),
        (adding(f"{QUERY}.lora_B.weight", 64, RANK + 1), (QUERY, "ranks 5 and 4")),
        (adding(f"{QUERY}.lora_B.weight", 63, RANK), (QUERY, "[64, 64]")),
        (adding(f"{QUERY}.lora_B.weight", 0), (QUERY, "saved in parts")),
        (adding(f"{QUERY}.lora_B.bias", 64), ("lora_B.bias",)),
        (adding(f"{QUERY}.bias", 64), ("bias", "modules_to_save")),
        (adding(f"{QUERY}.lora_A.default.weight", RANK, 64), ("lora_A.default",)),
        (adding(f"{NORM}.weight", 64), (NORM, "modules_to_save")),
        (adding("lm_head.weight", 3072, 64), ("lm_head", "modules_to_save")),
        (adding(f"{TABLE}.token_adapter.trainable_tokens_delta", 3, 64), ("trainable_tokens_delta",)),
        (adding(f"{TABLE}.base_layer.weight", 2052, 64), ("[2052, 64]", "vocabulary")),
        (adding("elsewhere.base_layer.weight", 2, 2), ("elsewhere", "another model")),
        (transposed, (DOWN, "another model")),
        (twice, (QUERY, "twice")),
    ],
)
def test_tensors_that_are_missing_left_over_or_misshapen_are_refused(
    random_checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], words: tuple[str, ...]
) -> None:
    tensors = small_tensors()
    change(tensors)
    write_adapter(tmp_path / "adapter", tensors)
    with refused(CheckpointError, *words):
        open_source(with_adapter(random_checkpoint, tmp_path / "adapter"))


def test_targets_that_the_checkpoint_lacks_are_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    beyond = QUERY.replace("layers.1.", "layers.7.")
    write_adapter(tmp_path / "adapter", factors(beyond, 64, 64))
    with refused(CheckpointError, beyond, "another model"):
        open_source(with_adapter(random_checkpoint, tmp_path / "adapter"))


def test_factors_of_a_vector_or_of_a_convolution_are_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    for module in (NORM, "model.audio_tower.subsample_conv_projection.layer0.conv"):
        write_adapter(tmp_path / "adapter", factors(module, 64, 64), target_modules=None)
        with refused(CheckpointError, module, "do not make a matrix"):
            open_source(with_adapter(random_checkpoint, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora_alpha": 1e300}, ("not finite", "1e+299")),
        ({"alpha_pattern": {"q_proj": -1e299}}, ("not finite",)),
        (np.nan, ("lora_B", "not finite")),
        (np.inf, ("lora_B", "not finite")),
    ],
    ids=str,
)
def test_values_that_are_not_finite_are_refused_before_anything_is_left_behind(
    random_checkpoint: Path, tmp_path: Path, change: dict[str, Any] | float, words: tuple[str, ...]
) -> None:
    tensors = factors(QUERY, 64, 64, rank=10)
    config = {"r": 10}
    if isinstance(change, dict):
        config |= change
    else:
        tensors[f"{QUERY}.lora_B.weight"][3, 2] = change
    write_adapter(tmp_path / "adapter", tensors, **config)
    with refused(CheckpointError, QUERY, *words):
        source = with_adapter(random_checkpoint, tmp_path / "adapter")
        convert_checkpoint(source, tmp_path / "package", ConversionSettings(RECIPES["float"]))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_alpha_of_zero_changes_nothing(random_checkpoint: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", small_tensors(), lora_alpha=0)
    checkpoint = open_source(with_adapter(random_checkpoint, tmp_path / "adapter"))
    np.testing.assert_array_equal(
        checkpoint.read(f"{DOWN}.weight", SHAPES[DOWN]), read(random_checkpoint, f"{DOWN}.weight")
    )


def test_rows_without_length_are_refused_where_lengths_were_trained(random_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(random_checkpoint, tmp_path / "checkpoint"))
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    file = checkpoint / index[f"{QUERY}.weight"]
    values = safetensors.numpy.load_file(file)
    values[f"{QUERY}.weight"][:] = 0
    safetensors.numpy.save_file(values, file)
    tensors = factors(QUERY, 64, 64) | {f"{QUERY}.lora_magnitude_vector": np.ones(64, np.float32)}
    tensors[f"{QUERY}.lora_B.weight"][:] = 0
    write_adapter(tmp_path / "adapter", tensors, use_dora=True)
    with refused(CheckpointError, QUERY, "not finite"):
        open_source(with_adapter(checkpoint, tmp_path / "adapter")).read(f"{QUERY}.weight", (64, 64))


def test_an_embedding_trained_with_dora_is_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    tensors = {
        f"{TABLE}.lora_embedding_A": np.zeros((RANK, 3072), np.float32),
        f"{TABLE}.lora_embedding_B": np.zeros((64, RANK), np.float32),
        f"{TABLE}.lora_magnitude_vector": np.zeros(64, np.float32),
    }
    write_adapter(tmp_path / "adapter", tensors, use_dora=True, target_modules=["embed_tokens"])
    with refused(CheckpointError, TABLE, "DoRA"):
        open_source(with_adapter(random_checkpoint, tmp_path / "adapter"))


def test_an_adapter_of_a_checkpoint_of_integers_is_refused(adapter: Path, tmp_path: Path) -> None:
    checkpoint = write_mobile_checkpoint(tmp_path / "mobile", MobileWeights())
    for recipe in ("as-trained", "int4"):
        result = run_command(CONVERT, checkpoint, tmp_path / "output", "--recipe", recipe, "--lora", adapter)
        assert_refused(result, str(checkpoint), "integers", "bf16")


def test_matrices_on_a_grid_of_training_stay_integers_unless_the_adapter_changes_them(tmp_path: Path) -> None:
    checkpoint = write_q4_0_checkpoint(tmp_path / "checkpoint", embedding_on_grid=False)
    write_adapter(tmp_path / "adapter", small_tensors())
    source = with_adapter(checkpoint, tmp_path / "adapter")
    conversion = convert_checkpoint(source, tmp_path / "package", ConversionSettings(RECIPES["as-trained"]))
    bits = {applied.tensor: applied.bits for applied in conversion.manifest.recipe.precisions}
    assert [bits[f"{module}.weight"] for module in SHAPES] == [32, 32]
    assert bits[f"{QUERY}.weight".replace("layers.1.", "layers.0.")] == 4


@given(st.integers(0, 10_000))
def test_weights_truncated_anywhere_are_refused(adapter: Path, length: int) -> None:
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    cut = adapter.parent / "cut"
    cut.mkdir(exist_ok=True)
    shutil.copy(adapter / "adapter_config.json", cut)
    (cut / "adapter_model.safetensors").write_bytes(whole[: length % len(whole)])
    with refused(CheckpointError, "adapter_model.safetensors", "download it again"):
        open_adapter(cut)


@given(st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON_VALUES, max_size=4))
def test_a_config_with_random_values_is_read_or_refused_but_nothing_else(changes: dict[str, Any]) -> None:
    try:
        config = read_lora_config({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | changes)
    except CheckpointError:
        return
    assert np.isfinite(config.scaling_of(QUERY))
    assert config.adapts(QUERY) in (True, False)
    assert config.saves(f"{NORM}.weight") in (True, False)


@given(st.data())
def test_random_names_and_shapes_are_merged_or_refused_but_nothing_else(
    random_checkpoint: Path, tmp_path: Path, data: st.DataObject
) -> None:
    parts = st.sampled_from(
        [*QUERY.split("."), "lora_A", "lora_B", "weight", "lora_embedding_A", "base_layer", "", "x"]
    )
    names = st.lists(parts, min_size=1, max_size=9).map(".".join) | st.sampled_from([*small_tensors()])
    shapes = st.lists(st.sampled_from([0, 1, RANK, 64, 96]), max_size=3)
    drawn = data.draw(st.dictionaries(names, shapes, max_size=3))
    tensors = small_tensors() | {name: np.zeros(shape, np.float32) for name, shape in drawn.items()}
    folder = write_adapter(tmp_path / "adapter", tensors, modules_to_save=["norm", "x"])
    try:
        checkpoint = open_source(with_adapter(random_checkpoint, folder))
    except CheckpointError:
        return
    for name in checkpoint.changed_names:
        checkpoint.read(name, checkpoint.record(name).shape)


def test_an_adapter_of_the_hub_is_fetched_and_pinned(random_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in adapter.iterdir()} | {"optimizer.pt": b"", "README.md": b""}
    with serve_hub(files) as hub:
        variables = hub.variables(tmp_path / "home")
        command = (CONVERT, random_checkpoint, tmp_path / "package", "--lora", MODEL, "--lora-revision", "v1")
        result = run_command(*command, **variables)
        assert result.returncode == 0, result.stderr
        assert sorted(hub.fetched) == ["adapter_config.json", "adapter_model.safetensors"]
        found = json.loads((tmp_path / "package" / "manifest.json").read_text())["source"]["adapter"]
        assert (found["name"], found["revision"]) == (MODEL, COMMIT)
        refusal = run_command(CONVERT, random_checkpoint, tmp_path / "other", "--lora", GATED, **variables)
        assert_refused(refusal, GATED, "licence")
    with serve_hub({"config.json": b"{}"}) as hub:
        command = (CONVERT, random_checkpoint, tmp_path / "other", "--lora", MODEL)
        refusal = run_command(*command, **hub.variables(tmp_path / "second home"))
        assert_refused(refusal, MODEL, "adapter_config.json", "LoRA adapter")


def test_an_adapter_that_is_nowhere_is_refused(random_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    with refused(CheckpointError, "nowhere", "folder", "my-name/my-adapter"):
        find_adapter("nowhere")
    command = (CONVERT, random_checkpoint, tmp_path / "output")
    assert_refused(run_command(*command, "--lora", adapter, "--lora-revision", "v1"), "--lora-revision", str(adapter))
    assert_refused(run_command(*command, "--lora-revision", "v1"), "--lora-revision", "--lora")
    assert_refused(run_command(*command, "--lora", random_checkpoint), "adapter_config.json")
    assert_refused(run_command(CONVERT, adapter, tmp_path / "output"), "LoRA", "--lora")


def test_a_package_is_not_written_over_its_adapter(random_checkpoint: Path, adapter: Path) -> None:
    command = (CONVERT, random_checkpoint, adapter, "--lora", adapter, "--replace")
    assert_refused(run_command(*command), str(adapter), "adapter itself")
    assert (adapter / "adapter_model.safetensors").is_file()


def test_tensors_are_named_with_and_without_pefts_prefix(random_checkpoint: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    expected = open_source(with_adapter(random_checkpoint, adapter)).read(f"{QUERY}.weight", (64, 64))
    safetensors.numpy.save_file({name.removeprefix(PREFIX): value for name, value in tensors.items()}, path)
    found = open_source(with_adapter(random_checkpoint, adapter)).read(f"{QUERY}.weight", (64, 64))
    np.testing.assert_array_equal(found, expected)
