"""The machine before a run: packages, devices, cores, disk, network, and two tiny training steps."""

from collections.abc import Callable, Iterator, Sequence

from detdistill.errors import plural
from detdistill.inspection.check import Check
from detdistill.inspection.hardware import check_caches, check_devices, check_disk, check_threads
from detdistill.inspection.network import check_network
from detdistill.inspection.software import check_packages, check_python, check_step, check_torchvision

CHECKS: dict[str, Callable[[], Iterator[Check]]] = {
    "python": check_python,
    "packages": check_packages,
    "torchvision": check_torchvision,
    "device": check_devices,
    "threads": check_threads,
    "disk": check_disk,
    "cache": check_caches,
    "network": check_network,
    "step": check_step,
}
"""The checks by name, in the order in which they run."""


def examine() -> Iterator[Check]:
    """The results of all checks, each as soon as it is known.

    A check that fails in an unexpected way is a problem. What stops several checks, such as a broken torch, is reported
    once.
    """
    reported = set()
    for name, check in CHECKS.items():
        try:
            yield from check()
        except Exception as error:  # whatever is broken here, the other checks still help
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            remedy = "install the packages again: pip install --force-reinstall torch torchvision detdistill"
            if reason not in reported:
                yield Check(name, "problem", reason, remedy)
            reported.add(reason)


def verdict(checks: Sequence[Check]) -> str:
    """One line: whether training can work here."""
    problems, warnings = (sum(check.state == state for check in checks) for state in ("problem", "warning"))
    if problems:
        return f"not ready: {plural(problems, 'problem')} and {plural(warnings, 'warning')}"
    return f"ready to train, with {plural(warnings, 'warning')}" if warnings else "ready to train"
