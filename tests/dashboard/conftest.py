"""Debian's Chromium, driven by Playwright; where it is missing, the tests that need it say so and skip."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Visit:
    """A page, and everything it complained of or asked for."""

    page: object
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # Containers lack the user namespaces of Chromium's sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a site from the file system; fail if it complains or asks anybody for anything."""

    @contextmanager
    def opened(site: Path, fragment: str = "", **options) -> Iterator[Visit]:
        context = chromium.new_context(viewport={"width": 1366, "height": 820}, **options)
        page = context.new_page()
        seen = Visit(page)
        page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("requestfailed", lambda request: seen.complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(f"{site.as_uri()}/index.html#{fragment}")
        yield seen
        context.close()
        assert seen.complaints == []
        away = [url for url in seen.requests if not url.startswith(("file://", "data:", "blob:"))]
        assert away == []

    return opened
