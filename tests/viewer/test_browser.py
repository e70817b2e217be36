"""The page in a real browser: what a person does, with hostile texts that must not run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import uvicorn

from tests.browser import set_size
from tests.viewer.test_outputs import write as write_evaluation
from toa_trl.data.review import review_of
from toa_trl.viewer.folder import Folder
from toa_trl.viewer.server import listen, make_app

exceptions = pytest.importorskip("selenium.common.exceptions")
HOSTILE_NODES = "return document.querySelectorAll('main script, main img, main iframe').length"


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    """The address of a viewer over the runs."""
    with Serving(runs) as address:
        yield address


class Serving:
    """Serve the viewer of a folder in a thread."""

    def __init__(self, folder: Path) -> None:
        self._listener = listen(0)
        port = self._listener.getsockname()[1]
        app = make_app(Folder(folder), port)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}
        )
        self.address = f"http://127.0.0.1:{port}/"

    def __enter__(self) -> str:
        self._thread.start()
        return self.address

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


@pytest.fixture
def find(browser: Any) -> Callable[..., Any]:
    """Wait for the element of a CSS selector that has a text."""

    def find(css: str, text: str = "") -> Any:
        for _ in range(100):
            for element in browser.find_elements("css selector", css):
                try:
                    if text in element.text:
                        return element
                except exceptions.StaleElementReferenceException:  # the page was drawn again
                    continue
            threading.Event().wait(0.05)
        raise AssertionError(f"no {css} with {text!r}")

    return find


def check_page(browser: Any) -> None:
    """Nothing is cut at three widths, no hostile text ran, and no error was logged."""
    assert browser.execute_script(HOSTILE_NODES) == 0
    assert "hacked" not in browser.title
    for width in (360, 390, 1400):
        set_size(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


def test_from_the_list_to_a_response(browser: Any, url: str, find: Callable[..., Any]) -> None:
    browser.get(url)
    assert "toa-trl recover" in find(".card .fault").text
    find(".card dd", "−0")
    check_page(browser)
    find(".card a", "open").click()
    find(".count", "plays")
    check_page(browser)

    # the address holds what was filtered, and Back goes back
    find("select[name=kind] option", "refine").click()
    find(".count", "match")
    assert "kind=refine" in browser.current_url
    assert {cell.text for cell in browser.find_elements("css selector", ".c-kind")} == {"refine"}
    find("th a", "reward").click()
    find("th[aria-sort=descending]", "reward")
    assert "kind=refine" in browser.current_url
    rewards = [cell.text for cell in browser.find_elements("css selector", ".c-reward")]
    assert rewards
    shared = browser.current_url
    browser.back()
    find("th[aria-sort=ascending]", "prompt")
    browser.get(shared)
    find("th[aria-sort=descending]", "reward")
    assert [cell.text for cell in browser.find_elements("css selector", ".c-reward")] == rewards

    find(".c-prompt a").click()
    find("#panel h2", "a refinement by")
    assert find("#panel .columns h3", "Draft").is_displayed()
    assert browser.find_elements("css selector", "#panel ins, #panel del")
    check_page(browser)
    chosen = find("#drawing .node.on").get_attribute("data-play")
    find("#drawing .node.on").send_keys("\ue013")  # up: the draft
    find("#drawing .node.on")
    assert find("#drawing .node.on").get_attribute("data-play") != chosen
    assert f"play={find('#drawing .node.on').get_attribute('data-play')}" in browser.current_url
    find(".bar .button").click()  # a neighbour
    find("h1", "p")
    check_page(browser)


def test_a_prompt_with_a_hostile_id(browser: Any, url: str, find: Callable[..., Any]) -> None:
    browser.get(f"{url}?run=open&view=tree&words={quote('question 3?')}")
    find(".prompts a", "p3 </script>").click()
    find("h1", "p3 </script><script>document.title = 'hacked'")
    assert "p3 </script>" in unquote(browser.current_url).replace("+", " ")
    check_page(browser)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("?run=nothing", "There is no run “nothing”"),
        ("?run=damaged&view=plays", "toa-trl recover"),
        ("?run=open&view=plays&depth=x", "depth"),
        ("?run=open&view=tree&prompt=nothing", "there is no prompt 'nothing'"),
    ],
)
def test_faults_are_shown(
    browser: Any, url: str, find: Callable[..., Any], query: str, text: str
) -> None:
    browser.get(url + query)
    assert text in find(".fault").text
    browser.get_log("browser")  # the browser logs refused requests


def test_pairs_are_reviewed(
    browser: Any, runs: Path, tmp_path: Path, find: Callable[..., Any]
) -> None:
    shutil.copytree(runs / "open", tmp_path / "run")
    with Serving(tmp_path) as address:
        browser.get(f"{address}?run=run&view=pairs")
        find(".pair .buttons button", "Reject").click()
        find(".pair[data-mark=reject]")
        find(".count", "1 rejected")
        find(".pair[data-mark=reject]").send_keys("j")  # the next pair
        second = browser.switch_to.active_element
        second.send_keys("e")
        area = browser.switch_to.active_element
        assert area.get_attribute("name") == "chosen"
        area.clear()
        area.send_keys("<img src=x onerror=alert(1)> edited by hand")
        find(".pair .buttons button", "Save").click()
        find(".count", "1 edited")
        assert find(".pair[data-mark=edit] .chosen .text").text.endswith("edited by hand")
        check_page(browser)
        browser.refresh()
        find(".pair[data-mark=reject]")
        find(".pair[data-mark=edit] .buttons button", "Undo edit").click()
        find(".count", "0 edited")
        find("select[name=mark] option[value=reject]").click()
        find("a[aria-current]", "Pairs")
    assert sorted(mark.mark for mark in review_of(tmp_path / "run").marks.values()) == ["reject"]


def test_responses_side_by_side(browser: Any, tmp_path: Path, find: Callable[..., Any]) -> None:
    write_evaluation(tmp_path / "outputs")
    with Serving(tmp_path) as address:
        browser.get(address)
        find(".prompts a", "outputs").click()
        find(".count", "5 prompts, compared with base")
        assert find(".pair .columns .text").text.startswith("base says 0 </script>")
        check_page(browser)
        find("input[name=differ]").click()
        find(".count", "2 prompts")
        assert find(".verdict.good", "right").is_displayed()
        assert "differ=true" in browser.current_url
