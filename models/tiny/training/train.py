"""Trains the tiny model from scratch and writes the finished checkpoint.

The loss is that of the next token over the answer, plus a training-only alignment loss (CTC over phones on the
encoder's output, through a linear head that is thrown away): without it, attention from the decoder to the audio
appears much later. CTC itself says nothing but "blank" for long when voices and noises are many; so the encoder alone
begins, with short utterances of a few plain voices, on which phones come out after some 250 steps. Once they have
learned, the encoder's convolutions are better frozen (--start CHECKPOINT --frozen-convolutions): they are more than
half of a step's time. The run is a function of its seed and can be stopped and resumed; --cache must hold what
speech.py wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional
from transformers import Gemma4ForConditionalGeneration

from .architecture import HIDDEN_SIZE, build_model, reopen_model
from .batches import IGNORED, Batch, BatchMaker, Example, Sound, all_phones, batch_order, read_shard
from .dialogues import draw_dialogue
from .export import export_checkpoint
from .front_end import fingerprint, skip_convolutions, take_spectrograms, write_features
from .parallel import average_gradients, keep_freed_memory, run_workers, wait_for_all
from .speech import DEFAULT_CACHE
from .tokenizer import VOCABULARY_SIZE, train_tokenizer, write_tokenizer
from .voices import is_easy
from .words import LANGUAGES

_MODEL_FOLDER: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """The recipe."""

    steps: int
    seed: int = 0
    batch_size: int = 16
    """Of each worker."""
    workers: int = 1
    learning_rate: float = 1.5e-3
    """After warming up and before the cosine takes it to a fiftieth."""
    warm_up_steps: int = 150
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    """Longer gradients are scaled down to this."""
    alignment_weight: float = 0.5
    """Of the CTC loss."""
    alignment_steps: int = 700
    """At the beginning, in which the encoder alone learns by the CTC loss alone from easy utterances."""
    encoder_learned: bool = False
    """The encoder knows phones from the beginning: in the alignment steps only the alignment head learns."""
    easy_frames: int = 190
    """Easy utterances are shorter and in plain voices."""
    augmentation_step: int = 1500
    """From this step on, spectrograms are masked."""
    typed_every: int = 6
    """Every so many steps, a batch of typed conversations follows."""
    typed_batch_size: int = 32
    averaging: float = 0.998
    """Decay of the average of weights per step; less in the beginning."""

    def learning_rate_at(self, step: int) -> float:
        first = self.alignment_steps if step >= self.alignment_steps else 0  # the decoder warms up anew
        warmth = min(1.0, (step - first + 1) / self.warm_up_steps)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps))
        return self.learning_rate * warmth * (0.02 + 0.98 * cosine)

    def averaging_at(self, step: int) -> float:
        return min(self.averaging, (step + 1) / (step + 20))


def training_order(examples: Sequence[Example], settings: TrainingSettings) -> Iterator[list[int]]:
    """Endless: indices of each step's examples."""
    lengths = [len(example.log_mel) for example in examples]
    easy = [
        index
        for index, example in enumerate(examples)
        if lengths[index] < settings.easy_frames and is_easy(example.voice)
    ]
    if settings.alignment_steps and len(easy) < settings.batch_size * settings.workers:
        raise SystemExit(f"the cache holds {len(easy)} easy utterances, too few to begin with: run speech.py for more.")
    easy_batches = _endless_batches([lengths[index] for index in easy], settings)
    for _ in range(settings.alignment_steps):
        yield [easy[index] for index in next(easy_batches)]
    yield from _endless_batches(lengths, settings)


def _endless_batches(lengths: Sequence[int], settings: TrainingSettings) -> Iterator[list[int]]:
    for epoch in itertools.count():
        yield from batch_order(lengths, settings.batch_size * settings.workers, epoch, settings.seed)


def _move(module: torch.nn.Module, device: str) -> None:
    module.to(device)


class Trainer:
    """The model in training, with everything needed to resume."""

    def __init__(self, settings: TrainingSettings, phone_classes: int, device: str, start: Path | None = None) -> None:
        self.settings = settings
        self.device = device
        self.step = 0
        self.model = reopen_model(start) if start else build_model(settings.seed, VOCABULARY_SIZE)
        _move(self.model, device)
        # Channels last spares the front end's layer norms their transpositions.
        self.front_end = self.model.model.audio_tower.subsample_conv_projection
        self.front_end.to(memory_format=torch.channels_last)
        self.alignment_head = torch.nn.Linear(HIDDEN_SIZE, phone_classes).to(device)
        # Parameters only: averaging the clip bounds, which are infinite until the end, would give NaN.
        self.averages = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self.optimizers = self._make_optimizers()

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the layers' matrices, which learns more from each step, and AdamW for what it is not made for."""
        layers = [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.ndim == 2 and "embed_tokens" not in name
        ]
        in_layers = set(map(id, layers))
        others = [
            parameter
            for parameter in [*self.model.parameters(), *self.alignment_head.parameters()]
            if id(parameter) not in in_layers
        ]
        matrices = [parameter for parameter in others if parameter.ndim > 1]
        vectors = [parameter for parameter in others if parameter.ndim <= 1]
        decay = self.settings.weight_decay
        # Its steps are as long as AdamW's would be, so that both share one learning rate.
        muon = torch.optim.Muon(layers, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )
        return [muon, adam]

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "averages": self.averages,
            "alignment_head": self.alignment_head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
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
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def answer_logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of every answer position [batch, answer length, vocabulary]; audio embeddings [all tokens, hidden]."""
        sound = batch.sound
        output = self.model(
            input_ids=batch.input_ids.to(self.device),
            attention_mask=batch.attention_mask.to(self.device),
            input_features=sound.features.to(self.device) if sound else None,
            input_features_mask=sound.features_mask.to(self.device) if sound else None,
            use_cache=False,
            logits_to_keep=batch.labels.shape[1] + 1,
        )
        return output.logits[:, :-1].float(), output.audio_hidden_states

    def alignment_loss(self, audio: torch.Tensor, sound: Sound) -> torch.Tensor:
        """CTC over phones, per phone."""
        counts = sound.token_counts
        scores = functional.log_softmax(self.alignment_head(audio.float()), dim=-1)
        padded = torch.nn.utils.rnn.pad_sequence(list(torch.split(scores, counts.tolist())))  # [time, batch, classes]
        return functional.ctc_loss(padded, sound.phones.to(self.device), counts, sound.phone_counts, zero_infinity=True)

    def _encoder_loss(self, sound: Sound) -> tuple[torch.Tensor, float, float]:
        with torch.set_grad_enabled(not self.settings.encoder_learned):
            output = self.model.model.get_audio_features(
                sound.features.to(self.device), sound.features_mask.to(self.device)
            )
        alignment_loss = self.alignment_loss(output.pooler_output[output.attention_mask], sound)
        return alignment_loss, 0.0, alignment_loss.item()

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, float, float]:
        """What is minimized, and its answer and alignment parts."""
        if batch.sound is not None and self.step < self.settings.alignment_steps:
            return self._encoder_loss(batch.sound)
        logits, audio = self.answer_logits(batch)
        labels = batch.labels.to(self.device)
        answer_loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        if batch.sound is None or audio is None:
            return answer_loss, answer_loss.item(), 0.0
        alignment_loss = self.alignment_loss(audio, batch.sound)
        total = answer_loss + self.settings.alignment_weight * alignment_loss
        return total, answer_loss.item(), alignment_loss.item()

    def train_step(self, spoken: Batch, typed: Batch | None) -> tuple[float, float]:
        """Updates the weights by both batches together; returns the answer and the alignment loss of the spoken one."""
        learning_rate = self.settings.learning_rate_at(self.step)
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers):
            group["lr"] = learning_rate
        loss, answer_loss, alignment_loss = self._loss(spoken)
        torch.autograd.backward(loss)
        if typed is not None:
            torch.autograd.backward(self._loss(typed)[0])
        average_gradients([*self.model.parameters(), *self.alignment_head.parameters()], self.settings.workers)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        return answer_loss, alignment_loss

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


def _typed_batch(settings: TrainingSettings, step: int, rank: int, make: BatchMaker) -> Batch | None:
    if step % settings.typed_every or step < settings.alignment_steps:
        return None
    generator = random.Random(f"{settings.seed} typed {step} {rank}")
    count = settings.typed_batch_size // settings.workers
    return make.typed([draw_dialogue(generator, held_out=False) for _ in range(count)])


def run(
    trainer: Trainer,
    examples: Sequence[Example],
    validation: Sequence[Batch],
    make: BatchMaker,
    state: Path,
    rank: int,
) -> None:
    """Trains from the trainer's step to the last one; the first worker writes a line of progress now and then."""
    settings = trainer.settings
    order = training_order(examples, settings)
    for _ in range(trainer.step):
        next(order)
    begin, first_step, losses = time.monotonic(), trainer.step, [0.0, 0.0]
    while trainer.step < settings.steps:
        generator = random.Random(f"{settings.seed} {trainer.step} {rank}")
        chosen = [examples[index] for index in next(order)[rank :: settings.workers]]
        targets = generator.choices(LANGUAGES, k=len(chosen))
        augmentation = generator if trainer.step >= settings.augmentation_step else None
        spoken = make.spoken(chosen, targets, augmentation)
        step_losses = trainer.train_step(spoken, _typed_batch(settings, trainer.step, rank, make))
        losses = [0.95 * old + 0.05 * new for old, new in zip(losses, step_losses, strict=True)]
        if rank:
            continue
        if trainer.step % 20 == 0:
            seconds = (time.monotonic() - begin) / (trainer.step - first_step)
            remaining = seconds * (settings.steps - trainer.step) / 60
            progress = f"step {trainer.step}: answer loss {losses[0]:.3f}, alignment loss {losses[1]:.3f}"
            print(f"{progress}, {seconds:.2f} s per step, {remaining:.0f} min left", file=sys.stderr, flush=True)
        if trainer.step % 500 == 0 or trainer.step == settings.steps:
            trainer.save(state)
            print(f"step {trainer.step}: {100 * trainer.validate(validation):.1f} % valid", file=sys.stderr, flush=True)


def validation_batches(make: BatchMaker, held_out: Sequence[Example]) -> list[Batch]:
    """Every utterance with one of the languages asked for, in turn."""
    targets = [LANGUAGES[(number // len(LANGUAGES)) % len(LANGUAGES)] for number in range(len(held_out))]
    return [
        make.spoken(held_out[first : first + 20], targets[first : first + 20]) for first in range(0, len(held_out), 20)
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="what speech.py wrote (%(default)s)")
    parser.add_argument("--output", type=Path, default=_MODEL_FOLDER, help="checkpoint folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=7000, help="(%(default)s)")
    parser.add_argument("--start", type=Path, help="go on from a finished checkpoint instead of from scratch")
    parser.add_argument("--frozen-convolutions", action="store_true", help="keep --start's; faster")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes of one thread each; 1 takes all threads (%(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="the highest (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--export-only", action="store_true", help="write the checkpoint of the state saved so far")
    arguments = parser.parse_args()
    if arguments.frozen_convolutions and not arguments.start:
        parser.error("--frozen-convolutions keeps the convolutions of a trained checkpoint: name it with --start.")
    return arguments


def _freeze_convolutions(trainer: Trainer, shards: Sequence[Path], rank: int) -> str:
    """Writes the features that are missing and returns the fingerprint that names them."""
    for shard in shards[rank :: trainer.settings.workers]:
        path = write_features(trainer.front_end, shard, [example.log_mel for example in read_shard(shard)])
        print(path.name, file=sys.stderr, flush=True)
    wait_for_all(trainer.settings.workers)
    weights = fingerprint(trainer.front_end)
    skip_convolutions(trainer.front_end)
    return weights


def work(arguments: argparse.Namespace, rank: int, workers: int) -> None:
    """What each worker does; the first one writes the checkpoint."""
    keep_freed_memory()
    shards = sorted(path.with_suffix("") for path in arguments.cache.glob("train_*.json"))
    held_out = arguments.cache / "validation"
    phones = all_phones([example for shard in shards for example in read_shard(shard)])
    make = BatchMaker(train_tokenizer(), phones)
    settings = TrainingSettings(
        steps=arguments.steps, seed=arguments.seed, workers=workers, learning_rate=arguments.learning_rate
    )
    if arguments.start:
        settings = replace(settings, alignment_steps=400, encoder_learned=True, augmentation_step=0)
    trainer = Trainer(settings, make.phone_classes, arguments.device, arguments.start)
    frozen = _freeze_convolutions(trainer, [held_out, *shards], rank) if arguments.frozen_convolutions else None
    state = arguments.cache / "state.pt"
    if state.exists():
        trainer.load(state)
    examples = [example for shard in shards for example in read_shard(shard, frozen)]
    if not arguments.export_only:
        validation = validation_batches(make, read_shard(held_out, frozen)) if rank == 0 else []
        run(trainer, examples, validation, make, state, rank)
    if rank == 0:
        _export(trainer, make, shards, arguments.output)


def _export(trainer: Trainer, make: BatchMaker, shards: Sequence[Path], output: Path) -> None:
    take_spectrograms(trainer.front_end)
    examples = [example for shard in shards[:3] for example in read_shard(shard)]
    calibration = [make.spoken(examples[first : first + 16], ["en"] * 16) for first in range(0, 2048, 16)]
    with trainer.averaged() as model:
        _move(model, "cpu")
        sounds = ((batch.sound.features, batch.sound.features_mask) for batch in calibration if batch.sound)
        export_checkpoint(model, sounds, output, write_tokenizer)


def main() -> None:
    arguments = parse_arguments()
    run_workers(arguments.workers, functools.partial(work, arguments))


if __name__ == "__main__":
    main()
