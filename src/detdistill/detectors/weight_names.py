"""Which tensors of a file belong to a model: the nested state dict, the prefix of its names, the moving average.

Training scripts save a state dict beside other things (`{"model": ..., "optimizer": ...}`), under names that wrappers
have changed (`module.`, `_orig_mod.`, `student.`), and sometimes twice: the weights and their moving average. The part
is taken that has most names of the model.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from detdistill.detectors.weight_files import conversion, is_module, read_content, split_choice
from detdistill.errors import UserError, nearest

COMPILED = "_orig_mod."  # torch.compile adds it, anywhere in a name
COUNTER = "num_batches_tracked"  # of batch norm; frozen norms do not have it
NESTING = 3  # mappings inside each other that are searched
SHOWN = 6  # names in a message
AVERAGE = re.compile(r"(^|[._])(ema|averaged?|avg|swa)([._]|$)")
Aliases = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Weights:
    """The tensors that a file has for a model.

    state: tensors by the model's names. Tensors that the model lacks keep their names, without the prefix.
    note: one line on what was chosen and what was stripped. Empty if there was nothing to choose or to strip.
    arguments: the flags of the training script by name, if the file holds them under `args`.
    """

    state: dict[str, Tensor]
    note: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One state dict in a file.

    path: its keys in the file, joined by dots. prefix: of the names in it that the model's names follow.
    named, fitting: how many of the model's tensors have a name here, and how many of these the right shape.
    """

    path: str
    prefix: str
    tensors: Mapping[str, Tensor]
    named: int
    fitting: int

    @property
    def label(self) -> str:
        """What FILE#NAME has to name for this part."""
        return f"{self.path}.{self.prefix}".strip(".")

    def has(self, name: str) -> bool:
        """True if the name begins with the prefix."""
        return name.startswith(self.prefix)


def read_weights(
    text: str | Path, flag: str, expected: Mapping[str, Tensor], aliases: Aliases = lambda name: (name,)
) -> Weights:
    """The weights in a file for a model with the state dict `expected`.

    text: FILE, or FILE#NAME for the state dict under the key or prefix NAME; FILE#ema is the moving average, whatever
    its key. See `weight_files.read_content`.
    flag: the flag that named the file, for messages.
    aliases: the names under which the model may have a tensor of the file, best first.
    If several state dicts fit equally well, a moving average is taken, as published evaluations do; otherwise the
    first. Whether names and shapes fit is left to the caller. Raises UserError if the file can't be read, holds no
    state dict, or has nothing called NAME.
    """
    path, choice = split_choice(str(text))
    content = read_content(path, flag)
    raw = dict(_state_dicts(content))
    found = {key: {name.replace(COMPILED, ""): value for name, value in part.items()} for key, part in raw.items()}
    chosen = _chosen(found, choice) if choice else found
    candidates = chosen or found
    parts = [part for key, tensors in candidates.items() for part in _parts(key, tensors, expected, aliases)]
    if not any(part.named for part in parts):
        _refuse_module(content, path, flag)
    if choice and not chosen:
        parts = [part for part in parts if choice == "ema" and _is_average(part, content)]
        if not parts:
            raise UserError(f"{flag} {path}: {_unknown(choice, found)}")
    if not parts:
        raise UserError(f"{flag} {path}: holds no state dict (tensor names to tensors); save model.state_dict()")
    # If nothing fits, the largest part gives the most useful message.
    taken = max(parts, key=lambda part: (part.named, part.fitting, _is_average(part, content), len(part.tensors)))
    compiled = any(COMPILED in name for name in raw[taken.path])
    notes = [_choice_note(taken, parts, content, path), _prefix_note(taken, compiled)]
    stripped = {key.removeprefix(taken.prefix): tensor for key, tensor in taken.tensors.items() if taken.has(key)}
    note = "; ".join(note for note in notes if note)
    return Weights(renamed(stripped, expected, aliases), note, _arguments(content))


def _arguments(content: object) -> Mapping[str, Any]:
    """The mapping under `args`, or the attributes of what stands for the Namespace there. Empty if there is none."""
    arguments = content.get("args") if isinstance(content, Mapping) else None
    if not isinstance(arguments, Mapping):
        return {}
    return {**arguments, **(vars(arguments) if hasattr(arguments, "__dict__") else {})}


def renamed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], aliases: Aliases) -> dict[str, Tensor]:
    """The state dict under the model's names. If two tensors would get one name, the one that had it keeps it."""
    known = {_known(name, expected, aliases) or name: tensor for name, tensor in state.items()}
    return known | {name: tensor for name, tensor in state.items() if name in expected}


def _state_dicts(content: object, path: str = "", depth: int = NESTING) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in `content`, with its keys joined by dots. Other values are left out."""
    if not isinstance(content, Mapping):
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in named.items():
        if depth:
            yield from _state_dicts(value, f"{path}.{key}".lstrip("."), depth - 1)


def _chosen(found: Mapping[str, dict[str, Tensor]], choice: str) -> dict[str, dict[str, Tensor]]:
    """The state dicts under the key `choice`, or the tensors whose names begin with `choice`. Empty if none does."""
    under = {key: tensors for key, tensors in found.items() if f".{choice}." in f".{key}."}
    if under:
        return under
    for key, tensors in found.items():
        beginnings = (f"{choice}.", f"{choice}.".removeprefix(f"{key}."))
        part = {name: value for name, value in tensors.items() if name.startswith(beginnings)}
        if part:
            return {key: part}
    return {}


def _unknown(choice: str, found: Mapping[str, dict[str, Tensor]]) -> str:
    """The problem of a choice that the file does not have, with the keys that it has."""
    known = [key for key in found if key] or sorted({name.partition(".")[0] for name in found.get("", {})})
    shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    hint = nearest(choice, {word for key in known for word in (key, *key.split("."))})
    return f"has no weights under {choice!r}{hint} (it has {shown or 'none'})"


def _parts(path: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], aliases: Aliases) -> list[Part]:
    """The state dict with each prefix under which most names of the model exist; without prefix if less than half do.

    The counters of batch norms are not counted. Of prefixes that lead to the same tensors, the shortest is returned.
    """
    names: dict[str, list[str]] = {"": []}  # by prefix, the names behind which the model has a tensor
    fitting: dict[str, int] = {"": 0}
    for name, tensor in tensors.items():
        for prefix, rest in _splits(name):
            known = None if rest.endswith(COUNTER) else _known(rest, expected, aliases)
            if known is not None:
                names.setdefault(prefix, []).append(name)
                fitting[prefix] = fitting.get(prefix, 0) + (expected[known].shape == tensor.shape)
    best = max((len(names[prefix]), fitting[prefix]) for prefix in names)
    if 2 * best[0] < sum(not name.endswith(COUNTER) for name in expected):
        return [Part(path, "", tensors, len(names[""]), fitting[""])]
    longest_first = sorted(names, key=len, reverse=True)
    prefixes = {
        tuple(names[prefix]): prefix for prefix in longest_first if (len(names[prefix]), fitting[prefix]) == best
    }
    return [Part(path, prefix, tensors, *best) for prefix in prefixes.values()]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Every way to split a dotted name into a prefix (which ends with the dot, or is empty) and the rest."""
    yield "", name
    for match in re.finditer(r"\.", name):
        yield name[: match.end()], name[match.end() :]


def _known(name: str, expected: Mapping[str, Tensor], aliases: Aliases) -> str | None:
    """The name that the model has for a tensor, or None."""
    return next((alias for alias in aliases(name) if alias in expected), None)


def _is_average(part: Part, content: Any) -> bool:
    """True if the part is a moving average by its name."""
    # MMEngine exchanges the two before it saves: `state_dict` is the average there.
    if isinstance(content, Mapping) and {"message_hub", "state_dict", "ema_state_dict"} <= content.keys():
        return part.path == "state_dict"
    return AVERAGE.search(part.label) is not None


def _choice_note(taken: Part, parts: list[Part], content: Any, path: Path) -> str:
    """What was taken, and how to take another part that could be meant. Empty if there is no other."""
    others = [part for part in parts if part is not taken and part.label and 2 * part.named >= taken.named > 0]
    if not others:
        return ""
    kind = "the moving average" if _is_average(taken, content) else "the weights"
    names = " or ".join(f"{path}#{part.label}" for part in others[:SHOWN])
    lacking = [part for part in others if _is_average(part, content) and part.named < taken.named]
    reason = f", because {lacking[0].label} lacks {taken.named - lacking[0].named} tensors" if lacking else ""
    return f"took {kind} ({taken.label or 'names without a prefix'}){reason}; {names} takes the other"


def _prefix_note(taken: Part, compiled: bool) -> str:
    """What was stripped and left out. Empty if nothing was. compiled: whether names had torch.compile's part."""
    parts = [f"removed {COMPILED!r} from the names"] if compiled else []
    if taken.prefix:
        parts.append(f"stripped the prefix {taken.prefix!r}")
    outside = [name for name in taken.tensors if not taken.has(name)]
    if outside:
        count = "1 tensor" if len(outside) == 1 else f"{len(outside)} tensors"
        parts.append(f"left out {count} without it, such as {outside[0]!r}")
    return "; ".join(parts)


def _refuse_module(content: Any, path: Path, flag: str) -> None:
    """Raises UserError with the remedy if the file holds whole modules instead of state dicts."""
    keys = [key for key, value in content.items() if is_module(value)] if isinstance(content, Mapping) else []
    keys.sort(key=lambda key: AVERAGE.search(str(key)) is None)
    if is_module(content) or keys:
        place = "" if is_module(content) else f" under {keys[0]!r}"
        expression = "c.state_dict()" if is_module(content) else f'c["{keys[0]}"].state_dict()'
        problem = f"not a file of plain tensors: it holds a whole module{place}, whose code would have to run"
        raise UserError(f"{flag} {path}: {problem}; {conversion(path, expression)}")
