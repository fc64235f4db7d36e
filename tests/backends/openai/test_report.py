"""The report of a hosted run whose service lacks a base or epochs."""

import dataclasses

import numpy as np
import pytest

from stages import report
from stages.core import files
from stages.metrics import scoring
from tests.conftest import set_params
from tests.support import reports
from tests.support.hosted import run_all
from tests.support.openai_server.profiles import OPENAI

# What these stages write.
WRITTEN = (report.MEASURES, report.PREDICTIONS, report.RUN, report.EVAL_RUN, report.HISTORY, report.VALIDATION_HISTORY)


@pytest.mark.parametrize("lacks", ["base", "epochs"])
def test_a_report_is_written_without(hosted, monkeypatch, lacks):
    monkeypatch.setattr(scoring, "embedded", lambda texts: np.ones((len(texts), 1)))
    if lacks == "base":
        set_params(openai__base_chat_model=None)
    else:
        hosted.profile = dataclasses.replace(OPENAI, fields={"hyperparameters": None, "method": None})
    run_all()
    written = {path: path.read_bytes() for path in (*WRITTEN, report.SLICES)}
    reports.write_inputs()
    for path, content in written.items():
        path.write_bytes(content)
    files.write_text(report.GROUPS, "lr,multiplier,weight_decay,layers,tensors,parameters,example\n")
    files.write_text(report.WEIGHTS, "layer,module,change\n")
    page, markdown = reports.outputs()
    assert "Too few test conversations to judge" in page and "Too few test conversations" in markdown
    assert (
        "Loss by step" in page
        if lacks == "epochs"
        else "| chrF (↑) | none |" in markdown.replace("higher is better", "↑")
    )
