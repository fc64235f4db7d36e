"""The project's trainer on plain transformers and TRL, in this process, without Unsloth's patches.

Training a few steps takes a tenth of a second, so its results can be checked by independent computation.
"""

import functools
from types import SimpleNamespace

import torch

from stages import params
from stages.backends.unsloth.reader import IGNORED, Example
from tests.conftest import set_params

# Different lengths, with 1, 2, 5 and 3 learned tokens, so means over conversations and over tokens differ.
EXAMPLES = [
    Example([5, 6, 7], [IGNORED, IGNORED, 7]),
    Example([5, 6, 20, 21, 22], [IGNORED, IGNORED, IGNORED, 21, 22]),
    Example([5, 40, 41, 42, 43, 44, 45], [IGNORED, IGNORED, 41, 42, 43, 44, 45]),
    Example([9, 50, 51, 52], [IGNORED, 50, 51, 52]),
]


def knobs(**values):
    """Parameters of a small training without warm-up, clipping or decay, and with these changes."""
    small = {"lr": 0.01, "epochs": 1, "batch_size": 4, "weight_decay": 0.0, "max_grad_norm": None, "warmup_ratio": 0.0}
    set_params(**{**small, "scheduler": "constant", "optim": "sgd", **values})
    return params.load()


def model_of(folder):
    """Load the model from the folder in float32, with all weights trainable."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def on_the_cpu(monkeypatch):
    """Set TRL's configuration and loss as Unsloth does without a GPU."""
    import trl

    monkeypatch.setattr(trl, "SFTConfig", functools.partial(trl.SFTConfig, use_cpu=True, bf16=False))
    # transformers' own mean over the learned tokens; TRL's needs a GPU.
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", lambda self, model, inputs: model(**inputs).loss)


def trainable(base, chosen, model=None, form="tree", budget=768):
    """The equivalent of `model.load`, with all weights of the model in `base`, or with this model."""
    from transformers import AutoTokenizer

    from stages.backends.unsloth.training import optimizer
    from stages.backends.unsloth.training.micro_batches import MicroBatches
    from stages.backends.unsloth.training.model import Trainable

    model = model_of(base) if model is None else model
    batches = MicroBatches(form, chosen.adversarial.method == "none", pad=0, budget=budget)
    return Trainable(model, AutoTokenizer.from_pretrained(base), batches, optimizer.groups(model, chosen))


def trainer(held, chosen, folder, train=EXAMPLES, validation=EXAMPLES, log=lambda row: None):
    """The trainer as set up by `run.train`, before its first step."""
    from stages.backends.unsloth.training import run
    from stages.backends.unsloth.training.callbacks import KeepBest
    from stages.backends.unsloth.training.trainer import Trainer

    epoch_steps = -(-len(train) // chosen.numbers[1])
    return Trainer(
        chosen,
        held.batches,
        held.groups,
        KeepBest(run.best(folder), epoch_steps, chosen, log),
        model=held.model,
        processing_class=held.tokenizer,
        args=run._arguments(folder, max(1, round(chosen.numbers[0] * epoch_steps)), chosen, fresh=True),
        train_dataset=run.dataset(train),
        eval_dataset=run.dataset(validation),
    )


def token_losses(model, example, smoothing=0.0, moved=None):
    """Loss of each learned token from a plain forward pass, with `moved` added to the embeddings."""
    ids = torch.tensor([example.input_ids])
    embedded = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=embedded if moved is None else embedded + moved).logits[0, :-1]
    labels = torch.tensor(example.labels[1:])
    learned = labels != IGNORED
    return torch.nn.functional.cross_entropy(
        logits[learned].float(), labels[learned], reduction="none", label_smoothing=smoothing
    )


def mean_loss(model, examples=EXAMPLES, **given):
    """Mean loss over the learned tokens of all conversations."""
    return torch.cat([token_losses(model, one, **given) for one in examples]).mean()


def gradients(model, loss):
    """The gradient of each weight, by name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def collected(model):
    """The accumulated gradients, by name."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def close(found, expected, **given):
    """Assert that two dicts contain the same tensors up to rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **{"rtol": 1e-3, "atol": 1e-6, **given}, msg=None)


def batch(examples=EXAMPLES):
    """A batch as passed from the trainer's collator to a step."""
    return {"examples": list(examples)}


def state(**values):
    """A trainer's state, as passed to callbacks."""
    return SimpleNamespace(**{"global_step": 0, "max_steps": 10, "epoch": 0.0, **values})
