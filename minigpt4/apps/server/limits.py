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
        body_bytes: Largest request; and largest picture that is fetched for one.
        images: Pictures in one request, its history included.
        pixels: Of one picture.
        seconds: Longest time an answer is written; it is cut there.
        arrival_seconds: For a request to arrive.
        places: Requests that may wait while one is answered.
        fetch_seconds: For each picture that is fetched.
        grace_seconds: For answers under way when the server is told to stop.
    """

    body_bytes: int = 20_000_000
    images: int = 8
    pixels: int = 50_000_000
    seconds: float = 120.0
    arrival_seconds: float = 30.0
    places: int = 32
    fetch_seconds: float = 10.0
    grace_seconds: float = 5.0
