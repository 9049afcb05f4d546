"""The procedure: a folder of pictures → a stage-2 set, from wherever an earlier run was cut short.

Everything that costs (drafts, replies, reviews) is in a journal as soon as it is there; the rest
follows from the journals.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.apps.arguments import ChatPlan
from minigpt4.apps.captions_output import settings_of
from minigpt4.errors import ConfigError
from minigpt4.tools.alignment.asking import Asking, Server
from minigpt4.tools.alignment.assembling import assemble
from minigpt4.tools.alignment.completions import Completions
from minigpt4.tools.alignment.describing import CONTINUE, QUESTION, Describing, write_drafts
from minigpt4.tools.alignment.filtering import RULES
from minigpt4.tools.alignment.journal import Journal
from minigpt4.tools.alignment.ledger import Ledger
from minigpt4.tools.alignment.pictures import Picture, digest_of, find_pictures
from minigpt4.tools.alignment.reviews import Reviews
from minigpt4.tools.alignment.verdicts import (
    FIX,
    NO_REPLY,
    UNREADABLE,
    Polish,
    Verdict,
    judge,
    polish_by_replies,
    polish_by_rules,
    write_verdicts,
)
from minigpt4.tools.alignment.work_folder import WorkFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to make of what.

    Attributes:
        images: Folder of pictures.
        output: Folder of the set, and of everything on the way.
        sample: So many pictures, drawn at random; all without.
        seed: Of the drawing.
        describing: How drafts are made.
        server: Who polishes; rules without.
        review_port: Where a person looks at each pair; nobody does without.
    """

    images: Path
    output: Path
    sample: int | None
    seed: int
    describing: Describing
    server: Server | None
    review_port: int | None


def make_alignment_set(plan: ChatPlan, job: Job) -> int:
    """Do what is left to do; the number of pairs in the set.

    Raises:
        MiniGPT4Error: for a mistake, a reached budget, a server that has gone, a full disk; the
            same command goes on.
    """
    if job.output.resolve().is_relative_to(job.images.resolve()):
        raise ConfigError(f"--output {job.output}: lies in --images; choose a folder beside it")
    pictures = find_pictures(job.images, job.sample, job.seed)
    with WorkFolder(job.output) as folder:
        folder.settle("describe", _settings(plan, job, pictures))
        drafts = _describe(plan, job, pictures)
        polish, no_reply = _polish(job, folder, drafts)
        verdicts = judge(drafts, polish, no_reply)
        write_verdicts(job.output / "verdicts.jsonl", verdicts)
        _tell_filter(verdicts)
        captions = _review(job, verdicts)
        count = assemble(job.output, captions, {p.image_id: p for p in pictures})
    if count:
        logger.info(
            "%s: %d pairs; train with datasets.cc_sbu_align.build_info.storage=%s",
            *(job.output, count, job.output),
        )
    else:
        logger.info("%s: nothing is kept; verdicts.jsonl there tells why", job.output)
    if no_reply:
        logger.info("%d texts without a reply: the same command asks again", len(no_reply))
    return count


def _settings(plan: ChatPlan, job: Job, pictures: Sequence[Picture]) -> dict[str, Any]:
    """What drafts are made of; the batch size is none of it."""
    told = settings_of(plan.config, QUESTION, len(pictures), "")
    chat = plan.config.chat
    return {
        "prompt": [QUESTION, CONTINUE],
        "--sample": job.sample,
        "--seed": job.seed if job.sample is not None else None,
        "--images": f"{len(pictures)} pictures, sha256 {digest_of(pictures)}",
        "--num-beams": job.describing.num_beams,
        "--max-new-tokens": job.describing.max_new_tokens,
        "trained weights": told["trained weights"],
        "model": told["model"],
        "datasets": told["datasets"],
        "chat": {name: chat.get(name) for name in ("template", "max_length")},
    }


def _describe(plan: ChatPlan, job: Job, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """A draft for each picture; the model is loaded only where one is lacking."""
    with Journal(job.output / "drafts.jsonl") as journal:
        if len(journal.rows) < len(pictures):
            if not plan.config.model.get("ckpt"):
                text = "model.ckpt names no projection: an untrained one writes the descriptions"
                logger.warning(text)
            write_drafts(plan.load(), job.describing, pictures, journal)
        rows = journal.rows
    bad = [row["image"] for row in rows if "error" in row]
    logger.info("described: %d of %d pictures", len(rows) - len(bad), len(rows))
    if bad:
        shown = ", ".join(bad[:3])
        logger.warning("%d pictures cannot be read and are left out (first: %s)", len(bad), shown)
    return rows


def _polish(
    job: Job, folder: WorkFolder, drafts: Sequence[Mapping[str, Any]]
) -> tuple[Polish, Mapping[str, str]]:
    """What polishes, and why there is no reply to some drafts."""
    if job.server is None:
        return polish_by_rules, {}
    endpoint = job.server.endpoint
    completions = Completions(endpoint, FIX)
    settings = {"--model": endpoint.model, "prompt": FIX, "max_tokens": completions.max_tokens}
    folder.settle("polish", settings)
    with Journal(job.output / "requests.jsonl") as journal:
        ledger = Ledger(journal, job.server.budget)
        if ledger.interrupted:
            text = "%d requests were under way when a run was killed; they count as paid in full"
            logger.info(text, ledger.interrupted)
        asking = Asking(completions, ledger, job.server.manners)
        try:
            asking.run({str(r["image_id"]): r["draft"] for r in drafts if r.get("draft")})
        finally:
            completions.close()
            spent, price = ledger.spent, job.server.budget
            cost = (
                f", cost {ledger.cost:.4f}" if price.prompt_price + price.completion_price else ""
            )
            text = "replies: %d of %s; tokens so far: %s read, %s written%s"
            read, written = f"{spent.prompt:,}", f"{spent.completion:,}"
            logger.info(text, len(ledger.replies), endpoint.model, read, written, cost)
    return polish_by_replies(ledger.replies), asking.given_up


def _tell_filter(verdicts: Sequence[Verdict]) -> None:
    """One line: how many pass, and how many each rule stops."""
    counts = Counter(verdict.reason for verdict in verdicts if not verdict.kept)
    kept = len(verdicts) - counts.total()
    names = [*RULES, *(name for name in (NO_REPLY, UNREADABLE) if counts[name])]
    stopped = ", ".join(f"{name} {counts[name]}" for name in names)
    logger.info("filter: %d of %d pass (%s)", kept, len(verdicts), stopped)


def _review(job: Job, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The captions of the set by picture id: those that passed and that nobody has rejected."""
    with Journal(job.output / "reviews.jsonl") as journal:
        reviews = Reviews(journal, verdicts)
        if job.review_port is not None and reviews.next_place() is not None:
            from minigpt4.tools.alignment.review_page import serve_reviews

            serve_reviews(reviews, job.images, job.review_port)
        if counts := reviews.counts:
            text = "reviews: %d accepted, %d edited, %d rejected"
            logger.info(text, *(counts[name] for name in ("accept", "edit", "reject")))
        captions = {}
        for pair in reviews.pairs:
            review = reviews.of(pair.image_id)
            if review is None or review.decision != "reject":
                captions[pair.image_id] = review.text if review else pair.polished
        return captions
