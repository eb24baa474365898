"""Export of trained detectors to the formats of other libraries.

This module imports no export code, because the command line reads `Format` from it.
"""

from typing import Literal

Format = Literal["transformers"]
