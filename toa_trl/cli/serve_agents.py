"""Serves the models of a run with vLLM: starts the servers, restarts the one that dies, and ends them all with itself.

    python toa_trl/cli/serve_agents.py --config fleet.yaml

It runs until Ctrl-C or SIGTERM; killed in any other way, kill -9 included, it leaves no server behind either. Once every
server answers it writes the endpoints file, and recipes/synthesize.py --endpoints FILE takes the base URLs from there, by
the agents' names. vLLM may live in an environment of its own (see launcher). Linux only.

fleet.yaml:

    endpoints: endpoints.yaml            # written when every server answers, removed at the end
    launcher: vllm serve {model}         # or: /path/to/python -m vllm.entrypoints.openai.api_server --model {model}
    host: 127.0.0.1                      # under which others reach this machine; with another name or address than
                                         # 127.0.0.1 and localhost the servers listen on all of its interfaces
    log_dir: logs/fleet                  # one log file per server
    start_timeout_s: 1800                # per server, the download of its model included
    max_restarts: 3                      # per server; it gets them back when it was healthy for 10 minutes
    servers:
      - {name: llama, model: meta-llama/Llama-3.1-8B-Instruct, port: 8001, gpus: [[0], [1]]}
      - {name: qwen, model: Qwen/Qwen2.5-7B-Instruct, port: 8011, gpus: [2, 3], args: {max-model-len: 8192}}
      - {name: judge, model: Skywork/Skywork-Reward-Llama-3.1-8B-v0.2, port: 8021, gpus: [4], reward: true}

The keys of a server; name, model and port are needed:

    name             the agent's name in the run's configuration; unique
    model            a folder or a Hub name
    port             of the first replica; those of further ones count up
    gpus             [0, 1]: one server on both; [[0], [1]]: a replica on each, on ports that count up; left out: what the
                     environment has. Servers share a GPU if their memory_share adds up to at most 1
    tensor_parallel  vLLM's --tensor-parallel-size; default: the number of GPUs of a replica
    memory_share     vLLM's --gpu-memory-utilization, (0, 1]
    chat_template    vLLM's --chat-template, a file
    args             vLLM's other options: {max-model-len: 8192, enable-prefix-caching: true}; true is the flag alone,
                     false is --no-FLAG, a list is several words, a mapping is JSON
    env              environment variables: {VLLM_CPU_KVCACHE_SPACE: 4}
    reward           true: the reward model of the run (--runner pooling); one server at most
    launcher         in place of the fleet's

Exit codes: 0 ended as asked; 1 a server died more than max_restarts times, or was not healthy in time (everything else
was ended, too); 2 a mistake in fleet.yaml, a port in use, or no vLLM.
"""

import argparse
from pathlib import Path

from toa_trl.cli.arguments import user_errors
from toa_trl.serving.fleet import load_fleet
from toa_trl.serving.supervisor import serve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="fleet.yaml, as above")
    serve(load_fleet(parser.parse_args().config), say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    with user_errors():
        main()
