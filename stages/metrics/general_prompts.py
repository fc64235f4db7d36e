"""Prompts of many kinds that have nothing to do with any data set: a model that has lost its base's answers to them
has forgotten.
"""

import re

PROMPTS = (
    # Knowledge
    "What is the capital of Australia?",
    "Explain in two sentences why the sky is blue.",
    "Name three planets that have rings.",
    # Arithmetic and reasoning
    "What is 17 plus 25?",
    "Tom is taller than Anna, and Anna is taller than Ben. Who is the shortest?",
    "A train leaves at 9:40 and the journey takes 85 minutes. When does it arrive?",
    # Writing
    "Write a short poem about autumn.",
    "Suggest a title for a story about a lighthouse keeper who finds a map.",
    "Write one polite sentence that declines an invitation.",
    # Texts
    'Summarize in one sentence: "The river rose for three days, and then the old bridge gave way. Nobody was hurt."',
    'Correct the grammar: "She don\'t like neither tea nor coffee."',
    'Is this review positive or negative? "The battery died after an hour."',
    # Code
    "Write a Python function that returns the larger of two numbers.",
    "What does the SQL statement SELECT COUNT(*) FROM orders do?",
    # Advice and lists
    "List five things to pack for a day of hiking.",
    "How can I fall asleep more easily?",
    # Other languages
    "Translate into French: Where is the library?",
    "¿Cuál es el océano más grande del mundo?",
)
# Longest answer of the base that is scored, in tokens.
TOKENS = 32
# The end of a sentence or of a line.
_ENDS = re.compile(r"[.!?](?=\s|$)|\S(?=\n)")


def whole(answer: str) -> str:
    """The answer's whole sentences, where it has one: a cut sentence should not be followed by the end token."""
    return answer[: max((end.end() for end in _ENDS.finditer(answer)), default=len(answer))] or "."
