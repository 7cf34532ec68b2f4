"""adaptkit: choose how a pretrained transformer is adapted by name, and run it on the one GPU you have."""

from adaptkit.hookspecs import hookimpl

__all__ = ["hookimpl"]
