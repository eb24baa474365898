"""The types of the flags that are not fields of the recipe, with their help."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

PRETRAINED = "a pretrained detector such as torchvision:fcos_resnet50_fpn or hf:facebook/detr-resnet-50"

RecipeFlag = Annotated[
    str | None,
    Parameter(help="recipe file, run folder, or a name of `detdistill list recipes`; several: A,B", metavar="RECIPE"),
]
Out = Annotated[Path | None, Parameter(help="folder of the run [default: runs/NAME, numbered]")]
Resume = Annotated[bool, Parameter(help="continue the run in --out, bit for bit", negative=(), show_default=False)]
Overwrite = Annotated[bool, Parameter(help="replace the run in --out", negative=(), show_default=False)]
Replace = Annotated[
    bool, Parameter(help="replace the files of an earlier call in --out", negative=(), show_default=False)
]
MethodOptions = Annotated[
    dict[str, dict[str, str]] | None,
    Parameter(
        help="option of a method, such as --methods.pkd.weight 4 (`detdistill list methods pkd`)",
        negative=(),
    ),
]
ModelOptions = Annotated[
    dict[str, str] | None,
    Parameter(
        name="--model.options",
        help="option of one detector alone, such as --model.options.groups 4 (`detdistill list detectors NAME`)",
        negative=(),
    ),
]
TeacherOptions = Annotated[
    dict[str, str] | None,
    Parameter(
        name="--teacher.model.options",
        help="option of one detector alone, for a teacher HEAD:BACKBONE=FILE",
        negative=(),
    ),
]
Model = Annotated[str, Parameter(help=f"a run folder, an exported file, or {PRETRAINED}", metavar="MODEL")]
EvaluatedModel = Annotated[
    str | None,
    Parameter(
        help=f"a run folder, an exported file, {PRETRAINED}, or HEAD:BACKBONE=FILE with a state dict "
        "[default: the run folder --recipe]",
        metavar="MODEL",
    ),
]
Results = Annotated[
    Path | None,
    Parameter(help="folder for metrics.json and predictions.json [default: nothing is written]"),
]
Compared = Annotated[
    str | None,
    Parameter(
        name="--method",
        metavar="NAME,...",
        help="what to compare, separated by commas: none,pkd,crosskd,pkd+crosskd (none: plain training); also as "
        "--methods",
    ),
]
Methods = Annotated[str | None, Parameter(help="methods, separated by commas: pkd,crosskd", metavar="NAME,...")]
Import = Annotated[
    list[Path] | None,
    Parameter(
        name="--import",
        help="a Python file with methods, detectors or data formats of your own; can be repeated",
        negative=(),
        consume_multiple=False,
        metavar="FILE",
    ),
]
Json = Annotated[
    Path | None,
    Parameter(
        help="print the result as one JSON object on stdout, all else on stderr; with FILE: write it there",
        metavar="[FILE]",
    ),
]
Quiet = Annotated[
    bool, Parameter(help="print only warnings, and one line with the result", negative=(), show_default=False)
]
