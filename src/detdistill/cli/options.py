"""The types of the flags that are not fields of the recipe, with their help."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detdistill.cli.flags import COMMON

PRETRAINED = "a pretrained detector such as torchvision:fcos_resnet50_fpn or hf:facebook/detr-resnet-50"

RecipeFlag = Annotated[
    str | None,
    Parameter(help="recipe file, run folder, or a name of `detdistill list recipes`; several: A,B", group=COMMON),
]
Out = Annotated[Path | None, Parameter(help="folder of the run [default: runs/NAME, numbered]", group=COMMON)]
Resume = Annotated[bool, Parameter(help="continue the run in --out, bit for bit", group=COMMON, negative=())]
Overwrite = Annotated[bool, Parameter(help="replace the run in --out", group=COMMON, negative=())]
Replace = Annotated[bool, Parameter(help="replace the files of an earlier call in --out", group=COMMON, negative=())]
MethodOptions = Annotated[
    dict[str, dict[str, str]] | None,
    Parameter(
        help="option of a method, such as --methods.pkd.weight 4 (`detdistill list methods pkd`)",
        group=COMMON,
        negative=(),
    ),
]
ModelOptions = Annotated[
    dict[str, str] | None,
    Parameter(
        name="--model.options",
        help="option of one detector alone, such as --model.options.groups 4 (`detdistill list detectors NAME`)",
        group=COMMON,
        negative=(),
    ),
]
TeacherOptions = Annotated[
    dict[str, str] | None,
    Parameter(
        name="--teacher.model.options",
        help="option of one detector alone, for a teacher HEAD:BACKBONE=FILE",
        group=COMMON,
        negative=(),
    ),
]
Model = Annotated[str, Parameter(help=f"a run folder, an exported file, or {PRETRAINED}")]
EvaluatedModel = Annotated[
    str | None,
    Parameter(
        help=f"a run folder, an exported file, {PRETRAINED}, or HEAD:BACKBONE=FILE with a state dict "
        "[default: the run folder --recipe]"
    ),
]
Results = Annotated[
    Path | None,
    Parameter(help="folder for metrics.json and predictions.json [default: nothing is written]", group=COMMON),
]
Compared = Annotated[
    str | None,
    Parameter(
        name="--method",
        help="what to compare, separated by commas: none,pkd,crosskd,pkd+crosskd (none: plain training)",
    ),
]
Methods = Annotated[str | None, Parameter(help="methods, separated by commas: pkd,crosskd")]
