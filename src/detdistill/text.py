"""Text files as tools write them: with or without a byte-order mark, UTF-8 or UTF-16, any kind of line end."""

import codecs
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(content: bytes) -> str:
    """The text of a file's bytes, without a byte-order mark.

    A file that begins with a mark is UTF-8 or UTF-16, as the mark says. Without a mark it is UTF-16 if every second of
    its first bytes is 0, and otherwise UTF-8. Raises UnicodeDecodeError if the bytes are none of these.
    """
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    start = content[:64]
    if len(start) >= 4 and not any(start[1::2]):
        return content.decode("utf-16-le")
    if len(start) >= 4 and not any(start[::2]):
        return content.decode("utf-16-be")
    return content.decode("utf-8")


def read_text(path: Path) -> str:
    """The text of a file; see `decode`. Raises OSError if the file can't be read, and UnicodeDecodeError."""
    return decode(path.read_bytes())


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, ended by LF, CR LF or CR, without spaces at both ends. Empty lines are left out.

    Bytes that are not text become the replacement character, because a list of names can still be read around them.
    Raises OSError if the file can't be read.
    """
    content = path.read_bytes()
    try:
        text = decode(content)
    except UnicodeDecodeError:
        text = content.decode("utf-8", errors="replace")
    # str.splitlines would also split at characters such as U+2028, which a file name may contain.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]
