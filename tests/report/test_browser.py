"""The report in a real browser: it opens from disk without an error, and its tree can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser import set_size
from tests.report.test_training_section import make_model
from toa_trl.report import trees
from toa_trl.report.page import write_report

READ_ALL = """
return [...document.querySelectorAll("#drawing .node")].map((node) => {
  node.dispatchEvent(new MouseEvent("click"));
  return document.getElementById("response").textContent;
});
"""
CUT = """
return [...document.querySelectorAll("figure svg")].flatMap((drawing) => {
  const box = drawing.getBoundingClientRect();
  return [...drawing.querySelectorAll("text")].filter((text) => {
    const own = text.getBoundingClientRect();
    return own.left < Math.min(box.left, 0) - 1 || own.right > innerWidth + 1;
  }).map((text) => text.textContent);
});
"""


@pytest.mark.heavy
def test_the_tree_can_be_read(
    tmp_path: Path,
    write_run: Callable[..., Any],
    results: dict[str, Any],
    adaptive_run: Path,
    browser: Any,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    agents = ["adder", "a_very_long_name/Meta-Llama-3.1-8B-Instruct_of_somebody", "taker"]
    rows = write_run(folder, num_prompts=6, budget=40, failures=0.05, agents=agents)
    title = "run: report of a toa_trl run"
    browser.get(write_report(folder, results=results).as_uri())

    def plays(prompt: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["prompt_id"] == prompt]

    def find(css: str) -> Any:
        return browser.find_element("css selector", css)

    def check_tree(prompt: str) -> None:
        own = plays(prompt)
        nodes = browser.find_elements("css selector", "#drawing .node")
        assert len(nodes) == len(own)
        count = "return document.querySelectorAll(arguments[0]).length"
        fresh = sum(
            row["kind"] == "answer" and row["parent"] is not None and row["reward"] is not None
            for row in own
        )
        assert browser.execute_script(count, "#drawing .shape.fresh") == fresh
        assert browser.execute_script(count, "#drawing .failed") == sum(
            row["reward"] is None for row in own
        )
        best = min(
            (row for row in own if row["reward"] is not None),
            key=lambda row: (-row["reward"], row["play"]),
        )
        assert find("#who").text.startswith(f"Play {best['play']}: ")
        assert find("#drawing .node.on").get_attribute("data-play") == str(best["play"])
        # every play, hostile ones too, is text and nothing else
        shown = browser.execute_script(READ_ALL)
        assert shown == [
            row["error"] if row["response"] is None else row["response"] or "(an empty response)"
            for row in own
        ]
        assert browser.execute_script(count, "#panel img, #panel script, #asked script") == 0

    check_tree("synthesis-000")
    find("#drawing .node:not(.on)").click()
    assert find("#drawing .node.on").get_attribute("data-play") == "0"
    assert find("#what").text.startswith("reward")
    find("#drawing .node.on").send_keys("\ue014")  # right arrow: the next play of this depth
    assert find("#drawing .node.on").get_attribute("data-play") != "0"
    assert browser.switch_to.active_element.get_attribute("data-play") == find(
        "#drawing .node.on"
    ).get_attribute("data-play")

    find("#after").click()
    check_tree("synthesis-001")
    find("#find").send_keys("synthesis-004")
    check_tree("synthesis-004")
    assert not find("#elsewhere").is_displayed()
    find("#find").clear()
    find("#find").send_keys(
        f"{plays('synthesis-002')[0]['prompt'][-1]['content'].split()[-4]} -002"
    )
    check_tree("synthesis-002")  # by words of its text, in any order
    find("#find").send_keys("-no-such-prompt")
    assert find("#pick").text == "no prompt has these words"
    find("#after").click()  # nothing to go to, and no error

    assert browser.title == title  # no response ran
    check_widths(browser)
    browser.get(write_report(adaptive_run, results=results).as_uri())
    assert browser.title == f"{adaptive_run.name}: report of a toa_trl run"
    check_widths(browser)
    figures = browser.find_elements("css selector", "#budget svg")
    assert len(figures) == 4


def test_prompts_that_are_not_on_the_page_are_found(
    tmp_path: Path, write_run: Callable[..., Any], browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, num_prompts=4, budget=4)
    monkeypatch.setattr(trees.choose_prompts, "__defaults__", (2,))
    browser.get(write_report(tmp_path, results={}).as_uri())
    for words, listed, other in (
        ("synthesis-002", "synthesis-002", False),
        ("synthesis-003", "found, but not on this page", True),
        ("synthesis-00", "synthesis-000", True),
        ("synthesis-009", "no prompt has these words", False),
    ):
        find = browser.find_element("css selector", "#find")
        find.clear()
        find.send_keys(words)
        options = browser.find_elements("css selector", "#pick option")
        assert options[0].text.startswith(listed)
        elsewhere = browser.find_element("css selector", "#elsewhere")
        assert elsewhere.is_displayed() == other
        browser.find_element("css selector", "#after").click()
    check_widths(browser)
    browser.get(write_report(make_model(tmp_path / "model")).as_uri())
    assert browser.title == "model: report of a toa_trl training"  # no response ran
    check_widths(browser)


def check_widths(browser: Any) -> None:
    """Nothing is wider than the window, and no text of a figure is cut."""
    assert browser.get_log("browser") == []
    for width in (360, 390, 1400):
        set_size(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(CUT) == []
