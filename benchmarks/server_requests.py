"""Requests for the server's fuzz: sound ones, and every way in which they are damaged."""

import base64
import io
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

PATH = "/v1/chat/completions"
Make = Callable[[random.Random], "Case"]

# What stands in the place of any value of a sound request.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 1e-308, 2**31, 2**63, 2**64, 10**400),
    *("", " ", "a", "###", "<ImageHere>", "</s>", "<Img>", "\x00", "\u202e\u200b", "🙂" * 50),
    *("a" * 2000, "NaN", "user", "assistant", "system", "text", "image_url", "minigpt4"),
    *([], {}, [[]], [None], {"": {}}, [{}], {"type": "text"}, {"url": 1}),
    *("data:image/png;base64,", "data:,", "data:image/png;base64,AAAA", "http://[", "http://0/"),
    *("file:///etc/passwd", "https://localhost/a.png", "http://169.254.169.254/", "//", "\n"),
)
_FIELDS = (
    *("model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed"),
    *("stop", "n", "stream", "stream_options", "user", "logit_bias", "logprobs", "tools", "audio"),
    *("response_format", "presence_penalty", "num_beams", "do_sample", "min_length", "metadata"),
    *("repetition_penalty", "length_penalty", "store", "functions", "top_k", "ticket", "cancelled"),
)


@dataclass(frozen=True)
class Case:
    """Bytes to send on a new connection.

    Attributes:
        kind: By which cases are counted.
        data: What is sent.
        sound: It must be answered with 200.
        ends_early: It ends in the middle of the request.
        hang_up: The client leaves without reading a reply.
    """

    kind: str
    data: bytes
    sound: bool = False
    ends_early: bool = False
    hang_up: bool = False


# Sound requests


def picture(rng: random.Random) -> bytes:
    """A small picture in one of the formats that are read."""
    size = rng.choice([(1, 1), (1, 40), (32, 32), (60, 20)])
    kind, mode = rng.choice(
        [
            *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "1", "I;16", "P")),
            *(("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "RGB")),
        ]
    )
    image = Image.new(mode, size)
    file = io.BytesIO()
    if kind == "GIF":
        image.save(file, kind, save_all=True, append_images=[image.copy()])
    elif kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = rng.randint(1, 8)  # how the camera was held
        image.save(file, kind, exif=exif)
    else:
        image.save(file, kind)
    return file.getvalue()


def image_part(data: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def sound_request(rng: random.Random) -> dict[str, Any]:
    """A request that is right, with a short answer."""
    content: list[dict[str, Any]] = [{"type": "text", "text": rng.choice(["What?", "a ### b"])}]
    for _ in range(rng.randint(0, 2)):
        content.insert(rng.randint(0, len(content)), image_part(picture(rng)))
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if rng.random() < 0.4:
        earlier = {"role": "user", "content": "Hello"}
        messages = [earlier, {"role": "assistant", "content": "Hello!"}, *messages]
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": "You see drawings."})
    extra: list[dict[str, Any]] = [
        *({"temperature": 0}, {"temperature": 1.2, "seed": 1}, {"top_p": 0.5}, {"stop": "a"}),
        *({"stop": ["x", "y"]}, {"num_beams": 2}, {"user": "me"}, {"n": 1}, {"tools": []}),
        *({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    ]
    request: dict[str, Any] = {"model": "minigpt4", "messages": messages}
    request["max_tokens"] = rng.randint(1, 4)
    for fields in rng.sample(extra, rng.randint(0, 3)):
        request |= fields
    return request


def http_request(
    body: bytes, headers: dict[str, str] | None = None, method: str = "POST", path: str = PATH
) -> bytes:
    fields = {"Host": "127.0.0.1", "Content-Type": "application/json", "Connection": "close"}
    fields |= {"Content-Length": str(len(body))} | (headers or {})
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v != "-")]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


# Ways to damage one


def sound(rng: random.Random) -> Case:
    return Case("sound", http_request(as_json(sound_request(rng))), sound=True)


def places(value: object) -> list[tuple[Any, Any]]:
    """Every container in a value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys:
            found += [(value, key), *places(value[key])]
    return found


def damaged_json(rng: random.Random) -> Case:
    """Values replaced, fields removed, added, doubled or wrapped."""
    request = sound_request(rng)
    for _ in range(rng.randint(1, 3)):
        if not (found := places(request)):
            break
        inside, key = rng.choice(found)
        match rng.randrange(5):
            case 0:
                inside[key] = rng.choice(_VALUES)
            case 1:
                del inside[key]
            case 2:
                inside[key] = [inside[key]]
            case 3 if isinstance(inside, list):
                inside.insert(key, json.loads(json.dumps(inside[key])))
            case _:
                request[rng.choice(_FIELDS)] = rng.choice(_VALUES)
    if "max_tokens" not in request:
        request["max_tokens"] = 2  # no long answers here
    return Case("damaged json", http_request(as_json(request)))


def broken_json(rng: random.Random) -> Case:
    """Text that is nearly JSON, or another encoding."""
    text = as_json(sound_request(rng))
    deep = rng.choice([b"[", b'{"a":', b'{"messages":['])
    body = rng.choice(
        [
            text[: rng.randrange(len(text))],
            text.replace(b'"max_tokens": ', b'"max_tokens": NaN, "x": '),
            text.replace(b'"max_tokens": ', b'"temperature": Infinity, "x": '),
            text.replace(b'"max_tokens": ', b'"seed": ' + b"9" * 5000 + b', "x": '),
            text.replace(b'"max_tokens": ', b'"top_p": 1e999, "x": '),
            text.replace(b"What?", b"\\ud800"),
            text.replace(b"What?", b"\xff\xfe"),
            text.decode().encode("utf-16"),
            b"\xef\xbb\xbf" + text,
            text + text,
            deep * rng.randint(1, 50_000),
            b"",
            b"null",
            b"'" + text + b"'",
        ]
    )
    return Case("broken json", http_request(body))


def flipped_bytes(rng: random.Random) -> Case:
    body = bytearray(as_json(sound_request(rng)))
    for _ in range(rng.randint(1, 3)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return Case("flipped bytes", http_request(bytes(body)))


def bad_picture(rng: random.Random) -> Case:
    """No picture, a part of one, a bomb, or one that is damaged inside."""
    data = bytearray(picture(rng))
    match rng.randrange(5):
        case 0:
            data = data[: rng.randrange(len(data))]
        case 1:
            for _ in range(rng.randint(1, 10)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            data = bytearray(rng.randbytes(rng.randint(0, 500)))
        case 3:
            data = bytearray(b"%PDF-1.7 this is no picture")
        case _:
            file = io.BytesIO()
            Image.new("1", (30_000, 30_000)).save(file, "PNG")
            data = bytearray(file.getvalue())
    part = image_part(bytes(data))
    if rng.random() < 0.2:
        address = part["image_url"]
        address["url"] = address["url"].replace("A", rng.choice("-_ %\n"))
    content = [part, {"type": "text", "text": "What?"}]
    request = {"model": "minigpt4", "max_tokens": 2, "messages": [{"role": "user"}]}
    request["messages"] = [{"role": "user", "content": content}]
    return Case("bad picture", http_request(as_json(request)))


def too_much(rng: random.Random) -> Case:
    """More text, messages, pictures or bytes than may be."""
    text, turns, images = "Hello", 1, 0
    match rng.randrange(5):
        case 0:
            text = "red circle " * 9_100  # 100,000 characters
        case 1:
            text = "a" * 1_200_000
        case 2:
            turns = rng.choice([100, 2_000])
        case 3:
            images = 20
        case _:
            body = as_json({"model": "minigpt4", "x": "a" * 1_100_000})
            chunks = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
            data = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
            headers = {"Transfer-Encoding": "chunked", "Content-Length": "-"}
            return Case("too much", http_request(b"", headers) + data + b"0\r\n\r\n")
    content = [image_part(picture(rng)) for _ in range(images)]
    content.append({"type": "text", "text": text})
    messages = [{"role": "user", "content": content}] * turns
    request = {"model": "minigpt4", "max_tokens": 2, "messages": messages}
    return Case("too much", http_request(as_json(request)))


def odd_http(rng: random.Random) -> Case:
    """Methods, paths, headers and lengths that do not fit."""
    body = as_json(sound_request(rng))
    word = "".join(rng.choices(string.ascii_letters, k=8))
    methods = ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", word]
    paths = ["/", "/v1/chat/completions/", "/v1/models", "/v1/models/x", f"/{word}", "/docs"]
    paths += ["/../../etc/passwd", "/%00", "/%ff", "/v1//models", "/openapi.json", "*", "/health"]
    kinds = ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
    headers: dict[str, str] = rng.choice(
        [
            {"Content-Length": "-1"},
            {"Content-Length": "many"},
            {"Content-Length": "99999999999999999999"},
            {"Content-Length": str(len(body) - 5)},
            {"Content-Length": str(len(body) + 5)},
            {"Content-Type": rng.choice(kinds)},
            {"Transfer-Encoding": "chunked", "Content-Length": "-"},
            {"Transfer-Encoding": word},
            {"Authorization": "Bearer " + word},
            {"Host": "-"},
            {"Expect": "100-continue"},
            {"Upgrade": "websocket", "Connection": "Upgrade"},
            {"Content-Encoding": "gzip"},
            {word: "a" * 100_000},
            {f"{word} {word}": "\xff"},
        ]
    )
    match rng.randrange(3):
        case 0:
            data = http_request(body, headers)
        case 1:
            data = http_request(body, method=rng.choice(methods))
        case _:
            data = http_request(body, method=rng.choice(["GET", "POST"]), path=rng.choice(paths))
    # Of these the server waits for the rest.
    early = (f"Content-Length: {len(body) + 5}".encode(), b"Transfer-Encoding: chunked")
    ends_early = any(header in data for header in early)
    return Case("odd http", data, ends_early=ends_early)


def garbage(rng: random.Random) -> Case:
    """Bytes that are no HTTP, or only begin as if they were."""
    whole = http_request(as_json(sound_request(rng)))
    data = rng.choice(
        [
            rng.randbytes(rng.randint(1, 2_000)) + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200) + b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET " + b"/a" * 50_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            whole.replace(b"HTTP/1.1", b"HTTP/1.1\x00"),
            whole.replace(b"\r\n", b"\n\r", 3),
        ]
    )
    return Case("garbage", data)


def hang_up(rng: random.Random) -> Case:
    """A client that leaves early: in its request, or before its answer."""
    data = http_request(as_json(sound_request(rng)))
    return Case("hang up", data[: rng.choice([len(data), rng.randrange(len(data))])], hang_up=True)


CASES: tuple[tuple[float, Make], ...] = (
    (2, sound),
    (6, damaged_json),
    (2, broken_json),
    (2, flipped_bytes),
    (3, bad_picture),
    (1, too_much),
    (3, odd_http),
    (2, garbage),
    (1, hang_up),
)
