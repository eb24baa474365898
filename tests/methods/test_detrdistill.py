"""DETRDistill: which queries are paired, each part by itself, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from detdistill.errors import UserError
from detdistill.geometry import to_relative
from detdistill.losses import query_costs
from detdistill.methods.shared.queries import class_scores, instance_terms, pair_stages, stage_places
from detdistill.types import Predictions, QuerySet
from tests.detectors.builders import scene, shake, tiny
from tests.methods.pairs import built, looks, pair

ONE = {"weight_class": 0.0, "weight_box": 0.0, "weight_giou": 0.0, "weight_feature": 0.0, "weight_assignment": 0.0}
INSTANCE = {"weight_feature": 0.0, "weight_assignment": 0.0}


def made(student_options: dict[str, Any] | None = None, teacher: str | None = None, **options: Any):
    student, lecturer = pair("deformable_detr", teacher, **(student_options or {}))
    method = built("detrdistill", student, lecturer, **options).eval()
    return method, student, lecturer, looks(method, student, lecturer)


def identity(method: nn.Module) -> nn.Module:
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
def test_stages_of_unlike_depth(student: int, teacher: int, expected: list[tuple[int, int]]):
    assert stage_places(student, teacher) == expected
    assert stage_places(student, teacher, "last") == [(student - 1, teacher - 1)]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_teacher_that_is_the_student_leaves_the_entropy_and_no_box_and_no_feature_loss(variant: str):
    method, student, teacher, _ = made(variant=variant, clip=False)
    student.load_state_dict(teacher.state_dict())
    mine, theirs, targets = looks(method, student, teacher)
    if method.config.adapter == "always":
        identity(method)
    terms = method(mine, theirs, targets)
    assert terms["box"] < 1e-4
    assert terms["giou"] < 1e-4
    assert terms["feature"] < 1e-6
    assert terms["class"] > 0
    assert torch.autograd.grad(terms["class"], mine.stages[-1].logits)[0].abs().max() < 1e-6  # a minimum


def test_pairs_are_those_of_a_plain_loop_and_the_class_of_negatives_does_not_count():
    method, _, _, (mine, theirs, targets) = made(**INSTANCE)
    found = theirs.queries.match(theirs.stages, targets)
    pairs = method.pairs(mine, theirs, found)
    assert [pair.classified.sum().item() for pair in pairs] == [3, 3]
    for one in pairs:
        for image in range(2):
            costs = query_costs(
                one.student.logits[image],
                one.scores[image],
                one.student_boxes[image],
                one.teacher_boxes[image],
                classified=one.classified[image],
            )
            rows, columns = linear_sum_assignment(costs.detach().numpy())
            assert one.partner[image][rows].tolist() == columns.tolist()
    louder = replace(
        theirs,
        stages=tuple(
            replace(stage, logits=torch.where(own.positive[..., None], stage.logits, 9.0))
            for stage, own in zip(theirs.stages, found, strict=True)
        ),
    )
    again = method.pairs(mine, louder, found)
    assert all(torch.equal(one.partner, other.partner) for one, other in zip(pairs, again, strict=True))


def test_the_instance_part_by_hand():
    """Two queries a side, the teacher's first one positive: p = 1 against s = 0, ln 2. The first box is off by 10 of 100 pixels, the second equal."""
    sizes, valid = torch.tensor([[100, 100]]), torch.ones(1, 2, dtype=torch.bool)
    boxes = torch.tensor([[[10.0, 10, 30, 30], [50, 50, 90, 90]]])
    student = Predictions(torch.zeros(1, 2, 1), "sigmoid", boxes, valid)
    teacher = Predictions(
        torch.tensor([[[50.0], [0.0]]]), "sigmoid", boxes + torch.tensor([[[10.0, 0, 10, 0], [0, 0, 0, 0]]]), valid
    )
    (split,) = pair_stages([student], [teacher], [(0, 0)], sizes, [torch.tensor([[True, False]])])
    assert split.partner.tolist() == [[0, 1]]
    terms = instance_terms(split, (1.0, 5.0, 2.0))
    assert terms["class"].item() == pytest.approx(0.693147 / 2, abs=1e-5)  # of the positive, over two pairs
    assert terms["box"].item() == pytest.approx(5 * 0.1 / 2, abs=1e-5)
    assert terms["giou"].item() == pytest.approx(2 * (1 - 200 / 600) / 2, abs=1e-5)  # hull = union: 600
    (joint,) = pair_stages([student], [teacher], [(0, 0)], sizes)
    terms = instance_terms(joint, (1.0, 5.0, 2.0))
    assert terms["class"].item() == pytest.approx(0.693147, abs=1e-5)  # (ln 2 + ln 2) / 2
    assert terms["box"].item() == pytest.approx(5 * 0.1 / 2, abs=1e-5)


def test_without_negatives_only_the_boxes_of_positives_count():
    """The second teacher box is the far one: with negatives it weighs, without it doesn't."""
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
def test_every_form_is_finite_teaches_the_student_and_not_the_teacher(options: dict[str, Any]):
    method, student, teacher, (mine, theirs, targets) = made(**options)
    terms = method(mine, theirs, targets)
    expected = {"class", "box", "giou", "feature", "assignment"} | ({"relation"} if options.get("variant") else set())
    assert terms.keys() == expected
    assert all(term.isfinite() and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())


def test_each_part_alone_and_nothing_beside_it():
    parts = {
        "weight_feature": {"feature"},
        "weight_assignment": {"assignment"},
        "weight_relation": {"relation"},
        "weight_box": {"box"},
    }
    for weight, names in parts.items():
        method, _, _, (mine, theirs, targets) = made(**(ONE | {weight: 1.0}))
        assert method(mine, theirs, targets).keys() == names


def test_the_last_stage_alone_and_positives_alone_are_parts_of_the_whole():
    terms = {}
    for name, options in {"all": {}, "last": {"stages": "last"}, "positives": {"pairs": "positives"}}.items():
        method, _, _, (mine, theirs, targets) = made(**(INSTANCE | options))
        terms[name] = method(mine, theirs, targets)
    assert all(terms["last"][name] < terms["all"][name] for name in ("class", "box", "giou"))
    assert terms["positives"]["box"] < terms["all"]["box"]
    torch.testing.assert_close(terms["positives"]["class"], terms["all"]["class"])


def test_a_deeper_teacher_with_more_queries_teaches_a_shallow_student():
    student, teacher = (
        shake(tiny("deformable_detr", seed=1, decoder_layers=3)).eval(),
        shake(tiny("deformable_detr", seed=2, decoder_layers=6, queries=20)).eval(),
    )
    method = built("detrdistill", student, teacher).eval()
    mine, theirs, targets = looks(method, student, teacher)
    pairs = method.pairs(mine, theirs, theirs.queries.match(theirs.stages, targets))
    assert len(pairs) == 6
    assert all(pair.paired.all() and pair.partner.amax() > 11 for pair in pairs)
    assert all(
        (pair.paired & pair.of_partner(pair.classified)).sum() == 3 for pair in pairs
    )  # every positive has a partner
    assert all(term.isfinite() for term in method(mine, theirs, targets).values())
    few = built(
        "detrdistill", teacher, student
    ).eval()  # the other way round: more student queries than the teacher has
    mine, theirs, targets = looks(few, teacher, student.requires_grad_(False))
    pairs = few.pairs(mine, theirs, theirs.queries.match(theirs.stages, targets))
    assert len(pairs) == 6
    assert [pair.paired.sum(1).tolist() for pair in pairs] == [[12, 12]] * 6
    assert all(term.isfinite() for term in few(mine, theirs, targets).values())


def test_the_teachers_queries_are_decoded_by_the_student_under_the_teachers_matches():
    method, _, _, (mine, theirs, targets) = made(**(ONE | {"weight_assignment": 1.0}))
    found = theirs.queries.match(theirs.stages, targets)
    own = theirs.queries.own
    stages = mine.queries.redecode(QuerySet(own.content, own.position))
    stages = tuple(replace(stage, assignment=matches) for stage, matches in zip(stages, found, strict=True))
    expected = sum(mine.queries.criterion(stages, targets).values())
    torch.testing.assert_close(method(mine, theirs, targets)["assignment"], expected)
    other = made(**(ONE | {"weight_assignment": 1.0, "assignment": "student"}))[0]
    assert other(mine, theirs, targets)["assignment"] < expected  # its own matches cost least


def test_no_positive_is_left_out_where_the_teacher_has_more_queries():
    """The class of positives makes them the dearest columns, at full agreement too, where their entropy remains."""
    generator = torch.Generator().manual_seed(0)
    logits, valid = torch.randn(1, 30, 80, generator=generator), torch.ones(1, 30, dtype=torch.bool)
    corners = torch.rand(1, 30, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 20], -1)
    teacher = Predictions(logits, "sigmoid", boxes, valid)
    student = Predictions(logits[:, :10], "sigmoid", boxes[:, :10] + 1, valid[:, :10])
    classified = torch.arange(30)[None] % 10 < 2  # six
    (pair,) = pair_stages([student], [teacher], [(0, 0)], torch.tensor([[100, 100]]), [classified])
    assert (pair.paired & pair.of_partner(pair.classified)).sum() == 6
    assert pair.paired.all()


def test_the_feature_part_asks_the_teacher_for_no_more_than_its_mask_reads():
    for mask, read in (("box", False), ("off", False), ("query", True), ("aggregated", True)):
        method, _, _, (mine, theirs, targets) = made(**(ONE | {"weight_feature": 1.0, "mask": mask}))
        assert method.need.head == read
        assert method(mine, theirs, targets)["feature"] > 0


@pytest.mark.parametrize("mask", ["query", "aggregated"])
def test_classes_that_the_student_does_not_know_draw_no_mask(mask: str):
    method, student, teacher, (mine, theirs, targets) = made(**(ONE | {"weight_feature": 1.0, "mask": mask}))
    expected = method(mine, theirs, targets)["feature"]
    foreign = [
        replace(stage, logits=torch.cat([torch.full_like(stage.logits[..., :1], 9.0), stage.logits], -1))
        for stage in theirs.stages
    ]
    wider = replace(teacher.info, classes=("person", *teacher.info.classes))
    other = type(method).build(method.config, student.info, wider).eval()
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other(mine, replace(theirs, stages=tuple(foreign)), targets)["feature"], expected)


def test_padding_further_moves_no_mask_and_no_pair():
    method, student, teacher, _ = made(**(ONE | {"weight_feature": 1.0}))
    stage = teacher.observe(scene()[0], need=method.need).stages
    values = []
    for height, width in ((64, 96), (96, 128)):
        batch, targets = scene(height, width)
        with torch.no_grad():
            mine, theirs = (
                detector.observe(batch, need=method.need).pyramids["neck"] for detector in (student, teacher)
            )
        levels = []
        for one in (mine, theirs):  # the same numbers on the cells of the picture, others beyond
            fixed = [torch.full_like(level, 7.0 * height) for level in one.levels]
            for level, stride in zip(fixed, one.strides, strict=True):
                rows, columns = -(-64 // stride), -(-96 // stride)
                level[:, :, :rows, :columns] = torch.randn(
                    2, 32, rows, columns, generator=torch.Generator().manual_seed(stride + (one is mine))
                )
            levels.append(replace(one, levels=tuple(fixed)))
        pairs = method.levels(*(type("Look", (), {"pyramids": {"neck": one}})() for one in levels))
        values.append([method.feature(level, stage, targets, batch.sizes) for level in pairs])
    torch.testing.assert_close(values[0], values[1])


def test_softmax_and_sigmoid_heads_say_what_the_other_can_learn():
    logits, valid = torch.tensor([[[0.0, 2.0]]]), torch.ones(1, 1, dtype=torch.bool)
    boxes = torch.tensor([[[0.0, 0, 9, 9]]])
    sigmoid = Predictions(logits, "sigmoid", boxes, valid)
    softmax = Predictions(logits, "softmax", boxes, valid, background=torch.tensor([[1.0]]))
    torch.testing.assert_close(class_scores(softmax, sigmoid), softmax.scores())
    torch.testing.assert_close(class_scores(softmax, softmax)[..., :-1], softmax.scores())
    told = class_scores(sigmoid, softmax)  # 0.5 and 0.88 leave nothing for the background
    torch.testing.assert_close(told, torch.tensor([[[0.5 / 1.3808, 0.8808 / 1.3808, 0.0]]]), rtol=1e-3, atol=1e-4)
    modest = replace(sigmoid, logits=torch.tensor([[[-2.0, -3.0]]]))
    torch.testing.assert_close(
        class_scores(modest, softmax)[0, 0, -1].item(), 1 - 0.1192 - 0.0474, rtol=1e-3, atol=1e-4
    )


def test_a_batch_without_objects_teaches_boxes_only():
    method, student, teacher, _ = made()
    mine, theirs, targets = looks(method, student, teacher, scene(objects=False))
    terms = method(mine, theirs, targets)
    assert terms["class"] == 0
    assert terms["box"] > 0
    assert all(term.isfinite() for term in terms.values())


def test_what_it_cannot_serve_is_refused_with_what_would_do():
    deformable, gfl = tiny("deformable_detr"), tiny("gfl")
    with pytest.raises(UserError, match=r"gfl.*no queries.*deformable_detr"):
        built("detrdistill", deformable, gfl)
    with pytest.raises(UserError, match="all its weights are 0"):
        built("detrdistill", deformable, deformable, **ONE)
    drawn = tiny("deformable_detr", two_stage=True)
    with pytest.raises(UserError, match=r"student \(deformable_detr\) has no learned queries.*weight_assignment to 0"):
        built("detrdistill", drawn, deformable)
    assert built("detrdistill", drawn, deformable, weight_assignment=0.0)
    with pytest.raises(UserError, match="64 wide, the teacher's 32"):
        built("detrdistill", tiny("deformable_detr", channels=64), deformable)
    other = replace(deformable.info, classes=("disc",))
    method = type(built("detrdistill", deformable, deformable))
    with pytest.raises(UserError, match="does not know the class 'square'"):
        method.build(method.Config(), deformable.info, other)
    assert method.build(method.Config(pairs="joint", weight_assignment=0.0), deformable.info, other)


def test_boxes_are_compared_in_shares_of_each_image():
    method, _, _, (mine, theirs, targets) = made(**INSTANCE)
    pair_ = method.pairs(mine, theirs, theirs.queries.match(theirs.stages, targets))[-1]
    torch.testing.assert_close(pair_.teacher_boxes, to_relative(theirs.stages[-1].boxes, scene()[0].sizes))
