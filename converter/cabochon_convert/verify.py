"""Comparing packages with the checkpoint that they came from, as transformers runs it."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.engines import choose_engine
from cabochon.errors import RequestError
from cabochon.manifest import Manifest
from cabochon.package import Package, open_package
from cabochon.whole_file import replace_text
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.evaluation_data import EvaluationData
from cabochon_convert.fidelity import TaskFidelity, agreement, compare_answer, divergence, summarize
from cabochon_convert.layers_onnx import LayerErrors, layer_errors, read_layer_outputs
from cabochon_convert.lora import hash_adapter
from cabochon_convert.made_up_images import MadeUpImage, made_up_images
from cabochon_convert.package import REPORT_NAME, REPORT_PAGE_NAME
from cabochon_convert.progress import Progress
from cabochon_convert.questions import Question, QuestionWriter, made_up_clips
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.reference_record import ImageRecord, LogitStore, ProbeRecord, ReferenceRecord, record_reference
from cabochon_convert.reference_vision import VisionReference
from cabochon_convert.report import (
    AudioComparison,
    ImageComparison,
    LogitComparison,
    Report,
    checkpoint_figures,
    package_figures,
)
from cabochon_convert.report_page import render_page
from cabochon_convert.source import CheckpointSource, local_source, open_source

MIN_CONTEXT_LENGTH = 512
FLOAT_TOLERANCE = 1e-4
"""Largest relative difference of a float package: room for sums in another order, no more."""


def verify_packages(
    folders: Sequence[Path],
    checkpoint: CheckpointSource | Path,
    progress: Progress,
    data: EvaluationData | None = None,
) -> tuple[Report, ...]:
    """Compare packages with their checkpoint; writes report.json and report.html into every one of them.

    The checkpoint is run once. It and the packages are in memory one after the other.

    Args:
        folders: packages of one checkpoint.
        checkpoint: it, or its folder, with the adapter that was merged into the packages.
        progress: told what is being done.
        data: what else than made-up sounds to compare on; the built-in typed prompts if None.

    Raises:
        CabochonError: packages, checkpoint or data cannot be used, or do not belong together.
    """
    packages = [open_package(folder) for folder in folders]
    for package in packages:
        refuse_short_context(package.manifest.text.context_length)
    source = local_source(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    _refuse_strangers(packages)
    _refuse_another_adapter(packages[0], source)
    writer = QuestionWriter(min(packages, key=lambda package: package.manifest.text.context_length))
    questions = writer.questions(data or EvaluationData("English"))
    images = made_up_images([package.manifest.vision for package in packages if package.manifest.vision])
    with LogitStore(folders[0]) as store:
        seen = _show_reference(source, images, progress)
        record = _ask_reference(source, packages[0].manifest, writer, questions, store, progress)
        record = replace(record, images=seen)
        compared = [_compare_package(package, record, store, progress) for package in packages]
    figures = (
        checkpoint_figures(open_source(source), compared[0]),
        *(package_figures(folder, report) for folder, report in zip(folders, compared, strict=True)),
    )
    for own_row, (folder, report) in enumerate(zip(folders, compared, strict=True), start=1):
        rows = [asdict(row) for row in figures]
        content = asdict(report) | {"passed": report.passed, "compared": rows, "own_row": own_row}
        replace_text(folder / REPORT_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        replace_text(folder / REPORT_PAGE_NAME, render_page(content))
    return tuple(compared)


def refuse_short_context(context_length: int) -> None:
    """The longest clip, the instruction and the greedy continuation need room."""
    if context_length < MIN_CONTEXT_LENGTH:
        raise RequestError(
            f"verifying needs a context of at least {MIN_CONTEXT_LENGTH} positions, found {context_length}: "
            "convert with a larger --context-length."
        )


def _refuse_strangers(packages: Sequence[Package]) -> None:
    """One run of the checkpoint serves all packages only if it is asked the same."""
    first = packages[0]
    for package in packages[1:]:
        if _origin(package) != _origin(first):
            raise RequestError(
                f"{package.folder} was converted from another checkpoint or adapter than {first.folder}: "
                "verify them separately."
            )
        if (package.manifest.audio is None) != (first.manifest.audio is None):
            raise RequestError(
                f"of {package.folder} and {first.folder} only one has an audio encoder: verify them separately."
            )


def _origin(package: Package) -> tuple[str, str | None]:
    source = package.manifest.source
    return source.sha256, source.adapter.sha256 if source.adapter else None


def _refuse_another_adapter(package: Package, source: CheckpointSource) -> None:
    """What was merged into the package has to be merged into the reference."""
    merged = package.manifest.source.adapter
    if merged is None and source.adapter is not None:
        raise RequestError(f"{package.folder} was converted without an adapter: verify it without --lora.")
    if merged is not None and (source.adapter is None or hash_adapter(source.adapter.folder) != merged.sha256):
        raise RequestError(
            f"{package.folder} was converted with the adapter {merged.name}: name the same one with --lora."
        )


def _show_reference(
    source: CheckpointSource, images: Sequence[MadeUpImage], progress: Progress
) -> tuple[ImageRecord, ...]:
    """What the checkpoint makes of images; its eyes are in memory before the rest is."""
    if not images:
        return ()
    embeddings = VisionReference(source, progress).embeddings([image.patches for image in images])
    gc.collect()
    return tuple(ImageRecord(*pair) for pair in zip(images, embeddings, strict=True))


def _ask_reference(
    source: CheckpointSource,
    manifest: Manifest,
    writer: QuestionWriter,
    questions: Sequence[Question],
    store: LogitStore,
    progress: Progress,
) -> ReferenceRecord:
    """Everything that the checkpoint has to say."""
    clips = made_up_clips(manifest.audio)
    probes = [*(writer.probe(clip) for clip in clips), writer.probe(None)]
    record = record_reference(ReferenceModel(source, progress), clips, probes, questions, manifest.sampling, store)
    # Modules and their hooks hold each other, and the packages need the memory of the weights now.
    gc.collect()
    return record


def _compare_package(package: Package, record: ReferenceRecord, store: LogitStore, progress: Progress) -> Report:
    manifest = package.manifest
    rounds = any(applied.block_size for applied in manifest.recipe.precisions)
    images = record.images if manifest.vision else ()
    count = 1 + len(images) + len(record.probes) + len(record.answers)
    progress.start(f"comparing {package.folder.name}", count, "comparison")
    engine = choose_engine(package)
    layers = LayerErrors((), ())
    if engine == "onnx":  # graphs of LiteRT cannot be asked for what lies between layers
        layers = layer_errors(read_layer_outputs(package, record.layer_prompt), record.layers)
    progress.advance(1)
    converted = ConvertedModel(package, engine)
    seen = []
    for image in images:
        seen.append(_compare_image(converted, image))
        progress.advance(1)
    audio, logits = [], []
    for probe in record.probes:
        if probe.audio_embeddings is not None:
            assert probe.prompt.frames is not None
            assert manifest.audio is not None
            audio.append(_compare_audio(converted, probe.prompt.frames, probe.audio_embeddings, manifest.audio))
        logits.append(_compare_logits(converted, probe, store.get(probe.logits)))
        progress.advance(1)
    return Report(
        package=manifest.source.name,
        recipe=manifest.recipe.name,
        engine=engine,
        size=package.size,
        tolerance=None if rounds else FLOAT_TOLERANCE,
        audio=tuple(audio),
        images=tuple(seen),
        logits=tuple(logits),
        layers=layers,
        tasks=tuple(_compare_tasks(converted, record, store, progress)),
    )


def _compare_tasks(
    converted: ConvertedModel, record: ReferenceRecord, store: LogitStore, progress: Progress
) -> Iterator[TaskFidelity]:
    for task in dict.fromkeys(answer.question.task for answer in record.answers):
        answers = []
        for answer in record.answers:
            if answer.question.task == task:
                answers.append(compare_answer(converted, answer, store))
                progress.advance(1)
        yield summarize(task, answers, converted.manifest.prompts)


def _compare_audio(
    converted: ConvertedModel, clip: Float32Array, theirs: Float32Array, audio: AudioModel
) -> AudioComparison:
    ours = converted.audio_embeddings(clip)
    return AudioComparison(
        seconds=len(clip) * audio.frontend.hop_length / audio.sample_rate,
        tokens=len(theirs),
        relative_error=_relative_error(ours, theirs),
        cosine=_least_cosine(ours, theirs),
    )


def _compare_image(converted: ConvertedModel, record: ImageRecord) -> ImageComparison:
    ours, theirs = converted.image_embeddings(record.image.patches), record.embeddings
    return ImageComparison(
        image=record.image.name,
        tokens=len(theirs),
        relative_error=_relative_error(ours, theirs),
        cosine=_least_cosine(ours, theirs),
    )


def _compare_logits(converted: ConvertedModel, probe: ProbeRecord, theirs: Float32Array) -> LogitComparison:
    count = len(probe.prompt.tokens)
    ours = converted.logits(probe.prompt, count)
    found = converted.greedy(probe.prompt, len(probe.greedy))
    return LogitComparison(
        prompt="question" if probe.prompt.frames is None else f"transcription of {count} positions",
        positions=count,
        relative_error=_relative_error(ours, theirs),
        same_top_token=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        divergence=divergence(ours, theirs),
        greedy_tokens=len(probe.greedy),
        greedy_agreement=agreement(found, probe.greedy),
    )


def _relative_error(ours: Float32Array, theirs: Float32Array) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _least_cosine(ours: Float32Array, theirs: Float32Array) -> float:
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / norms).min())
