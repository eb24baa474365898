"""Hooks of MkDocs: pages of the site that are files outside of docs/, with their links rewritten."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""The page of the site that each file of the repository's root becomes."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of OUTSIDE."""
    root = Path(config.config_file_path).parent
    for page, source in OUTSIDE.items():
        content = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=for_site(content, config.repo_url)))
    files.append(File.generated(config, "license.txt", content=(root / "LICENSE").read_text(encoding="utf-8")))
    return files


def for_site(content: str, repository: str | None = None) -> str:
    """The text of a file of the root with its links as the site needs them: `docs/guide.md` becomes `guide.md`."""
    pages = {source: page for page, source in OUTSIDE.items()} | {"LICENSE": "license.txt"}

    def target(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        path = pages.get(path, path.removeprefix("docs/"))
        return f"]({path}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", target, content)
