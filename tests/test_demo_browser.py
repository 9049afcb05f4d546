"""The demo page in a real browser: the real ``demo.py``; its answers are words, not true ones."""

import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image, ImageDraw

from minigpt4.cli.tiny_world.scenes import draw_scene, sample_scene

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESCRIBE = "Describe this image in detail."
# Notes every state of the newest answer that the page shows, however briefly.
WATCH_ANSWERS = """() => {
  window.states = [];
  const note = () => {
    const answers = document.querySelectorAll("#chatbot [data-testid=bot]");
    if (answers.length) window.states.push(answers[answers.length - 1].innerText.trim());
  };
  new MutationObserver(note).observe(document.querySelector("#chatbot"),
    {subtree: true, childList: true, characterData: true});
}"""


def demo_command(port, *options):
    command = [sys.executable, "demo.py", "--cfg-path", "eval_configs/tiny_eval.yaml"]
    return [*command, "--device", "cpu", "--port", str(port), "--options", *options]


def save_random_projection(path):
    """An untrained projection, the same in every run."""
    width = json.loads((ROOT / "assets/tiny/llama/config.json").read_text())["hidden_size"]
    torch.manual_seed(0)
    weights = torch.nn.Linear(128, width).state_dict()
    torch.save({"model": {f"llama_proj.{k}": v for k, v in weights.items()}}, path)


class Server:
    """``demo.py`` on a free port of this machine."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._log = folder / "server.log"
        save_random_projection(folder / "projection.pth")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                demo_command(self.port, f"model.ckpt={folder / 'projection.pth'}"),
                cwd=ROOT,
                env={**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self):
        return self._log.read_text()

    def wait(self, seconds=180):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        pytest.fail(f"demo.py does not answer:\n{self.output}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} does not exist: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as session:
        started = session.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("demo"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for seed in (90001, 90002):
        scene = sample_scene(random.Random(seed), pairs="withheld")
        paths.append(folder / f"scene_{seed}.png")
        draw_scene(scene).save(paths[-1])
    return paths


class Visitor:
    """What someone at the page does and sees."""

    def __init__(self, page):
        self.page = page

    def upload(self, path):
        self.page.set_input_files("#picture input[type=file]", path)

    def show(self, path):
        if self.page.locator("#picture img").count():
            self.page.click("#picture button[aria-label*='Clear'], #picture [aria-label*='Remove']")
        self.upload(path)
        self.page.wait_for_selector("#picture img")

    def send(self, question):
        self.page.fill("#question textarea", question)
        self.page.click("#question button:has-text('Send')")

    def ask(self, question):
        """Send, and wait for the whole answer."""
        before = len(self.answers)
        self.send(question)
        self.page.wait_for_function(
            """before => document.querySelectorAll("#chatbot [data-testid=bot]").length > before
                && document.querySelector("#question button").innerText.trim() == "Send" """,
            arg=before,
        )

    @property
    def questions(self):
        texts = self.page.locator("#chatbot [data-testid=user]").all_inner_texts()
        return [text.strip() for text in texts if text.strip()]

    @property
    def answers(self):
        texts = self.page.locator("#chatbot [data-testid=bot]").all_inner_texts()
        return [text.strip() for text in texts]

    def wait_for_message(self, words):
        toast = self.page.locator("[data-testid=toast-body]", has_text=words)
        toast.wait_for()
        return toast.inner_text()


@pytest.fixture
def visitor(browser, server):
    """A visitor with a fresh page, which must not ask for anything from another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(60_000)
    page = context.new_page()
    asked_for = []
    page.on("request", lambda request: asked_for.append(urlsplit(request.url)))
    page.goto(server.url)
    page.wait_for_selector("#question textarea")
    yield Visitor(page)
    content = page.content()
    context.close()
    assert asked_for
    assert {url.hostname for url in asked_for if url.scheme not in ("data", "blob")} == {
        "127.0.0.1"
    }
    assert "Traceback" not in content
    assert "Traceback" not in server.output


def test_answers_stream_and_a_second_question_goes_on(visitor, pictures):
    visitor.show(pictures[0])
    visitor.page.evaluate(WATCH_ANSWERS)
    visitor.ask(DESCRIBE)
    (answer,) = visitor.answers
    assert answer
    states = list(dict.fromkeys(visitor.page.evaluate("window.states")))
    growing = [state for state in states if state and answer.startswith(state)]
    assert len(growing) >= 2, states
    assert growing == sorted(growing, key=len)

    visitor.ask("What color is it?")
    assert visitor.questions == [DESCRIBE, "What color is it?"]
    assert len(visitor.answers) == 2
    assert visitor.answers[0] == answer
    assert visitor.page.locator("#chatbot img").count() == 1
    assert visitor.page.locator("[aria-label='Share']:visible").count() == 0  # it sends it outside


def test_a_later_picture_is_shown_with_the_next_question(visitor, pictures):
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    visitor.show(pictures[1])
    visitor.ask("And this one?")
    sources = [image.get_attribute("src") for image in visitor.page.locator("#chatbot img").all()]
    assert [Path(source).name for source in sources] == [path.name for path in pictures]


def test_an_example_is_a_question_to_send(visitor, pictures):
    visitor.show(pictures[0])
    visitor.page.click(f"#chat button:has-text('{DESCRIBE}')")
    visitor.page.wait_for_function(
        "text => document.querySelector('#question textarea').value == text", arg=DESCRIBE
    )
    visitor.page.click("#question button:has-text('Send')")
    visitor.page.wait_for_selector("#chatbot [data-testid=bot]")
    assert visitor.questions == [DESCRIBE]


def test_an_example_picture_can_be_asked_about(visitor):
    visitor.page.click("#examples button >> nth=1")
    visitor.page.wait_for_selector("#picture img")
    visitor.ask(DESCRIBE)
    assert visitor.answers[0]
    (shown,) = [image.get_attribute("src") for image in visitor.page.locator("#chatbot img").all()]
    assert Path(shown).name == "2.png"


def test_a_drawing_of_ones_own_can_be_asked_about(visitor, tmp_path):
    """A sketch as people make it: transparent, any size, thin lines that nothing was trained on."""
    sketch = Image.new("RGBA", (431, 257), (0, 0, 0, 0))
    canvas = ImageDraw.Draw(sketch)
    canvas.line([(20, 200), (200, 40), (380, 200), (20, 200)], fill=(20, 20, 20, 255), width=3)
    canvas.ellipse([300, 20, 380, 100], outline=(230, 120, 0, 180), width=5)
    file = tmp_path / "sketch.png"
    sketch.save(file)
    visitor.show(file)
    visitor.ask(DESCRIBE)
    assert visitor.answers[0]


def test_restart_empties_the_chat(visitor, pictures):
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    visitor.page.click("#restart")
    visitor.page.wait_for_selector("#chatbot [data-testid=bot]", state="detached")
    visitor.page.wait_for_selector("#picture img", state="detached")
    assert visitor.questions == []
    visitor.send(DESCRIBE)  # the picture is forgotten too
    visitor.wait_for_message("Upload a picture first.")
    assert visitor.answers == []


def test_a_text_file_named_png_is_refused_in_one_line(visitor, pictures, tmp_path):
    notes = tmp_path / "notes.png"
    notes.write_text("these are only words\n")
    visitor.upload(notes)
    message = visitor.wait_for_message("notes.png")
    (line,) = [line for line in message.splitlines() if "notes.png" in line]
    assert line == "notes.png is not a readable picture; try a JPEG, PNG or WebP."
    visitor.page.wait_for_selector("#picture input[type=file]", state="attached")
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    assert visitor.answers[0]


def test_mistakes_leave_the_chat_as_it_was(visitor, pictures):
    visitor.show(pictures[0])
    visitor.send("  ")
    visitor.wait_for_message("Type a question first")
    visitor.ask(DESCRIBE)
    before = visitor.questions, visitor.answers
    long_question = "word " * 700
    visitor.send(long_question)
    visitor.wait_for_message("the question and its images take")
    assert (visitor.questions, visitor.answers) == before
    assert visitor.page.input_value("#question textarea") == long_question  # to be shortened
    visitor.ask("What color is it?")
    assert len(visitor.answers) == 2


def test_visitors_do_not_see_each_other(visitor, browser, server, pictures):
    visitor.show(pictures[0])
    visitor.ask(DESCRIBE)
    other = Visitor(browser.new_page())
    other.page.goto(server.url)
    other.page.wait_for_selector("#question textarea")
    assert other.questions == []
    other.page.close()


def test_a_phone_shows_picture_chat_and_settings_below_each_other(visitor):
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    boxes = [
        visitor.page.locator(f"#{name}").bounding_box() for name in ("picture", "chat", "settings")
    ]
    for upper, lower in itertools.pairwise(boxes):
        assert upper["y"] + upper["height"] <= lower["y"]
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_port_in_use_is_one_line(server):
    result = subprocess.run(
        demo_command(server.port, "model.ckpt="),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert re.fullmatch(rf"error: .*--port {server.port}.*in use.*\n", result.stderr)
