"""An OpenAI-compatible annotator for alpaca_eval that prefers the longer output.

    python -m tests.alpaca_judge [--nonsense 0.3] [--no_logprobs] [--fail_after 200]

It runs in a separate process and reads the two outputs from alpaca_eval's prompt. With logprobs,
outputs of equal length are even odds. `nonsense` is the share of the prompts (by their digest) that
get no verdict; after `fail_after` answers it refuses all requests. GET /stats returns the number of
requests and of distinct prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.helpers import number

ROOT = Path(__file__).parents[1]
BEGIN = '"model_identifier": "m",\n        "output": """'
MIDDLE = '"""\n    },\n    {\n        "model_identifier": "M",\n        "output": """'
END = '"""\n    }\n}\n\n## Task'
EVEN = math.log(0.5)


def nonsense(share: float, first: str, second: str) -> bool:
    """Whether these two outputs, in any order, get no verdict."""
    return number("nonsense", *sorted((first, second))) < share


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    lock = threading.Lock()
    num_asked = 0
    prompts: set[str]

    def do_GET(self) -> None:
        self.reply(200, {"num_asked": Handler.num_asked, "num_distinct": len(Handler.prompts)})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.lock:
            Handler.num_asked += 1
            Handler.prompts.add(prompt)
            if self.options.fail_after is not None and Handler.num_asked > self.options.fail_after:
                return self.reply(400, {"error": {"message": "no more today"}})
        first, second = prompt.split(BEGIN, 1)[1].rsplit(END, 1)[0].split(MIDDLE, 1)
        text = "m" if len(first) > len(second) else "M"
        odds = {"m": -0.0, "M": -40.0} if text == "m" else {"m": -40.0, "M": -0.0}
        if len(first) == len(second):
            odds = {"m": EVEN, "M": EVEN}
        if nonsense(self.options.nonsense, first, second):
            text, odds = "Both m and M are fine.", {"Both": 0.0}
        top = [
            {"token": token, "logprob": logprob, "bytes": None} for token, logprob in odds.items()
        ]
        logprobs = {"content": [{**top[0], "top_logprobs": top}]}
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": logprobs if body.get("logprobs") and not self.options.no_logprobs else None,
        }
        usage = {
            "prompt_tokens": len(prompt) // 4,
            "completion_tokens": 1,
            "total_tokens": len(prompt) // 4 + 1,
        }
        head = {"id": "0", "object": "chat.completion", "created": 0, "model": body["model"]}
        return self.reply(200, {**head, "choices": [choice], "usage": usage})

    def reply(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nonsense", type=float, default=0.0)
    parser.add_argument("--no_logprobs", action="store_true")
    parser.add_argument("--fail_after", type=int)
    Handler.options = parser.parse_args()
    Handler.prompts = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the parent process ends


class Judge:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, int]:
        with urlopen(f"{self.url}/stats", timeout=60) as answer:
            return json.load(answer)


@contextmanager
def judging(*options: str) -> Iterator[Judge]:
    """A judge with these options, e.g. judging("--nonsense", "0.3")."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.alpaca_judge", *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Judge(int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
