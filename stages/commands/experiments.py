"""What DVC knows of the experiments, for the commands that list and draw them."""

from collections.abc import Mapping
from typing import Any

from stages import params
from stages.core.flatten import flat

# An experiment or commit, with its parameters and metrics by name, as `dvc exp show` lists them.
Row = Mapping[str, Any]


def rows() -> list[Row]:
    """All rows of `dvc exp show`; a commit comes before the experiments that started from it."""
    import dvc.api

    return list(dvc.api.exp_show())


def parameters() -> list[str]:
    """The names of all parameters of params.yaml."""
    return list(flat(params.load().model_dump(by_alias=True), str))
