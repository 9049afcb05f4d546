"""Limits: what requests may cost the server."""

from dataclasses import dataclass

# More is a mistake or an attack on any machine, so these are not settings.
MOST_MESSAGES = 256
MOST_CHARACTERS = 200_000
MOST_STOPS = 4
MOST_BEAMS = 10


@dataclass(frozen=True)
class Limits:
    """What may be asked of a server."""

    body_bytes: int = 20_000_000  # of a request, and of an image fetched for one
    images: int = 8  # in one request, its history included
    pixels: int = 50_000_000  # of one image
    seconds: float = 120.0  # after which an answer is cut
    places: int = 32  # for requests that wait while one is answered
    arrival_seconds: float = 30.0  # for a request to arrive
    fetch_seconds: float = 10.0  # for each image to be fetched
