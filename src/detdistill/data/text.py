"""Text files of any encoding and with any line ends, for the readers of data sets."""

from detdistill.text import decode, read_lines, read_text

__all__ = ["decode", "read_lines", "read_text"]
