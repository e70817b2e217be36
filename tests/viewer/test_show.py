"""The tree of a prompt on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.helpers import play
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Journal
from toa_trl.types import Message, Prompt
from toa_trl.viewer.show import show


def printed(run: Path, prompt: str, index: int | None = None, **options: object) -> str:
    out = io.StringIO()
    show(run, prompt, index, Console(file=out, **options))  # type: ignore[arg-type]
    return out.getvalue()


def test_every_play_is_in_the_tree(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rollout in Rollouts.load(runs / "open"):
        main(["show", str(runs / "open"), "--prompt", rollout.prompt.id])
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\x00" not in out
        assert "\u202e" not in out
        lines = out.splitlines()
        assert max(map(cell_len, lines)) <= 100
        for one in rollout.plays:
            (line,) = [line for line in lines if f"─ {one.index} ● {one.action.agent} " in line]
            assert (f"{one.reward:.4g} (rank" if one.reward is not None else "failed: ") in line
            if one.action.refs:
                assert f"refine of {one.action.refs[0]} " in line


def test_a_terminal_has_colours_and_its_own_width(runs: Path) -> None:
    out = printed(runs / "open", "p0", force_terminal=True, width=60, color_system="truecolor")
    assert "\x1b[38;2;0;114;178m● " in out  # the first colour of the report
    plain = printed(runs / "open", "p0", width=60)
    assert max(map(cell_len, plain.splitlines())) > 60  # a pipe is not a terminal


def test_a_whole_response(runs: Path) -> None:
    for rollout in list(Rollouts.load(runs / "open"))[:2]:
        for one in rollout.plays:
            out = printed(runs / "open", rollout.prompt.id, one.index)
            text = one.completion.text if one.completion else str(one.error)
            words = "".join(text.replace("\x00", "\\x00").split())
            words = words.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c")
            assert words in "".join(out.split())


def test_a_long_chain_stays_within_the_columns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    journal.begin({}, [Prompt("p", (Message("user", "Q"),))])
    for index in range(60):
        journal.append("p", play(index, float(index), parent=index - 1 if index else None))
    journal.close()
    lines = printed(tmp_path, "p").splitlines()
    assert max(map(cell_len, lines)) <= 100
    assert sum(" ● " in line for line in lines) == 60


@pytest.mark.parametrize(("num_prompts", "named"), [(2, "'p0', 'p1'$"), (4, r"'p2', \.\.\.$")])
def test_an_unknown_prompt_names_some_and_says_whether_there_are_more(
    num_prompts: int, named: str, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    asked = (Message("user", "Q"),)
    journal.begin({}, [Prompt(f"p{index}", asked) for index in range(num_prompts)])
    journal.close()
    with pytest.raises(ConfigError, match=named):
        printed(tmp_path, "other")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--prompt", "nothing"], r"--prompt: there is no prompt 'nothing' .* prompts are 'p0', "),
        (["--prompt", "p0", "--play", "99"], "--play: the prompt 'p0' has no play 99"),
        ([], "--prompt"),
    ],
)
def test_what_is_not_there(runs: Path, arguments: list[str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        main(["show", str(runs / "open"), *arguments])


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no journal.sqlite; name the folder of a run"):
        main(["show", str(tmp_path), "--prompt", "p0"])
