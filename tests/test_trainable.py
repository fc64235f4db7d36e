import pytest
import torch

from stages import params
from stages.backends.unsloth import trainable
from stages.command import UserError

from .conftest import set_params


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"attention_dropout": 0.1}, "attention_dropout: Unsloth's kernels for a GPU have none"),
        ({"packing": True}, "packing: Unsloth's kernels for a GPU take padded batches"),
        ({"gradient_checkpointing": True, "adversarial__method": "pgd"}, "pgd differentiates by the embeddings alone"),
    ],
)
def test_what_cannot_work_on_a_gpu_is_refused_there_alone(project, monkeypatch, knobs, message):
    set_params(**knobs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainable.refuse_impossible(params.load())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=message):
        trainable.refuse_impossible(params.load())


@pytest.mark.parametrize("method", ["fgm", "freelb"])
def test_other_adversarial_methods_go_with_checkpointing_on_a_gpu(project, monkeypatch, method):
    set_params(gradient_checkpointing=True, adversarial__method=method)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainable.refuse_impossible(params.load())
