"""Limits: what one request, and all of them together, may cost the server."""

from dataclasses import dataclass

# More than these is a mistake or an attack on any machine, so they are no settings.
MOST_MESSAGES = 256
MOST_CHARACTERS = 200_000
MOST_STOPS = 4
MOST_BEAMS = 10


@dataclass(frozen=True)
class Limits:
    """What may be asked of a server.

    Attributes:
        body_bytes: Size of the largest request, and of the largest image fetched for one.
        images: Images in one request, its history included.
        pixels: Pixels of one image.
        seconds: Time after which an answer is cut.
        places: Requests that may wait while one is answered.
        arrival_seconds: Time that a request has to arrive.
        fetch_seconds: Time that each image has to be fetched.
    """

    body_bytes: int = 20_000_000
    images: int = 8
    pixels: int = 50_000_000
    seconds: float = 120.0
    places: int = 32
    arrival_seconds: float = 30.0
    fetch_seconds: float = 10.0
