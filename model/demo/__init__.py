"""The demo corpus: generated scenes, their captions and their clips; and the description of the shipped model."""

from pathlib import Path

DEMO_DESCRIPTION = Path(__file__).parent.parent / "assets" / "demo.json"
