"""Replicas of a reward model on several devices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.helpers import wait
from toa_trl.errors import ConfigError
from toa_trl.rewards import make_reward
from toa_trl.rewards.base import RewardModel
from toa_trl.rewards.replicas import ReplicatedReward
from toa_trl.sampling.identity import decisive
from toa_trl.types import Prompt

PROMPTS = [Prompt(str(n), "What?") for n in range(6)]  # type: ignore[arg-type]


class Slow(RewardModel):
    """Scores a response by its length, after the others had their turn."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.asked: list[str] = []
        self.closed = False

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        self.asked.append(prompt.id)
        await asyncio.sleep(0.01)
        return [float(len(response)) for response in responses]

    async def aclose(self) -> None:
        self.closed = True


def test_prompts_are_shared_out_among_the_replicas() -> None:
    replicas = [Slow(device) for device in ("cuda:0", "cuda:1", "cuda:2")]
    reward = ReplicatedReward(replicas)

    async def score() -> list[list[float]]:
        scores = await asyncio.gather(*(reward.score(prompt, ["abc"]) for prompt in PROMPTS))
        await reward.aclose()
        return list(scores)

    assert wait(score()) == [[3.0]] * 6
    assert [len(replica.asked) for replica in replicas] == [2, 2, 2]
    assert all(replica.closed for replica in replicas)


def test_an_entry_with_devices_has_a_model_on_each_and_they_decide_nothing() -> None:
    entry = {"kind": f"{__name__}:Slow", "devices": ["cpu", "meta"]}
    reward = make_reward(entry)
    assert isinstance(reward, ReplicatedReward)
    assert [replica.device for replica in reward._replicas] == ["cpu", "meta"]  # type: ignore[attr-defined]
    assert decisive(entry) == {"kind": f"{__name__}:Slow"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "length", "devices": ["cpu"]}, "devices: is for kinds that have a device"),
        ({"kind": "classifier", "model": "m", "devices": []}, "devices: must have at least 1"),
        (
            {"kind": "classifier", "model": "m", "devices": ["cpu"], "device": "cpu"},
            "devices: is for kinds that have a device, instead of device",
        ),
    ],
)
def test_devices_that_cannot_be_are_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward(entry)
