"""Answer questions about pictures over HTTP, as OpenAI's chat completions do."""

import argparse
import ipaddress
import logging
import os

from minigpt4.apps.arguments import add_model_arguments, open_socket, plan_chat
from minigpt4.apps.server.limits import Limits
from minigpt4.errors import ConfigError

logger = logging.getLogger(__name__)

KEY_VARIABLE = "MINIGPT4_API_KEY"

_EPILOG = """
The port opens once the model is loaded: until then nobody is answered, and GET /health tells when.
Ctrl-C or SIGTERM lets answers under way go on for 5 seconds; a second one ends at once.
"""


_LIMITS = (  # option, default, help
    ("max-body-mb", Limits.body_bytes / 1e6, "largest request"),
    ("max-images", Limits.images, "pictures in one request"),
    ("max-megapixels", Limits.pixels / 1e6, "of one picture"),
    ("max-seconds", Limits.seconds, "an answer is cut after these"),
    ("max-waiting", Limits.places, "requests that may wait"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model-id", default="minigpt4", help="what clients call the model")
    parser.add_argument(
        "--api-key",
        help=f"what clients must send; better in {KEY_VARIABLE}, as others see command lines",
    )
    parser.add_argument(
        "--allow-urls",
        action="store_true",
        help="fetch pictures that are named by an http(s) address, from public hosts only",
    )
    limits = parser.add_argument_group("limits")
    for option, default, text in _LIMITS:
        number = type(default)
        text = f"{text} (default %(default)g)"
        limits.add_argument(f"--{option}", type=number, default=default, help=text)


def run(arguments: argparse.Namespace) -> None:
    limits, key = read_limits(arguments), read_key(arguments.api_key)
    plan = plan_chat(arguments)
    if plan is None:
        return

    from minigpt4.apps.server.app import Service
    from minigpt4.apps.server.pictures import Fetcher
    from minigpt4.apps.server.serving import serve

    open_socket(arguments.host, arguments.port).close()  # a fault shows before the model loads
    if key is None and not is_loopback(arguments.host):
        logger.warning(
            "--host %s lets others in, and nobody needs a key: set %s", arguments.host, KEY_VARIABLE
        )
    fetcher = Fetcher(limits.fetch_seconds, limits.body_bytes) if arguments.allow_urls else None
    service = Service(plan.load(), arguments.model_id, limits, key, fetcher)
    serve(service, open_socket(arguments.host, arguments.port))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_limits(arguments: argparse.Namespace) -> Limits:
    for option, _, _ in _LIMITS:
        value = getattr(arguments, option.replace("-", "_"))
        lowest = 0 if option == "max-images" else 1e-6
        if not lowest <= value < 1e9:
            raise ConfigError(f"--{option} {value:g}: must be a number greater than 0")
    return Limits(
        body_bytes=int(arguments.max_body_mb * 1e6),
        images=arguments.max_images,
        pixels=int(arguments.max_megapixels * 1e6),
        seconds=arguments.max_seconds,
        places=arguments.max_waiting,
    )


def read_key(option: str | None) -> str | None:
    """Return the API key, or None; raise ConfigError for one that no client can send."""
    key = os.environ.get(KEY_VARIABLE) if option is None else option
    if key is not None and not (key.strip() == key != "" and key.isascii() and key.isprintable()):
        where = KEY_VARIABLE if option is None else "--api-key"
        raise ConfigError(f"{where}: a key is ASCII without spaces around it, and not empty")
    return key
