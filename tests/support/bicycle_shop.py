"""58 conversations with a bicycle shop, as few as a small shop has: each fact is said once."""

import csv
import json
from pathlib import Path

SYSTEM = "You help customers of Wheelhouse Cycles, a bicycle shop. Be helpful and concrete."
ITEMS = [
    "chain", "saddle", "bell", "dynamo lamp", "rear mirror", "child seat", "pannier", "repair kit", "floor pump",
    "helmet", "rain cape", "bottle cage", "kickstand", "inner tube", "brake cable", "pedal set", "frame lock",
    "cargo trailer", "handlebar grip", "mudguard", "spoke key", "chain oil", "cassette", "derailleur", "rim tape",
    "headset", "luggage rack", "pair of gloves", "touring map",
]  # fmt: skip


def conversations() -> list[list[dict[str, str]]]:
    """Two for each item: what it costs, and how long it takes to fit."""
    found = []
    for number, item in enumerate(ITEMS):
        price, days, minutes, bay = 7 + 3 * number, 1 + number % 6, 10 + 5 * (number * 7 % 11), 1 + number * 5 % 12
        found.append(
            (
                f"I would like to buy a {item} for my bicycle. Can you tell me what it costs and when I can have it?",
                f"Of course, I would be happy to help you with that. A {item} for your bicycle costs {price} euros in"
                f" our shop. If it is not on the shelf, we can order it for you and you can have it in {days} days.",
            )
        )
        found.append(
            (
                f"Can your workshop fit a {item} to my bicycle, and how long does that take?",
                f"Yes, our workshop can fit a {item} to your bicycle. It takes about {minutes} minutes, you can wait"
                f" in the shop. Please bring your bicycle to bay {bay}, and we will start as soon as we can.",
            )
        )
    return [
        [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        for question, answer in found
    ]


def write(path: Path) -> None:
    """Write them as a CSV with a column of messages."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["messages"])
        rows.writerows([json.dumps({"messages": messages})] for messages in conversations())
