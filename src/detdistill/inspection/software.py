"""Checks of the installed packages. torch is imported inside the checks, so that a broken one is reported."""

import math
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from detdistill.errors import one_line
from detdistill.inspection.check import Check


def check_python() -> Iterator[Check]:
    """The version of Python, and the operating system."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def check_packages() -> Iterator[Check]:
    """Each required package with its version, against the range that this package was tested with."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in requires("detdistill") or ()]
    except PackageNotFoundError:
        yield Check("packages", "warning", "detdistill is not installed, so the versions it needs are not known")
        return
    fine = [f"detdistill {version('detdistill')}"]
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, str(requirement.specifier)
        command = f"pip install '{name}{wanted}'"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Check("packages", "problem", f"{name} is not installed", command)
            continue
        if requirement.specifier.contains(found, prereleases=True):
            fine.append(f"{name} {found}")
        else:
            text = f"{name} {found} is outside the tested range {wanted}"
            is_old = any(each.operator == ">=" and not each.contains(found, True) for each in requirement.specifier)
            yield Check("packages", "problem" if is_old else "warning", text, command)
    yield Check("packages", "ok", ", ".join(fine))


def check_torchvision() -> Iterator[Check]:
    """The compiled operators of torchvision, which need the torch that they were built for."""
    import torch

    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:  # OSError, RuntimeError or AttributeError, by how the builds differ
        reason = one_line(error, 160)
        remedy = "install both from the same place: pip install --force-reinstall torch torchvision"
        yield Check(
            "torchvision", "problem", f"its operators do not work with torch {torch.__version__} ({reason})", remedy
        )
    else:
        yield Check("torchvision", "ok", f"its operators work with torch {torch.__version__}")


def check_step() -> Iterator[Check]:
    """Two training steps of a tiny detector on built-in images, on the device that a run would use."""
    import torch

    from detdistill.data import EvalLoader, open_data
    from detdistill.detectors.build import build
    from detdistill.engine.device import find_device
    from detdistill.engine.distillation import Distillation
    from detdistill.recipe import DataConfig, ModelConfig

    config = DataConfig(path="shapes:4", image_size=128)
    split = open_data(config).split("train")
    model = ModelConfig(
        name="gfl:mobilenetv3_small_050", strides=(8, 16, 32), channels=32, tower_depth=1, backbone_weights="none"
    )
    device = find_device("auto")
    distillation = Distillation(build(model, split.classes)).to(device)
    batch, targets = next(iter(EvalLoader(split, config, batch_size=2)))
    optimizer = torch.optim.SGD(distillation.parameters(), lr=1e-3)
    for _ in range(2):
        start = time.perf_counter()
        loss = sum(distillation(batch.to(device), targets.to(device)).values(), torch.zeros((), device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value, seconds = float(loss.detach()), time.perf_counter() - start
    if math.isfinite(value):
        yield Check("step", "ok", f"a tiny detector trains on {device}, {1000 * seconds:.0f} ms per step of 2 images")
    else:
        remedy = "use --device cpu; if that helps, update the driver and torch"
        yield Check("step", "problem", f"the loss of a tiny detector on {device} is {value}", remedy)
