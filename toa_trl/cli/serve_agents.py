"""Serve the models of a run with vLLM: start, restart and stop the servers.

    toa-trl serve-agents --config fleet.yaml

It runs until Ctrl-C or SIGTERM; however it ends, kill -9 included, no server is left behind. Once
every server is healthy it writes the endpoints file. `toa-trl synthesize --endpoints FILE` takes
the base URLs from there, by the agents' names. vLLM may be installed in a separate environment
(see launcher). Linux only.

fleet.yaml:

    endpoints: endpoints.yaml       # written when every server is healthy, removed at the end
    launcher: vllm serve {model}    # or: /path/to/python -m vllm.entrypoints.openai.api_server
                                    #     --model {model}
    host: 127.0.0.1                 # under which other machines reach this one; with any name or
                                    # address but 127.0.0.1 and localhost the servers listen on
                                    # all interfaces
    log_dir: logs/fleet             # one log file per server
    start_timeout_s: 1800           # per server, including the download of its model
    max_restarts: 3                 # per server; restored after 10 healthy minutes
    servers:
      - {name: llama, model: meta-llama/Llama-3.1-8B-Instruct, port: 8001, gpus: [[0], [1]]}
      - {name: qwen, model: Qwen/Qwen2.5-7B-Instruct, port: 8011, gpus: [2, 3],
         args: {max-model-len: 8192}}
      - {name: judge, model: Skywork/Skywork-Reward-Llama-3.1-8B-v0.2, port: 8021, gpus: [4],
         reward: true}

The keys of a server:

KEYS

Exit codes: 0 stopped by a signal; 1 a server died more than max_restarts times, or was not healthy
in time (all others were stopped too); 2 a mistake in fleet.yaml, a port in use, or no vLLM.
"""

import argparse
from pathlib import Path

from toa_trl.cli.arguments import Parser, help_formatter, user_errors
from toa_trl.cli.describe import describe_keys
from toa_trl.serving.fleet import ServerConfig, load_fleet
from toa_trl.serving.supervisor import serve
from toa_trl.utils.escape import say


def main() -> None:
    """Serve a fleet until a signal arrives."""
    formatter = help_formatter(argparse.RawDescriptionHelpFormatter)
    description = (__doc__ or "").replace("KEYS", describe_keys(ServerConfig))
    parser = Parser(description=description, formatter_class=formatter)
    parser.add_argument("--config", type=Path, required=True, help="fleet.yaml, as above")
    serve(load_fleet(parser.parse_args().config), say=say)


if __name__ == "__main__":
    with user_errors():
        main()
