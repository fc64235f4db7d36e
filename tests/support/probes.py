"""Observe or disturb the finetune stage while it runs in lab.py. Each probe yields a dict that it fills meanwhile."""

import collections
import io
import os
import pkgutil
import resource
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from filelock import FileLock, Timeout

from tests.support.recorder import recorded


@contextmanager
def calls():
    """How often each kind of module ran, and how many micro-batches were trees."""
    from torch.nn.modules.module import register_module_forward_hook

    from stages.backends.unsloth.training import prefix_tree

    found = collections.Counter()
    counted = register_module_forward_hook(lambda module, *_: found.update([type(module).__name__]))
    real = prefix_tree.plant

    def plant(*given):
        found["trees"] += 1
        return real(*given)

    with mock.patch.object(prefix_tree, "plant", plant):
        yield found
    counted.remove()


@contextmanager
def lock():
    """Whether another process could acquire the checkpoints' lock when results are written."""
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
    """The parameters and files that the stage read, and the files that it wrote."""
    with recorded() as found:
        yield found


@contextmanager
def first_update():
    """Save weights and gradients before, and weights after, the optimizer's first step to update.pt."""
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
    """Kill the process (kill -9) on the Nth call of a function, such as pathlib.Path.mkdir."""
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
    """Limit files to `limit` bytes, and capture what the stage prints."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    found, output = {}, io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        yield found
    found["output"] = output.getvalue()


@contextmanager
def nothing():
    yield {}
