"""transformers' Gemma 4, changed by litert-torch so that it can be exported, with places instead of matrices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.models.gemma4
from transformers.models.gemma4 import modeling_gemma4

from cabochon.quiet import quiet
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.config import ARCHITECTURES
from cabochon_convert.flatbuffer_litert import FilledMatrix, fill_places
from cabochon_convert.graph_litert import Places, Signature, convert_graph
from cabochon_convert.litert_torch_parts import get_patch_context, init_params_on_meta
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.matrices_litert import CheckpointMatrix, matrices_of

PARTS = ("text_config", "audio_config", "vision_config")


@contextlib.contextmanager
def patched_transformers(model_type: str) -> Iterator[None]:
    """Within it, transformers builds litert-torch's versions of what cannot be exported as it is."""
    with quiet(1, 2):
        patches = get_patch_context(model_type)
    original, patched = dict(vars(modeling_gemma4)), dict[str, Any]()
    try:
        with contextlib.redirect_stdout(None), patches:
            patched = {name: each for name, each in vars(modeling_gemma4).items() if original.get(name) is not each}
            _reexport(patched)
            yield
    finally:
        _reexport({name: original[name] for name in patched if name in original})


def _reexport(classes: Mapping[str, Any]) -> None:
    """Let transformers' packages name these classes: they remember what they were first asked for, patched or not."""
    for package in (transformers, transformers.models.gemma4):
        for name, each in classes.items():
            if name in vars(package) or name in getattr(package, "__all__", ()):
                setattr(package, name, each)


def build_model(checkpoint: Checkpoint, part: str, attention: str) -> Any:
    """The model with one of its parts, whose parameters have no memory yet.

    Args:
        part: one of `PARTS`.
        attention: name of an implementation of attention.
    """
    config = transformers.AutoConfig.from_pretrained(str(checkpoint.folder), dtype=torch.float32)
    for other in PARTS[1:]:
        if other != part:
            setattr(config, other, None)
    for each in (config, *(getattr(config, name) for name in PARTS)):
        if each is not None:
            each.dtype = torch.float32
            each._attn_implementation = attention
    with init_params_on_meta():
        model = getattr(transformers, ARCHITECTURES[config.model_type])(config)
    if part != "text_config":
        # A graph would hold its parameters.
        del model.lm_head, model.model.language_model
    return model.requires_grad_(False).eval()


def read_small_tensors(module: torch.nn.Module, checkpoint: Checkpoint, prefix: str) -> None:
    """Give a module the parameters and buffers that are left when its matrices are places.

    Args:
        prefix: of the module in the checkpoint, with its last point.
    """
    state = module.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    # A clipped layer that clips nothing has infinite bounds.
    tensors = {
        name: torch.from_numpy(checkpoint.read(prefix + name, shape, may_be_infinite=shape == ()))
        for name, shape in shapes.items()
    }
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False)


def write_graph(
    signatures: Sequence[Signature], places: Places, checkpoint: Checkpoint, settings: LinearSettings, path: Path
) -> tuple[tuple[CheckpointMatrix, ...], list[FilledMatrix]]:
    """Write a graph with its matrices to a file; returns what they are, and where they lie."""
    return fill_graph(convert_graph(signatures, places), places, checkpoint, settings, path)


def fill_graph(
    graph: bytes, places: Places, checkpoint: Checkpoint, settings: LinearSettings, path: Path
) -> tuple[tuple[CheckpointMatrix, ...], list[FilledMatrix]]:
    """Write a graph that is converted already."""
    matrices = matrices_of(places, checkpoint, settings)
    return matrices, fill_places(graph, matrices, path)
