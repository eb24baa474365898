"""Trained detectors in the formats of others. Imports nothing, as the command line reads the formats here."""

from typing import Literal

Format = Literal["transformers"]
