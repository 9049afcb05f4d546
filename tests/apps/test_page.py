"""The page as a program sees it: the real ``demo.py``, asked by the page's own protocol."""

import asyncio
import io
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.helpers.data_files import bomb
from tests.helpers.page_client import Outcome, Visitor, free_port, serve, uploaded, visit
from tests.helpers.repo import ROOT
from tests.helpers.server_process import ServerProcess

pytestmark = pytest.mark.anyio
LOGIN = ("ada", "a pass:word")
QUESTION = "Describe this image in detail."


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, projection: Path) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("page")
    env = {"MINIGPT4_AUTH": ":".join(LOGIN), "OMP_NUM_THREADS": "1"}
    options = [f"model.ckpt={projection}", "chat.max_new_tokens=20"]
    with serve(folder, "--max-waiting", "1", options=options, **env) as started:
        started.wait_until("ready")
        yield started


@pytest.fixture
async def visitor(server: ServerProcess) -> AsyncIterator[Visitor]:
    async with visit(server.url, LOGIN) as opened:
        yield opened


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


def square(colour: object = (200, 30, 30), mode: str = "RGB", size: int = 40) -> Image.Image:
    return Image.new(mode, (size, size), colour)  # type: ignore[arg-type]


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(square(), "JPEG", exif=exif)


async def ask_about(visitor: Visitor, name: str, content: bytes, text: str = QUESTION) -> Outcome:
    return await visitor.ask(text, [await visitor.upload(name, content)])


def test_nobody_gets_in_without_the_password(server: ServerProcess):
    with httpx.Client(base_url=server.url) as client:
        picture = "gradio_api/file=assets/examples/1.png"
        assert client.get("config").status_code == 401
        assert client.get(picture).status_code == 401
        assert client.post("gradio_api/upload", files={"files": b"x"}).status_code == 401
        wrong = {"username": LOGIN[0], "password": "guess"}
        assert client.post("login", data=wrong).status_code == 400
        assert client.get("config").status_code == 401


@pytest.mark.parametrize(
    "address",
    [
        "/etc/passwd",
        f"{ROOT}/README.md",
        "README.md",
        f"{ROOT}/assets/tiny/llama/config.json",
        "../../../../etc/passwd",
        "{uploads}/../server.log",
        "{uploads}/..%2fserver.log",
        "{uploads}",
        "http://127.0.0.1:1/",
        "https://example.com/a.png",
    ],
)
async def test_no_file_of_the_server_can_be_fetched(
    visitor: Visitor, server: ServerProcess, address: str
):
    address_ = address.replace("{uploads}", f"{server.folder}/uploads")
    for path in (f"gradio_api/file={address_}", f"file={address_}"):
        answer = await visitor.client.get(path)
        assert answer.status_code in (403, 404), path
        assert "root:" not in answer.text
    other = await visitor.client.get("gradio_api/proxy=http://127.0.0.1:1/")
    assert other.status_code == 400  # by gradio itself


@pytest.mark.parametrize(
    "path", ["/etc/passwd", f"{ROOT}/assets/examples/1.png", "https://example.com/a.png", 7, None]
)
async def test_no_event_may_name_a_file_that_was_not_uploaded(
    visitor: Visitor, server: ServerProcess, path: object
):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        await visitor.ask(QUESTION, [file])
    for place, event in (("pictures", "click"), ("chatbot", "undo")):
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            await visitor.send(place, event, [0, {"text": "", "files": [file]}])
    assert "Traceback" not in server.log()


async def test_an_event_of_many_megabytes_is_refused(visitor: Visitor):
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        await visitor.ask("a" * 3_000_000)
    long = {"fn_index": 0, "data": ["a" * 3_000_000]}
    passing = await visitor.client.post("gradio_api/run/upload", json=long)
    assert passing.status_code == 413  # only an upload itself may be long
    big = await visitor.client.post("gradio_api/upload", files={"files": b"0" * 21_000_000})
    assert big.status_code == 413


async def test_bad_pictures_are_one_line_and_odd_ones_are_answered(visitor: Visitor):
    refused = {
        "notes.jpg": (b"only words\n", "is not a readable picture; try a JPEG, PNG or WebP."),
        "cut.png": (encoded(square())[:60], "is not a readable picture; try a JPEG, PNG"),
        "bomb.png": (bomb(30_000), "has too many pixels; 89,478,485 are the most."),
    }
    frames = [square((shade, 0, 0)) for shade in (10, 200)]
    answered = {
        "point.png": encoded(square(size=1)),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "turned.jpg": turned(),
        "print.jpg": encoded(square((0, 99, 99, 0), "CMYK"), "JPEG"),
        "glass.png": encoded(square((0, 0, 0, 0), "RGBA")),
        "wrong suffix.txt": encoded(square()),
    }
    for name, (content, line) in refused.items():
        outcome = await ask_about(visitor, name, content)
        assert outcome.shown == []
        assert [message.startswith(f"{name} {line}") for message in outcome.messages] == [True]
    for number, (name, content) in enumerate(answered.items(), 1):
        outcome = await ask_about(visitor, name, content)
        assert outcome.messages == []
        assert len(outcome.answers) == number


async def test_odd_questions(visitor: Visitor):
    typed = ["<ImageHere> ### <s> </s> </Img>", "\x00\x07 bell", "😀 🖼", "מה זה?", "&lt;b&gt; <b>?"]
    refused = {
        "": "Type a question first",
        " \n": "Type a question",
        "a" * 100_000: "The question has",
    }
    assert "Add a picture first" in (await visitor.ask(QUESTION)).messages[0]
    await ask_about(visitor, "a.png", encoded(square()))
    for text in typed:
        outcome = await visitor.ask(text)
        assert outcome.messages == []
    assert len(outcome.answers) == len(typed) + 1
    for text, line in refused.items():
        (message,) = (await visitor.ask(text)).messages
        assert message.startswith(line)
    saved = await visitor.send("save-json", "click", [])
    turns = json.loads(saved.data[0])
    assert [turn["question"] for turn in turns] == [QUESTION, *typed]
    assert turns[0]["images"] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("num_beams", 11, "num_beams: 11 is more than this page allows, 10."),
        ("num_beams", "many", "num_beams: 'many': input should be a valid integer."),
        ("max_new_tokens", 10**9, "max_new_tokens: "),
        ("temperature", 0, "temperature: "),
        ("top_p", 7, "top_p: "),
        ("seed", -1, "seed: -1 must be"),
        ("length_penalty", [1], "length_penalty: [1]: input should be"),
    ],
)
async def test_settings_are_checked_by_the_server(
    visitor: Visitor, name: str, value: object, line: str
):
    before, visitor.settings[name] = visitor.settings[name], value
    outcome = await ask_about(visitor, "a.png", encoded(square()))
    assert outcome.shown == []
    assert [message[: len(line)] for message in outcome.messages] == [line]
    visitor.settings[name] = before
    assert len((await ask_about(visitor, "a.png", encoded(square()))).answers) == 1


async def test_limits_of_pictures(visitor: Visitor):
    file = await visitor.upload("a.png", encoded(square()))
    outcome = await visitor.ask(QUESTION, [file] * 5)
    assert outcome.messages == ["5 pictures in one message; 4 are the most."]
    assert len((await visitor.ask(QUESTION, [file] * 4)).answers) == 1


async def test_an_edited_question_branches_and_others_cannot_be_reached(
    visitor: Visitor, server: ServerProcess
):
    async def edit(who: Visitor, index: object) -> Outcome:
        said = {"index": index, "value": "Is it &lt;b> red?", "previous_value": ""}
        return await who.send("chatbot", "edit", [*visitor.settings.values()], said)

    await ask_about(visitor, "a.png", encoded(square()))
    await visitor.ask("And now?")
    for index in (99, -1, "x", None, [[0]]):
        (message,) = (await edit(visitor, index)).messages
        assert message == "That question is not there any more."
    async with visit(server.url, LOGIN) as other:
        assert (await edit(other, 0)).messages == ["That question is not there any more."]
        outcome = await edit(visitor, 0)
        assert outcome.shown[0] == "Is it &lt;b> red?"
        assert len(outcome.shown) == 2
        assert (await other.send("save-json", "click", [])).data == ["[]\n"]


async def test_a_full_queue_says_so_and_the_others_are_answered(server: ServerProcess):
    async def one() -> Outcome:
        async with visit(server.url, LOGIN) as visitor:
            return await ask_about(visitor, "a.png", encoded(square()))

    outcomes = await asyncio.gather(*(one() for _ in range(8)))
    refused = [outcome.messages for outcome in outcomes if outcome.messages]
    assert refused
    assert all("oo many questions at once" in line for (line,) in refused)
    assert sum(len(outcome.answers) for outcome in outcomes) == 8 - len(refused)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--max-waiting", "0"], "--max-waiting: 0 must be greater than 0"),
        (["--keep-minutes", "nan"], "--keep-minutes: nan is not a length of time"),
        (["--auth", "ada"], "--auth or MINIGPT4_AUTH: write USER:PASSWORD"),
        (["--host", "256.0.0.1"], "--host 256.0.0.1 --port"),
    ],
)
def test_arguments_that_cannot_be(run_entry, arguments: list[str], line: str):
    import demo

    config = ["--cfg-path", "eval_configs/tiny_eval.yaml", "--port", free_port()]
    assert run_entry.refused(demo.main, *config, *arguments).startswith(f"error: {line}")


async def test_ctrl_c_while_an_answer_is_made(visitor: Visitor, server: ServerProcess):
    """The last test of this server."""
    visitor.settings |= {"num_beams": 10, "max_new_tokens": 400, "min_length": 400}
    asking = asyncio.create_task(ask_about(visitor, "a.png", encoded(square())))
    while not uploaded(server):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    server.process.send_signal(signal.SIGINT)
    await asyncio.gather(asking, return_exceptions=True)
    assert await asyncio.to_thread(server.process.wait, 60) == 130
    log = server.log()
    assert log.endswith("interrupted\n")
    assert "Traceback" not in log
    assert not list(server.folder.glob("uploads/minigpt4-page-*"))


def test_a_proxy_in_the_environment_does_not_stop_the_page(tmp_path: Path):
    """gradio asks itself whether it is up."""
    dead = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    dead |= {"all_proxy": "socks5://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    with serve(tmp_path, options=["model.ckpt="], **dead) as server:
        assert httpx.get(server.url, trust_env=False, timeout=60).status_code == 200
