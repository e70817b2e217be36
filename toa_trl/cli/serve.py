"""Serve a search behind an OpenAI-compatible endpoint.

toa-trl serve --config run.yaml

The configuration is that of synthesize; keys of prompts, data sets, the Hub and Ray are not used.
Each request to /v1/chat/completions is one search, and `limits` are those of a request. It runs
until Ctrl-C or SIGTERM. Needs: pip install 'toa_trl[serve]'
"""

import os
from functools import partial

from toa_trl.cli.arguments import user_errors
from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.options import read_config
from toa_trl.errors import ConfigError
from toa_trl.systems.search_model import SearchModel, SearchSettings
from toa_trl.systems.server import listen, make_app, serve
from toa_trl.utils.config import Port, PositiveInt, Text
from toa_trl.utils.escape import say


class ServeConfig(SynthesisConfig):
    """A search behind an endpoint."""

    output_dir: str = ""
    """Not used: plays are kept in memory, until the response is sent."""
    host: Text = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all interfaces, see api_key_env."""
    port: Port = 8000
    """Port to listen on."""
    model_name: Text = "toa"
    """Name of the model, as requests name it."""
    api_key_env: str = ""
    """Environment variable with the key that requests must have; by default they need none."""
    max_budget: PositiveInt | None = None
    """Largest budget that a request may have; by default that of the configuration."""
    max_requests: PositiveInt = 64
    """Requests in progress at the same time; further ones are refused (status 429)."""

    def search_model(self) -> SearchModel:
        """Return the search as a model.

        Raises:
            ConfigError: see `SearchModel`.
        """
        return SearchModel(
            self.agents,
            self.reward,
            SearchSettings(self.search, self.budget, self.search_params, self.seed),
            sampling=self.sampling,
            task=self.task,
            plays_in_flight=self.plays_in_flight,
            patience_s=self.patience_s,
            limits=self.limits,
        )


def main() -> None:
    """Serve until a signal arrives.

    Raises:
        ConfigError: a key is invalid, a library is missing, the port is in use, or a server cannot
            be reached.
    """
    config = read_config(ServeConfig, description=__doc__)
    api_key = os.environ.get(config.api_key_env) if config.api_key_env else None
    if config.api_key_env and not api_key:
        raise ConfigError(f"api_key_env: the variable {config.api_key_env} is not set")
    with listen(config.host, config.port) as listener:
        model = config.search_model()
        app = make_app(model, config.model_name, api_key, config.max_budget, config.max_requests)
        url = f"http://{config.host}:{config.port}/v1"
        ready = f"model {config.model_name} at {url}; Ctrl-C stops it"
        serve(model, app, listener, on_ready=partial(say, ready))


if __name__ == "__main__":
    with user_errors():
        main()
