"""The documentation site: it builds without a warning, asks nobody for anything, and can be searched from a folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.core.shards import ROOT

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr and "ERROR" not in done.stderr, done.stderr
    return folder


def test_pages_ask_nobody_for_scripts_styles_or_pictures(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 16
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*\shref=\"?(?:https?:)?//")
    assert [page.name for page in pages if loaded.search(page.read_text())] == []


def test_no_code_of_the_site_is_on_it(site: Path) -> None:
    assert [path for path in site.rglob("*") if path.suffix == ".py" or path.name == "__pycache__"] == []


def test_links_out_of_the_docs_hold_on_the_site_too(site: Path) -> None:
    assert 'href="reference/results.html"' in (site / "scaling.html").read_text()
    assert "(<code>models/tiny-uno/README.md</code>)" in (site / "how-to/draw.html").read_text()


def test_the_picture_is_in_the_page_where_it_takes_the_theme(site: Path) -> None:
    for page in ("index.html", "concepts/data.html"):
        assert '<svg class="way"' in (site / page).read_text()


@pytest.mark.browser
def test_it_can_be_searched_without_a_server(site: Path) -> None:
    if not CHROMIUM.exists():
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(f"{CHROMIUM} is missing")
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    asked = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site.as_uri()}/index.html")
        page.locator("input.md-search__input").press_sequentially("min_cosine_across")  # searches on a key going up
        page.wait_for_selector('.md-search-result a[href*="reference/params.html?h=min_cosine_across#identify"]')
        found = page.locator(".md-search-result__item a").first.get_attribute("href")
        assert found and "reference/params" in found
        browser.close()
    assert [url for url in asked if url.startswith("http")] == []
