"""State dicts: downloaded from timm, and compared with those of a module. See `weight_names` for those in files."""

import socket
from collections.abc import Mapping
from urllib.request import getproxies

import timm
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from detdistill.errors import UserError


def published_weights(name: str, source: str, remedy: str) -> Mapping[str, Tensor]:
    """The state dict that timm publishes for the model `name`.

    source: flag or name with which an error message begins. remedy: the advice with which it ends.
    Raises UserError if timm publishes no weights or they can't be downloaded.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"{source}: timm has no pretrained weights of {name!r}; {remedy}")
    # Checked first, because the client of the hub would retry for most of a minute.
    if not _is_cached(config.hf_hub_id) and not reachable("huggingface.co"):
        problem = f"the weights of {name!r} are not on this machine and huggingface.co can't be reached"
        raise UserError(f"{source}: {problem}; {remedy}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # timm, huggingface_hub and the socket layer raise many kinds of errors
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"{source}: can't download the weights of {name!r} ({reason}); {remedy}") from None


def _is_cached(repository: str | None) -> bool:
    """True if the hub's cache on this machine holds the weights of `repository`."""
    files = ("model.safetensors", "pytorch_model.bin")
    return repository is not None and any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def reachable(host: str) -> bool:
    """True if a connection to `host` can be opened, or if a proxy is set."""
    if getproxies():  # the proxy resolves host names, so only a real request could tell
        return True
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True


def unmatched_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Names of the tensors of `state` that do not fit a module with the state dict `expected`, by kind of mismatch.

    The kinds are "of another shape", "missing" and "unexpected". The step counters of batch norm may be missing or
    unexpected, because frozen norms do not have them.
    """
    counter = "num_batches_tracked"
    reshaped = tuple(name for name in expected if name in state and expected[name].shape != state[name].shape)
    missing = tuple(name for name in expected if name not in state and not name.endswith(counter))
    unexpected = tuple(name for name in state if name not in expected and not name.endswith(counter))
    return {"of another shape": reshaped, "missing": missing, "unexpected": unexpected}
