"""The leaderboard's pages, opened in headless Chromium from file:// without a network."""

import json
import re
import time
from urllib.parse import unquote, urlsplit

import pytest
import sample_cards
from browser import chromium, page
from sample_cards import card, claim

from atent_ext.leaderboard import site as board

PHONE = {"width": 390, "height": 844}
ATTACK = "\"'><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></title></style><b>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The files of a board of a dozen models in two tables."""
    folder = tmp_path_factory.mktemp("board")
    return board.build(sample_cards.write(folder / "cards", *sample_cards.dozen()), folder / "site")


def pages(files):
    return [file for file in files if file.suffix == ".html"]


def column(opened, table, number):
    """The values of a column of the visible rows, from top to bottom."""
    rows = opened.locator(f"#{table} tbody tr:visible")
    return [rows.nth(row).locator("th, td").nth(number).get_attribute("data-value") for row in range(rows.count())]


def head(opened, table, name):
    return opened.locator(f"#{table} thead").get_by_role("button", name=name, exact=True)


def names(opened):
    return opened.locator("tbody tr:visible .model > a").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_say_nothing_on_the_console_and_fetch_nothing(browser, site, scheme):
    assert len(pages(site)) == 13
    with page(browser, site[0], color_scheme=scheme) as (opened, heard):
        for file in pages(site):
            heard.requests.clear()
            opened.goto(file.as_uri())
            assert opened.locator("h1").is_visible()
            assert opened.get_by_role("button", name="Theme: system").is_visible()  # the script ran
            assert heard.errors == []
            assert heard.requests == [file.as_uri()]


def test_a_page_that_is_wrong_would_be_heard(browser, tmp_path):
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<script>console.log('said'); undefined_name;</script><img src='https://example.org/x.png'>")
    with page(browser, wrong) as (_, heard):
        assert any("said" in error for error in heard.errors)
        assert any("undefined_name" in error for error in heard.errors)
        assert "https://example.org/x.png" in heard.requests


def test_heads_sort_their_table_alone(browser, site):
    with page(browser, site[0]) as (opened, heard):
        other = column(opened, "table-2", 1)
        assert column(opened, "table-1", 0) == ["1", "2", "3", "4", "5", "6", "7"]
        for name, number in {"Clean": 2, "AutoAttack": 3, "Best known attack": 4, "Worst case": 5}.items():
            head(opened, "table-1", name).click()
            values = [float(value) for value in column(opened, "table-1", number)]
            assert values == sorted(values, reverse=True)
            assert len(set(values)) > 1
            head(opened, "table-1", name).click()
            assert [float(value) for value in column(opened, "table-1", number)] == sorted(values)
        for name, number in {"Model": 1, "Architecture": 6, "Extra data": 7}.items():
            head(opened, "table-1", name).click()
            values = column(opened, "table-1", number)
            assert values == sorted(values)
        assert column(opened, "table-2", 1) == other
        assert heard.errors == []


def test_what_is_missing_is_sorted_last(browser, tmp_path):
    def without(of):
        kept = tuple(result for result in of.report.results if result.kind != "autoattack")
        return of.model_copy(update={"report": of.report.model_copy(update={"results": kept})})

    cards = [without(card("without")), card("low", robust=0.2), card("high", robust=0.6)]
    files = board.build(sample_cards.write(tmp_path / "cards", *cards), tmp_path / "site")
    with page(browser, files[0]) as (opened, _):
        head(opened, "table-1", "AutoAttack").click()
        assert names(opened) == ["high", "low", "without"]
        head(opened, "table-1", "AutoAttack").click()
        assert names(opened) == ["low", "high", "without"]


def test_sorting_by_keyboard_is_announced(browser, site):
    with page(browser, site[0]) as (opened, _):
        opened.keyboard.press("Tab")
        assert opened.evaluate("document.activeElement.textContent") == "Skip to the content"
        assert opened.locator(".skip").evaluate("element => element.getBoundingClientRect().top") >= 0
        button = head(opened, "table-1", "Clean")
        button.focus()
        for key, direction in {"Enter": "descending", "Space": "ascending"}.items():
            opened.keyboard.press(key)
            sorted_by = opened.locator("#table-1 [aria-sort]")
            assert sorted_by.count() == 1
            assert (sorted_by.inner_text(), sorted_by.get_attribute("aria-sort")) == ("Clean", direction)
            assert opened.evaluate("document.activeElement.textContent") == "Clean"
        assert button.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"


def test_filters_leave_what_fits(browser, site):
    with page(browser, site[0]) as (opened, heard):
        count = opened.get_by_role("status")
        assert count.inner_text() == "12 of 12 models"
        opened.get_by_label("Find").fill("JAGATAP atent")
        assert names(opened) == ["resnet-18-atent", "mnist-linf-atent"]
        assert count.inner_text() == "2 of 12 models"
        opened.get_by_label("Table", exact=True).select_option(label="mnist, ℓ∞ ≤ 0.3")
        assert names(opened) == ["mnist-linf-atent"]
        opened.get_by_role("button", name="Reset").click()
        opened.get_by_text("12 of 12 models").wait_for()
        opened.get_by_label("Extra data").select_option("yes")
        assert names(opened) == ["wrn-34-10-more-data"]
        assert not opened.locator("#table-2").is_visible()
        opened.get_by_label("Warnings").select_option("yes")
        assert names(opened) == []
        assert opened.get_by_text("No model fits these filters.").is_visible()
        opened.get_by_label("Extra data").select_option("")
        assert "defence-by-rounding" in names(opened)
        assert "resnet-18-plain" not in names(opened)
        assert heard.errors == []


def test_every_control_has_a_name(browser, site):
    unnamed = """() => [...document.querySelectorAll("input, select, button, a, [role=group], img, svg[role=img]")]
        .filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label") || one.alt ||
            document.getElementById(one.getAttribute("aria-labelledby")))).map((one) => one.outerHTML)"""
    for file in site[:2]:
        with page(browser, file) as (opened, _):
            assert opened.evaluate(unnamed) == []
            ids = opened.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
            assert len(ids) == len(set(ids))


def test_every_link_leads_somewhere(browser, site):
    outside, script = (
        0,
        "[...document.links].map((one) => [one.href, one.getAttribute('href').startsWith('#'), one.rel])",
    )
    with page(browser, site[0]) as (opened, _):
        for file in pages(site):
            opened.goto(file.as_uri())
            links = opened.evaluate(script)
            assert links
            for address, inner, relation in links:
                parts = urlsplit(address)
                if parts.scheme == "file":
                    assert (file.parent / unquote(parts.path)).is_file()
                    assert not inner or opened.locator(f"#{parts.fragment}").count() == 1
                else:
                    assert parts.scheme == "https"
                    assert {"noopener", "nofollow"} <= set(relation.split())
                    outside += 1
    assert outside >= 11


def test_one_can_walk_from_the_index_to_a_card_and_back(browser, site):
    with page(browser, site[0]) as (opened, heard):
        opened.get_by_role("link", name="defence-by-rounding").click()
        assert opened.locator("h1").inner_text() == "defence-by-rounding"
        text = opened.locator("main").inner_text()
        for part in (
            "FGSM alone breaks 31 images",
            "nothing of 64 images speaks against it",
            "overstated",
            "atent verify",
            "71.0",
        ):
            assert part in text
        assert opened.locator(".curve polyline").count() == 2
        opened.get_by_role("link", name="The card as JSON").click()
        card_of_it = json.loads(opened.locator("pre").inner_text())
        assert card_of_it["submission"]["name"] == "defence-by-rounding"
        assert len(card_of_it["report"]["results"][0]["flags"]) == 1000
        opened.go_back()
        opened.get_by_role("link", name="All models").click()
        assert opened.locator("h1").inner_text() == "Robust models, measured"
        assert heard.errors == []


def luminance(opened):
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def reload_until_light(opened, seconds=20):
    """Chromium hands what a page stores to its next process a little later: a busy machine shows the time between."""
    end = time.monotonic() + seconds
    opened.reload()
    while luminance(opened) <= 200:
        assert time.monotonic() < end
        opened.wait_for_timeout(100)
        opened.reload()


def test_the_theme_follows_the_system_and_the_button(browser, site):
    with page(browser, site[0], color_scheme="dark") as (opened, heard):
        assert luminance(opened) < 60
        opened.get_by_role("button", name="Theme: system").click()
        assert luminance(opened) > 200
        reload_until_light(opened)  # it is remembered
        opened.get_by_role("button", name="Theme: light").click()
        opened.get_by_role("button", name="Theme: dark").click()
        opened.get_by_role("button", name="Theme: system").wait_for()
        assert heard.errors == []
    with page(browser, site[0], color_scheme="light") as (opened, _):
        assert luminance(opened) > 200


def test_the_theme_works_where_storage_is_forbidden(browser, site):
    forbid = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    with page(browser, site[0], color_scheme="dark") as (opened, heard):
        opened.add_init_script(forbid)
        opened.reload()
        opened.get_by_role("button", name="Theme: system").click()
        assert luminance(opened) > 200
        assert opened.get_by_role("status").inner_text() == "12 of 12 models"
        assert heard.errors == []


def overflows(opened):
    return opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_pages_fit_windows_of_every_width(browser, site):
    for file in site[:2]:
        with page(browser, file) as (opened, _):
            for width in (320, 390, 760, 761, 1024, 1139, 1140, 1280, 1920):
                opened.set_viewport_size({"width": width, "height": 800})
                assert overflows(opened) <= 0, width


def test_a_phone_has_blocks_and_a_list_to_sort_them(browser, site):
    with page(browser, site[0], viewport=PHONE, is_mobile=True, has_touch=True) as (opened, heard):
        assert overflows(opened) <= 0
        left = [opened.locator("#table-1 .worst").nth(row).bounding_box()["x"] for row in range(7)]
        assert max(left) < PHONE["width"] / 2  # the figures come below the name, not beside it
        opened.get_by_label("Sort by").select_option(label="Clean")
        values = [float(value) for value in column(opened, "table-1", 2)]
        assert values == sorted(values, reverse=True)
        assert opened.get_by_role("columnheader", name="Clean").count() == 2  # still a table for a screen reader
        assert heard.errors == []


def test_it_prints_on_white_without_controls(browser, site):
    with page(browser, site[0], color_scheme="dark") as (opened, _):
        opened.get_by_role("button", name="Theme: system").click()
        opened.get_by_role("button", name="Theme: light").click()
        assert luminance(opened) < 60
        opened.emulate_media(media="print")
        assert opened.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
        assert not opened.get_by_label("Find").is_visible()
        assert opened.locator("#table-1 thead").is_visible()
        assert opened.locator("tbody tr:visible").count() == 12


def test_it_can_be_read_without_scripts(browser, site):
    with page(browser, site[0], java_script_enabled=False) as (opened, _):
        assert opened.locator("tbody tr:visible").count() == 12
        assert not opened.get_by_label("Find").is_visible()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The site of a card that says `ATTACK` wherever a text may stand."""
    submission = {"authors": ATTACK, "venue": ATTACK, "license": ATTACK, "training": ATTACK}
    made = card(
        "name",
        **submission,
        model=ATTACK,
        link="https://example.org/&quot;onmouseover=window.hacked=1&quot;&gt;",
        claims=[claim("clean", 50, ATTACK) | {"source": ATTACK}],
        checks=[{"name": ATTACK, "passed": False, "said": ATTACK}],
        signs=[{"name": ATTACK, "found": True, "evidence": ATTACK}],
        command=ATTACK,
        commit=ATTACK,
        date=ATTACK,
        curve={"n": 5, "eps": [0.0, 0.1], "accuracy": {ATTACK: [0.5, 0.1]}},
        weights={"file": ATTACK.replace("/", ""), ATTACK: ATTACK, "bytes": ATTACK},
    )
    held = made.model_dump(mode="json")
    for result in held["report"]["results"][1:4]:
        said = {"notes": [{"kind": "changed", "text": ATTACK}], "robust_after": {ATTACK: 1}}
        result |= {"attack": result["attack"] + ATTACK, "settings": {ATTACK: ATTACK}, **said}
    about = {"name": ATTACK, "model": ATTACK, "data": ATTACK, "data_note": ATTACK, "part": ATTACK, "protocol": ATTACK}
    held["report"] |= about | {"versions": {ATTACK: ATTACK}, "machine": {ATTACK: ATTACK}, "recipe": {ATTACK: ATTACK}}
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "cards").mkdir()
    (folder / "cards" / "x.json").write_text(json.dumps(held), encoding="utf-8")
    return board.build(folder / "cards", folder / "site")


def test_no_text_of_a_card_becomes_markup(browser, hostile):
    found = """() => ({
        scripts: document.querySelectorAll("script").length,
        foreign: document.querySelectorAll("img, iframe, object, embed, form[action], b script").length,
        handlers: [...document.querySelectorAll("*")].flatMap((one) => one.getAttributeNames())
            .filter((name) => name.startsWith("on")).length,
        shown: document.body.textContent.includes("<script>window.hacked = 1</script>"),
    })"""
    assert len(pages(hostile)) == 2
    for file in pages(hostile):
        with page(browser, file) as (opened, heard):
            assert opened.evaluate(found) == {"scripts": 1, "foreign": 0, "handlers": 0, "shown": True}
            for link in opened.get_by_role("link", name="source").all():
                link.hover()
            assert opened.evaluate("window.hacked ?? null") is None
            assert (heard.errors, heard.requests) == ([], [file.as_uri()])


def test_the_policy_stops_what_would_slip_through(browser, site, tmp_path):
    """Were the escaping to fail, a page would still run nothing but our own script."""
    text = site[0].read_text(encoding="utf-8")
    slipped = tmp_path / "index.html"
    slipped.write_text(text.replace("<h1>", f"{ATTACK}<h1>"), encoding="utf-8")
    with page(browser, slipped) as (opened, heard):
        assert opened.evaluate("window.hacked ?? null") is None
        assert any("Content Security Policy" in error for error in heard.errors)


def test_characters_that_do_not_show_are_left_out(browser, tmp_path):
    made = card("name", authors="A\u200b.rohtuA \u00adB\u2060", claims=[])
    files = board.build(sample_cards.write(tmp_path / "cards", made), tmp_path / "site")
    with page(browser, files[1]) as (opened, _):
        assert opened.locator("p.authors bdi").first.inner_text() == "A.rohtuA B"
