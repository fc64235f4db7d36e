"""Validation of training files, and the losses that a job reports without training."""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from tests.support.openai_server.exchange import (
    MESSAGE_KEYS,
    RECORD_KEYS,
    ROLES,
    TOKENS_PER_WORD,
    VALIDATED_EACH,
    FileError,
    Json,
    ServiceError,
)


def tokens(text: str) -> int:
    """A plausible number of tokens in a text."""
    return math.ceil(len(text.split()) * TOKENS_PER_WORD)


def plain(content: Any) -> str:
    """The text of a message's content, which may be a list of parts or missing."""
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return content or ""


def check_message(message: Any, where: str) -> None:
    """Reject a message that the service would not train on."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise FileError(f"{where}: role must be one of {', '.join(ROLES)}")
    if unknown := message.keys() - MESSAGE_KEYS:
        raise FileError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    calls = message["role"] == "assistant" and ("tool_calls" in message or "function_call" in message)
    content = message.get("content")
    parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if not (isinstance(content, str) or parts or (calls and content is None)):
        raise FileError(f"{where}: content must be text")
    if "weight" in message:
        weight = message["weight"]
        if message["role"] != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
            raise FileError(f"{where}: weight must be 0 or 1, and on assistant messages only")


def check_record(line: str, number: int) -> list[Json]:
    """The messages in one line of a training file; fails if it is not a valid chat record."""
    where = f"Invalid file format. Line {number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise FileError(f"{where} is not valid JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise FileError(f"{where} has no list of messages")
    if unknown := record.keys() - RECORD_KEYS:
        raise FileError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    for index, message in enumerate(record["messages"]):
        check_message(message, f"{where}, message {index}")
    if all(message["role"] != "assistant" for message in record["messages"]):
        raise FileError(f"{where} has no assistant message")
    return record["messages"]


def check_file(content: bytes | None, least: int, name: str) -> list[list[Json]]:
    """The examples in a training file; fails if the service would not train on it."""
    if content is None:
        raise FileError(f"{name} file does not exist")
    try:
        lines = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise FileError("Invalid file format. The file is not UTF-8") from error
    examples = [check_record(line, number) for number, line in enumerate(lines, 1)]
    if len(examples) < least:
        message = f"{name} file has {len(examples)} example(s), but must have at least {least} examples"
        raise FileError(message, "invalid_n_examples")
    return examples


def resolve(asked: Json, examples: int) -> Json:
    """The hyperparameters, with values for those left to the service."""
    epochs = 3 if examples >= 34 else min(25, math.ceil(100 / examples))
    auto = {"n_epochs": epochs, "batch_size": max(1, examples // 500), "learning_rate_multiplier": 1.8}
    return {name: auto[name] if value == "auto" else value for name, value in asked.items()}


def metrics(step: int, total: int, epoch_ends: bool, validated: bool) -> Json:
    """The metrics of one step, on a falling curve; validation every few steps and in full after each epoch."""
    left = math.exp(-3 * step / total)
    row: Json = {"step": step, "train_loss": 0.3 + 1.7 * left, "train_mean_token_accuracy": 0.95 - 0.45 * left}
    if validated and (step % VALIDATED_EACH == 0 or epoch_ends):
        row |= {"valid_loss": 0.4 + 1.7 * left, "valid_mean_token_accuracy": 0.93 - 0.45 * left}
    if validated and epoch_ends:
        row |= {"full_valid_loss": 0.42 + 1.7 * left, "full_valid_mean_token_accuracy": 0.92 - 0.45 * left}
    return {name: value if name == "step" else round(value, 6) for name, value in row.items()}


def step_message(row: Json, total: int) -> str:
    """The service's message about a step."""
    names = {"train_loss": "training loss", "valid_loss": "validation loss"}
    names |= {"full_valid_loss": "full validation loss"}
    losses = ", ".join(f"{name}={row[key]:.2f}" for key, name in names.items() if key in row)
    return f"Step {row['step']}/{total}: {losses}"


def table(rows: list[Json]) -> str:
    """The result file: a line per step, with empty cells for steps without validation."""
    names = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    lines += [",".join(str(row.get(name, "")) for name in names) for row in rows]
    return "\n".join(lines) + "\n"


def vocabulary(text: str) -> frozenset[str]:
    """The words of a text, for comparison."""
    return frozenset(re.findall(r"\w+", text.lower()))


def learned(examples: list[list[Json]]) -> dict[frozenset[str], str]:
    """Each trained response, by the words of the user message that it answers; the first of duplicates wins."""
    responses: dict[frozenset[str], str] = {}
    for messages in examples:
        question: frozenset[str] = frozenset()
        for message in messages:
            if message["role"] == "user":
                question = vocabulary(plain(message["content"]))
            elif message["role"] == "assistant" and message.get("content") and message.get("weight", 1):
                responses.setdefault(question, plain(message["content"]))
    return responses


def cut(text: str, limit: int | None) -> tuple[str, str]:
    """Truncate the text to so many tokens; return it with the finish reason."""
    if limit is None or tokens(text) <= limit:
        return text, "stop"
    pieces = re.findall(r"\s*\S+", text)
    return "".join(pieces[: max(1, int(limit / TOKENS_PER_WORD))]), "length"


def page(items: list[Json], query: Json, default: int) -> Json:
    """A page of items: after the one named in the query, up to its limit."""
    limit, start = query.get("limit", default), 0
    if limit < 1:
        raise ServiceError(400, f"Invalid 'limit': {limit}.", "limit", "integer_below_min_value")
    if "after" in query:
        places = {item["id"]: place for place, item in enumerate(items, 1)}
        if query["after"] not in places:
            raise ServiceError(400, f"Invalid 'after': no such object: {query['after']}", "after")
        start = places[query["after"]]
    found = items[start : start + limit]
    ids = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": found, "has_more": start + limit < len(items), **ids}


@dataclass
class Work:
    """The internal state of a job."""

    asked: Json
    suffix: str
    learned: dict[frozenset[str], str] = field(default_factory=dict)
    tokens: float = 0
    validated: bool = False
    steps: int = 0
    steps_per_epoch: int = 0
    rows: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    checkpoints: list[Json] = field(default_factory=list)
