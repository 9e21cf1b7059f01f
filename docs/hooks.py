"""What MkDocs does beside reading pages: the reference is written from the code, links out of docs/ are mended."""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file from wherever it was started

from docs.reference import commands, params, records, results, stages  # noqa: E402


def datasets() -> str:
    """datasets/README.md, with its links into docs/ as they lead from reference/."""
    return (ROOT / "datasets/README.md").read_text().replace("](../docs/", "](../")


PAGES = {
    "reference/datasets.md": datasets,
    "reference/params.md": params.page,
    "reference/records.md": records.page,
    "reference/commands.md": commands.page,
    "reference/stages.md": stages.page,
    "reference/results.md": results.page,
}
ELSEWHERE = {"bench/results": "reference/results.md", "datasets/README.md": "reference/datasets.md"}  # the site's own
PICTURE = re.compile(r'<p><img [^>]*src="(?P<path>[^"]*\.svg)"[^>]*></p>')
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>\.\.?/[^)#]*)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of the reference."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page() + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ hold in the repository; here they lead to where the site has the same, or name a file."""

    def mended(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link["target"]))
        if target.startswith("docs/"):
            return link[0]
        if not (ROOT / target).exists():
            raise ValueError(f"{page.file.src_uri}: {link['target']} is not there")
        if target in ELSEWHERE:
            here = posixpath.relpath(ELSEWHERE[target], posixpath.dirname(page.file.src_uri) or ".")
            return f"[{link['text']}]({here}{link['anchor'] or ''})"
        return f"{link['text']} (`{target}`)"

    return LINK.sub(mended, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """SVG pictures are put into the page, where they take the colours of its theme."""

    def inside(picture: re.Match[str]) -> str:
        return (ROOT / "docs" / posixpath.dirname(page.file.src_uri) / picture["path"]).read_text()

    return PICTURE.sub(inside, html)
