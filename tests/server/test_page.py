"""The page in a real browser: search, filter, browse, add, remove; by keyboard; on a phone; with keys; offline."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.server.process import started, until_it_answers
from tests.server.service import SECRETS, bands, bearer, encoded, png

CHROMIUM = os.environ.get("FMCNET_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = os.environ.get("FMCNET_SCREENSHOTS")
"""A folder: screenshots of the page are left there."""
PATIENCE_MS = 300_000
NOT_ASCII = "A key has only ASCII letters, digits and signs. Copy it again, without hidden characters."

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
        document.querySelector("form:not([hidden]) .drop").dispatchEvent(
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
            "source": [f"crops/{seed}.png" for seed in range(30)],
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


def isolated(name):
    return f"\u2066{name}\u2069"


def shot(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def drop(page, seed, name="night.png", grey=False):
    image = bands(seed, (64, 128))
    data = encoded(image.convert("L") if grey else image)
    page.evaluate(DROP, [base64.b64encode(data).decode(), name])


def choose(page, form, modality):
    page.locator(f"#{form} label", has=page.locator(f"input[value={modality}]")).click()


def hits(page):
    return page.locator("#hits .hit").evaluate_all("(items) => items.map((item) => item.dataset.id)")


def overlap(page, *selectors):
    first, second = (page.locator(one).bounding_box() for one in selectors)
    return first["y"] < second["y"] + second["height"] and second["y"] < first["y"] + first["height"]


def found(page):
    expect(page.locator("body:not(.busy) #hits .hit").first).to_be_visible()
    shown = page.locator("#hits .hit").count()
    expect(page.locator("#hits img:not([hidden])")).to_have_count(shown)


def test_drop_filter_page_track_and_remove(browser, address):
    page, wrong = opened(browser, address, 1280, 900)
    shot(page, "desktop-empty")
    assert page.locator("#go").is_disabled()
    drop(page, 7)
    choose(page, "ask", "infrared")
    page.locator("#go").click()
    found(page)
    assert hits(page)[0] == "crop-07"
    assert page.locator("#page-of").inner_text() == "Page 1 of 3"
    assert "%" in page.locator("#hits .percent").first.inner_text()
    assert page.locator("#hits .camera").first.inner_text() == "gate"
    assert page.locator("#hits .file-name").first.inner_text() == "7.png"
    assert page.locator("#hits .of-track").first.inner_text() == "walk 7"
    assert not page.locator("#hits .id").first.is_visible()
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
    page.locator("#clear").scroll_into_view_if_needed()
    assert not overlap(page, "#go", "#clear")
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
    assert page.locator("#track-hits .hit").evaluate_all("(all) => all.map((one) => one.dataset.id)") == [
        "crop-07", "crop-17", "crop-27",
    ]  # fmt: skip
    expect(page.locator("#track-hits img:not([hidden])")).to_have_count(3)
    shot(page, "desktop-track")
    page.locator("#track-close").click()

    page.locator("#hits .more summary").first.click()
    assert page.locator("#hits .id").first.inner_text() == "crop-07"
    page.locator("#hits .remove").first.click()
    expect(page.locator("#remove-title")).to_have_text("Remove this crop?")
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


def test_no_modality_is_assumed_and_colours_that_contradict_it_are_told(browser, address):
    page, wrong = opened(browser, address, 1280, 900)
    hint = page.locator("#modality-hint")
    assert page.locator("#ask input[name=modality]:checked").count() == 0
    drop(page, 7)
    page.locator("#go").click()
    expect(hint).to_have_text("Choose first: infrared or visible light.")
    assert page.evaluate("document.activeElement.name") == "modality"
    assert hits(page) == []
    choose(page, "ask", "infrared")
    expect(hint).to_have_text("The image has colours. Infrared images are grey. Check what you chose.")
    choose(page, "ask", "visible")
    expect(hint).to_have_text("")
    drop(page, 8, grey=True)
    expect(hint).to_contain_text("1 of 2 images has no colours.")
    choose(page, "ask", "infrared")
    expect(hint).to_contain_text("1 of 2 images has colours.")
    assert wrong == []
    page.context.close()


def test_no_match_in_plain_words_and_filters_close_on_a_phone(browser, address):
    page, wrong = opened(browser, address, 390, 844)
    drop(page, 999)
    choose(page, "ask", "infrared")
    page.locator("#filters summary").click()
    page.locator("#least").fill("99")
    page.locator("#go").click()
    expect(page.locator("#status")).to_contain_text("No match: none of")
    assert page.locator("#status").inner_text().endswith("reaches the least probability of 99 %.")
    assert not page.locator("#filters").evaluate("(box) => box.open")
    assert page.evaluate("getComputedStyle(document.getElementById('ask')).position") == "static"
    assert wrong == []
    page.context.close()


@pytest.fixture
def crowd(address):
    """Ten more crops of one track, at two cameras on two days, which the test may remove."""
    sent = {
        "modality": "visible",
        "id": [f"extra-{seed}" for seed in range(10)],
        "camera": ["roof", "cellar"] * 5,
        "track": "long walk",
        "time": [f"2026-05-0{1 + seed % 2}T10:{seed:02d}:00Z" for seed in range(10)],
    }
    crops = [("images", (f"extra {seed}.png", png(200 + seed, (64, 128)))) for seed in range(10)]
    reply = httpx.post(f"{address}/v1/entries", files=crops, data=sent, timeout=300)
    assert reply.status_code == 201, reply.text
    yield sent["id"]
    left = httpx.get(f"{address}/v1/entries", params={"track": "long walk"}).json()["total"]
    httpx.delete(f"{address}/v1/entries", params={"track": "long walk", "expect": left})


def left_of(address, track="long walk"):
    reply = httpx.get(f"{address}/v1/entries", params={"track": track})
    return [one["id"] for one in reply.json()["entries"]]


def test_browse_by_camera_and_day_then_remove_several_and_a_track(browser, address, crowd):
    page, wrong = opened(browser, address, 1280, 900)
    page.locator("nav a", has_text="Browse").click()
    expect(page.locator("#days-about")).to_contain_text("4 cameras")
    roof = page.locator("#days details", has_text="roof")
    assert roof.locator("summary .count").inner_text() == "5"
    roof.locator("summary").click()
    assert roof.locator("button").all_inner_texts() == ["1 May 2026\n5"]
    roof.locator("button").click()
    expect(page.locator("#status")).to_have_text(
        f"1 May 2026, {isolated('roof')}: 5 crops, in the order of their adding."
    )
    assert hits(page) == [f"extra-{seed}" for seed in (0, 2, 4, 6, 8)]
    shot(page, "desktop-browse")

    page.locator("#hits .pick input").nth(1).focus()
    page.keyboard.press("Space")
    page.locator("#hits .pick input").nth(3).check()
    assert page.locator(".picked").first.inner_text() == "2 selected"
    page.locator(".bulk button").first.click()
    expect(page.locator("#remove-title")).to_have_text("Remove 2 crops?")
    page.keyboard.press("Escape")
    assert len(left_of(address)) == 10
    page.locator(".bulk button").first.click()
    page.locator("#remove-yes").click()
    expect(page.locator("#status")).to_have_text("2 crops are removed.")
    assert hits(page) == ["extra-0", "extra-4", "extra-8"]
    assert left_of(address) == [f"extra-{seed}" for seed in (0, 1, 3, 4, 5, 7, 8, 9)]
    expect(roof.locator("summary .count")).to_have_text("3")

    page.locator("#hits .track").first.click()
    expect(page.locator("#track-hits .hit")).to_have_count(8)
    page.locator("#track-remove").click()
    expect(page.locator("#remove-title")).to_have_text("Remove 8 crops?")
    expect(page.locator("#remove-note")).to_have_text(
        f"These are all crops of track {isolated('long walk')}. Cameras: {isolated('cellar')}, {isolated('roof')}. "
        "2 days."
    )
    shot(page, "desktop-remove-track")
    page.locator("#remove-yes").click()
    expect(page.locator("#status")).to_have_text("8 crops are removed.")
    expect(page.locator("#hits .hit")).to_have_count(0)
    assert left_of(address) == []
    assert wrong == []
    page.context.close()


def test_right_to_left_names_do_not_reorder_the_numbers_beside_them(browser, tmp_path):
    """Before, 12 crops of the camera were shown as 12 :7 and its name."""
    camera, track, name = (
        "\u05e9\u05e2\u05e8 7",
        "\u05de\u05e1\u05dc\u05d5\u05dc 9",
        "\u05d0\u05d3\u05dd 3.png",
    )
    with started(tmp_path) as (_, address):
        until_it_answers(address)
        sent = {"modality": "visible", "id": ["a", "b"], "camera": camera, "track": track, "source": name}
        crops = [("images", ("a.png", png(seed, (64, 128)))) for seed in range(2)]
        httpx.post(f"{address}/v1/entries", files=crops, data=sent, timeout=300).raise_for_status()
        page, _ = opened(browser, address, 1280, 900)
        page.locator("nav a", has_text="Browse").click()
        page.locator("#days button", has_text="All crops").click()
        page.locator("#hits .track").first.click()
        expect(page.locator("#track-title")).to_have_text(f"Track {isolated(track)}")
        expect(page.locator("#track-about")).to_have_text(f"2 crops by time. Camera: {isolated(camera)}.")
        page.locator("#track-remove").click()
        expect(page.locator("#remove-note")).to_contain_text(
            f"all crops of track {isolated(track)}. Camera: {isolated(camera)}. 1 day."
        )
        facts = f"{isolated(name)}, camera {isolated(camera)}, time unknown"
        expect(page.locator("#remove-what li > span").first).to_have_text(facts)
        shot(page, "right-to-left")
        page.context.close()


def test_what_changed_after_the_count_is_not_removed(browser, address, crowd):
    page, _ = opened(browser, address, 1280, 900)
    page.locator("nav a", has_text="Browse").click()
    page.locator("#days details", has_text="cellar").locator("summary").click()
    page.locator("#days details", has_text="cellar").locator("button").click()
    expect(page.locator("#hits .hit")).to_have_count(5)
    page.locator(".bulk input").first.check()
    page.locator(".bulk button").first.click()
    expect(page.locator("#remove-title")).to_have_text("Remove 5 crops?")
    httpx.delete(f"{address}/v1/entries/extra-1")
    page.locator("#remove-yes").click()
    expect(page.locator("#status")).to_contain_text("0 crops are removed. The gallery has changed")
    assert len(left_of(address)) == 9
    page.context.close()


def test_dropped_crops_are_added_each_with_its_result(browser, address):
    page, wrong = opened(browser, address, 390, 844)
    page.locator("nav a", has_text="Add").click()
    drop(page, 301, "one.png")
    drop(page, 302, "two.png")
    page.evaluate(DROP, [base64.b64encode(b"no image").decode(), "broken.png"])
    page.locator("#add-go").click()
    expect(page.locator("#add-hint")).to_contain_text("Choose first")
    choose(page, "add", "visible")
    page.locator("#add-camera").fill("lift")
    page.locator("#add-track").fill("dropped")
    page.locator("#add-time").fill("2026-05-01T10:00:00")
    assert page.locator("#add-go").inner_text() == "Add 3 crops"
    assert page.locator("#add-files img").count() == 3
    page.locator("#add-go").click()
    expect(page.locator("#status")).to_have_text("2 crops added, 1 not added.")
    said = page.locator("#add-files li span:last-child").all_inner_texts()
    assert said[:2] == ["added", "added"]
    assert "is no image" in said[2]
    entries = httpx.get(f"{address}/v1/entries", params={"track": "dropped"}).json()["entries"]
    assert [(one["camera"], one["source"], one["time"]) for one in entries] == [
        ("lift", "upload:one.png", "2026-05-01T10:00:00Z"),
        ("lift", "upload:two.png", "2026-05-01T10:00:00Z"),
    ]
    page.locator("#add-clear").click()
    drop(page, 301, "one.png")
    page.locator("#add-go").click()
    expect(page.locator("#status")).to_have_text("0 crops added, 1 in the gallery already.")
    shot(page, "phone-add")
    assert [text for text in wrong if "422" not in text] == []
    page.context.close()


def test_keys_that_are_wrong_or_may_only_add(browser, tmp_path_factory):
    with started(tmp_path_factory.mktemp("keys"), keys=SECRETS) as (_, address):
        until_it_answers(address)
        page = browser.new_page()
        page.goto(address)
        about = page.locator("#about")
        expect(about).to_have_text("An API key is needed.")
        for secret, said, views in (
            ("wrong", "This API key is not known.", None),
            ("schl\u00fcssel-\u043a\u043b\u044e\u0447", NOT_ASCII, None),
            (f"{SECRETS['read']}\u200b", NOT_ASCII, None),
            (SECRETS["read"], f"0 crops to search. Key: {isolated('read')}.", ["Search", "Browse"]),
            (SECRETS["write"], "This key may add crops only. A search needs the scope read.", ["Add"]),
            (SECRETS["admin"], f"0 crops to search. Key: {isolated('admin')}.", ["Search", "Browse", "Add"]),
        ):
            if page.locator("#key-change").is_visible():
                page.locator("#key-change").click()
            page.locator("#key").fill(secret)
            page.keyboard.press("Enter")
            expect(about).to_have_text(said)
            if views:
                expect(page.locator("header nav a:visible")).to_have_text(views)
                assert page.evaluate("document.activeElement.closest('form').className") == "panel"
            if views == ["Add"]:
                drop(page, 1, "one.png")
                choose(page, "add", "visible")
                page.locator("#add-go").click()
                expect(page.locator("#status")).to_have_text("1 crop added.")
                httpx.delete(
                    f"{address}/v1/entries",
                    params={"modality": "visible", "expect": 1},
                    headers=bearer("admin"),
                )
        page.close()


def test_by_keyboard_and_paste_on_a_phone(browser, address):
    page, wrong = opened(browser, address, 390, 844)
    shot(page, "phone-empty")
    page.evaluate(PASTE, [base64.b64encode(png(12, (64, 128))).decode()])
    page.locator("#ask input[name=modality]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#ask input[value=visible]").is_checked()
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
    page.locator("#hits .more summary").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#remove-box")).to_be_visible()
    assert page.evaluate("document.activeElement.value") == "no"  # the harmless one
    page.keyboard.press("Escape")
    assert "remove" in page.evaluate("document.activeElement.className")
    assert httpx.get(f"{address}/v1/entries/crop-12").status_code == 200
    page.locator("header nav a", has_text="Add").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#add-go")).to_be_visible()
    page.wait_for_function("scrollY === 0")  # the views stay in sight
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
    choose(page, "ask", "visible")
    page.locator("#go").click()
    expect(page.locator("#status.bad")).to_contain_text("is no image")
    page.context.set_offline(True)
    page.locator("#go").click()
    expect(page.locator("#status.bad")).to_contain_text("does not answer")
    page.context.close()


def test_a_file_that_is_gone_or_changed_is_named_and_the_others_are_added(browser, address, tmp_path):
    """The request failed, and the page said that the service does not answer."""
    gone, changed, whole = (tmp_path / f"{name}.png" for name in ("gone", "changed", "whole"))
    for seed, path in enumerate((gone, changed, whole)):
        path.write_bytes(png(700 + seed, (64, 128)))
    page, _ = opened(browser, address, 800, 600)
    page.locator("#file").set_input_files(gone)
    choose(page, "ask", "visible")
    page.locator("nav a", has_text="Add").click()
    page.locator("#add-file").set_input_files([changed, whole])
    choose(page, "add", "visible")
    page.locator("#add-track").fill("gone")
    gone.unlink()
    changed.write_bytes(b"other")
    page.locator("#add-go").click()
    expect(page.locator("#status")).to_have_text("1 crop added, 1 not added.")
    why = "cannot be read. It was changed or removed after you chose it. Choose it again."
    expect(page.locator("#add-files li").first).to_contain_text(f"{isolated('changed.png')} {why}")
    page.locator("nav a", has_text="Search").click()
    page.locator("#go").click()
    expect(page.locator("#status.bad")).to_have_text(f"{isolated('gone.png')} {why}")
    page.context.close()
    httpx.delete(f"{address}/v1/entries", params={"track": "gone", "expect": 1}).raise_for_status()


def test_an_answer_is_of_what_was_asked_and_stays_in_its_view(browser, address):
    page, _ = opened(browser, address, 1000, 800)
    drop(page, 900)
    choose(page, "ask", "infrared")
    page.route("**/v1/search", lambda route: (page.wait_for_timeout(700), route.continue_()))
    least = "(value) => { const at = document.getElementById('least'); at.value = value; }"
    page.evaluate(least, 99)
    page.locator("#go").click()
    page.evaluate(least, 5)
    expect(page.locator("#status")).to_contain_text("reaches the least probability of 99 %")
    page.evaluate(least, 0)
    page.locator("#go").click()
    page.locator("nav a[href='#browse']").click()
    page.locator("#days button", has_text="All crops").click()
    page.wait_for_timeout(1500)
    expect(page.locator("#status")).not_to_contain_text("nearest")
    page.go_back()
    expect(page.locator("body[data-view=search]")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("nearest crops")
    page.context.close()


@pytest.mark.parametrize(
    ("local", "told"),
    [
        ("2026-03-08T02:30", "2026-03-08 02:30 does not exist where the clocks change"),
        ("2026-11-01T01:30", "2026-11-01 01:30 occurs twice"),
    ],
)
def test_a_time_that_the_clocks_skip_or_show_twice_is_refused(browser, address, local, told):
    context = browser.new_context(timezone_id="America/New_York")
    page = context.new_page()
    page.goto(f"{address}/#add")
    expect(page.locator("#about")).to_contain_text("to search")
    drop(page, 901)
    choose(page, "add", "visible")
    page.locator("#add-time").fill(local)
    page.locator("#add button[type=submit]").click()
    expect(page.locator("#status.bad")).to_contain_text(told)
    context.close()
