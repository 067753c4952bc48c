"""The conversion on one screen: checkpoint → graph → quantize → package."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cabochon
from cabochon.arrays import Float32Array
from cabochon.engines import ENGINES
from cabochon.manifest import (
    CACHE_STORAGE_BYTES,
    FORMAT_VERSION,
    AppliedPrecision,
    AppliedRecipe,
    Engine,
    Manifest,
    SourceAdapter,
    SourceCheckpoint,
)
from cabochon.package import Package
from cabochon_convert.audio_frontend import AudioFrontend, read_audio_frontend
from cabochon_convert.checkpoint import Checkpoint, hash_checkpoint, read_json
from cabochon_convert.config import ModelConfig, read_config
from cabochon_convert.drafter_source import DrafterSource, open_drafter
from cabochon_convert.integer_formats import open_integers
from cabochon_convert.lora import hash_adapter
from cabochon_convert.matrices import ACCURACY_LEVEL, LinearSettings
from cabochon_convert.model_description import describe_audio, describe_text, describe_vision
from cabochon_convert.package import list_files, new_package, write_manifest
from cabochon_convert.processor import (
    CHAT_TEMPLATE_NAME,
    PROMPTS,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    ImageFrontend,
    check_prompts,
    check_vocabulary,
    read_chat_template,
    read_image_frontend,
    read_sampling,
    read_tokenizer,
    unused_generation_settings,
)
from cabochon_convert.progress import Progress, Silence
from cabochon_convert.recipes import Recipe
from cabochon_convert.source import CheckpointSource, local_source, open_source
from cabochon_convert.text_config import TextConfig
from cabochon_convert.work_folder import OutputError

DEFAULT_CONTEXT_LENGTH = 4096


class InputMeasure(Protocol):
    """What `cabochon_convert.calibration.Calibration` does; it needs torch, and conversions without it do not."""

    def measured(
        self, package: Package, source: CheckpointSource, recipe: Recipe
    ) -> AbstractContextManager[Callable[[str], Float32Array]]:
        """Within it, second moments of inputs by the name of a weight matrix."""


class EngineBuilder(Protocol):
    """Writes what one engine runs into a folder."""

    def __call__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        draft: Manifest,
        settings: LinearSettings,
        folder: Path,
        progress: Progress,
        drafter: DrafterSource | None = None,
        kv_cache: str = "float32",
    ) -> tuple[Engine, tuple[AppliedPrecision, ...]]:
        """Returns what the manifest says about it, and how each matrix was stored."""


@dataclass(frozen=True, slots=True)
class ConversionSettings:
    """What the user decides about a conversion."""

    recipe: Recipe
    target: str = "onnx"
    """The engine that is to run it: one of `cabochon.engines.ENGINES`."""
    context_length: int | None = None
    """Positions that the graph can address; None means `DEFAULT_CONTEXT_LENGTH`. Never more than the model knows."""
    text_only: bool = False
    """Leave the encoders out."""
    without_vision: bool = False
    """Leave the vision encoder out."""
    replace: bool = False
    """Replace an existing package."""
    accuracy_level: int = ACCURACY_LEVEL
    """Of MatMulNBits; 0 keeps activations in float32, which is slow and exact."""
    calibration: InputMeasure | None = None
    """Measures the inputs of linear layers; needed by recipes with the algorithm "gptq"."""
    drafter: CheckpointSource | Path | None = None
    """The checkpoint of a drafter to put into the package."""
    kv_cache: str = "float32"
    """How full layers keep keys and values: one of `cabochon.manifest.CACHE_STORAGE_BYTES`."""

    def __post_init__(self) -> None:
        if self.context_length is not None and self.context_length < 1:
            raise ValueError("context_length must be positive")
        if self.target not in ENGINES:
            raise ValueError(f"expected one of the targets {', '.join(ENGINES)}, got {self.target!r}")
        if self.target == "litert" and (self.recipe.is_calibrated or self.recipe.keeps_integers):
            raise ValueError(f"the recipe {self.recipe.name} is not for litert")
        if self.kv_cache not in CACHE_STORAGE_BYTES:
            raise ValueError(f"caches of {self.kv_cache!r} are unknown")
        if self.kv_cache != "float32" and (self.target == "litert" or self.drafter is not None):
            raise ValueError("integer caches are neither for litert nor for drafters")
        if self.recipe.is_calibrated and self.calibration is None:
            raise ValueError(f"the recipe {self.recipe.name} needs a calibration")

    def context_length_of(self, config: TextConfig) -> int:
        """The context length for a model."""
        return min(self.context_length or DEFAULT_CONTEXT_LENGTH, config.max_positions)


@dataclass(frozen=True, slots=True)
class Frontends:
    """How the checkpoint hears and sees; None where it does not, or is not to."""

    audio: AudioFrontend | None
    image: ImageFrontend | None


@dataclass(frozen=True, slots=True)
class Conversion:
    """What came of it."""

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...]
    """Sentences that the user should read."""


def convert_checkpoint(
    source: CheckpointSource | Path, folder: Path, settings: ConversionSettings, progress: Progress | None = None
) -> Conversion:
    """Convert a checkpoint, or the folder of one, into a package.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or of another architecture.
        OutputError: the package cannot be written; nothing is left behind.
    """
    progress = progress or Silence()
    build_engine = _engine_builder(settings.target)
    origin = local_source(source) if isinstance(source, Path) else source
    checkpoint = open_source(origin, progress.advance)
    config = read_config(
        read_json(checkpoint.folder / "config.json"),
        with_audio=not settings.text_only,
        with_vision=not (settings.text_only or settings.without_vision),
    )
    if checkpoint.has_own_head:
        config = replace(config, text=replace(config.text, ties_embeddings=False))
    tokenizer = read_tokenizer(checkpoint.folder)
    tokenizer_file = _compact((checkpoint.folder / TOKENIZER_NAME).read_bytes())
    check_vocabulary(tokenizer, config)
    sampling = read_sampling(checkpoint.folder, config, tokenizer)
    chat_template = read_chat_template(checkpoint.folder)
    frontends = Frontends(
        read_audio_frontend(checkpoint.folder, config.audio) if config.audio else None,
        read_image_frontend(checkpoint.folder, config.vision) if config.vision else None,
    )
    check_prompts(tokenizer, chat_template, config)
    drafter = open_drafter(settings.drafter, config.text, progress.advance) if settings.drafter else None
    recipe = settings.recipe.for_layers(config.text.sharing_layers, config.text.layers_with_keys_as_values)
    settings = replace(settings, recipe=recipe)
    _refuse_overlap(origin, folder)
    integers = open_integers(checkpoint, config, settings.recipe, progress)
    progress.start("reading the checkpoint", checkpoint.size, "B")
    source_hash = hash_checkpoint(checkpoint, progress.advance)
    adapter = _adapter_record(origin)
    with new_package(folder, replace=settings.replace) as beside:
        (beside / TOKENIZER_NAME).write_bytes(tokenizer_file)
        (beside / CHAT_TEMPLATE_NAME).write_text(chat_template, encoding="utf-8")
        _copy_tokenizer_config(checkpoint.folder, beside)
        draft = Manifest(
            format_version=FORMAT_VERSION,
            created_by=f"cabochon {cabochon.__version__}",
            source=SourceCheckpoint(
                name=origin.name,
                revision=origin.revision,
                architecture=config.architecture,
                sha256=source_hash,
                skipped_tensors=(),
                adapter=adapter,
            ),
            recipe=AppliedRecipe(name=settings.recipe.name, precisions=()),
            text=describe_text(
                config.text, settings.context_length_of(config.text), caps_logits=settings.target == "litert"
            ),
            audio=describe_audio(config, frontends.audio),
            # LiteRT's graphs have fixed shapes, of which each costs another minute of conversion.
            vision=describe_vision(config, frontends.image, with_large_budgets=settings.target != "litert"),
            bos_token=config.text.bos_token,
            pad_token=config.text.pad_token,
            prompts=PROMPTS,
            sampling=sampling,
            tokenizer_file=TOKENIZER_NAME,
            chat_template_file=CHAT_TEMPLATE_NAME,
            engines={},
            files=list_files(beside, Silence().advance),
        )
        with _second_moments(Package(beside, draft), origin, settings) as second_moments:
            linear_settings = LinearSettings(settings.recipe, settings.accuracy_level, second_moments, integers)
            engine, applied = build_engine(
                checkpoint, config, draft, linear_settings, beside, progress, drafter, settings.kv_cache
            )
        progress.start("hashing the package", _folder_size(beside), "B")
        manifest = replace(
            draft,
            source=replace(draft.source, skipped_tensors=checkpoint.unread_names),
            recipe=replace(draft.recipe, precisions=applied),
            engines={settings.target: engine},
            files=list_files(beside, progress.advance),
        )
        write_manifest(beside, manifest)
    notes = _notes(checkpoint, frontends, settings.kv_cache) + unused_generation_settings(checkpoint.folder)
    if integers is not None:
        notes += integers.notes
    if settings.context_length is not None and settings.context_length > config.text.max_positions:
        notes += (f"the context length is {config.text.max_positions}, which is all that the model knows.",)
    return Conversion(folder, manifest, notes)


def _engine_builder(target: str) -> EngineBuilder:
    """Imported when it is asked for: LiteRT's needs torch."""
    if target == "litert":
        from cabochon_convert.engine_litert import build_litert_engine

        return build_litert_engine
    from cabochon_convert.engine_onnx import build_onnx_engine

    return build_onnx_engine


def _second_moments(
    draft: Package, source: CheckpointSource, settings: ConversionSettings
) -> AbstractContextManager[Callable[[str], Float32Array] | None]:
    if settings.calibration is None or not settings.recipe.is_calibrated:
        return nullcontext()
    return settings.calibration.measured(draft, source, settings.recipe)


def _compact(text: bytes) -> bytes:
    """JSON without its white space, which is half of the published tokenizer.json."""
    compact = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode()
    return min(compact, text, key=len)


def _copy_tokenizer_config(source: Path, folder: Path) -> None:
    """Not for this runtime: the tokenizers of other tools ask for it."""
    if (source / TOKENIZER_CONFIG_NAME).is_file():
        (folder / TOKENIZER_CONFIG_NAME).write_bytes((source / TOKENIZER_CONFIG_NAME).read_bytes())


def _adapter_record(source: CheckpointSource) -> SourceAdapter | None:
    if source.adapter is None:
        return None
    sha256 = hash_adapter(source.adapter.folder)
    return SourceAdapter(name=source.adapter.name, revision=source.adapter.revision, sha256=sha256)


def _refuse_overlap(source: CheckpointSource, folder: Path) -> None:
    parts = {"checkpoint": source.folder} | ({"adapter": source.adapter.folder} if source.adapter else {})
    for part, place in parts.items():
        if folder.resolve() in (place.resolve(), *place.resolve().parents):
            raise OutputError(f"{folder} holds the {part} itself: choose another name.")


def _notes(checkpoint: Checkpoint, frontends: Frontends, kv_cache: str) -> tuple[str, ...]:
    skipped = checkpoint.unread_names
    cache_scales = [name for name in skipped if name.endswith(("k_cache_scale", "v_cache_scale"))]
    skipped = tuple(name for name in skipped if name not in cache_scales)
    vestigial = [name for name in skipped if ".self_attn." in name and name.startswith("model.language_model.")]
    notes = [part.note for part in (frontends.audio, frontends.image) if part is not None and part.note]
    if cache_scales:
        reason = "caches stay floating point" if kv_cache == "float32" else "full layers have scales of their own"
        notes.append(f"{len(cache_scales)} scales for integer caches were left out: {reason}.")
    if vestigial:
        notes.append(
            f"{len(vestigial)} key and value tensors were skipped: their layers share the cache of an earlier layer."
        )
    if len(skipped) > len(vestigial):
        parts = sorted({name.removeprefix("model.").split(".")[0] for name in skipped if name not in vestigial})
        notes.append(f"{len(skipped) - len(vestigial)} tensors were left out: this package has no {', '.join(parts)}.")
    if idle := sorted(set(skipped).intersection(checkpoint.changed_names)):
        others = f" and {len(idle) - 1} others" if len(idle) > 1 else ""
        notes.append(f"the adapter changes tensors that were left out, which has no effect: {idle[0]}{others}.")
    if checkpoint.has_own_head:
        notes.append("the adapter parts the output matrix from the token embeddings, so the package holds both.")
    return tuple(notes)


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
