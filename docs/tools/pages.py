"""MkDocs hook: pages that live beside the code join the site, with links that work there and in the repository.

A README stays where its readers look for it and is not copied into ``docs/``; its links are relative to its own place.
While the site is built, each such file becomes a page (:data:`PAGES`), and every relative link of every page is
resolved against the place of its source file: to another page, to an image, or, for a file that the site does not hold,
to the plain text of the link. The hook also insists that the reference pages list every public name.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]

# Files of the repository and the pages of the site that show them.
PAGES = {
    "README.md": "start.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "deepatlas_ops/README.md": "kernels.md",
    "deepatlas/pretrained/headneck/README.md": "headneck.md",
}
IMAGES = (".png", ".svg", ".jpg")
# Packages whose public names a page of the reference must list.
REFERENCE = {
    "deepatlas": "docs/api.md",
    "deepatlas_ops": "docs/ops.md",
    "deepatlas_ops.array": "docs/array.md",
}

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_SOURCES = {page: source for source, page in PAGES.items()}


def on_pre_build(config) -> None:
    """Refuse to build a reference that lacks a public name."""
    for package, page in REFERENCE.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        listed = {
            path.rpartition(".")[2]
            for path in re.findall(rf"^::: {re.escape(package)}\.([\w.]+)", text, re.M)
        }
        if missing := sorted(_public_names(package) - listed):
            raise PluginError(
                f"{page} lacks {', '.join(missing)} of {package}.__all__; add ::: {package}.NAME"
            )


def on_files(files: Files, config) -> Files:
    """Add the pages and their images."""
    for source, page in PAGES.items():
        files.append(_file(page, ROOT / source, config))
    for source in PAGES:
        for bang, _, target in _LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            path = _repository_path(source, target)
            if bang and (ROOT / path).is_file() and not path.startswith("docs/"):
                files.append(_file(path, ROOT / path, config))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Resolve the relative links of a page against its source file."""
    source = _SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def replace(match: re.Match) -> str:
        bang, text, target = match.groups()
        path = _repository_path(source, target)
        if re.match(r"[a-z]+:|#|/", target) or not (ROOT / path).exists():
            return match[0]
        anchor = target.partition("#")[2]
        uri = PAGES.get(path) or path.removeprefix("docs/")
        if path not in PAGES and not path.startswith("docs/") and not path.endswith(IMAGES):
            return text
        here = posixpath.dirname(page.file.src_uri)
        return f"{bang}[{text}]({posixpath.relpath(uri, here)}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(replace, markdown)


def _file(uri: str, path: Path, config) -> File:
    return File.generated(config, uri, abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)


def _repository_path(source: str, target: str) -> str:
    """Path from the root of the repository of a link target in the file ``source``."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target.partition("#")[0]))


def _public_names(package: str) -> set[str]:
    """``__all__`` of a package, without importing it."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {name for name in ast.literal_eval(node.value) if not name.startswith("__")}
    raise PluginError(f"{package}/__init__.py: no __all__ as a literal list")
