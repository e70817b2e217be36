"""Totals of a run's rollouts, queried from the parquet files with DuckDB.

Every reward is kept (8 bytes per play), so that quantiles are exact. The rows may be in any order.
"""

import glob
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from toa_trl.report.rollout_tables import Floats, check_columns

# (kind, agent) of an answer or aggregate, then of each refinement of it
Steps = tuple[tuple[str, str], ...]

NEEDED = ("prompt_id", "play", "agent", "kind", "reward")
TEXTS = ("prompt_id", "agent", "kind", "finish_reason", "error")
AMOUNTS = (
    *("reward", "prompt_tokens", "completion_tokens", "flops", "reward_flops"),
    "tokens_estimated",  # 0 or 1
)
MAX_REASONS = 1_000  # distinct reasons of failures


@dataclass
class Tally:
    """Totals of one agent's plays."""

    plays: int = 0
    failed: int = 0  # without a reward
    truncated: int = 0  # finish_reason "length"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0  # of the plays whose FLOPs are known
    num_flops: int = 0  # number of these plays
    reward_flops: float = 0.0
    num_estimated: int = 0  # plays whose tokens are estimated
    wins: int = 0  # prompts whose best play is this agent's
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass
class BestSoFar:
    """Best reward after 1, 2, ... scored plays; prompts with fewer plays keep their best."""

    num_prompts: int = 0  # with a scored play
    num_short: int = 0  # prompts with fewer scored plays than the longest
    mean: Floats = field(default_factory=lambda: np.zeros(0))
    half_width: Floats = field(default_factory=lambda: np.zeros(0))
    """Half width of the normal 95 % interval of `mean`; 0 for a single prompt."""
    own: Floats = field(default_factory=lambda: np.zeros(0))
    """Mean reward of the 1st, 2nd, ... scored play itself."""


@dataclass
class Summary:
    """Totals of a run's rollouts. Rewards are raw."""

    tallies: dict[str, Tally] = field(default_factory=dict)  # by agent, in the order of run.yaml
    prompt_ids: list[str] = field(default_factory=list)
    num_scored: list[int] = field(default_factory=list)  # scored plays of each of them
    rewards: dict[tuple[str, int], Floats] = field(default_factory=dict)  # by (agent, depth)
    rewards_by_kind: dict[str, tuple[int, float]] = field(default_factory=dict)  # count, sum
    # (reason, agent) -> failed plays
    reasons: dict[tuple[str, str], int] = field(default_factory=dict)
    # path of best plays -> (count, sum of rewards)
    paths: dict[Steps, tuple[int, float]] = field(default_factory=dict)
    # (agent of the draft, or None for the best of several; refining agent)
    # -> (count, sum of gains, number of gains > 0)
    gains: dict[tuple[str | None, str], tuple[int, float, int]] = field(default_factory=dict)
    # kinds of the best plays, and "fresh": answers below a draft
    best: Counter[str] = field(default_factory=Counter)
    curve: BestSoFar = field(default_factory=BestSoFar)

    @property
    def num_unscored_prompts(self) -> int:
        """Number of prompts of which no play has a reward."""
        return self.num_scored.count(0)

    def total(self, name: str) -> Any:
        """Return the sum of a field of `Tally` over the agents."""
        return sum(getattr(tally, name) for tally in self.tallies.values())

    def select(self, agent: str | None = None, depths: Collection[int] | None = None) -> Floats:
        """Return the rewards of an agent, or of some depths."""
        chosen = [np.zeros(0)]
        for (own_agent, depth), values in self.rewards.items():
            if agent in (None, own_agent) and (depths is None or depth in depths):
                chosen.append(values)
        return np.concatenate(chosen)


def summarize(files: Sequence[Path], agents: Sequence[str] = ()) -> Summary:
    """Return the totals of a run.

    Args:
        files: the rollouts of a run.
        agents: names in the order in which they are listed; others follow in order of appearance.

    Raises:
        ConfigError: a column is missing.
    """
    summary = Summary(tallies={agent: Tally() for agent in agents})
    with query_plays(files) as plays:
        _add_tallies(summary, plays)
        _add_rewards(summary, plays)
        _add_reasons(summary, plays)
        _add_best_plays(summary, plays)
        _add_gains(summary, plays)
        summary.curve = _best_so_far(plays)
    return summary


@contextmanager
def query_plays(files: Sequence[Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a database with the view `plays` over the rollouts, and the table `best`.

    `plays` has the row number `row_num`; amounts that are not finite are null. `best` has the best
    play of each prompt; of equal rewards the earlier play.
    """
    check_columns(files, NEEDED)
    present = set(chain.from_iterable(pq.read_schema(file).names for file in files))
    columns = ["row_number() OVER () AS row_num", "play::BIGINT AS play"]
    for name in TEXTS:
        columns.append(f"{name}::VARCHAR AS {name}" if name in present else f"NULL AS {name}")
    for name in AMOUNTS:
        value = f"CASE WHEN isfinite({name}::DOUBLE) THEN {name}::DOUBLE END"
        columns.append(f"{value if name in present else 'NULL::DOUBLE'} AS {name}")
    columns.append(f"{'coalesce(depth, 0)::BIGINT' if 'depth' in present else '0'} AS depth")
    columns.append(f"{'coalesce(refs, [])' if 'refs' in present else '[]'}::BIGINT[] AS refs")
    with tempfile.TemporaryDirectory() as spill:
        # one thread: sums of floats, and so the report, depend on the order of the rows
        database = duckdb.connect(config={"threads": 1, "temp_directory": spill})
        with database:
            names = [glob.escape(str(file)) for file in files]
            rows = database.read_parquet(names, union_by_name=True)
            rows.create_view("files")
            database.execute(f"CREATE VIEW plays AS SELECT {', '.join(columns)} FROM files")
            database.execute(
                "CREATE TEMP TABLE best AS SELECT * FROM plays WHERE reward IS NOT NULL QUALIFY "
                "row_number() OVER (PARTITION BY prompt_id ORDER BY reward DESC, play) = 1"
            )
            yield database


def _add_tallies(summary: Summary, plays: duckdb.DuckDBPyConnection) -> None:
    totals = plays.execute("""
        SELECT agent, count(*), count(*) - count(reward),
            count(*) FILTER (finish_reason = 'length'),
            coalesce(sum(prompt_tokens), 0)::BIGINT, coalesce(sum(completion_tokens), 0)::BIGINT,
            coalesce(sum(flops), 0), count(flops), coalesce(sum(reward_flops), 0),
            coalesce(sum(tokens_estimated), 0)::BIGINT
        FROM plays GROUP BY agent ORDER BY min(row_num)""")
    for agent, *numbers in totals.fetchall():
        summary.tallies[agent] = Tally(*numbers)
    for agent, kind, num in plays.execute(
        "SELECT agent, kind, count(*) FROM plays GROUP BY ALL"
    ).fetchall():
        summary.tallies[agent].kinds[kind] = num


def _add_rewards(summary: Summary, plays: duckdb.DuckDBPyConnection) -> None:
    rewards = plays.execute("""
        SELECT agent, depth, list(reward) FROM plays WHERE reward IS NOT NULL
        GROUP BY ALL ORDER BY min(row_num)""").df()
    for agent, depth, values in rewards.itertuples(index=False):
        summary.rewards[agent, depth] = np.asarray(values, dtype=np.float64)
    for kind, num, total in plays.execute("""
        SELECT kind, count(reward), sum(reward) FROM plays WHERE reward IS NOT NULL GROUP BY kind
        ORDER BY kind""").fetchall():
        summary.rewards_by_kind[kind] = (num, total)


def _add_reasons(summary: Summary, plays: duckdb.DuckDBPyConnection) -> None:
    # addresses and request ids would make every reason unique
    counts = plays.execute(r"""
        WITH failed AS (
            SELECT agent, row_num, left(split_part(trim(regexp_replace(coalesce(error, ''),
                '0x[0-9a-f]+|[0-9a-f-]{16,}|\d{5,}', '…', 'g'), E' \t\r\n'), E'\n', 1), 200) AS line
            FROM plays WHERE reward IS NULL
        )
        SELECT CASE WHEN line = '' THEN 'no reason recorded' ELSE line END AS reason, agent,
            count(*) AS num FROM failed GROUP BY ALL ORDER BY num DESC, min(row_num)""")
    for rank, (reason, agent, num) in enumerate(counts.fetchall()):
        key = (reason if rank < MAX_REASONS else "other reasons", agent)
        summary.reasons[key] = summary.reasons.get(key, 0) + num


def _add_best_plays(summary: Summary, plays: duckdb.DuckDBPyConnection) -> None:
    prompts = "SELECT prompt_id, count(reward) FROM plays GROUP BY prompt_id ORDER BY min(row_num)"
    for prompt_id, num_scored in plays.execute(prompts).fetchall():
        summary.prompt_ids.append(prompt_id)
        summary.num_scored.append(num_scored)
    for agent, kind, fresh, num in plays.execute("""
        SELECT agent, kind, kind = 'answer' AND depth > 0, count(*) FROM best GROUP BY ALL
        """).fetchall():
        summary.tallies[agent].wins += num
        summary.best[kind] += num
        summary.best["fresh"] += num * fresh
    paths = plays.execute("""
        WITH RECURSIVE path AS (
            SELECT prompt_id, play, refs, kind, reward, [[kind, agent]] AS steps FROM best
            UNION ALL
            SELECT draft.prompt_id, draft.play, draft.refs, draft.kind, path.reward,
                list_prepend([draft.kind, draft.agent], path.steps)
            FROM path JOIN plays AS draft ON draft.prompt_id = path.prompt_id
                AND draft.play = path.refs[1] AND draft.play < path.play
            WHERE path.kind = 'refine'
        ), whole AS (
            SELECT arg_max(steps, len(steps)) AS steps, any_value(reward) AS reward
            FROM path GROUP BY prompt_id ORDER BY prompt_id
        )
        SELECT steps, count(*) AS num, sum(reward) FROM whole GROUP BY steps
        ORDER BY num DESC, steps""")
    for steps, num, total in paths.fetchall():
        summary.paths[tuple((kind, agent) for kind, agent in steps)] = (num, total)


def _add_gains(summary: Summary, plays: duckdb.DuckDBPyConnection) -> None:
    gains = plays.execute("""
        WITH seen AS (
            SELECT prompt_id, play, agent, reward, unnest(refs) AS ref FROM plays
            WHERE reward IS NOT NULL AND kind <> 'answer'
        ), gains AS (
            SELECT CASE WHEN count(*) = 1 THEN any_value(draft.agent) END AS author,
                seen.agent AS refiner, seen.reward - max(draft.reward) AS gain
            FROM seen JOIN plays AS draft ON draft.prompt_id = seen.prompt_id
                AND draft.play = seen.ref AND draft.reward IS NOT NULL
            GROUP BY seen.prompt_id, seen.play, seen.agent, seen.reward
            ORDER BY seen.prompt_id, seen.play
        )
        SELECT author, refiner, count(*), sum(gain), count(*) FILTER (gain > 0) FROM gains
        GROUP BY ALL ORDER BY ALL""")
    for author, refiner, *numbers in gains.fetchall():
        summary.gains[author, refiner] = tuple(numbers)


def _best_so_far(plays: duckdb.DuckDBPyConnection) -> BestSoFar:
    """Return the curve from sums at each number of plays, and sums of the prompts that ended."""
    # rewards are relative to their mean, so that squares do not cancel
    sums = plays.execute("""
        WITH scored AS (
            SELECT prompt_id, reward - (SELECT avg(reward) FROM plays) AS reward,
                row_number() OVER whole AS num,
                max(reward) OVER (whole ROWS UNBOUNDED PRECEDING)
                    - (SELECT avg(reward) FROM plays) AS top,
                lead(play) OVER whole IS NULL AS ends
            FROM plays WHERE reward IS NOT NULL
            WINDOW whole AS (PARTITION BY prompt_id ORDER BY play)
        )
        SELECT sum(top) AS top, sum(top * top) AS square, sum(reward) AS own, count(*) AS num,
            coalesce(sum(top) FILTER (ends), 0) AS end_top,
            coalesce(sum(top * top) FILTER (ends), 0) AS end_square,
            count(*) FILTER (ends) AS num_ends, (SELECT avg(reward) FROM plays) AS origin
        FROM scored GROUP BY scored.num ORDER BY scored.num""").df()
    if sums.empty:
        return BestSoFar()
    num_prompts = int(sums["num"][0])
    ended = sums[["end_top", "end_square"]].cumsum().shift(fill_value=0.0)
    mean = (sums["top"] + ended["end_top"]).to_numpy() / num_prompts
    square = (sums["square"] + ended["end_square"]).to_numpy()
    variance = (square - num_prompts * mean**2) / max(num_prompts - 1, 1)
    origin = float(sums["origin"][0])
    return BestSoFar(
        num_prompts=num_prompts,
        num_short=num_prompts - int(sums["num_ends"].iloc[-1]),
        mean=mean + origin,
        half_width=1.96 * np.sqrt(np.maximum(variance, 0) / num_prompts),
        own=sums["own"].to_numpy() / sums["num"].to_numpy() + origin,
    )
