"""Look at runs: a local web page, and the tree of a prompt on the terminal."""

from pathlib import Path

from toa_trl.cli.arguments import Parser
from toa_trl.errors import ConfigError
from toa_trl.utils.escape import say
from toa_trl.viewer.show import show as show_prompt

PORT = 8321


def view() -> None:
    """Serve a page over runs until Ctrl-C.

    Raises:
        ConfigError: a library is missing, there is no run, or the port is in use.
    """
    parser = Parser(description="Show runs, finished or running, on a page of this machine.")
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="FOLDER",
        help="folder with runs below it, or of one run (default: the current folder)",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port of the page; 0: a free one (default: {PORT})"
    )
    options = parser.parse_args()
    try:
        from toa_trl.viewer.folder import Folder
        from toa_trl.viewer.server import listen, serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"view: {error.name} is not installed; pip install 'toa_trl[view]'"
        ) from error
    folder = Folder(options.folder.expanduser())
    with listen(options.port) as listener:
        num_runs = len(folder.names()[0])
        what = f"{num_runs} run{'' if num_runs == 1 else 's'}"
        serve(folder, listener, lambda url: say(f"{what} at {url} ; Ctrl-C stops it"))


def show() -> None:
    """Print the tree of a prompt.

    Raises:
        ConfigError: the folder is not a run, or there is no such prompt or play.
    """
    parser = Parser(description="Print the tree of a prompt, or one of its plays.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--prompt", required=True, metavar="ID", help="id of the prompt")
    parser.add_argument(
        "--play", type=int, metavar="N", help="print this play with its whole response instead"
    )
    options = parser.parse_args()
    show_prompt(options.run.expanduser(), options.prompt, options.play)
