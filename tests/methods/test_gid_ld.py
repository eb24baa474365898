"""GID as in LD's code: features at the positions of largest disagreement."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from detdistill.errors import UserError
from detdistill.geometry import disagreement, strongest
from detdistill.methods.gid_ld import GIDLD, GIDLDConfig
from detdistill.types import Batch, Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, method_inputs, pair


def made(head: str):
    """Returns the method, student, teacher, and the inputs of the method."""
    student, teacher = pair(head)
    method = built("gid_ld", student, teacher)
    return method, student, teacher, method_inputs(method, student, teacher)


def test_the_term_is_the_formula():
    method, student, teacher, (student_output, teacher_output, targets) = made("gfl")
    assert list(method.parameters()) == []
    student_stage, teacher_stage = student_output.stages[0], teacher_output.stages[0]
    scores, boxes, _ = disagreement(
        (student_stage.scores(), teacher_stage.scores()), (student_stage.boxes, teacher_stage.boxes), side="difference"
    )
    student_levels, teacher_levels = student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels
    expected, first = 0.0, 0
    for count, s, t in zip(student_stage.layout.counts, student_levels, teacher_levels, strict=True):
        rows = slice(first, first + count)
        first += count
        if not student_stage.assignment.positive[:, rows].any():
            continue
        valid = student_stage.valid[:, rows].flatten()
        cells = valid.nonzero()[:, 0]
        picked = cells[strongest(scores[:, rows].flatten()[valid], boxes[:, rows].flatten(0, 1)[valid], 10, 0.3)]
        assert len(picked) <= 10
        flat = [level.flatten(2).transpose(1, 2).flatten(0, 1)[picked] for level in (s, t)]
        expected += F.mse_loss(*flat)
    terms = method(student_output, teacher_output, targets)
    assert terms.keys() == {"features"}
    torch.testing.assert_close(terms["features"], 2 * expected)
    assert expected > 0
    assert method(student_output, student_output, targets)["features"] == 0
    without_objects = method_inputs(method, student, teacher, scene(objects=False))
    assert method(*without_objects)["features"] == 0


@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn"])
def test_only_the_student_gets_a_gradient(head: str):
    method, student, teacher, inputs = made(head)
    method(*inputs)["features"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())


def test_the_term_is_zero_without_valid_predictions():
    method, student, _, (student_output, teacher_output, targets) = made("gfl")
    stage = teacher_output.stages[0]
    invalid = replace(stage, valid=torch.zeros_like(stage.valid))
    term = method(student_output, replace(teacher_output, stages=(invalid,)), targets)["features"]
    assert term == 0
    term.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_padding_takes_no_part():
    method, _, _, (student_output, teacher_output, targets) = made("fcos")
    terms, stage = method(student_output, teacher_output, targets), teacher_output.stages[0]
    assert not stage.valid.all()
    changed = replace(stage, logits=torch.where(stage.valid[..., None], stage.logits, 9.0))
    changed_terms = method(student_output, replace(teacher_output, stages=(changed,)), targets)
    torch.testing.assert_close(changed_terms["features"], terms["features"])


def test_repeating_the_batch_does_not_change_the_term():
    method, student, teacher, inputs = made("gfl")
    batch, targets = scene()
    parts = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.originals, batch.ids))
    repeated = Batch(*parts, batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    repeated_terms = method(*method_inputs(method, student, teacher, repeated))
    torch.testing.assert_close(repeated_terms["features"], method(*inputs)["features"], rtol=1e-3, atol=1e-6)


def test_unsupported_pairs_are_refused():
    fcos = tiny("fcos").info
    with pytest.raises(UserError, match=r"method gid_ld: the teacher \(deformable_detr\) has no dense grid"):
        GIDLD.build(GIDLDConfig(), fcos, tiny("deformable_detr").info)
    with pytest.raises(UserError, match="an RPN and a dense head"):
        GIDLD.build(GIDLDConfig(), fcos, tiny("faster_rcnn").info)
