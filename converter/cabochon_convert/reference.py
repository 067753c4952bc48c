"""The reference: transformers' own Gemma 4, in float32, behind the few questions that verification asks.

Prompts of different lengths run together, because a model that streams its weights from the disk reads all of them for
every pass. Shorter ones are filled up on the left, and masks keep the filling from being seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import missing_dependency
from cabochon_convert.layers_onnx import LayerOutputs
from cabochon_convert.progress import Progress
from cabochon_convert.questions import Prompt
from cabochon_convert.source import CheckpointSource

try:
    import torch
    import transformers
except ImportError as error:
    raise missing_dependency(str(error.name), "verify") from None

from cabochon_convert.reference_weights import AUDIO_LAYERS, DECODER_LAYERS, load_model, resident_memory

MAX_POSITIONS = 2048
"""Of one batch, filling included: bounds the memory of activations and caches."""
MAX_LOGITS = 1 << 26
"""Of one batch: 256 MB as float32, of which transformers holds a few copies."""


class ReferenceModel:
    """A checkpoint run by transformers.

    Args:
        checkpoint: the checkpoint, or its folder.
        progress: told of every layer that ran.
        memory: bytes of float32 weights that may stay in memory; None for `resident_memory`.
    """

    def __init__(self, checkpoint: CheckpointSource | Path, progress: Progress, memory: int | None = None) -> None:
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._progress = progress
        self._layers_run = 0
        self._model: Any = load_model(checkpoint, resident_memory() if memory is None else memory, self._count_layer)
        text, audio = self._model.config.text_config, self._model.config.audio_config
        self._decoder_layers: int = text.num_hidden_layers
        # Only the 12B hears without an encoder.
        self._audio_layers: int = getattr(audio, "num_hidden_layers", 0)
        self._vocabulary_size, self._pad_token = text.vocab_size, text.pad_token_id or 0

    @torch.no_grad()
    def audio_embeddings(self, clips: Sequence[Float32Array]) -> list[Float32Array]:
        """Frames of sounds, each [frames, values], to embeddings [tokens, hidden]."""
        if not clips:
            return []
        self._progress.start("reference: sound", self._audio_layers, "layer")
        features, mask = _pad_right(clips)
        output = self._model.model.get_audio_features(features, mask)
        pairs = zip(output.pooler_output, output.attention_mask, strict=True)
        return [np.asarray(embeddings[valid]) for embeddings, valid in pairs]

    @torch.no_grad()
    def logits(self, prompts: Sequence[Prompt], keep: Sequence[int]) -> Iterator[tuple[int, Float32Array]]:
        """Soft-capped logits of the last positions of each prompt: its index and [keep, vocabulary], as they come."""
        batches = list(_batches(prompts, keep, MAX_LOGITS // self._vocabulary_size))
        self._progress.start("reference: logits", len(batches) * self._pass_layers, "layer")
        for batch in batches:
            output = self._first_pass([prompts[index] for index in batch], max(keep[index] for index in batch))
            self._complete(self._pass_layers)
            for row, index in enumerate(batch):
                yield index, np.asarray(output.logits[row, -keep[index] :])

    @torch.no_grad()
    def greedy(
        self,
        prompts: Sequence[Prompt],
        counts: Sequence[int],
        suppress: Sequence[int],
        stop_tokens: Sequence[int] = (),
    ) -> list[list[int]]:
        """The likeliest continuation of each prompt: at most so many tokens, up to a stop token."""
        batches = list(_batches(prompts, [1] * len(prompts), MAX_POSITIONS))
        steps = [max(counts[index] for index in batch) - 1 for batch in batches]
        layers = [self._pass_layers + self._decoder_layers * count for count in steps]
        self._progress.start("reference: answers", sum(layers), "layer")
        answers: dict[int, list[int]] = {}
        for batch, total in zip(batches, layers, strict=True):
            limits = [counts[index] for index in batch]
            found = self._continue([prompts[index] for index in batch], limits, list(suppress), stop_tokens)
            answers |= dict(zip(batch, found, strict=True))
            self._complete(total)
        return [answers[index] for index in range(len(prompts))]

    @torch.no_grad()
    def layer_outputs(self, prompt: Prompt) -> LayerOutputs:
        """Hidden states behind each layer."""
        found: dict[str, list[Float32Array]] = {AUDIO_LAYERS: [], DECODER_LAYERS: []}
        handles = []
        for name, outputs in found.items():
            if name == DECODER_LAYERS or (self._audio_layers and prompt.frames is not None):
                for module in self._model.get_submodule(name):
                    # The output comes as [1, positions, hidden].
                    keep = lambda *values, outputs=outputs: outputs.append(values[-1][0].numpy().copy())  # noqa: E731
                    handles.append(module.register_forward_hook(keep))
        self._progress.start("reference: layers", self._pass_layers, "layer")
        self._first_pass([prompt], len(prompt.tokens))
        self._complete(self._pass_layers)
        for handle in handles:
            handle.remove()
        return LayerOutputs(tuple(found[AUDIO_LAYERS]), tuple(found[DECODER_LAYERS]))

    @torch.no_grad()
    def second_moments(self, prompts: Sequence[Prompt], tensors: Sequence[str]) -> Iterator[tuple[str, Float32Array]]:
        """By weight matrix, the mean of its layer's input times input transposed: float32 [inputs, inputs].

        Prompts run one by one, so that no filling counts. As many matrices are observed at a time as fit in memory.

        Args:
            prompts: whose positions all count alike, and those of their sounds.
            tensors: names of weight matrices of linear layers.
        """
        modules = {tensor: self._model.get_submodule(tensor.removesuffix(".weight")) for tensor in tensors}
        groups = list(_groups_in_memory({tensor: module.in_features for tensor, module in modules.items()}))
        self._progress.start("calibration", len(groups) * len(prompts) * self._pass_layers, "layer")
        for group in groups:
            observed = {tensor: InputMoments(modules[tensor].in_features) for tensor in group}
            handles = [
                modules[tensor].register_forward_pre_hook(lambda _, inputs, moments=moments: moments.add(inputs[0]))
                for tensor, moments in observed.items()
            ]
            for prompt in prompts:
                self._first_pass([prompt], 1)
                self._complete(self._pass_layers)
            for handle in handles:
                handle.remove()
            yield from ((tensor, moments.mean()) for tensor, moments in observed.items())

    @property
    def _pass_layers(self) -> int:
        return self._audio_layers + self._decoder_layers

    def _count_layer(self) -> None:
        self._layers_run += 1
        self._progress.advance(1)

    def _complete(self, total: int) -> None:
        """Count the layers of a batch that did not have to run: answers end early, prompts have no sound."""
        self._progress.advance(max(0, total - self._layers_run))
        self._layers_run = 0

    def _first_pass(self, prompts: Sequence[Prompt], keep: int, *, use_cache: bool = False) -> Any:
        self._layers_run = 0
        inputs: dict[str, Any] = {}
        tokens, mask = _pad_left([prompt.tokens for prompt in prompts], self._pad_token)
        if not mask.all():
            inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        clips = [prompt.frames for prompt in prompts if prompt.frames is not None]
        if clips:
            inputs["input_features"], inputs["input_features_mask"] = _pad_right(clips)
        return self._model(input_ids=tokens, logits_to_keep=keep, use_cache=use_cache, **inputs)

    def _continue(
        self, prompts: Sequence[Prompt], counts: Sequence[int], suppress: list[int], stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        """Greedy continuations of one batch."""
        output = self._first_pass(prompts, 1, use_cache=True)
        lengths = torch.tensor([len(prompt.tokens) for prompt in prompts])
        _, mask = _pad_left([prompt.tokens for prompt in prompts], self._pad_token)
        answers: list[list[int]] = [[] for _ in prompts]
        going = [True] * len(prompts)
        for step in range(max(counts)):
            logits = output.logits[:, -1]
            logits[:, suppress] = -torch.inf
            chosen = logits.argmax(1).tolist()
            for row, token in enumerate(chosen):
                going[row] = going[row] and token not in stop_tokens
                if going[row]:
                    answers[row].append(token)
                    going[row] = len(answers[row]) < counts[row]
            if not any(going):
                break
            mask = torch.cat([mask, torch.ones((len(prompts), 1), dtype=mask.dtype)], dim=1)
            output = self._model(
                input_ids=torch.tensor(chosen)[:, None],
                attention_mask=None if mask.all() else mask,
                position_ids=(lengths + step)[:, None],
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        return answers


class InputMoments:
    """A sum of inputs times inputs transposed, growing."""

    def __init__(self, width: int) -> None:
        self._total = torch.zeros((width, width))
        self._count = 0

    def add(self, inputs: Any) -> None:
        """Inputs [..., width]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self._total.addmm_(rows.T, rows)
        self._count += len(rows)

    def mean(self) -> Float32Array:
        """float32 [width, width]; zeros where nothing was seen."""
        mean: Float32Array = (self._total / max(self._count, 1)).numpy()
        return mean


def _groups_in_memory(widths: dict[str, int]) -> Iterator[list[str]]:
    """Names whose square matrices fit together into what may be resident; at least one."""
    group: list[str] = []
    free = room = resident_memory()
    for name, width in widths.items():
        size = 4 * width * width
        if group and size > free:
            yield group
            group, free = [], room
        group.append(name)
        free -= size
    if group:
        yield group


def _batches(prompts: Sequence[Prompt], keep: Sequence[int], most_kept: int) -> Iterator[list[int]]:
    """Indices of prompts that run together, the longest first: neighbours in length, so that little is filled up."""
    batch: list[int] = []
    longest = most = 0
    for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index].tokens)):
        longest, most = max(longest, len(prompts[index].tokens)), max(most, keep[index])
        count = len(batch) + 1
        if batch and (count * longest > MAX_POSITIONS or count * most > most_kept):
            yield batch
            batch, longest, most = [], len(prompts[index].tokens), keep[index]
        batch.append(index)
    if batch:
        yield batch


def _pad_left(rows: Sequence[Sequence[int]], filling: int) -> tuple[Any, Any]:
    """Tokens and mask, int64 [rows, longest]; the mask is 0 where there is filling."""
    longest = max(len(row) for row in rows)
    tokens = [[filling] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens), torch.tensor(mask)


def _pad_right(clips: Sequence[Float32Array]) -> tuple[Any, Any]:
    """Features float32 [clips, longest, values] and mask bool [clips, longest]."""
    longest = max(len(clip) for clip in clips)
    features = np.zeros((len(clips), longest, clips[0].shape[1]), np.float32)
    mask = np.zeros((len(clips), longest), bool)
    for row, clip in enumerate(clips):
        features[row, : len(clip)] = clip
        mask[row, : len(clip)] = True
    return torch.from_numpy(features), torch.from_numpy(mask)
