"""A headless Chromium for tests of pages: Debian's or another that is installed, driven by Playwright.

It notes all that a page says on its console, and all that it asks for.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str:
    """The browser's path. Without one the test fails in CI and is skipped elsewhere, as tests on real data are."""
    path = os.environ.get("ATENT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path:
        return path
    reason = f"there is no {', '.join(NAMES)} on the path; install chromium"
    if os.environ.get("ATENT_REQUIRE_DATA"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Heard:
    """What went on in a browser: messages of the console and uncaught errors, and the address of every request."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser without a network."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # CI runs as root, where Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def page(browser: Any, path: Path, **options: Any) -> Iterator[tuple[Any, Heard]]:
    """`path` opened in a window of its own, with Playwright's options of a context: viewport, color_scheme, ..."""
    heard = Heard()
    context = browser.new_context(offline=True, **options)
    context.set_default_timeout(10_000)
    opened = context.new_page()
    opened.on("console", lambda message: heard.errors.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: heard.errors.append(str(error)))
    opened.on("request", lambda request: heard.requests.append(request.url))
    opened.goto(path.resolve().as_uri())
    yield opened, heard
    context.close()
