"""What every distillation method offers, and the checks they share. A method never knows a detector: it reads typed outputs."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field
from torch import Tensor, nn

from detdistill.errors import UserError
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of a term
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # that logits are divided by


class Method(nn.Module):
    """The one base of all methods. Its parameters are its own learned parts; they train with the student and are never saved into it.

    name: key in METHODS and prefix of its terms. group: the heading it is listed under. paper: where it is from. reads, learns: in words, for `detdistill list methods`.
    gain: AP on COCO as published, plain to distilled, with the pair; empty where nothing that we could verify was published.
    need: what is read of the teacher's output. student_need: of the student's, beside what its task losses compute anyway.
    """

    name: ClassVar[str]
    group: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[str]
    learns: ClassVar[str] = ""
    gain: ClassVar[str] = ""
    Config: ClassVar[type[Any]]
    need: Need = Need()
    student_need: Need = Need()

    @classmethod
    def build(cls, config: Any, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError, saying what is missing and which detectors have it, where this pair can't be served."""
        raise TypeError(f"{cls.__name__} has no build")

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """Weighted terms (), by part: the names are without the method's own. Gradient flows to the student only."""
        raise TypeError(f"{type(self).__name__} has no forward")


def require(held: bool, method: str, lacking: str, remedy: str) -> None:
    """Raises UserError in the one form of all refusals where `held` is false."""
    if not held:
        raise UserError(f"method {method}: {lacking}; {remedy}")
