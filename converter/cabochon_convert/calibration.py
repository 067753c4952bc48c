"""How the inputs of linear layers vary together on the user's own data: what the algorithm "gptq" rounds by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.package import Package
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.evaluation_data import EvaluationData
from cabochon_convert.progress import Progress
from cabochon_convert.questions import Prompt, QuestionWriter
from cabochon_convert.recipes import Recipe
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.source import CheckpointSource, open_source

_SHARED_INPUTS = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Layers that read what another one reads."""


class Calibration:
    """Second moments of inputs, measured on some data; those of a large model lie on the disk.

    Args:
        data: what the model is asked, one part per spoken language; answers that are given are read by it too.
        progress: told of the layers that ran.
    """

    def __init__(self, data: Sequence[EvaluationData], progress: Progress) -> None:
        self._data = data
        self._progress = progress

    @contextmanager
    def measured(
        self, package: Package, source: CheckpointSource, recipe: Recipe
    ) -> Iterator[Callable[[str], Float32Array]]:
        """Within it, second moments by the name of a weight matrix: float32 [inputs, inputs].

        Args:
            package: the manifest and its tokenizer and chat template, for prompts; weights are not needed.
            source: the checkpoint.
            recipe: says which matrices are rounded by calibration.
        """
        writer = QuestionWriter(package)
        prompts = [
            Prompt((*question.prompt.tokens, *question.tokens), question.prompt.frames)
            for data in self._data
            for question in writer.questions(data)
        ]
        tensors = calibrated_tensors(open_source(source), recipe)
        with tempfile.TemporaryDirectory(dir=package.folder.parent) as folder:
            reference = ReferenceModel(source, self._progress)
            for tensor, moments in reference.second_moments(prompts, tensors):
                np.save(Path(folder) / f"{tensor}.npy", moments)
            del reference  # its weights make room for the conversion
            yield lambda tensor: np.asarray(np.load(Path(folder) / f"{_input_name(tensor)}.npy"))


def calibrated_tensors(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """Names of the weight matrices that the recipe rounds by calibration, those with the same inputs once."""
    matrices = [name for name in checkpoint.names if len(checkpoint.record(name).shape) == 2]
    return sorted({_input_name(name) for name in matrices if recipe.precision(name).algorithm == "gptq"})


def _input_name(tensor: str) -> str:
    """The tensor whose layer's inputs stand for those of this tensor's layer."""
    module, _, layer = tensor.removesuffix(".weight").rpartition(".")
    return f"{module}.{_SHARED_INPUTS.get(layer, layer)}.weight"
