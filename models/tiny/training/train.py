"""Trains the tiny model from scratch and writes the finished checkpoint.

The loss is that of the next token over the answer, plus a training-only alignment loss (CTC over phones on the
encoder's output, through a linear head that is thrown away): without it, attention from the decoder to the audio
appears much later. The run is a function of its seed and can be stopped and resumed; --cache must hold what speech.py
wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional
from transformers import Gemma4ForConditionalGeneration

from .architecture import HIDDEN_SIZE, build_model
from .batches import IGNORED, Batch, BatchMaker, Example, audio_token_count, batch_order, read_shard
from .export import export_checkpoint
from .speech import DEFAULT_CACHE
from .tokenizer import train_tokenizer, write_tokenizer
from .words import LANGUAGES

_MODEL_FOLDER: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """The recipe."""

    steps: int
    seed: int = 0
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    """After warming up and before the cosine takes it to a fiftieth."""
    warm_up_steps: int = 150
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    """Longer gradients are scaled down to this."""
    alignment_weight: float = 0.5
    """Of the CTC loss."""
    short_steps: int = 300
    """Steps at the beginning that see short utterances only."""
    short_frames: int = 190
    augmentation_step: int = 400
    """From this step on, spectrograms are masked."""
    averaging: float = 0.998
    """Decay of the average of weights per step; less in the beginning."""

    def learning_rate_at(self, step: int) -> float:
        warmth = min(1.0, (step + 1) / self.warm_up_steps)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps))
        return self.learning_rate * warmth * (0.02 + 0.98 * cosine)

    def averaging_at(self, step: int) -> float:
        return min(self.averaging, (step + 1) / (step + 20))


def keep_freed_memory() -> None:
    """Tells glibc not to hand large freed blocks back to the system: on a CPU, page faults would take half the time."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        mmap_max, trim_threshold = -4, -1  # parameter numbers of <malloc.h>
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def training_order(lengths: Sequence[int], settings: TrainingSettings) -> Iterator[list[int]]:
    """Endless: indices of each step's examples."""
    short = [index for index, frames in enumerate(lengths) if frames < settings.short_frames]
    left, epoch = settings.short_steps if len(short) >= settings.batch_size else 0, 0
    while left > 0:
        for batch in batch_order([lengths[index] for index in short], settings.batch_size, epoch, settings.seed):
            if left > 0:
                yield [short[index] for index in batch]
            left -= 1
        epoch += 1
    while True:
        yield from batch_order(lengths, settings.batch_size, epoch, settings.seed)
        epoch += 1


def _move(module: torch.nn.Module, device: str) -> None:
    module.to(device)


class Trainer:
    """The model in training, with everything needed to resume."""

    def __init__(self, settings: TrainingSettings, phone_classes: int, device: str) -> None:
        self.settings = settings
        self.device = device
        self.step = 0
        self.model = build_model(settings.seed)
        _move(self.model, device)
        # Channels last spares the front end's layer norms their transpositions.
        self.model.model.audio_tower.subsample_conv_projection.to(memory_format=torch.channels_last)
        self.alignment_head = torch.nn.Linear(HIDDEN_SIZE, phone_classes).to(device)
        # Parameters only: averaging the clip bounds, which are infinite until the end, would give NaN.
        self.averages = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        parameters = [*self.model.parameters(), *self.alignment_head.parameters()]
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "averages": self.averages,
            "alignment_head": self.alignment_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.averages = state["averages"]
        self.alignment_head.load_state_dict(state["alignment_head"])
        self.optimizer.load_state_dict(state["optimizer"])

    def answer_logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of every answer position [batch, answer length, vocabulary]; audio embeddings [all tokens, hidden]."""
        output = self.model(
            input_ids=batch.input_ids.to(self.device),
            attention_mask=batch.attention_mask.to(self.device),
            input_features=batch.input_features.to(self.device),
            input_features_mask=batch.input_features_mask.to(self.device),
            use_cache=False,
            logits_to_keep=batch.labels.shape[1] + 1,
        )
        return output.logits[:, :-1].float(), output.audio_hidden_states

    def alignment_loss(self, audio: torch.Tensor, batch: Batch) -> torch.Tensor:
        """CTC over phones, per phone."""
        counts = [audio_token_count(int(frames)) for frames in batch.input_features_mask.sum(1)]
        scores = functional.log_softmax(self.alignment_head(audio.float()), dim=-1)
        padded = torch.nn.utils.rnn.pad_sequence(list(torch.split(scores, counts)))  # [time, batch, classes]
        return functional.ctc_loss(
            padded, batch.phones.to(self.device), torch.tensor(counts), batch.phone_counts, zero_infinity=True
        )

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """Updates the weights; returns the answer and the alignment loss."""
        learning_rate = self.settings.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        logits, audio = self.answer_logits(batch)
        labels = batch.labels.to(self.device)
        answer_loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        alignment_loss = self.alignment_loss(audio, batch)
        torch.autograd.backward(answer_loss + self.settings.alignment_weight * alignment_loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        return answer_loss.item(), alignment_loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        share = 1.0 - self.settings.averaging_at(self.step)
        for name, parameter in self.model.named_parameters():
            self.averages[name].lerp_(parameter, share)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Gemma4ForConditionalGeneration]:
        """Within it, the model has the averaged weights."""
        current = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self.model.load_state_dict(self.averages, strict=False)
        yield self.model
        self.model.load_state_dict(current, strict=False)

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> float:
        """Share of answers whose every token is the likeliest one, given the right ones before it; averaged weights."""
        right = total = 0
        with self.averaged():
            for batch in batches:
                logits, _ = self.answer_logits(batch)
                labels = batch.labels.to(self.device)
                wrong = (logits.argmax(-1) != labels) & (labels != IGNORED)
                right += int((~wrong.any(1)).sum())
                total += len(labels)
        return right / total


def run(
    trainer: Trainer, examples: Sequence[Example], validation: Sequence[Batch], make: BatchMaker, state: Path
) -> None:
    """Trains from the trainer's step to the last one, with a line of progress now and then on stderr."""
    settings = trainer.settings
    order = training_order([len(example.log_mel) for example in examples], settings)
    for _ in range(trainer.step):
        next(order)
    begin, first_step, losses = time.monotonic(), trainer.step, [0.0, 0.0]
    while trainer.step < settings.steps:
        generator = random.Random(f"{settings.seed} {trainer.step}")
        chosen = [examples[index] for index in next(order)]
        targets = generator.choices(LANGUAGES, k=len(chosen))
        augmentation = generator if trainer.step >= settings.augmentation_step else None
        step_losses = trainer.train_step(make(chosen, targets, augmentation))
        losses = [0.95 * old + 0.05 * new for old, new in zip(losses, step_losses, strict=True)]
        if trainer.step % 20 == 0:
            seconds = (time.monotonic() - begin) / (trainer.step - first_step)
            remaining = seconds * (settings.steps - trainer.step) / 60
            progress = f"step {trainer.step}: answer loss {losses[0]:.3f}, alignment loss {losses[1]:.3f}"
            print(f"{progress}, {seconds:.2f} s per step, {remaining:.0f} min left", file=sys.stderr, flush=True)
        if trainer.step % 200 == 0 or trainer.step == settings.steps:
            trainer.save(state)
            print(f"step {trainer.step}: {100 * trainer.validate(validation):.1f} % valid", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="what speech.py wrote (%(default)s)")
    parser.add_argument("--output", type=Path, default=_MODEL_FOLDER, help="checkpoint folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=2600, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--export-only", action="store_true", help="write the checkpoint of the state saved so far")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    keep_freed_memory()
    phones = json.loads((arguments.cache / "phones.json").read_text())
    make = BatchMaker(train_tokenizer(), phones)
    shards = sorted(path.with_suffix("") for path in arguments.cache.glob("train_*.json"))
    examples = [example for shard in shards for example in read_shard(shard)]
    held_out = read_shard(arguments.cache / "validation")
    validation = [make(held_out[first : first + 20], ["en", "de"] * 10) for first in range(0, len(held_out), 20)]
    trainer = Trainer(
        TrainingSettings(steps=arguments.steps, seed=arguments.seed), make.phone_classes, arguments.device
    )
    state = arguments.cache / "state.pt"
    if state.exists():
        trainer.load(state)
    if not arguments.export_only:
        run(trainer, examples, validation, make, state)
    calibration = [make(examples[first : first + 16], ["en"] * 16) for first in range(0, 2048, 16)]
    with trainer.averaged() as model:
        _move(model, "cpu")
        sounds = ((batch.input_features, batch.input_features_mask) for batch in calibration)
        export_checkpoint(model, sounds, arguments.output, write_tokenizer)


if __name__ == "__main__":
    main()
