"""Behaves as `vllm serve` does, from afar.

Options, /health once it is up, and an engine process of its own.

Environment: FAKE_DELAY_S before it listens; FAKE_DIES_S after which it exits with code 3;
FAKE_STUBBORN: its engine ignores SIGTERM; FAKE_STARTS: a file that gets a line of JSON per start.
"""

# ruff: noqa: T201

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

ENGINE = (
    "import signal, sys, time; len(sys.argv) > 1 and signal.signal(signal.SIGTERM, "
    "signal.SIG_IGN); time.sleep(600)"
)

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
options, others = parser.parse_known_args()

stubborn = ["stubborn"] if "FAKE_STUBBORN" in os.environ else []
engine = subprocess.Popen([sys.executable, "-S", "-c", ENGINE, *stubborn], start_new_session=True)
if "FAKE_STARTS" in os.environ:
    start = {
        **vars(options),
        "others": others,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "pid": os.getpid(),
        "time": time.time(),
    }
    with open(os.environ["FAKE_STARTS"], "a") as file:
        file.write(json.dumps(start) + "\n")


def stop(*_: object) -> None:  # SIGTERM, on which vLLM ends its engine, too
    engine.terminate()
    os._exit(0)


def die() -> None:
    print("the last word", flush=True)
    os._exit(3)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()


signal.signal(signal.SIGTERM, stop)
if "FAKE_DIES_S" in os.environ:
    timer = threading.Timer(float(os.environ["FAKE_DIES_S"]), die)
    timer.daemon = True
    timer.start()
print(f"{options.model}: loading", flush=True)
time.sleep(float(os.environ.get("FAKE_DELAY_S", "0")))
http.server.ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
