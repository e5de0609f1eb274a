"""The checks of the site: its links, and its pages in a browser."""

import scripts
from browser import chromium, page


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a b.html").write_text(
        '<h1 id="here">x</h1><a href="sub/#there">y</a><a href="https://example.org">z</a>'
    )
    (tmp_path / "sub" / "index.html").write_text(
        '<p id="there"><a href="../a%20b.html#here"></a><a href="../a%20b.html#gone"></a>'
        '<img src="no.png"><a href="#no">'
    )
    assert scripts.module("pages/check_site").faults(tmp_path) == [
        "sub/index.html: ../a%20b.html#gone",
        "sub/index.html: no.png",
        "sub/index.html: #no",
    ]


def test_what_a_reader_cannot_read_or_reach_is_named(tmp_path):
    head = '<!doctype html><html lang="en"><title>t</title><main><h1>t</h1>'
    wrong = head + (
        '<img src="data:,"><p style="color: #999; background: #fff">pale</p><p style="width: 2000px">wide</p>'
        "<script>console.log('heard')</script>"
    )
    (tmp_path / "wrong.html").write_text(wrong)
    (tmp_path / "right.html").write_text(head + "<p>text</p>")
    faults = scripts.module("pages/check_in_browser").faults
    with chromium() as opened:
        with page(opened, tmp_path / "right.html") as (shown, heard):
            assert list(faults(shown, heard.errors)) == []
        with page(opened, tmp_path / "wrong.html") as (shown, heard):
            found = "\n".join(faults(shown, heard.errors))
    for fault in ("log: heard", "pixels wider than its window", "image-alt, 1 times", "color-contrast, 1 times"):
        assert fault in found
