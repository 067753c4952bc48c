from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from random_checkpoint import dense_config, experts_config, small_config, unified_config
from refusals import refused

from cabochon_convert.audio_config import AudioConfig, WaveformConfig
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config import ModelConfig, read_config
from cabochon_convert.text_config import RopeConfig

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from([0, 1, -1, "", "full_attention", [], {}, [[]]])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
SECTIONS = ("", "text_config", "audio_config", "vision_config")
PUBLISHED = (REPOSITORY / "tests" / "configs" / "e2b.json").read_text(encoding="utf-8")


def e2b_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(PUBLISHED)
    return config


PLACES = [(section, key) for section in SECTIONS for key in (e2b_config()[section] if section else e2b_config())] + [
    ("text_config", "per_layer_config"),
    ("text_config", "rope_theta"),
    ("", "quantization_config"),
    ("vision_config", "rope_parameters"),
]


def section_of(config: dict[str, Any], section: str) -> dict[str, Any]:
    found: dict[str, Any] = config[section] if section else config
    return found


def changed(section: str, key: str, value: Any) -> dict[str, Any]:
    config = small_config()
    section_of(config, section)[key] = value
    return config


@pytest.fixture(scope="module")
def e2b() -> ModelConfig:
    return read_config(e2b_config())


def test_the_published_config_gives_the_sizes_of_the_model(e2b: ModelConfig) -> None:
    text = e2b.text
    assert (text.vocabulary_size, text.hidden_size, text.per_layer_input_size, text.heads) == (262_144, 1536, 256, 8)
    assert (text.sliding_window, text.max_positions, text.final_logit_softcap) == (512, 131_072, 30.0)
    assert text.rope == {"sliding": RopeConfig(10_000.0, 1.0), "full": RopeConfig(1_000_000.0, 0.25)}
    assert isinstance(e2b.audio, AudioConfig)
    assert (e2b.audio.hidden_size, e2b.audio.layer_count, e2b.audio.heads, e2b.audio.output_size) == (1024, 12, 8, 1536)
    assert (e2b.audio_token, e2b.begin_audio_token, e2b.end_audio_token) == (258_881, 256_000, 258_883)
    assert e2b.eos_tokens == (1, 106)


def test_the_published_config_gives_the_sizes_of_the_vision_encoder(e2b: ModelConfig) -> None:
    vision = e2b.vision
    assert vision is not None
    assert (vision.hidden_size, vision.intermediate_size, vision.layer_count) == (768, 3072, 16)
    assert (vision.heads, vision.head_size, vision.rope_theta) == (12, 64, 100.0)
    assert (vision.patch_size, vision.pooling_kernel_size, vision.position_count) == (16, 3, 10_240)
    assert (vision.clips_linears, vision.standardizes, vision.soft_tokens) == (True, False, 280)
    assert (e2b.begin_image_token, e2b.image_token, e2b.end_image_token) == (255_999, 258_880, 258_882)


def test_image_tokens_that_a_config_leaves_out_are_the_published_ones() -> None:
    config = e2b_config()
    for key in ("boi_token_id", "image_token_id", "eoi_token_id"):
        del config[key]
    expected = read_config(e2b_config())
    assert read_config(config) == expected
    assert read_config(config, with_vision=False).end_image_token is None


def test_every_fifth_layer_of_the_published_config_sees_everything(e2b: ModelConfig) -> None:
    layers = e2b.text.layers
    assert len(layers) == 35
    assert [index for index, layer in enumerate(layers) if layer.kind == "full"] == [4, 9, 14, 19, 24, 29, 34]
    assert {(layer.kind, layer.head_size, layer.kv_heads) for layer in layers} == {
        ("sliding", 256, 1),
        ("full", 512, 1),
    }


def test_the_last_twenty_layers_of_the_published_config_share_caches_and_are_wide(e2b: ModelConfig) -> None:
    layers = e2b.text.layers
    assert e2b.text.owner_count == 15
    assert [layer.cache_layer for layer in layers[:15]] == [*range(15)]
    assert {layer.cache_layer for layer in layers[15:] if layer.kind == "sliding"} == {13}
    assert {layer.cache_layer for layer in layers[15:] if layer.kind == "full"} == {14}
    assert {layer.intermediate_size for layer in layers[:15]} == {6144}
    assert {layer.intermediate_size for layer in layers[15:]} == {12_288}


def test_a_config_that_lists_its_layers_means_the_same_as_one_that_implies_them() -> None:
    config = e2b_config()
    text = config["text_config"]
    full = [index for index, kind in enumerate(text["layer_types"]) if kind == "full_attention"]
    text["per_layer_config"] = {str(index): {"head_dim": text["global_head_dim"]} for index in full}
    assert read_config(config) == read_config(e2b_config())


def test_an_older_config_that_spreads_the_rotation_means_the_same() -> None:
    config = e2b_config()
    parameters = config["text_config"].pop("rope_parameters")
    assert read_config(config).text.rope == read_config(e2b_config()).text.rope
    config["text_config"]["rope_local_base_freq"] = 5.0
    assert read_config(config).text.rope["sliding"].theta == 5.0
    assert parameters


def test_a_dense_config_has_no_per_layer_embeddings_and_values_that_are_keys() -> None:
    text = read_config(dense_config(), with_vision=False).text
    assert text.per_layer_input_size == 0
    assert text.owner_count == len(text.layers) == 7
    assert text.layers_with_keys_as_values == (2, 6)
    assert {(layer.kind, layer.head_size, layer.kv_heads) for layer in text.layers} == {
        ("sliding", 16, 2),
        ("full", 32, 1),
    }


def test_heads_of_full_layers_count_only_where_values_are_keys() -> None:
    """As in transformers, which ignores the key otherwise."""
    config = dense_config()
    config["text_config"]["attention_k_eq_v"] = False
    layers = read_config(config, with_vision=False).text.layers
    assert {layer.kv_heads for layer in layers} == {2}
    assert not any(layer.values_are_keys for layer in layers)


def test_images_that_look_ahead_are_refused_only_where_there_are_images() -> None:
    with refused(CheckpointError, "use_bidirectional_attention", "--no-vision"):
        read_config(dense_config())
    assert read_config(dense_config() | {"vision_config": None}).vision is None
    with refused(CheckpointError, "use_bidirectional_attention"):
        read_config(changed("text_config", "use_bidirectional_attention", "all"), with_vision=False)


def test_a_unified_config_has_the_text_of_a_dense_one() -> None:
    """Though transformers writes it in another way: layers are listed, what the class does not know is left out."""
    unified, dense = (
        read_config(config, with_audio=False, with_vision=False) for config in (unified_config(), dense_config())
    )
    assert (unified.text, unified.eos_tokens) == (dense.text, dense.eos_tokens)
    assert unified.architecture == "Gemma4UnifiedForConditionalGeneration"
    assert dense.architecture == "Gemma4ForConditionalGeneration"


def test_a_unified_config_with_per_layer_embeddings_is_refused() -> None:
    config = unified_config()
    config["text_config"]["hidden_size_per_layer_input"] = 256
    with refused(CheckpointError, "hidden_size_per_layer_input"):
        read_config(config, with_audio=False, with_vision=False)


def test_a_unified_config_says_how_many_samples_a_token_has() -> None:
    assert read_config(unified_config(), with_vision=False).audio == WaveformConfig(640, 1e-6)
    for key in ("audio_samples_per_token", "hidden_size", "output_proj_dims"):
        config = unified_config()
        config["audio_config"][key] = 320
        with refused(CheckpointError, "audio_embed_dim 640", f"{key} 320"):
            read_config(config, with_vision=False)
        del config["audio_config"]["audio_embed_dim"]
        assert read_config(config, with_vision=False).audio == WaveformConfig(320, 1e-6)


@pytest.mark.parametrize(
    "change",
    [{"audio_embed_dim": 0}, {"audio_embed_dim": "640"}, {"rms_norm_eps": 0}, {"conv_kernel_size": 5}, {"surprise": 1}],
    ids=str,
)
def test_another_hearing_without_an_encoder_is_refused(change: dict[str, Any]) -> None:
    config = unified_config()
    config["audio_config"] |= change
    with refused(CheckpointError, *change):
        read_config(config, with_vision=False)


def test_images_without_an_encoder_are_refused_until_they_are_left_out() -> None:
    with refused(CheckpointError, "Gemma4UnifiedForConditionalGeneration", "without an encoder", "--no-vision"):
        read_config(unified_config())


def test_a_mixture_of_experts_is_refused_by_name() -> None:
    with refused(CheckpointError, "enable_moe_block", "8 experts", "26B-A4B", "dense"):
        read_config(experts_config(), with_vision=False)


def test_a_part_that_is_left_out_is_not_even_read() -> None:
    config = e2b_config() | {"audio_config": {"surprise": 1}, "vision_config": {"surprise": 1}}
    blind_and_deaf = read_config(config, with_audio=False, with_vision=False)
    assert (blind_and_deaf.audio, blind_and_deaf.vision) == (None, None)
    assert read_config(e2b_config() | {"vision_config": None}).vision is None


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_and_named(section: str) -> None:
    with refused(CheckpointError, section or "config.json", "surprise"):
        read_config(changed(section, "surprise", 1))


def test_an_unknown_key_of_a_nested_section_is_refused() -> None:
    rope = copy.deepcopy(small_config()["text_config"]["rope_parameters"])
    rope["full_attention"]["factor"] = 8.0
    with refused(CheckpointError, "rope_parameters.full_attention", "factor"):
        read_config(changed("text_config", "rope_parameters", rope))
    with refused(CheckpointError, "per_layer_config", "surprise"):
        read_config(changed("text_config", "per_layer_config", {"2": {"surprise": 1}}))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "hidden_activation", "gelu"),
        ("text_config", "attention_bias", True),
        ("text_config", "attention_k_eq_v", 1),
        ("text_config", "enable_moe_block", True),
        ("text_config", "use_bidirectional_attention", "vision"),
        ("text_config", "use_bidirectional_attention", "all"),
        ("text_config", "hidden_size_per_layer_input", False),
        ("text_config", "hidden_size_per_layer_input", -32),
        ("text_config", "vocab_size_per_layer_input", 1),
        ("text_config", "num_kv_shared_layers", 7),
        ("text_config", "num_kv_shared_layers", 5),
        ("text_config", "num_kv_shared_layers", -1),
        ("text_config", "layer_types", ["full_attention"]),
        ("text_config", "layer_types", ["full_attention"] * 6 + ["sliding_attention"]),
        ("text_config", "layer_types", ["linear_attention"] * 7),
        ("text_config", "head_dim", 20),
        ("text_config", "head_dim", 0),
        ("text_config", "num_key_value_heads", 3),
        ("text_config", "num_key_value_heads", 0),
        ("text_config", "rope_parameters", {"full_attention": {"rope_theta": 1.0}}),
        ("text_config", "rms_norm_eps", -1.0),
        ("text_config", "final_logit_softcapping", float("nan")),
        ("text_config", "final_logit_softcapping", -30.0),
        ("text_config", "hidden_size", True),
        ("text_config", "bos_token_id", 3072),
        ("text_config", "pad_token_id", -1),
        ("audio_config", "hidden_act", "gelu"),
        ("audio_config", "attention_context_left", 14),
        ("audio_config", "attention_context_right", 1),
        ("audio_config", "subsampling_conv_channels", [128, 32, 8]),
        ("audio_config", "attention_logit_cap", 0),
        ("audio_config", "num_attention_heads", 5),
        ("vision_config", "hidden_activation", "gelu"),
        ("vision_config", "attention_bias", True),
        ("vision_config", "num_key_value_heads", 1),
        ("vision_config", "head_dim", 18),
        ("vision_config", "global_head_dim", 40),
        ("vision_config", "head_dim", 0),
        ("vision_config", "pooling_kernel_size", 0),
        ("vision_config", "patch_size", 1.5),
        ("vision_config", "standardize", 1),
        ("vision_config", "use_clipped_linears", "yes"),
        ("vision_config", "rms_norm_eps", 0),
        ("vision_config", "rope_parameters", None),
        ("vision_config", "rope_parameters", {"rope_type": "axial"}),
        ("vision_config", "rope_parameters", {"rope_type": "yarn", "rope_theta": 100.0}),
        ("vision_config", "rope_parameters", {"rope_theta": 100.0, "factor": 2.0}),
        ("", "vision_soft_tokens_per_image", -280),
        ("", "image_token_id", 3072),
        ("", "boi_token_id", -1),
        ("", "eoi_token_id", "end"),
        ("", "vision_config", "none"),
        ("", "audio_token_id", 3072),
        ("", "quantization_config", {"bits": 4}),
        ("", "text_config", []),
        ("", "audio_config", "none"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_maths_that_is_not_implemented_is_refused(section: str, key: str, value: Any) -> None:
    with refused(CheckpointError):
        read_config(changed(section, key, value))


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize(
    "change",
    [
        {"rope_type": "yarn"},
        {"rope_theta": 0},
        {"rope_theta": None},
        {"rope_type": "proportional", "partial_rotary_factor": 2},
    ],
)
def test_another_rotation_is_refused(kind: str, change: dict[str, Any]) -> None:
    config = small_config()
    config["text_config"]["rope_parameters"][kind] |= change
    with refused(CheckpointError):
        read_config(config)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": {}},
        {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "text_config": {}},
        {"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4", "text_config": {}},
        {"architectures": ["Gemma4UnifiedForCausalLM"], "model_type": "gemma4_unified", "text_config": {}},
        {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4_unified", "text_config": {}},
        {"model_type": "llama"},
        {"model_type": ["gemma4"]},
        {},
    ],
    ids=str,
)
def test_another_architecture_is_refused_by_name(config: dict[str, Any]) -> None:
    with refused(CheckpointError, "expected Gemma4ForConditionalGeneration", *config.get("architectures", [])):
        read_config(config)


@settings(max_examples=400)
@given(st.sampled_from(PLACES), JSON_VALUES)
def test_any_value_of_any_key_gives_a_config_or_a_refusal(place: tuple[str, str], value: Any) -> None:
    section, key = place
    try:
        config = read_config(changed(section, key, value))
    except CheckpointError:
        return
    assert config.text.owner_count > 0
    for layer in config.text.layers:
        assert config.text.heads % layer.kv_heads == 0
        assert layer.head_size > 0


@pytest.mark.parametrize(("section", "key"), PLACES)
def test_a_missing_key_has_a_default_or_is_named(section: str, key: str) -> None:
    config = small_config()
    section_of(config, section).pop(key, None)
    try:
        read_config(config)
    except CheckpointError as error:
        refusal = error
    else:
        return
    assert key in str(refusal) or key == "model_type"
