"""Hooks of MkDocs: pages of the site that are no files of docs/.

They are files of the root, with their links rewritten, and a page of the docstrings of each module.
"""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""The page of the site that each file of the repository's root becomes."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of OUTSIDE, and those of the docstrings."""
    root = Path(config.config_file_path).parent
    for page, source in OUTSIDE.items():
        content = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=for_site(content)))
    files.append(File.generated(config, "license.txt", content=(root / "LICENSE").read_text(encoding="utf-8")))
    sys.path.insert(0, config.docs_dir)
    from generate.api import site_pages

    for page, content in site_pages():
        files.append(File.generated(config, page, content=content))
    return files


def for_site(content: str) -> str:
    """The text of a file of the root with its links as the site needs them: `docs/guide.md` becomes `guide.md`."""
    pages = {source: page for page, source in OUTSIDE.items()} | {"LICENSE": "license.txt"}

    def target(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        path = pages.get(path, path.removeprefix("docs/"))
        return f"]({path}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", target, content)
