"""A page in Debian's Chromium that may talk to this machine alone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or ""
OWN = {"file", "data", "blob"}
LOOPBACK = {"127.0.0.1", "localhost"}
PATIENCE = 180  # seconds that anything may take on a busy machine


def is_own(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in OWN or parts.hostname in LOOPBACK


@contextmanager
def watched_page(width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A page of Playwright; afterwards nothing may have been asked of another machine, and there
    may be no error in the console. Skips where there is no Chromium or no Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium")
    outside: list[str] = []
    errors: list[str] = []
    with playwright.sync_playwright() as runner:
        # The sandbox needs user namespaces, which containers may not give.
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda asked: is_own(asked.url) or outside.append(asked.url))
        page.on("console", lambda told: told.type == "error" and errors.append(told.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert not outside
    assert not errors
