"""Manifests of earlier format versions, brought to today's: what a package could not have then is added as absent.

Each function takes the JSON of one version and makes that of the next. A version whose packages the runtime could no
longer run would have none, and every version before it would be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def migrate(value: dict[str, Any], newest: int) -> dict[str, Any]:
    """The JSON of a manifest in the newest format version, as far as it is that of a manifest at all.

    Args:
        value: of a known version; it is not changed, and what is wrong in it is left for the strict reader to refuse.
    """
    for version in range(value["format_version"], newest):
        value = {**STEPS[version](value), "format_version": version + 1}
    return value


def is_migratable(version: object, newest: int) -> bool:
    """Whether every step from this version to the newest is known."""
    return type(version) is int and all(step in STEPS for step in range(version, newest)) and version <= newest


def _learn_to_see(value: dict[str, Any]) -> dict[str, Any]:
    """1 to 2: a vision encoder, scales of half precision, commits and adapters."""
    recipe = value.get("recipe")
    if isinstance(recipe, dict) and isinstance(recipe.get("precisions"), list):
        precisions = [
            # Scales of integers were float32.
            {"scale_bits": 32 if each.get("block_size") else 0} | each if isinstance(each, dict) else each
            for each in recipe["precisions"]
        ]
        value = {**value, "recipe": {**recipe, "precisions": precisions}}
    value = _within(value, "source", {"revision": None, "adapter": None})
    return _within_engines({"vision": None} | value, {"vision_encoder": None})


def _learn_to_hear_samples(value: dict[str, Any]) -> dict[str, Any]:
    """2 to 3: audio that is projected without an encoder."""
    return _within(value, "audio", {"waveform_frames": None})


def _learn_signs(value: dict[str, Any]) -> dict[str, Any]:
    """3 to 4: signed integers and zero points in tables, projectors beside the encoders."""
    value = _within_engines(value, {"audio_projector": None, "vision_projector": None})
    return _within_engines(value, {"signed": False, "zero_points": None}, "token_embeddings", "per_layer_embeddings")


STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _learn_to_see,
    2: _learn_to_hear_samples,
    3: _learn_signs,
}


def _within(value: dict[str, Any], key: str, added: dict[str, Any]) -> dict[str, Any]:
    """With keys added to the object under a key, where there is one."""
    inner = value.get(key)
    return {**value, key: added | inner} if isinstance(inner, dict) else value


def _within_engines(value: dict[str, Any], added: dict[str, Any], *keys: str) -> dict[str, Any]:
    """With keys added to every engine, or to the objects under these keys of every engine."""
    engines = value.get("engines")
    if not isinstance(engines, dict):
        return value
    found = {}
    for name, engine in engines.items():
        if isinstance(engine, dict):
            if not keys:
                engine = added | engine
            for key in keys:
                engine = _within(engine, key, added)
        found[name] = engine
    return {**value, "engines": found}
