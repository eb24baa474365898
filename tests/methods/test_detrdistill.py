"""DETRDistill: the pairs of queries, each part alone, and unsupported pairs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.losses import query_costs
from detdistill.methods.shared.queries import class_scores, instance_terms, pair_stages, stage_indices
from detdistill.types import DetectorOutput, Predictions, QuerySet
from tests.detectors.builders import scene, shake, tiny
from tests.methods.pairs import built, method_inputs, pair

OFF = {"weight_class": 0.0, "weight_box": 0.0, "weight_giou": 0.0, "weight_feature": 0.0, "weight_assignment": 0.0}
INSTANCE = {"weight_feature": 0.0, "weight_assignment": 0.0}


def made(**options: Any):
    """Returns the method, student, teacher, and the inputs of the method."""
    student, teacher = pair("deformable_detr")
    method = built("detrdistill", student, teacher, **options).eval()
    return method, student, teacher, method_inputs(method, student, teacher)


def identity(method: nn.Module) -> nn.Module:
    """Returns the method with connectors that change nothing."""
    for connector in method.levels.connectors:
        nn.init.dirac_(connector.weight)
        nn.init.zeros_(connector.bias)
    return method


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (6, 6, [(i, i) for i in range(6)]),
        (3, 6, [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]),
        (2, 3, [(0, 0), (1, 1), (1, 2)]),
        (4, 2, [(0, 0), (1, 0), (2, 1), (3, 1)]),
        (1, 2, [(0, 0), (0, 1)]),
    ],
)
def test_stages_are_paired_for_equal_and_different_numbers(student: int, teacher: int, expected: list[tuple[int, int]]):
    assert stage_indices(student, teacher) == expected
    assert stage_indices(student, teacher, "last") == [(student - 1, teacher - 1)]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_equal_detectors_have_zero_box_and_feature_terms_and_a_minimal_class_term(variant: str):
    method, student, teacher, _ = made(variant=variant, clip=False)
    student.load_state_dict(teacher.state_dict())
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    if method.config.adapter == "always":
        identity(method)
    terms = method(student_output, teacher_output, targets)
    assert terms["box"] < 1e-4
    assert terms["giou"] < 1e-4
    assert terms["feature"] < 1e-6
    assert terms["class"] > 0
    assert torch.autograd.grad(terms["class"], student_output.stages[-1].logits)[0].abs().max() < 1e-6


def test_pairs_equal_a_plain_loop_and_the_class_of_negatives_does_not_count():
    method, _, _, (student_output, teacher_output, targets) = made(**INSTANCE)
    assignments = teacher_output.queries.match(teacher_output.stages, targets)
    pairs = method.paired_stages(student_output, teacher_output, assignments)
    assert [pair.classified.sum().item() for pair in pairs] == [3, 3]
    for stage_pair in pairs:
        for image in range(2):
            costs = query_costs(
                stage_pair.student.logits[image],
                stage_pair.teacher_scores[image],
                stage_pair.student_boxes[image],
                stage_pair.teacher_boxes[image],
                classified=stage_pair.classified[image],
            )
            rows, columns = linear_sum_assignment(costs.detach().numpy())
            assert stage_pair.partner[image][rows].tolist() == columns.tolist()
    changed_stages = tuple(
        replace(stage, logits=torch.where(assignment.positive[..., None], stage.logits, 9.0))
        for stage, assignment in zip(teacher_output.stages, assignments, strict=True)
    )
    changed = method.paired_stages(student_output, replace(teacher_output, stages=changed_stages), assignments)
    assert all(torch.equal(a.partner, b.partner) for a, b in zip(pairs, changed, strict=True))


def test_the_instance_part_by_hand():
    """Two queries per detector. The teacher's first query is positive: p = 1 against s = 0, ln 2.

    The first box is off by 10 of 100 pixels, the second is equal.
    """
    sizes, valid = torch.tensor([[100, 100]]), torch.ones(1, 2, dtype=torch.bool)
    boxes = torch.tensor([[[10.0, 10, 30, 30], [50, 50, 90, 90]]])
    student = Predictions(torch.zeros(1, 2, 1), "sigmoid", boxes, valid)
    teacher = Predictions(
        torch.tensor([[[50.0], [0.0]]]), "sigmoid", boxes + torch.tensor([[[10.0, 0, 10, 0], [0, 0, 0, 0]]]), valid
    )
    (split,) = pair_stages([student], [teacher], [(0, 0)], sizes, [torch.tensor([[True, False]])])
    assert split.partner.tolist() == [[0, 1]]
    terms = instance_terms(split, (1.0, 5.0, 2.0))
    assert terms["class"].item() == pytest.approx(0.693147 / 2, abs=1e-5)  # one positive, two pairs
    assert terms["box"].item() == pytest.approx(5 * 0.1 / 2, abs=1e-5)
    assert terms["giou"].item() == pytest.approx(2 * (1 - 200 / 600) / 2, abs=1e-5)  # hull = union: 600
    (joint,) = pair_stages([student], [teacher], [(0, 0)], sizes)
    terms = instance_terms(joint, (1.0, 5.0, 2.0))
    assert terms["class"].item() == pytest.approx(0.693147, abs=1e-5)  # (ln 2 + ln 2) / 2
    assert terms["box"].item() == pytest.approx(5 * 0.1 / 2, abs=1e-5)


def test_without_negatives_only_boxes_of_positives_count():
    """Only the second teacher box differs. It counts with negatives, but not without."""
    sizes, valid = torch.tensor([[100, 100]]), torch.ones(1, 2, dtype=torch.bool)
    boxes = torch.tensor([[[10.0, 10, 30, 30], [50, 50, 90, 90]]])
    student = Predictions(torch.zeros(1, 2, 1), "sigmoid", boxes, valid)
    teacher = Predictions(
        torch.zeros(1, 2, 1), "sigmoid", boxes + torch.tensor([[[0.0, 0, 0, 0], [10, 0, 10, 0]]]), valid
    )
    (split,) = pair_stages([student], [teacher], [(0, 0)], sizes, [torch.tensor([[True, False]])])
    assert instance_terms(split, (1.0, 5.0, 2.0))["box"].item() == pytest.approx(5 * 0.1 / 2, abs=1e-5)
    assert instance_terms(split, (1.0, 5.0, 2.0), negatives=False)["box"].item() == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"variant": "released"}, {"pairs": "positives"}, {"stages": "last"}, {"mask": "box"}, {"mask": "off"}],
)
def test_terms_are_finite_and_only_the_student_gets_a_gradient(options: dict[str, Any]):
    method, student, teacher, (student_output, teacher_output, targets) = made(**options)
    terms = method(student_output, teacher_output, targets)
    expected = {"class", "box", "giou", "feature", "assignment"} | ({"relation"} if options.get("variant") else set())
    assert terms.keys() == expected
    assert all(term.isfinite() and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())


def test_each_part_can_be_used_alone():
    parts = {
        "weight_feature": {"feature"},
        "weight_assignment": {"assignment"},
        "weight_relation": {"relation"},
        "weight_box": {"box"},
    }
    for weight, names in parts.items():
        method, _, _, (student_output, teacher_output, targets) = made(**(OFF | {weight: 1.0}))
        assert method(student_output, teacher_output, targets).keys() == names


def test_the_last_stage_and_the_positives_are_parts_of_the_whole():
    terms = {}
    for name, options in {"all": {}, "last": {"stages": "last"}, "positives": {"pairs": "positives"}}.items():
        method, _, _, (student_output, teacher_output, targets) = made(**(INSTANCE | options))
        terms[name] = method(student_output, teacher_output, targets)
    assert all(terms["last"][name] < terms["all"][name] for name in ("class", "box", "giou"))
    assert terms["positives"]["box"] < terms["all"]["box"]
    torch.testing.assert_close(terms["positives"]["class"], terms["all"]["class"])


def test_detectors_with_different_numbers_of_stages_and_queries():
    small = shake(tiny("deformable_detr", seed=1, decoder_layers=3)).eval()
    large = shake(tiny("deformable_detr", seed=2, decoder_layers=6, queries=20)).eval()
    method = built("detrdistill", small, large).eval()
    student_output, teacher_output, targets = method_inputs(method, small, large)
    assignments = teacher_output.queries.match(teacher_output.stages, targets)
    pairs = method.paired_stages(student_output, teacher_output, assignments)
    assert len(pairs) == 6
    assert all(pair.has_partner.all() and pair.partner.amax() > 11 for pair in pairs)
    for stage_pair in pairs:  # every positive has a partner
        assert (stage_pair.has_partner & stage_pair.of_partner(stage_pair.classified)).sum() == 3
    assert all(term.isfinite() for term in method(student_output, teacher_output, targets).values())
    # The other way round, the student has more queries than the teacher.
    method = built("detrdistill", large, small).eval()
    student_output, teacher_output, targets = method_inputs(method, large, small.requires_grad_(False))
    assignments = teacher_output.queries.match(teacher_output.stages, targets)
    pairs = method.paired_stages(student_output, teacher_output, assignments)
    assert len(pairs) == 6
    assert [pair.has_partner.sum(1).tolist() for pair in pairs] == [[12, 12]] * 6
    assert all(term.isfinite() for term in method(student_output, teacher_output, targets).values())


def test_the_student_decodes_the_teachers_queries_with_the_teachers_assignment():
    method, _, _, (student_output, teacher_output, targets) = made(**(OFF | {"weight_assignment": 1.0}))
    assignments = teacher_output.queries.match(teacher_output.stages, targets)
    teacher_queries = teacher_output.queries.own
    stages = student_output.queries.redecode(QuerySet(teacher_queries.content, teacher_queries.position))
    stages = tuple(replace(stage, assignment=match) for stage, match in zip(stages, assignments, strict=True))
    expected = sum(student_output.queries.criterion(stages, targets).values())
    torch.testing.assert_close(method(student_output, teacher_output, targets)["assignment"], expected)
    own_assignment = made(**(OFF | {"weight_assignment": 1.0, "assignment": "student"}))[0]
    assert own_assignment(student_output, teacher_output, targets)["assignment"] < expected  # it has the least cost


def test_every_positive_has_a_partner_if_the_teacher_has_more_queries():
    """Positives have the largest costs because of their class, even for equal scores, where the entropy remains."""
    generator = torch.Generator().manual_seed(0)
    logits, valid = torch.randn(1, 30, 80, generator=generator), torch.ones(1, 30, dtype=torch.bool)
    corners = torch.rand(1, 30, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 20], -1)
    teacher = Predictions(logits, "sigmoid", boxes, valid)
    student = Predictions(logits[:, :10], "sigmoid", boxes[:, :10] + 1, valid[:, :10])
    classified = torch.arange(30)[None] % 10 < 2  # six
    (stage_pair,) = pair_stages([student], [teacher], [(0, 0)], torch.tensor([[100, 100]]), [classified])
    assert (stage_pair.has_partner & stage_pair.of_partner(stage_pair.classified)).sum() == 6
    assert stage_pair.has_partner.all()


def test_the_feature_part_needs_the_teachers_head_only_for_masks_of_queries():
    for mask, needs_head in (("box", False), ("off", False), ("query", True), ("aggregated", True)):
        method, _, _, (student_output, teacher_output, targets) = made(**(OFF | {"weight_feature": 1.0, "mask": mask}))
        assert method.need.head == needs_head
        assert method(student_output, teacher_output, targets)["feature"] > 0


@pytest.mark.parametrize("mask", ["query", "aggregated"])
def test_classes_that_the_student_does_not_have_do_not_change_the_mask(mask: str):
    method, student, teacher, (student_output, teacher_output, targets) = made(
        **(OFF | {"weight_feature": 1.0, "mask": mask})
    )
    expected = method(student_output, teacher_output, targets)["feature"]
    stages = [
        replace(stage, logits=torch.cat([torch.full_like(stage.logits[..., :1], 9.0), stage.logits], -1))
        for stage in teacher_output.stages
    ]
    more_classes = replace(teacher.info, classes=("person", *teacher.info.classes))
    changed = type(method).build(method.config, student.info, more_classes).eval()
    changed.load_state_dict(method.state_dict())
    torch.testing.assert_close(
        changed(student_output, replace(teacher_output, stages=tuple(stages)), targets)["feature"], expected
    )


def test_padding_the_batch_further_does_not_change_the_feature_term():
    method, student, teacher, _ = made(**(OFF | {"weight_feature": 1.0}))
    stages = teacher.observe(scene()[0], need=method.need).stages
    values = []
    for height, width in ((64, 96), (96, 128)):
        batch, targets = scene(height, width)
        outputs = []
        for side, detector in enumerate((student, teacher)):
            with torch.no_grad():
                neck = detector.observe(batch, need=method.need).pyramids["neck"]
            # Equal numbers in the cells of the image, other numbers outside.
            levels = [torch.full_like(level, 7.0 * height) for level in neck.levels]
            for level, stride in zip(levels, neck.strides, strict=True):
                rows, columns = -(-64 // stride), -(-96 // stride)
                generator = torch.Generator().manual_seed(stride + side)
                level[:, :, :rows, :columns] = torch.randn(2, 32, rows, columns, generator=generator)
            outputs.append(DetectorOutput({"neck": replace(neck, levels=tuple(levels))}))
        values.append([method.feature(level, stages, targets, batch.sizes) for level in method.levels(*outputs)])
    torch.testing.assert_close(values[0], values[1])


def test_teacher_scores_are_converted_between_softmax_and_sigmoid():
    logits, valid = torch.tensor([[[0.0, 2.0]]]), torch.ones(1, 1, dtype=torch.bool)
    boxes = torch.tensor([[[0.0, 0, 9, 9]]])
    sigmoid = Predictions(logits, "sigmoid", boxes, valid)
    softmax = Predictions(logits, "softmax", boxes, valid, background=torch.tensor([[1.0]]))
    torch.testing.assert_close(class_scores(softmax, sigmoid), softmax.scores())
    torch.testing.assert_close(class_scores(softmax, softmax)[..., :-1], softmax.scores())
    scores = class_scores(sigmoid, softmax)  # 0.5 and 0.88: nothing is left for the background
    torch.testing.assert_close(scores, torch.tensor([[[0.5 / 1.3808, 0.8808 / 1.3808, 0.0]]]), rtol=1e-3, atol=1e-4)
    low = replace(sigmoid, logits=torch.tensor([[[-2.0, -3.0]]]))
    torch.testing.assert_close(class_scores(low, softmax)[0, 0, -1].item(), 1 - 0.1192 - 0.0474, rtol=1e-3, atol=1e-4)


def test_a_batch_without_objects_has_no_class_term():
    method, student, teacher, _ = made()
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scene(objects=False))
    terms = method(student_output, teacher_output, targets)
    assert terms["class"] == 0
    assert terms["box"] > 0
    assert all(term.isfinite() for term in terms.values())


def test_unsupported_pairs_are_refused_with_a_remedy():
    deformable, gfl = tiny("deformable_detr"), tiny("gfl")
    with pytest.raises(UserError, match=r"gfl.*no queries.*deformable_detr"):
        built("detrdistill", deformable, gfl)
    with pytest.raises(UserError, match="all its weights are 0"):
        built("detrdistill", deformable, deformable, **OFF)
    chosen = tiny("deformable_detr", two_stage=True)  # its queries are chosen from each image
    with pytest.raises(UserError, match=r"student \(deformable_detr\) has no learned queries.*weight_assignment to 0"):
        built("detrdistill", chosen, deformable)
    assert built("detrdistill", chosen, deformable, weight_assignment=0.0)
    with pytest.raises(UserError, match="width 64, the teacher's 32"):
        built("detrdistill", tiny("deformable_detr", channels=64), deformable)
    one_class = replace(deformable.info, classes=("disc",))
    method = type(built("detrdistill", deformable, deformable))
    with pytest.raises(UserError, match="does not have the class 'square'"):
        method.build(method.Config(), deformable.info, one_class)
    assert method.build(method.Config(pairs="joint", weight_assignment=0.0), deformable.info, one_class)


def test_boxes_are_compared_relative_to_each_image():
    method, _, _, (student_output, teacher_output, targets) = made(**INSTANCE)
    assignments = teacher_output.queries.match(teacher_output.stages, targets)
    stage_pair = method.paired_stages(student_output, teacher_output, assignments)[-1]
    expected = to_relative(teacher_output.stages[-1].boxes, scene()[0].sizes)
    torch.testing.assert_close(stage_pair.teacher_boxes, expected)
