"""Processes that have imported torch and TRL: importing these takes longer than a test's training.

A server imports them once. `python preloaded.py SOCKET COMMANDS` lets it fork a process with the
environment and the standard streams of this one, which runs the commands, a JSON list of lists of
arguments as `python` takes them, one after the other. So accelerate starts processes, sets their
variables and waits for them as for any script. Signals that end this process end the other one.

The server writes a `python` and an `accelerate` beside its socket that start scripts and modules
like that; they are also what forked processes start.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

TRAINING = (
    "accelerate.commands.launch",
    "datasets",
    "peft",
    "toa_trl.training",
    "transformers.models.llama.modeling_llama",  # the student
)
TRAINERS = ("SFTTrainer", "DPOTrainer", "RewardTrainer")  # imported when asked for
SAMPLING = (
    "toa_trl.agents.transformers",
    "toa_trl.cli.comparison",
    "toa_trl.cli.evaluation_config",
    "toa_trl.pipeline.command",
    "toa_trl.recipes.iterate",
    "toa_trl.rewards.likelihood",
    "toa_trl.training.merge_adapter",
)


def run_command(arguments: Sequence[str]) -> int:
    """Do what `python ARGUMENTS` does, in this process; return the exit status."""
    try:
        if arguments[0] == "-m":
            sys.path[0] = os.getcwd()
            sys.argv = list(arguments[1:])
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(arguments[0]).parent.resolve())
            sys.argv = list(arguments)
            runpy.run_path(os.path.abspath(arguments[0]), run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_commands(commands: Sequence[Sequence[str]]) -> int:
    """Run commands until one fails; trainings share the process group, which the last one ends."""
    if "accelerate" not in sys.modules:
        return run_command(*commands)
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
        """Take over streams, environment and folder of the process that asks, and run."""
        os.setsid()
        _, descriptors, *_ = socket.recv_fds(self.request, 1, 3)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        request = json.loads(self.rfile.readline())
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        threading.Thread(target=self.end_with_client, daemon=True).start()
        end, pid = os._exit, os.getpid()

        def report(status: int) -> None:
            """Stand for os._exit: report the exit status of this process, not of its children."""
            if os.getpid() == pid:
                self.wfile.write(str(status).encode())
            end(status)

        setattr(os, "_exit", report)  # noqa: B010
        status = run_commands(request["commands"])
        setattr(os, "_exit", end)  # noqa: B010
        sys.stdout.flush()
        sys.stderr.flush()
        self.wfile.write(str(status).encode())

    def end_with_client(self) -> None:
        """Pass on the signals of the process that asked, and end with it when it is killed."""
        while received := self.rfile.read(1):
            os.killpg(0, received[0])
        os.killpg(0, signal.SIGKILL)


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks for every request, as long as the process that started it lives."""

    request_queue_size = 16
    parent = os.getppid()

    def service_actions(self) -> None:
        """Collect ended processes, and end with the tests."""
        super().service_actions()
        if os.getppid() != self.parent:
            raise SystemExit


def write_programs(path: str) -> None:
    """Write the `python` and `accelerate` that ask the server."""
    ask = f"{sys.executable} -I -S {Path(__file__).resolve()} {path}"
    programs = {
        "python": f'case "$1" in -m|*.py) exec {ask} python "$@";; esac\n'
        f'exec {sys.executable} "$@"\n',
        "accelerate": 'shift\nexec "${0%/*}/python" -m accelerate.commands.launch "$@"\n',
    }
    for name, lines in programs.items():
        program = Path(path).with_name(name)
        program.write_text(f"#!/bin/sh\n{lines}")
        program.chmod(0o755)


def serve(path: str, modules: Sequence[str]) -> None:
    """Import modules, by default what recipes need, and serve until the tests end."""
    write_programs(path)
    sys.executable = str(Path(path).with_name("python"))
    for module in modules or (*TRAINING, *SAMPLING):
        importlib.import_module(module)
    for name in () if modules else TRAINERS:
        getattr(importlib.import_module("trl"), name)
    with Server(path, Handler) as server:
        server.serve_forever()


def ask(path: str, commands: Sequence[Sequence[str]]) -> int:
    """Let the server run commands; return the exit status, 1 if it was killed."""
    request = {"environment": dict(os.environ), "folder": os.getcwd(), "commands": commands}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        socket.send_fds(client, [b"x"], [0, 1, 2])
        client.sendall(json.dumps(request).encode() + b"\n")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _: client.sendall(bytes([received])))
        return int(client.recv(8) or 1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", path, *modules]:
            serve(path, modules)
        case [path, "python", *arguments]:
            sys.exit(ask(path, [arguments]))
        case [path, commands]:
            sys.exit(ask(path, json.loads(commands)))
