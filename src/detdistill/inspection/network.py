"""Whether the servers of pretrained weights can be reached."""

import threading
import time
from collections.abc import Iterator, Mapping
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from detdistill.inspection.check import Check

TIMEOUT = 3.0  # seconds that a server may take to answer
PYTORCH = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
OFFLINE = (
    "without a network, give files: --backbone-weights FILE (or none), --teacher RUN, hf:FOLDER or NAME=FILE; or copy "
    "the cache of a machine that has them"
)


def check_network() -> Iterator[Check]:
    """Whether the servers of pretrained weights answer."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    addresses = {"Hugging Face hub": ENDPOINT, "weights of torchvision": PYTORCH}
    if HF_HUB_OFFLINE:
        yield Check("network", "warning", "HF_HUB_OFFLINE is set, so the hub is not asked", OFFLINE)
        del addresses["Hugging Face hub"]
    problems = reach(addresses)
    for name, problem in problems.items():
        host = addresses[name].split("/")[2]
        if problem is None:
            yield Check("network", "ok", f"{host} answers ({name})")
        else:
            remedy = OFFLINE if name == [each for each in problems if problems[each]][-1] else ""
            yield Check("network", "warning", f"{host} does not answer ({name}): {problem}", remedy)


def reach(addresses: Mapping[str, str]) -> dict[str, str | None]:
    """By name, why the address does not answer within TIMEOUT seconds, or None if it does. All are asked at once."""
    results: dict[str, str | None] = dict.fromkeys(addresses, f"no answer in {TIMEOUT:g} s")
    threads = [
        # A look-up of a name can hang much longer than any timeout, so nothing waits for the thread's end.
        threading.Thread(target=lambda name=name: results.update({name: _ask(addresses[name])}), daemon=True)
        for name in addresses
    ]
    end = time.monotonic() + TIMEOUT
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    return dict(results)


def _ask(address: str) -> str | None:
    try:
        with urlopen(Request(address, method="HEAD"), timeout=TIMEOUT):
            return None
    except HTTPError as error:
        return f"it answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:  # URLError is an OSError
        return " ".join(str(getattr(error, "reason", error)).split())
