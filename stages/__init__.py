"""The stages of dvc.yaml, each a module of its name, and what they are built from."""

import os

# Waiting OpenMP threads spin, by default for milliseconds: beside other work they then keep the cores from it and from
# each other. torch reads this when it is loaded. docs/log.md has the figures.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
