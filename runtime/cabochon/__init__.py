"""cabochon runs converted Gemma 4 E2B and E4B models: speech in, transcript and translation out, without torch.

model = cabochon.load("package")
for piece in model.translate("hello.wav", source="English", target="German"):
    print(piece, end="", flush=True)
"""

from cabochon.answer import Answer, Statistics, Translation
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

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AudioError",
    "CabochonError",
    "ImageError",
    "Message",
    "MissingDependencyError",
    "Model",
    "PackageError",
    "RequestError",
    "SamplingSettings",
    "SightSettings",
    "Statistics",
    "Translation",
    "load",
]
