"""split: train, validation and test, decided by each prompt's own hash.

A conversation's split depends on its prompt and the seed, not on where it stands in the file, and conversations whose
prompts are nearly the same always share a split.
"""

import hashlib
import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from stages import conversations, files, neighbours, params
from stages.command import UserError, notice, run
from stages.paths import CONVERSATIONS, QUARANTINE, SIGNALS, SPLIT_REPORT, SPLITS

NAMES = ("train", "validation", "test")
_QUANTILES = {"median": 0.5, "p90": 0.9, "max": 1.0}
# The nearest neighbour is sought among all train prompts; for more test prompts that would take too long.
_TEST_PROMPTS = 200


def main() -> None:
    knobs = params.load()
    signals = pd.read_parquet(SIGNALS, columns=["row", "error", "prompt_hash", "sketch", "n_tokens"])
    quarantined = pd.read_csv(QUARANTINE, usecols=["row"])["row"]
    kept = ~signals["row"].isin(quarantined)
    # conversations.jsonl has a line for each row without an error.
    lines = kept[signals["error"].isna()]
    signals = signals[kept]
    assert signals["error"].isna().all(), "the gate lets no record pass that is not a conversation"
    sketches = neighbours.matrix(list(signals["sketch"]))
    prompts = _first_of_group(list(signals["prompt_hash"]), neighbours.groups(sketches))
    chosen = assign(prompts, knobs.split.validation, knobs.split.test, knobs.seed)
    for name in NAMES:
        with files.replacing(SPLITS / f"{name}.jsonl") as path:
            rows = zip(itertools.compress(conversations.read_jsonl(CONVERSATIONS), lines), chosen, strict=True)
            conversations.write_jsonl(path, (conversation for conversation, split in rows if split == name))
    report = describe(signals, chosen, sketches)
    files.write_json(SPLIT_REPORT, report)
    notice("split: " + ", ".join(f"{name} {report[name]['conversations']}" for name in NAMES))


def _first_of_group(prompts: list[str], groups: np.ndarray) -> list[str]:
    """For each prompt the smallest hash in its group of nearly equal prompts, which does not depend on row order."""
    smallest: dict[int, str] = {}
    for prompt, group in zip(prompts, groups.tolist(), strict=True):
        smallest[group] = min(prompt, smallest.get(group, prompt))
    return [smallest[group] for group in groups.tolist()]


def describe(signals: pd.DataFrame, chosen: list[str], sketches: np.ndarray) -> dict[str, Any]:
    """Sizes of the splits, and how near the test is to what is trained on.

    `overlap`: prompts that stand in more than one split; `nearest`: quantiles of the similarity (share of common
    character 4-grams, estimated) of test prompts to the nearest train prompt, over at most 200 of them.
    """
    split = np.array(chosen)
    tokens = signals["n_tokens"].groupby(split).sum()
    test, train = sketches[split == "test"][:_TEST_PROMPTS], sketches[split == "train"]
    quantiles = np.quantile(neighbours.nearest(test, train), list(_QUANTILES.values()))
    return {
        **{name: {"conversations": chosen.count(name), "tokens": int(tokens[name])} for name in NAMES},
        "overlap": int((pd.Series(split).groupby(signals["prompt_hash"].to_numpy()).nunique() > 1).sum()),
        "nearest": dict(zip(_QUANTILES, (round(float(value), 2) for value in quantiles), strict=True)),
    }


def assign(prompts: list[str], validation: float, test: float, seed: int) -> list[str]:
    """The split of each conversation, given the hash of its prompt or of its group of prompts.

    Groups of equal hashes are taken in the order of a seeded hash: each goes to the test split while it fits into
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
