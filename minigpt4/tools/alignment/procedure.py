"""The procedure: a folder of pictures → a stage-2 set, resumed wherever an earlier run stopped.

Everything that costs (drafts, replies, reviews) is written to a journal at once; the rest follows
from the journals.
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
from minigpt4.tools.alignment.describing import CONTINUE, QUESTION, Describing, write_drafts
from minigpt4.tools.alignment.pictures import Picture, assemble, digest_of, find_pictures
from minigpt4.tools.alignment.request_pool import RequestPool
from minigpt4.tools.alignment.server import Server
from minigpt4.tools.alignment.text_rules import RULES
from minigpt4.tools.alignment.verdicts import (
    NO_REPLY,
    UNREADABLE,
    Reviews,
    Verdict,
    judge,
    write_verdicts,
)
from minigpt4.tools.alignment.work_folder import Journal, locked, settle

FIX = (
    "Fix the error in the given paragraph. Remove any repeating sentences, meaningless characters, "
    "not English sentences, and so on. Remove unnecessary repetition. Rewrite any incomplete "
    "sentences. Return directly the results without explanation. Return directly the input "
    "paragraph if it is already correct without explanation."
)
_TEMPERATURE, _MAX_TOKENS = 0.7, 200  # of a polished text, in the authors' script

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """The options of the command."""

    images: Path
    output: Path
    sample: int | None  # None: all pictures
    seed: int
    describing: Describing
    server: Server | None  # None: polish by rules
    review_port: int | None  # None: no review


def make_alignment_set(plan: ChatPlan, job: Job) -> int:
    """Do what is left to do; return the number of pairs in the set."""
    if job.output.resolve().is_relative_to(job.images.resolve()):
        raise ConfigError(f"--output {job.output}: lies in --images; choose a folder beside it")
    pictures = find_pictures(job.images, job.sample, job.seed)
    with locked(job.output):
        settle(job.output, "describe", _settings(plan, job, pictures))
        drafts = _describe(plan, job, pictures)
        verdicts = _judge(job, drafts)
        write_verdicts(job.output / "verdicts.jsonl", verdicts)
        captions = _review(job, verdicts)
        count = assemble(job.output, captions, {p.image_id: p for p in pictures})
    text = "nothing is kept; verdicts.jsonl there tells why"
    if count:
        text = f"{count} pairs; train with datasets.cc_sbu_align.build_info.storage={job.output}"
    logger.info("%s: %s", job.output, text)
    if left := sum(verdict.reason == NO_REPLY for verdict in verdicts):
        logger.info("%d texts without a reply: the same command asks again", left)
    return count


def _settings(plan: ChatPlan, job: Job, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return the settings that drafts depend on; the batch size is not one of them."""
    made_of = settings_of(plan.config, QUESTION, len(pictures), "")
    chat = plan.config.chat
    return {
        "prompt": [QUESTION, CONTINUE],
        "--sample": job.sample,
        "--seed": job.seed if job.sample is not None else None,
        "--images": f"{len(pictures)} pictures, sha256 {digest_of(pictures)}",
        "--num-beams": job.describing.num_beams,
        "--max-new-tokens": job.describing.max_new_tokens,
        **{name: made_of[name] for name in ("trained weights", "model", "datasets")},
        "chat": {name: chat.get(name) for name in ("template", "max_length")},
    }


def _describe(plan: ChatPlan, job: Job, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return a draft of each picture; load the model only if one is missing."""
    journal = Journal(job.output / "drafts.jsonl")
    if len(journal.rows) < len(pictures):
        if not plan.config.model.get("ckpt"):
            logger.warning("model.ckpt names no projection: an untrained one writes the drafts")
        write_drafts(plan.load(), job.describing, pictures, journal)
    bad = [row["image"] for row in journal.rows if "error" in row]
    total = len(journal.rows)
    logger.info("described: %d of %d pictures", total - len(bad), total)
    if bad:
        logger.warning("%d pictures cannot be read and are left out (first: %s)", len(bad), bad[0])
    return journal.rows


def _judge(job: Job, drafts: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Polish and filter; log how many pass, and how many each rule stops."""
    pool = _ask(job.server, job.output, drafts) if job.server else None
    replies, failed = (pool.replies, pool.failed) if pool else (None, {})
    verdicts = [judge(row, replies, failed) for row in drafts]
    counts = Counter(verdict.reason for verdict in verdicts if not verdict.kept)
    names = [*RULES, *(name for name in (NO_REPLY, UNREADABLE) if counts[name])]
    stopped = ", ".join(f"{name} {counts[name]}" for name in names)
    kept = len(verdicts) - counts.total()
    logger.info("filter: %d of %d pass (%s)", kept, len(verdicts), stopped)
    return verdicts


def _ask(server: Server, folder: Path, drafts: Sequence[Mapping[str, Any]]) -> RequestPool:
    """Have the drafts polished; log what that took so far."""
    settle(folder, "polish", {"--model": server.model, "prompt": FIX, "max_tokens": _MAX_TOKENS})
    pool = RequestPool(server, FIX, Journal(folder / "requests.jsonl"), _TEMPERATURE, _MAX_TOKENS)
    try:
        pool.ask({str(row["image_id"]): row["draft"] for row in drafts if row.get("draft")})
    finally:
        cost = server.cost(pool.spent)
        text = "replies: %d of %s; tokens so far: %s read, %s written"
        read, written = (f"{tokens:,}" for tokens in pool.spent)
        text = f"{text}, cost {cost:.4f}" if cost else text
        logger.info(text, len(pool.replies), server.model, read, written)
    return pool


def _review(job: Job, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Return the captions of the set by picture id: those that passed and were not rejected."""
    reviews = Reviews(Journal(job.output / "reviews.jsonl"), verdicts)
    if job.review_port is not None and reviews.next_place() is not None:
        from minigpt4.tools.alignment.review_page import serve_reviews

        serve_reviews(reviews, job.images, job.review_port)
    if reviews.journal.rows:
        logger.info("reviews: %s", reviews.summary())
    return reviews.captions
