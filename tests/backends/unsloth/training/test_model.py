import pytest
import torch

from stages import params
from stages.backends.unsloth.training import model
from stages.core.cli import UserError
from tests.conftest import set_params


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"attention_dropout": 0.1}, "attention_dropout: not supported by Unsloth's GPU kernels"),
        ({"gradient_checkpointing": True, "adversarial__method": "pgd"}, "pgd needs gradients of the embeddings alone"),
    ],
)
def test_parameters_that_cannot_work_on_a_gpu_are_rejected_only_there(project, monkeypatch, knobs, message):
    set_params(**knobs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model.refuse_impossible(params.load())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=message):
        model.refuse_impossible(params.load())


@pytest.mark.parametrize("method", ["fgm", "freelb"])
def test_other_adversarial_methods_work_with_gradient_checkpointing_on_a_gpu(project, monkeypatch, method):
    set_params(gradient_checkpointing=True, adversarial__method=method)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model.refuse_impossible(params.load())
