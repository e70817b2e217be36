"""Terms of the report are explained once, where they first appear."""

from __future__ import annotations

from toa_trl.report.glossary import TERMS, explain
from toa_trl.report.html import Facts, Picture, Section, Table


def test_a_term_is_explained_where_it_first_appears() -> None:
    sections = [
        Section("a", "What ran", [Facts([("search", "toa, tau 0.1"), ("agents", "a Draft")])]),
        Section("b", "Rewards", ["Plays by depth.", Table(["budget"], [["an oracle"]])]),
        Section("tree", "The tree of a prompt"),
        Section("c", "Pairs", [Picture([], "The median margin of a play")]),
    ]
    explained = {
        name: [term for term, _ in terms]
        for name, terms in explain("A run of 160 plays.", sections).items()
    }
    assert explained["a"] == ["play", "agent", "search", "tau"]
    assert explained["b"] == ["budget", "depth"]
    assert explained["tree"] == ["draft", "refinement", "aggregate", "fresh arm", "rank"]
    assert explained["c"] == ["margin"]
    assert explain("", sections)["b"][0] == ("play", TERMS["play"])
