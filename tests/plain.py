"""The project's trainer over plain transformers and TRL, in this process: what Unsloth patches is left out.

A training of a few steps takes a tenth of a second, so what the trainer computes can be computed again by hand.
"""

import functools
from types import SimpleNamespace

import torch

from stages import params
from stages.backends.unsloth.chat import IGNORED, Example

from .conftest import set_params

# Of different lengths, with 1, 2, 5 and 3 learned tokens: a mean over conversations is not one over tokens.
EXAMPLES = [
    Example([5, 6, 7], [IGNORED, IGNORED, 7]),
    Example([5, 6, 20, 21, 22], [IGNORED, IGNORED, IGNORED, 21, 22]),
    Example([5, 40, 41, 42, 43, 44, 45], [IGNORED, IGNORED, 41, 42, 43, 44, 45]),
    Example([9, 50, 51, 52], [IGNORED, 50, 51, 52]),
]


def knobs(**values):
    """The parameters of a small training without warm-up, clipping or decay, with some changed."""
    small = {"lr": 0.01, "epochs": 1, "batch_size": 4, "weight_decay": 0.0, "max_grad_norm": None, "warmup_ratio": 0.0}
    set_params(**{**small, "scheduler": "constant", "optim": "sgd", **values})
    return params.load()


def model_of(folder):
    """All weights of the model in the folder, in float32, to be trained."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def on_the_cpu(monkeypatch):
    """TRL's configuration and loss as Unsloth makes them where there is no GPU."""
    import trl

    monkeypatch.setattr(trl, "SFTConfig", functools.partial(trl.SFTConfig, use_cpu=True, bf16=False))
    # transformers' own mean over the learned tokens: that of TRL wants a GPU.
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", lambda self, model, inputs: model(**inputs).loss)


def trainable(base, chosen, model=None, packed=True, budget=768):
    """What `trainable.load` gives, for all weights of the model in `base`, or for this model."""
    from transformers import AutoTokenizer

    from stages.backends.unsloth.trainable import Trainable
    from stages.training import optimizer
    from stages.training.micro_batches import MicroBatches

    model = model_of(base) if model is None else model
    batches = MicroBatches(packed, chosen.adversarial.method == "none", pad=0, budget=budget)
    return Trainable(model, AutoTokenizer.from_pretrained(base), batches, optimizer.groups(model, chosen))


def trainer(held, chosen, folder, train=EXAMPLES, validation=EXAMPLES, log=lambda row: None):
    """The trainer as `training.train` makes it, before its first step."""
    from stages.backends.unsloth import training
    from stages.training.progress import KeepBest
    from stages.training.trainer import Trainer

    epoch_steps = -(-len(train) // chosen.numbers[1])
    return Trainer(
        chosen,
        held.batches,
        held.groups,
        KeepBest(training.best(folder), epoch_steps, chosen, log),
        model=held.model,
        processing_class=held.tokenizer,
        args=training._arguments(folder, max(1, round(chosen.numbers[0] * epoch_steps)), chosen, fresh=True),
        train_dataset=training.dataset(train),
        eval_dataset=training.dataset(validation),
    )


def token_losses(model, example, smoothing=0.0, moved=None):
    """Loss of each learned token by a plain pass over one conversation, with `moved` added to its embeddings."""
    ids = torch.tensor([example.input_ids])
    embedded = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=embedded if moved is None else embedded + moved).logits[0, :-1]
    labels = torch.tensor(example.labels[1:])
    learned = labels != IGNORED
    return torch.nn.functional.cross_entropy(
        logits[learned].float(), labels[learned], reduction="none", label_smoothing=smoothing
    )


def mean_loss(model, examples=EXAMPLES, **given):
    """The mean over the learned tokens of all conversations."""
    return torch.cat([token_losses(model, one, **given) for one in examples]).mean()


def gradients(model, loss):
    """The gradient of each weight, by name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def collected(model):
    """The gradients that lie at the weights."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def close(found, expected, **given):
    """Assert that two dicts hold the same tensors up to rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **{"rtol": 1e-3, "atol": 1e-6, **given}, msg=None)


def batch(examples=EXAMPLES):
    """What the trainer's collator hands to a step."""
    return {"examples": list(examples)}


def state(**values):
    """A trainer's state as its callbacks see it."""
    return SimpleNamespace(**{"global_step": 0, "max_steps": 10, "epoch": 0.0, **values})
