"""What the tests observe while the finetune stage runs in tests/lab.py, and what they do to it: each yields a dict that
is filled meanwhile."""

import collections
import io
import os
import pkgutil
import resource
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from filelock import FileLock, Timeout

from .recorder import recorded


@contextmanager
def calls():
    """How often each kind of module computed, and how many micro-batches were trees."""
    from torch.nn.modules.module import register_module_forward_hook

    from stages.training import branches

    found = collections.Counter()
    counted = register_module_forward_hook(lambda module, *_: found.update([type(module).__name__]))
    real = branches.plant

    def plant(*given):
        found["trees"] += 1
        return real(*given)

    with mock.patch.object(branches, "plant", plant):
        yield found
    counted.remove()


@contextmanager
def lock():
    """Whether another training could take the state's lock when results are written."""
    from stages import finetune

    found = {}
    real = finetune._write_table

    def write(*given):
        (path,) = Path(".state/training").glob("*.lock")
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(path, timeout=0))
                found["free"] = True
            except Timeout:
                found["free"] = False
        real(*given)

    with mock.patch.object(finetune, "_write_table", write):
        yield found


@contextmanager
def reads():
    """Which knobs and files the stage read, and which files it wrote."""
    with recorded() as found:
        yield found


@contextmanager
def first_update():
    """Weights and gradients at the optimizer's first step, and the weights after it, in update.pt of the folder."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen = {}

    def held(optimizer):
        return [weight.detach().clone() for group in optimizer.param_groups for weight in group["params"]]

    def before(optimizer, *_):
        if "before" not in seen:
            seen["before"] = held(optimizer)
            seen["gradients"] = [weight.grad.clone() for group in optimizer.param_groups for weight in group["params"]]

    def after(optimizer, *_):
        seen.setdefault("after", held(optimizer))

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    yield {}
    for hook in hooks:
        hook.remove()
    torch.save(seen, "update.pt")


@contextmanager
def kill(place, times):
    """The process kills itself (kill -9) the Nth time that it gets to a place, as stages.training.checkpoints.seal."""
    path, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(path)
    real = getattr(owner, name)

    def deadly(*given, **named):
        nonlocal times
        times -= 1
        if not times:
            os.kill(os.getpid(), 9)
        return real(*given, **named)

    with mock.patch.object(owner, name, deadly):
        yield {}


@contextmanager
def small_disk(limit):
    """No file can grow beyond `limit` bytes, and what the stage prints."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    found, output = {}, io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        yield found
    found["output"] = output.getvalue()


@contextmanager
def nothing():
    yield {}
