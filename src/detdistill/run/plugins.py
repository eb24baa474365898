"""Methods, detectors and data formats of the user's own: files given with --import, and installed packages.

A file adds its entries to the dicts that the package itself reads:

    from detdistill.methods import METHODS
    METHODS["my_method"] = MyMethod

A package does the same in a module that it names as an entry point of the group `detdistill.plugins`. Plugins are
Python code of the user's choice: they are loaded only from the command line and from installed packages, never because
a recipe or a run folder names them.
"""

import hashlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_type_hints

from detdistill.data.layout import FORMATS, Format
from detdistill.detectors.registry import DETECTORS, DetectorRecord, resolve
from detdistill.engine.schedule import Schedule
from detdistill.errors import UserError
from detdistill.methods import METHODS
from detdistill.methods.method import problems
from detdistill.recipe import ModelConfig

GROUP = "detdistill.plugins"
REGISTRIES: Mapping[str, MutableMapping[str, Any]] = {
    "METHODS": METHODS,
    "DETECTORS": DETECTORS,
    "FORMATS": FORMATS,
}

NOT_HEADS = ("torchvision", "hf", "timm")  # prefixes of models that are not HEAD:BACKBONE
NAME = "use letters, digits and underscores only"

_loaded: set[str] = set()  # files and entry points of this process


def load_plugins(files: Iterable[Path] = ()) -> None:
    """Load the plugins of installed packages, then `files`, each once per process.

    Raises UserError with everything that is wrong with a file. A broken installed package is reported as a warning, and
    its entries are left out: a package of someone else must not stop a run that does not need it.
    """
    for point in entry_points(group=GROUP):
        try:
            # Two packages may use the same name for their entry points.
            _load_once(f"{GROUP} {point.name}", point.load, key=f"{GROUP} {point.name} {point.value}")
        except UserError as error:
            warnings.warn(f"plugin left out: {error}", stacklevel=2)
    for file in files:
        path = Path(os.path.expanduser(file)).resolve()  # Path.expanduser raises an error for an unknown user
        if not path.is_file():
            raise UserError(f"--import {file}: there is no such file; give a Python file")
        _load_once(f"--import {file}", partial(_run_file, path), key=str(path))


def _load_once(source: str, load: Callable[[], Any], key: str = "") -> None:
    """Call `load` and check the entries that it adds. Raises UserError if it fails; then its entries are removed."""
    key = key or source
    if key in _loaded:
        return
    with _entries_kept() as before:
        try:
            load()
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # the user's own code
            problem = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UserError(f"{source}: {_line_of(error, key)}{type(error).__name__}: {problem}") from error
        faults = [fault for name, registry in REGISTRIES.items() for fault in _faults(name, registry, before[name])]
        if faults:
            raise UserError(f"{source}: {'; '.join(faults)}")
    _loaded.add(key)


@contextmanager
def _entries_kept() -> Iterator[dict[str, dict[str, Any]]]:
    """The entries of all registries as they are; on an exception they are restored."""
    before = {name: dict(registry) for name, registry in REGISTRIES.items()}
    try:
        yield before
    except BaseException:
        for name, registry in REGISTRIES.items():
            registry.clear()
            registry.update(before[name])
        raise


def _run_file(path: Path) -> None:
    """Execute a Python file as a module. It can import the files beside it. After an error nothing of it is left."""
    name, folder = _module_name(path), str(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--import {path}: not a Python file; its name must end in .py")
    is_new_folder = folder not in sys.path
    if is_new_folder:
        sys.path.append(folder)  # last, so that no file beside it hides an installed package
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        if is_new_folder:
            sys.path.remove(folder)
        raise


def _module_name(path: Path) -> str:
    """The name of the file, so that a started worker process can import it and unpickle its classes.

    If another module has this name already, it is a unique name instead.
    """
    name = path.stem
    if name.isidentifier() and name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin == str(path):
            return name
    return f"detdistill_import_{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _faults(name: str, registry: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """What is wrong with the entries that were added to a registry."""
    faults = [
        f"it changes the existing entry {name}[{key!r}]; choose another name"
        for key, value in before.items()
        if registry.get(key) is not value
    ]
    for key in (key for key in registry if key not in before):
        faults += [f"{name}[{key!r}]: {fault}" for fault in CHECKS[name](key, registry[key])]
    return faults


def _method_faults(key: str, method: Any) -> list[str]:
    faults = problems(method)
    if faults:
        return faults
    if method.name != key:
        faults.append(f"its `name` is {method.name!r}; use the same name")
    if key == "none":
        faults.append("`none` means plain training; choose another name")
    try:
        get_type_hints(method.Config)
    except Exception as error:  # a type that can't be evaluated can raise anything
        faults.append(f"the types of its Config can't be read ({error})")
    shared = {item.name for item in fields(method.Config)} & {item.name for item in fields(Schedule)}
    if shared:
        faults.append(f"its Config has {', '.join(sorted(shared))}, which every method has already; choose other names")
    return faults


def _detector_faults(key: str, record: Any) -> list[str]:
    if not isinstance(record, DetectorRecord):
        return [f"a DetectorRecord is needed, got {type(record).__name__}"]
    faults = []
    if not (isinstance(key, str) and key.isidentifier()):
        faults.append(f"the name is {key!r}: {NAME}")
    if key in NOT_HEADS:
        faults.append(f"`{key}:` marks pretrained models; choose another name")
    unknown = sorted(set(record.options) - ModelConfig.model_fields.keys())
    if unknown:
        faults.append(f"its `options` name {', '.join(unknown)}, which are not fields of ModelConfig")
    try:
        builder = resolve(record.builder) if isinstance(record.builder, str) else record.builder
        if not callable(builder):
            faults.append("its builder is not a function")
    except (ImportError, AttributeError) as error:
        faults.append(f"its builder can't be imported ({error})")
    try:
        options = record.options_class()
        if options is not None and not (isinstance(options, type) and is_dataclass(options)):
            faults.append("its `family_options` is not a dataclass")
    except (ImportError, AttributeError) as error:
        faults.append(f"its `family_options` can't be imported ({error})")
    return faults


def _format_faults(key: str, format: Any) -> list[str]:
    if not isinstance(format, Format):
        return [f"a Format is needed, got {type(format).__name__}"]
    faults = [f"its `{name}` is not a function" for name in ("find", "read") if not callable(getattr(format, name))]
    faults += ["its `search` is not a function"] if format.search is not None and not callable(format.search) else []
    if key == "shapes":
        faults.append("`shapes` is the name of the built-in images; choose another name")
    return faults


CHECKS: Mapping[str, Callable[[str, Any], list[str]]] = {
    "METHODS": _method_faults,
    "DETECTORS": _detector_faults,
    "FORMATS": _format_faults,
}


def _line_of(error: BaseException, file: str) -> str:
    """`line N: ` of the error in the user's file; empty if the file has no part in it, as with an entry point."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]}: " if lines else ""
