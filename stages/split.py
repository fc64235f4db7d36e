"""split: train, validation and test, decided by each prompt's own hash.

A conversation's split depends on its prompt and the seed, not on where it stands in the file, and conversations whose
prompts are equal but for case, punctuation, white space or Unicode form always share a split.
"""

import hashlib
from collections import defaultdict

import pandas as pd

from stages import conversations, files, params
from stages.command import UserError, notice, run
from stages.paths import CONVERSATIONS, SIGNALS, SPLIT_SIZES, SPLITS

NAMES = ("train", "validation", "test")


def main() -> None:
    knobs = params.load()
    signals = pd.read_parquet(SIGNALS, columns=["error", "prompt_hash", "n_tokens"])
    signals = signals[signals["error"].isna()]
    chosen = assign(list(signals["prompt_hash"]), knobs.split.validation, knobs.split.test, knobs.seed)
    for name in NAMES:
        with files.replacing(SPLITS / f"{name}.jsonl") as path:
            rows = zip(conversations.read_jsonl(CONVERSATIONS), chosen, strict=True)
            conversations.write_jsonl(path, (conversation for conversation, split in rows if split == name))
    tokens = signals["n_tokens"].groupby(chosen).sum()
    report = {name: {"conversations": chosen.count(name), "tokens": int(tokens[name])} for name in NAMES}
    files.write_json(SPLIT_SIZES, report)
    notice("split: " + ", ".join(f"{name} {report[name]['conversations']}" for name in NAMES))


def assign(prompts: list[str], validation: float, test: float, seed: int) -> list[str]:
    """The split of each conversation, given its prompt's hash.

    Groups of equal prompts are taken in the order of a seeded hash: each goes to the test split while it fits into
    what the fraction allows, then likewise to validation, else to train. A new row moves a group only where a
    rounded size changes, so most conversations stay where they were.

    Raises:
        UserError: there are fewer than three different prompts.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[prompt].append(index)
    if len(groups) < len(NAMES):
        raise UserError(f"{len(groups)} different prompts cannot fill train, validation and test; add conversations")
    order = sorted(groups, key=lambda prompt: hashlib.sha256(f"{seed}:{prompt}".encode()).digest())
    room = {"test": max(1, round(test * len(prompts))), "validation": max(1, round(validation * len(prompts)))}
    taken: dict[str, list[str]] = {name: [] for name in NAMES}
    for prompt in order:
        size = len(groups[prompt])
        split = next((name for name, left in room.items() if size <= left), "train")
        taken[split].append(prompt)
        if split in room:
            room[split] -= size
    _fill_empty(taken, groups)
    splits = {prompt: name for name, members in taken.items() for prompt in members}
    return [splits[prompt] for prompt in prompts]


def _fill_empty(taken: dict[str, list[str]], groups: dict[str, list[int]]) -> None:
    """Give each empty split the smallest group of the split that has the most groups."""
    for name in taken:
        if not taken[name]:
            donor = max(taken.values(), key=len)
            smallest = min(donor, key=lambda prompt: len(groups[prompt]))
            donor.remove(smallest)
            taken[name].append(smallest)


if __name__ == "__main__":
    run(main)
