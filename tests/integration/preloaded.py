"""Processes that have imported torch and TRL: importing these takes longer than a test's training.

A server imports them once. `python preloaded.py SOCKET COMMANDS` lets it fork a process with the
environment and the output of this one, which runs the commands, a JSON list of lists of arguments
as `python` takes them, one after the other. So accelerate starts processes, sets their variables
and waits for them as for any script.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Sequence

LLAMA = "transformers.models.llama.modeling_llama"  # the student


def run_command(arguments: Sequence[str]) -> int:
    """Do what `python ARGUMENTS` does, in this process; return the exit status."""
    try:
        if arguments[0] == "-m":
            sys.argv = list(arguments[1:])
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(arguments)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_commands(commands: Sequence[Sequence[str]]) -> int:
    """Run commands until one fails; trainings share the process group, which the last one ends."""
    from accelerate import Accelerator

    end_training = Accelerator.end_training
    Accelerator.end_training = lambda self: None
    for number, arguments in enumerate(commands, start=1):
        if number == len(commands):
            Accelerator.end_training = end_training
        status = run_command(arguments)
        if status:
            return status
    return 0


class Handler(socketserver.StreamRequestHandler):
    """Runs the commands of one request, in a process forked for it."""

    def handle(self) -> None:
        """Take over output, environment and folder of the process that asks, and run."""
        _, descriptors, *_ = socket.recv_fds(self.request, 1, 2)
        for target, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, target)
            os.close(descriptor)
        request = json.loads(self.rfile.readline())
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        threading.Thread(target=self.end_with_client, daemon=True).start()
        status = run_commands(request["commands"])
        sys.stdout.flush()
        sys.stderr.flush()
        self.wfile.write(str(status).encode())

    def end_with_client(self) -> None:
        """End this process when the one that asked is killed, such as by accelerate."""
        self.rfile.read(1)
        os._exit(1)


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks for every request, as long as the process that started it lives."""

    request_queue_size = 16
    parent = os.getppid()

    def service_actions(self) -> None:
        """Collect ended processes, and end with the tests."""
        super().service_actions()
        if os.getppid() != self.parent:
            raise SystemExit


def serve(path: str) -> None:
    """Import what trainings need and serve until the tests end."""
    for module in ("accelerate.commands.launch", "datasets", "peft", "toa_trl.training", LLAMA):
        importlib.import_module(module)
    for name in ("SFTTrainer", "DPOTrainer", "RewardTrainer"):  # imported when asked for
        getattr(importlib.import_module("trl"), name)
    with Server(path, Handler) as server:
        server.serve_forever()


def ask(path: str, commands: str) -> int:
    """Let the server run commands; return the exit status, 1 if it was killed."""
    request = {"environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        socket.send_fds(client, [b"x"], [1, 2])
        client.sendall(json.dumps({**request, "commands": json.loads(commands)}).encode() + b"\n")
        return int(client.recv(8) or 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(*sys.argv[1:]))
