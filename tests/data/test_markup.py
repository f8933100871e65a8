"""Words out of XML and HTML."""

from __future__ import annotations

import re
from contextlib import suppress
from html import escape
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.data.text.markup import BREAKING, Markup, tidy

WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], include_characters="\n<>&;#!"), max_size=12
)
NAMES = st.sampled_from(["b", "SPEECH", "p", "stage", "title", "x-y", "tei:w"])


@st.composite
def marked(draw, depth: int = 3) -> tuple[str, str]:
    """A well-formed stretch of markup, and its words without what stands in a stage."""
    source, words = "", ""
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["words", "cdata", "comment", "instruction", "element"]))
        text = draw(WORDS)
        if kind == "words":
            source, words = source + escape(text), words + text
        elif kind == "cdata" and not re.search(r"\]\s*\]|\]\s*$", text):
            source, words = source + f"<![CDATA[{text}]]>", words + text
        elif kind == "comment" and not re.search(r"[-<>!]", text):
            source += f"<!--{text}-->"
        elif kind == "instruction" and "<" not in text and ">" not in text:
            source += f"<?do {text}?>"
        elif kind == "element" and depth:
            inside, said = draw(marked(depth=depth - 1))
            name = draw(NAMES)
            end = "\n" if name in BREAKING else ""
            source += f'<{name} how="{escape(text)}">{inside}</{name}>'
            words += "" if name == "stage" else end + said + end
    return source, words


@settings(max_examples=100, deadline=None)
@given(marked())
def test_the_words_of_well_formed_markup(given_and_wanted):
    source, wanted = given_and_wanted
    found = Markup(f"<all>{source}</all>", ["STAGE"]).all()
    # What a break adds beside what is left out is white space alone.
    assert found.split() == tidy(wanted).split()
    assert found == tidy(found)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "<",
                ">",
                "&",
                "&#",
                "&#6",
                "amp;",
                "<!--",
                "-->",
                "<![CDATA[",
                "<![x",
                "]]>",
                "</",
                "<p",
                "<b>",
                "</b>",
                "'",
                '"',
                "=",
                "<script>",
                "\n",
                "</>",
                "<?",
                "<!doctype",
                "a",
                " ",
                "é",
            ]
        ),
        max_size=30,
    )
)
def test_any_text_is_words_or_a_sentence(parts):
    source = "".join(parts)
    with suppress(ValueError):
        read = Markup(source, ["b"])
        assert len(read.searched()) == len(source)
        cuts = [0, *range(0, len(source), 3), len(source)]
        whole = "".join(read.between(start, stop) for start, stop in pairwise(cuts))
        if "&" not in source:  # a reference may be cut in two
            assert "".join(whole.split()) == "".join(read.all().split())


def test_a_stretch_is_cut_where_it_is_said():
    source = "<i>one</i> two &lt;three&gt;<!-- four --> five"
    read = Markup(source)
    assert read.all() == "one two <three> five"
    assert read.between(4, source.index("three")) == "ne two <"
    assert read.between(source.index("four"), len(source)) == "five"
    assert "four" not in read.searched()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<td>a</td><td>b</td>", "a\nb"),
        ("gl<b>ue</b>d", "glued"),
        ("a < b && c", "a < b && c"),
        ("a  \n  b\t c&nbsp;d", "a\nb c d"),
        ("x<script>if (a < b) {}</script>y<STYLE>p</STYLE>z", "xyz"),
        ("<aside>a<aside>b</aside>c</aside>d", "d"),
        ("<aside/>a", "a"),
        ("<title>a <i>b</i></title>", "a b"),
        ('<?xml version="1.0"?><!DOCTYPE PLAY SYSTEM "play.dtd">a', "a"),
        ("&eacute;&#233;&#xe9;&unknown;", "ééé&unknown;"),
    ],
)
def test_markup_of_all_sorts(source, words):
    assert Markup(source, ["aside"]).all() == words


def test_what_is_never_closed_is_told_with_its_line():
    with pytest.raises(ValueError, match=r"line 2: <stagedir> is never closed"):
        Markup("a\n<STAGEDIR>Exit\nb", ["STAGEDIR"])


def test_xml_is_read_as_a_parser_of_xml_does(shared_data, tmp_path):
    import zipfile

    with zipfile.ZipFile(shared_data / "nltk_corpora" / "shakespeare.zip") as archive:
        content = archive.read("shakespeare/hamlet.xml").decode()
    wanted = "".join(ElementTree.fromstring(content).itertext())
    assert Markup(content).all().split() == wanted.split()
