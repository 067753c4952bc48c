"""cabochon runs converted Gemma 4 E2B and E4B models: speech in, transcript and translation out, without torch.

model = cabochon.load("package")
for piece in model.translate("hello.wav", source="English", target="German"):
    print(piece, end="", flush=True)
"""

from cabochon.answer import Answer, Statistics, Translation
from cabochon.constrained_decoding import JSON_OBJECT, JsonSchema, Regex
from cabochon.errors import (
    AudioError,
    CabochonError,
    ImageError,
    MissingDependencyError,
    PackageError,
    RequestError,
)
from cabochon.pipeline import Model, load
from cabochon.prompt import Message
from cabochon.sampling import SamplingSettings
from cabochon.sight import SightSettings
from cabochon.tools import Tool, ToolCall

__version__ = "0.1.0"

__all__ = [
    "JSON_OBJECT",
    "Answer",
    "AudioError",
    "CabochonError",
    "ImageError",
    "JsonSchema",
    "Message",
    "MissingDependencyError",
    "Model",
    "PackageError",
    "Regex",
    "RequestError",
    "SamplingSettings",
    "SightSettings",
    "Statistics",
    "Tool",
    "ToolCall",
    "Translation",
    "load",
]
