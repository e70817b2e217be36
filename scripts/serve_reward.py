"""Serve a scorer of your own by the JSON contract of toa_trl.rewards.http.

Change `score`, start the server, and name its URL in the run:

python scripts/serve_reward.py --port 8020
# reward: {kind: http, url: "http://localhost:8020/score"}
"""

import argparse

from aiohttp import web


def score(prompt: list[dict[str, str]], response: str, metadata: dict[str, object]) -> float:
    """Return a raw reward, higher is better: here, the share of prompt words in the response."""
    asked = set(prompt[-1]["content"].lower().split())
    return len(asked & set(response.lower().split())) / len(asked)


async def answer(request: web.Request) -> web.Response:
    """Score all inputs of a request."""
    inputs = (await request.json())["inputs"]  # a model can score them as one batch
    scores = [score(**item) for item in inputs]
    return web.json_response({"scores": scores, "usage": {"prompt_tokens": 0}})  # no model


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to accept other machines")
parser.add_argument("--port", type=int, default=8020)
options = parser.parse_args()
app = web.Application(client_max_size=2**28)
app.router.add_post("/score", answer)
web.run_app(app, host=options.host, port=options.port)
