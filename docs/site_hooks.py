# SPDX-License-Identifier: BSD-3-Clause
"""Lets pages link to files of the repository outside of `docs/`, as they do on GitHub.

A linked file is copied to `repository/` of the site, a linked folder becomes a page that lists its files.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).parents[1]
LINK = re.compile(r'(\]\(|src=")(?!https?:|#|mailto:)([^)"#\s]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside of `docs/` that pages link to, and those that these link to."""
    pages = [file for file in files.documentation_pages() if not file.generated_by]
    linked = {path for file in pages for path in linked_paths(f"docs/{file.src_uri}", file.content_string)}
    added: set[str] = set()
    while new := {path for path in linked if not path.startswith("docs/")} - added:
        for path in sorted(new):
            files.append(site_file(path, config))
            if is_page(path):
                linked |= set(linked_paths(repository_path(site_path(path)), content_of(path)))
        added |= new
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at the copies."""
    source = repository_path(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        path = resolve(source, match[2])
        return match[1] + posixpath.relpath(site_path(path), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(replace, markdown)


def linked_paths(source: str, markdown: str) -> list[str]:
    """Returns the paths, from the root of the repository, that a file links to."""
    return [resolve(source, match[2]) for match in LINK.finditer(markdown)]


def resolve(source: str, link: str) -> str:
    """Returns the path, from the root of the repository, of a link in a file."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def is_page(path: str) -> bool:
    """Whether a path becomes a page of the site."""
    return path.endswith(".md") or (ROOT / path).is_dir()


def site_path(path: str) -> str:
    """Maps a path from the root of the repository to one of the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}/README.md" if (ROOT / path).is_dir() else f"repository/{path}"


def repository_path(src_uri: str) -> str:
    """Maps a path of the site to one from the root of the repository."""
    if not src_uri.startswith("repository/"):
        return f"docs/{src_uri}"
    return src_uri.removeprefix("repository/")


def content_of(path: str) -> str:
    """Returns the Markdown of a file, or a list of the files of a folder."""
    if not (ROOT / path).is_dir():
        return (ROOT / path).read_text()
    readme = ROOT / path / "README.md"
    names = sorted(entry.name for entry in (ROOT / path).iterdir() if entry.is_file() and entry != readme)
    lines = [readme.read_text()] if readme.is_file() else [f"# {path}\n"]
    return "\n".join([*lines, "", *(f"- [{name}]({name})" for name in names), ""])


def site_file(path: str, config: MkDocsConfig) -> File:
    """Makes a file of the site from one of the repository."""
    if is_page(path):
        return File.generated(config, site_path(path), content=content_of(path))
    return File.generated(config, site_path(path), abs_src_path=str(ROOT / path))
