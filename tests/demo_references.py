"""What is said in the demo sounds of models/tiny, and what it means."""

from __future__ import annotations

import json
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent / "models" / "tiny" / "demo"
REFERENCES: list[dict[str, str]] = json.loads((DEMO / "references.json").read_text(encoding="utf-8"))
"""The first is English."""
BY_LANGUAGE = {reference["source"]: reference for reference in REFERENCES}
"""By the language that is spoken."""
