"""How fast is the viewer on large runs? Time to a page, filtered and sorted, and memory.

python scripts/bench_viewer.py [--sizes 10000x16 60000x160] [--folder FOLDER]

A run of synthetic plays is written (60,000 x 160 take about 9 GB), the viewer is
started in a process of its own, and each request is timed three times: the first, when files are
not in memory yet unless they were just written, and the median of two more. What was written is
deleted at the end.
"""

import argparse
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import duckdb
import psutil
import yaml

from toa_trl.sampling.journal import Journal
from toa_trl.types import Message, Prompt

AGENTS = ("llama", "qwen", "mistral", "gemma")
HEADER = "| first (s) | again (s) | memory (MB) |\n|---|---|---|---|"
TEXT = "so the answer is not yet 16 plus 8 because half of it was given away " * 20
WHENS = " ".join(f"WHEN {number} THEN {name!r}" for number, name in enumerate(AGENTS))
IS_SCORED = "(p * 7 + q) % 50 > 0"
# Plays by SQL that SQLite and DuckDB both know, of a prompt p and a play q of n.
VALUES = {
    "prompt_id": "printf('prompt-%06d', p)",
    "play": "q",
    "seed": "q",
    "written_s": "1.7e9 + p + q * 0.001",
    "agent": f"CASE (p * 31 + q * 17) % 4 {WHENS} END",
    "kind": "CASE WHEN 3 * q < n THEN 'answer' ELSE 'refine' END",
    "refs": "CASE WHEN 3 * q < n THEN '[]' ELSE printf('[%d]', q % (n / 3)) END",
    "parent": "CASE WHEN 3 * q >= n THEN q % (n / 3) END",
    "depth": "CASE WHEN 3 * q < n THEN 0 ELSE 1 END",
    "reward": f"CASE WHEN {IS_SCORED} THEN (p * 7919 + q * 104729) % 100003 / 50001.5 - 1 END",
    "reward_flops": "1e9",
    "finish_reason": f"CASE WHEN {IS_SCORED} THEN "
    "CASE WHEN (p + q) % 20 = 0 THEN 'length' ELSE 'stop' END END",
    "prompt_tokens": f"CASE WHEN {IS_SCORED} THEN 100 END",
    "completion_tokens": f"CASE WHEN {IS_SCORED} THEN 5 + (p * 13 + q * 29) % 900 END",
    "flops": "1e9",
    "error": f"CASE WHEN NOT {IS_SCORED} THEN 'HTTP 503 from the server' END",
    "response": f"CASE WHEN {IS_SCORED} THEN substr('{TEXT}', 1 + q, 100 + (p * 3 + q) % 400) END",
}


def write_run(folder: Path, prompts: int, plays: int) -> None:
    """Write journal, rollouts/, dpo/ and run.yaml, as a run leaves them."""
    folder.mkdir(parents=True)
    identity = {"search": "toa", "search_params": {}, "seed": 0, "budget": plays}
    asked = [
        Prompt(f"prompt-{i:06}", (Message("user", f"What is {i} plus {i}?"),))
        for i in range(prompts)
    ]
    with closing(Journal(folder / "journal.sqlite", create=True)) as journal:
        journal.begin({**identity, "agents": {name: {} for name in AGENTS}}, asked)
        journal.complete()
    selected = ", ".join(f"{sql} AS {name}" for name, sql in VALUES.items())
    with closing(sqlite3.connect(folder / "journal.sqlite")) as db:
        db.execute("PRAGMA synchronous=OFF")
        for name, number in (("p", prompts), ("q", plays)):
            db.execute(f"CREATE TEMP TABLE {name}s ({name} INTEGER PRIMARY KEY)")
            db.executemany(f"INSERT INTO {name}s VALUES (?)", ((i,) for i in range(number)))
        grid = f"(SELECT p, q, {plays} AS n FROM ps CROSS JOIN qs)"
        db.execute(f"INSERT INTO plays ({', '.join(VALUES)}) SELECT {selected} FROM {grid}")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    # integers are divided as SQLite does; row groups and files are as large as a run writes them
    selected = selected.replace("n / 3", "n // 3")
    grid = f"range({prompts}) ps(p), range({plays}) qs(q)"
    grid = f"(SELECT p, q, {plays} AS n FROM {grid} ORDER BY p, q)"
    prompt = "[{'role': 'user', 'content': printf('What is %d plus %d?', p, p)}] AS prompt"
    side = (
        "[{'role': 'assistant', 'content': substr('TEXT', 1 + p % 50, 100 + p % FACTOR)}]".replace(
            "TEXT", TEXT
        )
    )
    best, other = side.replace("FACTOR", "400"), side.replace("FACTOR", "300")
    copy = "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048, ROW_GROUPS_PER_FILE 100)"
    with duckdb.connect(
        config={"memory_limit": "2GB", "temp_directory": str(folder / "spill")}
    ) as db:
        db.execute(f"COPY (SELECT {selected}, {prompt} FROM {grid}) TO '{folder}/rollouts' {copy}")
        db.execute(
            f"COPY (SELECT {prompt}, printf('prompt-%06d', p) AS prompt_id, {best} AS chosen, "
            f"{other} AS rejected, 1 + p % 3 AS chosen_play, 5 + p % 3 AS rejected_play, "
            "2 + p % 1000 / 1000.0 AS chosen_reward, p % 777 / 777.0 AS rejected_reward "
            f"FROM range({prompts}) ps(p)) TO '{folder}/dpo' {copy}"
        )
    shutil.rmtree(folder / "spill", ignore_errors=True)
    entries = [{"name": name} for name in AGENTS]
    about = {"agents": entries, "finished": "2026-01-01", "fingerprint": "", "versions": {}}
    (folder / "run.yaml").write_text(yaml.safe_dump(about))


REQUESTS = {
    "list of runs": ("runs", {}),
    "totals of the run": ("figures", {}),
    "plays: first page": ("plays", {}),
    "plays: newest first": ("plays", {"sort": "written", "descending": "true"}),
    "plays: best first": ("plays", {"sort": "reward", "descending": "true"}),
    "plays: of one agent and kind, best first": (
        "plays",
        {"sort": "reward", "descending": "true", "agent": "qwen", "kind": "refine"},
    ),
    "plays: failed": ("plays", {"state": "failed"}),
    "plays: of prompts with words": ("plays", {"prompt": "what is 321 plus", "sort": "reward"}),
    "plays: count of a filter": ("count", {"agent": "qwen", "min_reward": "1"}),
    "prompts: with words": ("prompts", {"words": "is 77 plus"}),
    "tree of a prompt": ("tree", {"prompt": "prompt-000321"}),
    "pairs: smallest margin": ("pairs", {"sort": "margin"}),
    "pairs: longest": ("pairs", {"sort": "length", "descending": "true"}),
}


def ask(address: str, path: str, **query: str) -> float:
    """Return the seconds that a request takes; NaN if it is refused, as one that takes too long."""
    start = time.perf_counter()
    try:
        with urlopen(f"{address}api/{path}?{urlencode(query)}", timeout=300) as answer:
            answer.read()
    except HTTPError as error:
        print(f"  {path}: {error.read().decode()[:160]}")
        return float("nan")
    return time.perf_counter() - start


def measure(folder: Path, run: str) -> None:
    """Start the viewer, ask it everything, and print a table."""
    command = [sys.executable, "-m", "toa_trl", "view", str(folder), "--port", "0"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[3]
            process = psutil.Process(server.pid)
            ask(address, "runs")
            started = time.perf_counter() - start
            rss = process.memory_info().rss / 2**20
            print(f"| command to first list of runs | {started:.2f} | | {rss:.0f} |")
            for name, (path, query) in REQUESTS.items():
                given = query if path == "runs" else {"run": run, **query}
                first, *more = (ask(address, path, **given) for _ in range(3))
                rss = process.memory_info().rss / 2**20
                again = statistics.median(more)
                print(f"| {name} | {first:.3f} | {again:.3f} | {rss:.0f} |", flush=True)
        finally:
            server.terminate()


def main() -> None:
    """Write the runs, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", nargs="+", default=["10000x16", "60000x160"], help="prompts x plays"
    )
    parser.add_argument(
        "--folder", type=Path, help="where runs are written for the time of the measurement"
    )
    options = parser.parse_args()
    for size in options.sizes:
        prompts, plays = map(int, size.split("x"))
        folder = Path(tempfile.mkdtemp(prefix="bench_viewer-", dir=options.folder))
        try:
            start = time.perf_counter()
            write_run(folder / "run", prompts, plays)
            megabytes = (
                sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
            )
            seconds = time.perf_counter() - start
            print(f"\n{prompts:,} prompts x {plays} plays: {megabytes:,.0f} MB in {seconds:.0f} s")
            print(f"\n| complete run {HEADER}")
            measure(folder, "run")
            shutil.rmtree(folder / "run/rollouts")
            print(f"\n| not complete: from the journal {HEADER}")
            measure(folder, "run")
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
