"""The link checker of the site."""

import scripts


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
