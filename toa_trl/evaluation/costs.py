"""What plays cost: tokens, FLOPs and money."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toa_trl.agents.base import Price
from toa_trl.types import Flops, Play


@dataclass(frozen=True)
class Costs:
    """How the costs of plays are counted."""

    prices: Mapping[str, Price] = field(default_factory=dict)  # by agent; others cost nothing
    models: Mapping[str, Flops | None] = field(default_factory=dict)  # by agent; for `context`
    context: int | None = None  # tokens that each token attends to; None: those of its call

    def of(self, plays: Sequence[Play]) -> dict[str, float]:
        """Return tokens, flops and cost of the agents, and reward_flops, as far as known."""
        row = {"tokens": 0.0, "flops": 0.0, "reward_flops": 0.0, "cost": 0.0}
        for play in plays:
            done, price = play.completion, self.prices.get(play.action.agent)
            row["reward_flops"] += play.reward_flops or 0.0
            if done is None:
                continue
            num_tokens = done.prompt_tokens + done.completion_tokens
            row["tokens"] += num_tokens
            row["flops"] += self._flops(play.action.agent, num_tokens, done.flops)
            row["cost"] += price.of(done.prompt_tokens, done.completion_tokens) if price else 0.0
        return row

    def _flops(self, agent: str, num_tokens: int, counted: float | None) -> float:
        if self.context is None:
            return counted or 0.0
        model = self.models.get(agent)
        return model(num_tokens, self.context) if model else 0.0
