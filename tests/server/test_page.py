"""The page in a real browser: drop, filter, page through, open a track, remove; by keyboard; on a phone; offline."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.server.process import started, until_it_answers
from tests.server.service import png

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = os.environ.get("FMCNET_SCREENSHOTS")
"""A folder: pictures of the page are left there."""
PATIENCE_MS = 300_000

playwright = pytest.importorskip("playwright.sync_api", reason="pip install fmcnet[browser]")
expect = playwright.expect
expect.set_options(timeout=PATIENCE_MS)
pytestmark = [
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="apt-get install chromium"),
    pytest.mark.slow,
]

DROP = """([data, name]) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
    for (const kind of ["dragenter", "dragover", "drop"]) {
        document.getElementById("drop").dispatchEvent(
            new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }
}"""
PASTE = """([data]) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Thirty crops, ten tracks, two cameras, a day apart."""
    with started(tmp_path_factory.mktemp("page")) as (_, address):
        until_it_answers(address)
        data = {
            "modality": ["visible" if seed % 5 else "infrared" for seed in range(30)],
            "id": [f"crop-{seed:02d}" for seed in range(30)],
            "camera": ["gate" if seed % 2 else "hall" for seed in range(30)],
            "track": [f"walk {seed % 10}" for seed in range(30)],
            "time": [f"2026-03-{seed + 1:02d}T08:15:30Z" for seed in range(30)],
            "pid": [str(seed % 10) for seed in range(30)],
        }
        crops = [("images", (f"{seed}.png", png(seed, (64, 128)))) for seed in range(30)]
        reply = httpx.post(f"{address}/v1/entries", files=crops, data=data, timeout=300)
        assert reply.status_code == 201, reply.text
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield chromium
        chromium.close()


def opened(browser, address, width, height):
    """A page that may ask its own service only; (page, what it asked elsewhere or said was wrong)."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, timezone_id="UTC", locale="en-GB"
    )
    page, wrong = context.new_page(), []
    page.set_default_timeout(PATIENCE_MS)

    def check(route):
        if not route.request.url.startswith((address, "blob:")):
            wrong.append(route.request.url)
        route.continue_()

    page.route("**/*", check)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.goto(address)
    expect(page.locator("#about")).to_contain_text("to search")
    return page, wrong


def shot(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def drop(page, seed):
    page.evaluate(DROP, [base64.b64encode(png(seed, (64, 128))).decode(), "night.png"])


def hits(page):
    return page.locator("#hits .id").all_inner_texts()


def found(page):
    expect(page.locator("body:not(.busy) #hits .hit").first).to_be_visible()
    shown = page.locator("#hits .hit").count()
    expect(page.locator("#hits img:not([hidden])")).to_have_count(shown)


def test_drop_filter_page_track_and_remove(browser, address):
    page, wrong = opened(browser, address, 1280, 900)
    shot(page, "desktop-empty")
    assert page.locator("#go").is_disabled()
    drop(page, 7)
    page.locator("#go").click()
    found(page)
    assert hits(page)[0] == "crop-07"
    assert page.locator("#page-of").inner_text() == "Page 1 of 3"
    assert "%" in page.locator("#hits .percent").first.inner_text()
    assert page.locator("#hits .camera").first.inner_text() == "gate"
    assert "8 Mar 2026" in page.locator("#hits .time").first.inner_text()
    shot(page, "desktop-answer")

    first = hits(page)
    page.locator("#next").click()
    assert page.locator("#page-of").inner_text() == "Page 2 of 3"
    assert not set(first) & set(hits(page))
    said = page.locator("#status").inner_text()
    assert said.startswith("The 30 nearest crops")
    assert "Page\u00a02" in said
    page.locator("#back").click()
    assert hits(page) == first

    page.locator("#filters summary").click()
    page.locator("#camera-list label", has_text="hall").locator("input").check()
    page.locator("#since").fill("2026-03-10T00:00")
    page.locator("#until").fill("2026-03-20T00:00")
    assert page.locator("#filter-count").inner_text() == "(3 set)"
    assert page.locator("#zone").inner_text() == "Times are in the zone UTC."
    expect(page.locator("#go")).to_be_in_viewport(
        ratio=1
    )  # though the open filters are taller than the window
    page.locator("#go").click()
    expect(page.locator("#hits .hit")).to_have_count(5)
    assert set(page.locator("#hits .camera").all_inner_texts()) == {"hall"}
    found(page)
    shot(page, "desktop-filters")
    page.locator("#clear").click()
    page.locator("#go").click()
    expect(page.locator("#hits .hit")).to_have_count(12)

    page.locator("#hits .track").first.click()
    expect(page.locator("#track-hits .hit")).to_have_count(3)
    assert page.locator("#track-hits .id").all_inner_texts() == ["crop-07", "crop-17", "crop-27"]
    expect(page.locator("#track-hits img:not([hidden])")).to_have_count(3)
    shot(page, "desktop-track")
    page.locator("#track-close").click()

    page.locator("#hits .remove").first.click()
    shot(page, "desktop-remove")
    page.locator("#remove-box button[value=no]").click()
    assert httpx.get(f"{address}/v1/entries/crop-07").status_code == 200
    page.locator("#hits .remove").first.click()
    page.locator("#remove-box button[value=yes]").click()
    expect(page.locator("#status")).to_contain_text("removed")
    assert "crop-07" not in hits(page)
    assert httpx.get(f"{address}/v1/entries/crop-07").status_code == 404
    assert wrong == []
    page.context.close()


def test_by_keyboard_and_paste_on_a_phone(browser, address):
    page, wrong = opened(browser, address, 390, 844)
    shot(page, "phone-empty")
    page.evaluate(PASTE, [base64.b64encode(png(12, (64, 128))).decode()])
    page.locator("input[name=modality]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input[value=visible]").is_checked()
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "go":
            break
    assert page.evaluate("document.activeElement.id") == "go"
    page.keyboard.press("Enter")
    found(page)
    assert hits(page)[0] == "crop-12"
    assert page.evaluate("document.activeElement.id") == "answer"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "phone-answer")
    page.locator("#hits .remove").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.value") == "no"  # the harmless one
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "remove"
    assert httpx.get(f"{address}/v1/entries/crop-12").status_code == 200
    assert wrong == []
    page.context.close()


def test_everything_has_a_name_for_screen_readers(browser, address):
    page, _ = opened(browser, address, 800, 600)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, dialog, nav, section, img")]
            .filter((one) => !(one.labels?.length || one.getAttribute("aria-label")
                || one.getAttribute("aria-labelledby") || one.textContent.trim() || one.getAttribute("alt") !== null))
            .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("html").get_attribute("lang") == "en"
    page.context.close()


def test_bad_files_and_a_service_that_is_gone_are_told(browser, address):
    page, _ = opened(browser, address, 800, 600)
    page.evaluate(DROP, [base64.b64encode(b"no image").decode(), "broken.png"])
    page.locator("#go").click()
    expect(page.locator("#status.bad")).to_contain_text("is no image")
    page.context.set_offline(True)
    page.locator("#go").click()
    expect(page.locator("#status.bad")).to_contain_text("does not answer")
    page.context.close()
