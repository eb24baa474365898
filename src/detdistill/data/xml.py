"""XML files as tools write them: any encoding, with or without a byte-order mark, blanks before the declaration."""

import re
from pathlib import Path
from xml.etree import ElementTree

from detdistill.data.faults import Faults
from detdistill.text import decode

DECLARED = re.compile(rb"""^\s*<\?xml[^>]*encoding=["']([A-Za-z0-9._-]+)["']""")
START = re.compile(r"<([A-Za-z_][\w.-]*)")  # comments, the declaration and the document type begin with <! or <?
PROBED = 4096  # bytes in which the first element is looked for


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of a file. Raises OSError if it can't be read, and ValueError with the reason if it isn't XML.

    A byte-order mark counts more than the declared encoding, which counts more than UTF-8.
    """
    text = _text(path.read_bytes())
    try:
        return ElementTree.fromstring(text.lstrip())  # the declaration must be at the very beginning
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None


def _text(content: bytes) -> str:
    """The text of a file. Raises UnicodeDecodeError.

    The declared encoding counts, unless the bytes have a mark, are UTF-16, or contradict it.
    """
    declared = DECLARED.match(content)  # never of UTF-16, nor after a mark
    try:
        return content.decode(declared[1].decode()) if declared is not None else decode(content)
    except (UnicodeDecodeError, LookupError):
        return decode(content)


def load_xml(path: Path, faults: Faults, remedy: str) -> ElementTree.Element | None:
    """The root element of an annotation file, or None if it can't be read. remedy: for a file that can't be opened."""
    try:
        return read_xml(path)
    except OSError as error:
        faults.reject(str(path), f"can't read the annotations ({error.strerror})", remedy)
    except ValueError as error:
        faults.reject(str(path), f"the file is not XML ({error})", "export the annotations again")
    return None


def first_element(path: Path) -> str:
    """The name of a file's root element, from its beginning, or an empty text if the file has none."""
    try:
        with path.open("rb") as file:
            content = file.read(PROBED)
        text = decode(content)
    except OSError:
        return ""
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    found = START.search(text)
    return found[1] if found else ""
