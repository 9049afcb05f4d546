"""Messages: OpenAI's list of roles → the turns of a chat and its question."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from minigpt4.apps.server.limits import MOST_CHARACTERS
from minigpt4.apps.server.replies import RequestError
from minigpt4.apps.server.wire import ImagePart, Message, TextPart


@dataclass(frozen=True)
class Picture:
    """A picture that a message names; ``place`` is the field that does."""

    url: str
    place: str


Words = list[str | Picture]  # of one speaker, in the order given


@dataclass
class Dialogue:
    """Questions with their answers, and the question that is to be answered."""

    turns: list[tuple[Words, str]] = field(default_factory=list)
    question: Words = field(default_factory=list)

    def pictures(self) -> list[Picture]:
        asked = [*(words for words, _ in self.turns), self.question]
        return [part for words in asked for part in words if isinstance(part, Picture)]


def to_dialogue(messages: Sequence[Message], most_images: int) -> Dialogue:
    """The dialogue in a request.

    A system message joins the user's next: it stands before the words, behind pictures at the
    beginning, where the model was taught to expect them. Messages of one speaker in a row are one.

    Raises:
        RequestError: 400, when it does not end with the user, or holds too much.
    """
    dialogue = Dialogue()
    system: Words = []
    for number, message in enumerate(messages):
        words = _words(message, f"messages[{number}]")
        if message.role == "user":
            first = next((i for i, part in enumerate(words) if isinstance(part, str)), len(words))
            dialogue.question += [*words[:first], *system, *words[first:]]
            system = []
        elif message.role != "assistant":
            system += words
        else:
            _answer(dialogue, "\n".join(map(str, words)), f"messages[{number}]")
    if messages[-1].role != "user":
        text = "messages: the last one must be the user's, which is answered"
        raise RequestError(400, text, "messages")
    _check_size(dialogue, most_images)
    return dialogue


def _words(message: Message, place: str) -> Words:
    words: Words = []
    for number, part in enumerate(message.content):
        if isinstance(part, TextPart):
            words.append(part.text)
        elif isinstance(part, ImagePart):
            inside = f"{place}.content[{number}]"
            if message.role != "user":
                text = f"{inside}: only a user's message may show a picture"
                raise RequestError(400, text, inside)
            words.append(Picture(part.image_url.url, f"{inside}.image_url.url"))
    return words


def _answer(dialogue: Dialogue, text: str, place: str) -> None:
    if dialogue.question:
        dialogue.turns.append((dialogue.question, text))
        dialogue.question = []
    elif dialogue.turns:
        words, before = dialogue.turns[-1]
        dialogue.turns[-1] = (words, f"{before}\n{text}")
    else:
        raise RequestError(400, f"{place}: an answer needs a user's message before it", place)


def _check_size(dialogue: Dialogue, most_images: int) -> None:
    images = len(dialogue.pictures())
    if images > most_images:
        text = f"messages: {images} pictures; {most_images} are the most in one request"
        raise RequestError(400, text, "messages", "too_many_images")
    asked = [*(words for words, _ in dialogue.turns), dialogue.question]
    length = sum(len(part) for words in asked for part in words if isinstance(part, str))
    length += sum(len(answer) for _, answer in dialogue.turns)
    if length > MOST_CHARACTERS:
        text = f"messages: {length} characters of text; {MOST_CHARACTERS} are the most"
        raise RequestError(400, text, "messages", "context_length_exceeded")
