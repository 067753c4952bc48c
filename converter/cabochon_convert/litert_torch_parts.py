"""All that is used of litert-torch, in one place: most of it is not public, so an update is tried here first."""

from __future__ import annotations

import importlib.machinery
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cabochon.errors import missing_dependency
from cabochon.quiet import quiet


def _stand_in(name: str, **members: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    sys.modules.setdefault(name, module)


# litert-torch 0.10.0 imports TensorFlow, which it does not ask for, in the file of an image model; not in its later
# sources. An older release failed for the same reason: https://github.com/google-ai-edge/litert-torch/issues/971
_stand_in(
    "litert_torch.generative.export_hf.model_ext.bonsai_flux2.bonsai_flux2", BonsaiFlux2=type("BonsaiFlux2", (), {})
)

_LIMIT = sys.getrecursionlimit()
try:
    with warnings.catch_warnings(), quiet(1, 2):
        warnings.simplefilter("ignore")
        from litert_converter.mlir import ir
        from litert_converter.mlir.dialects import arith, stablehlo
        from litert_torch._convert.interface import Converter
        from litert_torch.backend import lowerings
        from litert_torch.backend.lowerings.utils import splat_attr
        from litert_torch.backend.optimization_barrier import optimization_barrier
        from litert_torch.generative.export_hf.core.attention import transposed_attention
        from litert_torch.generative.export_hf.core.export_lib import patch_builtin_tuple_for_export
        from litert_torch.generative.export_hf.core.exportable_module_config import ExportableModuleConfig, ExportTask
        from litert_torch.generative.export_hf.core.weights_loader import init_params_on_meta
        from litert_torch.generative.export_hf.model_ext.gemma4 import (
            audio_exportable,
            exportable_module,
            vision_exportable,
        )
        from litert_torch.generative.export_hf.model_ext.patches import get_patch_context
except ImportError as error:
    raise missing_dependency(str(error.name), "convert-litert") from None

# litert-converter 0.5 raises it for good, and then Python ends where JSON is nested too deeply.
_DEEP_LIMIT = sys.getrecursionlimit()
sys.setrecursionlimit(_LIMIT)


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Within it, functions may call themselves as often as litert-converter asks for."""
    sys.setrecursionlimit(_DEEP_LIMIT)
    try:
        yield
    finally:
        sys.setrecursionlimit(_LIMIT)


PrefillModule = exportable_module.LiteRTExportableModuleForDecoderOnlyLMPrefillExternalEmbedder
DecodeModule = exportable_module.LiteRTExportableModuleForDecoderOnlyLMGenerateExternalEmbedder
AudioEncoderModule = audio_exportable.LiteRTExportableModuleForGemma4AudioEncoder
AudioAdapterModule = audio_exportable.LiteRTExportableModuleForGemma4AudioAdapter
VisionAdapterModule = vision_exportable.LiteRTExportableModuleForGemma4VisionAdapter
VisionEncoderModule = vision_exportable.LiteRTExportableModuleForGemma4VisionEncoder

__all__ = (
    "AudioAdapterModule",
    "AudioEncoderModule",
    "Converter",
    "DecodeModule",
    "ExportTask",
    "ExportableModuleConfig",
    "PrefillModule",
    "VisionAdapterModule",
    "VisionEncoderModule",
    "arith",
    "deep_recursion",
    "get_patch_context",
    "init_params_on_meta",
    "ir",
    "lowerings",
    "optimization_barrier",
    "patch_builtin_tuple_for_export",
    "splat_attr",
    "stablehlo",
    "transposed_attention",
)
