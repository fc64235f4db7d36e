"""Mutation testing: `make mutants` changes one value, operator or argument of a function after another, and looks
whether a test fails; prints how many of these mutants were killed and how many survived, by module.

There are more than ten thousand, so some of each module are drawn, always the same ones; those that are named are all
tried. pyproject.toml says what is mutated. mutmut leaves functions with decorators alone, so context managers and
properties are not measured. `.venv/bin/mutmut results` lists the survivors, `.venv/bin/mutmut show NAME` shows one.
"""

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mutmut import __main__ as mutmut
from mutmut.mutation import mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

# Of so many, a share of 85% is known within 10 points.
_OF_EACH_MODULE = 50


def main() -> None:
    """Try the mutants whose names are given, with * for any text, or a sample of each module; print all results."""
    _keep_sentences()
    if not sys.argv[1:]:
        _draw()
    # mutmut tests a copy, and this package should be imported from there.
    del sys.modules["tests"]
    mutmut.cli(["run", *sys.argv[1:]], standalone_mode=False)
    print(table(results()))


def _keep_sentences() -> None:
    """Make no mutants of sentences, which are messages, nor of UTF-8 in capitals; other words, as keys, are mutated."""
    place = mutators.mutation_operators.index((mutators.cst.BaseString, mutators.operator_string))

    def words(node: Any) -> Iterator[Any]:
        if not re.search(r"\s", getattr(node, "value", "")):
            yield from (word for word in mutators.operator_string(node) if word.value != '"UTF-8"')

    mutators.mutation_operators[place] = (mutators.cst.BaseString, words)


def _draw() -> None:
    """Let mutmut see only a sample of each module's mutants."""
    collect = mutmut.collect_source_file_mutation_data

    def sample(*, mutant_names: list[str]) -> tuple[list, dict]:
        mutants, modules = collect(mutant_names=mutant_names)
        drawn = []
        for path, module in modules.items():
            own = [mutant for mutant in mutants if mutant[0] is module]
            drawn += random.Random(path).sample(own, min(len(own), _OF_EACH_MODULE))
        return drawn, modules

    mutmut.collect_source_file_mutation_data = sample


def results() -> dict[str, Counter]:
    """How many mutants came to which end, by module."""
    found = {}
    for path in sorted(walk_mutatable_files()):
        mutants = SourceFileMutationData(path=path)
        mutants.load()
        ends = Counter(status_by_exit_code[code] for code in mutants.exit_code_by_key.values() if code is not None)
        if ends:
            found[str(path)] = ends
    return found


def table(found: dict[str, Counter]) -> str:
    """The results by module. A mutant that no test gets to is not killed; one that takes too long, or crashes, is."""
    lines = [f"{'':42} {'killed':>8} {'survived':>8} {'untested':>8}"]
    for name, ends in [*found.items(), ("all", sum(found.values(), Counter()))]:
        survived, untested = ends["survived"], ends["no tests"]
        killed = ends.total() - survived - untested
        lines.append(f"{name:42} {killed:8} {survived:8} {untested:8} {killed / ends.total():7.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
