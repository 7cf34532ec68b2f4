"""What is installed, what the machine can do, and what stands in the way of a run."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

from adaptkit.errors import Problem
from adaptkit.plugins import DISTRIBUTION
from adaptkit.registry import load_registry

if TYPE_CHECKING:
    import torch

# A project of somebody else on the package index, which installs a package of the same name.
FOREIGN_DISTRIBUTION = "adaptkit"
# These fail at import where a native library or a driver does not fit.
IMPORTED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
GIB = 2**30


def installed_version(distribution: str) -> str | None:
    """Returns the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> Iterator[tuple[str, str, str]]:
    """Yields name, installed version and allowed versions of adaptkit and of all that it needs."""
    yield DISTRIBUTION, installed_version(DISTRIBUTION) or "not installed", ""
    for name, allowed in _requirements().items():
        yield name, _version(name) or "not installed", allowed


def machine() -> Iterator[tuple[str, str]]:
    """Yields what the machine has, by name; imports torch."""
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "processors", str(_processors())
    if memory := _memory_bytes():
        yield "memory", f"{memory / GIB:.1f} GiB"
    try:
        from adaptkit.models.precision import best_device, fast_bf16

        device = best_device()
        yield "device", _device(device)
        yield "arithmetic", "bf16" if fast_bf16(device) else "fp32, because bf16 is not fast on this device"
    except Exception as error:  # A torch or a driver that does not fit raises whatever it likes.
        yield "device", f"unknown: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def problems() -> Iterator[Problem]:
    """Yields everything that is wrong with the installation; imports all that a run imports."""
    yield from _foreign_problems()
    yield from _version_problems()
    yield from _import_problems()
    for failure in load_registry().failures:
        found = f"plugin {failure.distribution} {failure.version}: {failure.reason}"
        yield Problem(found, where=f"entry point {failure.entry_point}", fix=failure.fix)


def _requirements() -> dict[str, str]:
    """Returns what adaptkit needs on this machine, python included, with the versions allowed."""
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(line) for line in metadata.get_all("Requires-Dist") or ()]
    here = [needed for needed in parsed if needed.marker is None or needed.marker.evaluate({"extra": ""})]
    return {"python": metadata["Requires-Python"], **{needed.name: str(needed.specifier) for needed in here}}


def _version(name: str) -> str | None:
    return platform.python_version() if name == "python" else installed_version(name)


def _foreign_problems() -> Iterator[Problem]:
    version = installed_version(FOREIGN_DISTRIBUTION)
    if version is not None:
        yield Problem(
            f"the distribution {FOREIGN_DISTRIBUTION!r} {version} is installed: a project of somebody else, "
            f"which writes its files into the package of {DISTRIBUTION!r}",
            where=str(importlib.metadata.distribution(FOREIGN_DISTRIBUTION).locate_file(FOREIGN_DISTRIBUTION)),
            allowed=f"{DISTRIBUTION} alone",
            fix=f"pip uninstall {FOREIGN_DISTRIBUTION}, then pip install --force-reinstall --no-deps {DISTRIBUTION}",
        )


def _version_problems() -> Iterator[Problem]:
    from packaging.specifiers import SpecifierSet

    if installed_version(DISTRIBUTION) is None:
        yield Problem(f"{DISTRIBUTION} is not installed", fix=f"pip install {DISTRIBUTION}")
    for name, allowed in _requirements().items():
        version = _version(name)
        if version is None:
            yield Problem(f"{name} is not installed", allowed=allowed, fix=f'pip install "{name}{allowed}"')
        elif not SpecifierSet(allowed).contains(version, prereleases=True):
            yield Problem(f"{name} is {version}", allowed=allowed, fix=f'pip install "{name}{allowed}"')


def _import_problems() -> Iterator[Problem]:
    for name in _requirements():
        if name not in IMPORTED or installed_version(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # A broken library raises whatever it likes.
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            yield Problem(f"{name} cannot be imported: {reason}", fix=f"pip install --force-reinstall {name}")


def _processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    """Returns the physical memory of the machine; None where python cannot tell (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return f"{torch.cuda.get_device_name(device)}: {free / GIB:.1f} of {total / GIB:.1f} GiB free"
