"""One set predictor's queries in another's decoder."""

from detdistill.methods.method import require
from detdistill.types import DetectorInfo, QueryPart, QuerySet, required


def require_width(method: str, student: DetectorInfo, teacher: DetectorInfo, remedy: str) -> None:
    """Raises UserError unless what the student's decoder reads of a query set, the teacher's has too, equally wide."""
    mine, theirs = required(student.queries), required(teacher.queries)
    missing = sorted(mine.parts - theirs.parts)
    alike = student.kind == teacher.kind
    lacking = f"the student's {student.kind} decoder reads the {' and '.join(missing)} of queries, which the teacher's {teacher.kind} hasn't got"
    require(not missing, method, lacking, "build both with --model.two-stage, or neither" if alike else remedy)
    lacking = f"the student's queries are {mine.width} wide, the teacher's {theirs.width}"
    same = mine.width == theirs.width or mine.parts == {"reference"}
    require(
        same, method, lacking, "give the student the teacher's --model.channels" + ("" if alike else f", or {remedy}")
    )


def require_learned(method: str, student: DetectorInfo, teacher: DetectorInfo, remedy: str) -> None:
    """Raises UserError where a detector draws its queries from the image."""
    for side, info in (("student", student), ("teacher", teacher)):
        lacking = f"the {side} ({info.kind}) has no learned queries, it chooses them from each image, so that the teacher's can't be handed over"
        require(required(info.queries).learned, method, lacking, remedy)


def handed_over(queries: QuerySet, parts: frozenset[QueryPart]) -> QuerySet:
    """Those parts of a teacher's queries that the student's decoder reads, without gradient."""
    given = {part: getattr(queries, part) for part in parts}
    return QuerySet(**{part: values.detach() for part, values in given.items()})
