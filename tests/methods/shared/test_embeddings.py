"""One vector per instance: which vectors are read, and which pairs are refused."""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import roi_align

from detdistill.errors import UserError
from detdistill.methods.shared.embeddings import EmbeddingConfig, InstanceEmbeddings, Instances, mean_per_box
from detdistill.types import Need, ProposalInfo
from tests.methods.instances import info, maps, neck_output, targets
from tests.methods.pairs import built, method_inputs, pair


def test_the_vector_of_a_box_on_the_neck_is_the_mean_of_its_region():
    embeddings = InstanceEmbeddings.build("pkt", EmbeddingConfig(), info(4), info(6))
    assert embeddings.embedding == "neck"
    assert embeddings.widths == (4, 6)
    assert embeddings.need == Need(pyramids=frozenset({"neck"}))
    student, teacher, boxes = neck_output(4, 0), neck_output(6, 1), targets([0], [1, 0, 1])
    instances = embeddings(student, teacher, boxes)
    assert (instances.images.tolist(), instances.boxes.tolist()) == ([0, 1, 1, 1], [0, 0, 1, 2])
    finest = maps(teacher)[0]  # the level of small boxes
    region = roi_align(finest, [boxes.boxes[0], boxes.boxes[1]], 7, 1 / 8, 2, aligned=True)
    torch.testing.assert_close(instances.teacher, region.mean((2, 3)))
    assert instances.student.shape == (4, 4)
    assert instances.student.requires_grad and not instances.teacher.requires_grad
    assert len(embeddings(student, teacher, targets([], [])).student) == 0


def test_roi_heads_give_the_vectors_of_the_students_positive_proposals():
    student, teacher = pair("faster_rcnn")
    method = built("pkt", student, teacher)
    embeddings = method.embeddings
    assert (embeddings.embedding, method.need) == ("roi", Need(classify=True))
    student_output, teacher_output, _ = method_inputs(method, student, teacher)
    instances = embeddings(student_output, teacher_output, None)
    positive = student_output.stages[-1].assignment.positive
    assert len(instances.student) == int(positive.sum()) > 3
    assert instances.images.tolist() == [0] * len(instances.images)  # the second image has no objects
    assert instances.boxes.unique().tolist() == [0, 1, 2]
    assert embeddings.widths == (instances.student.shape[1], instances.teacher.shape[1]) == (128, 128)
    teacher_stage = teacher_output.proposals.classify(student_output.proposals.boxes)
    torch.testing.assert_close(instances.teacher, teacher_stage.embeddings[positive])
    assert instances.student.requires_grad and not instances.teacher.requires_grad


def test_mean_per_box_averages_the_proposals_of_a_box():
    vectors = torch.tensor([[1.0, 5], [2, 6], [3, 7], [8, 8]])
    means = mean_per_box(Instances(vectors, vectors[:, :1], torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 2, 0])))
    assert (means.images.tolist(), means.boxes.tolist()) == ([0, 1, 1], [0, 0, 2])
    assert means.student.tolist() == [[2, 6], [8, 8], [2, 6]]
    assert means.teacher.tolist() == [[2], [8], [2]]
    no_rows = torch.zeros(0, dtype=torch.long)
    assert mean_per_box(Instances(vectors[:0], vectors[:0], no_rows, no_rows)).student.shape == (0, 2)


def test_mixed_pairs_use_the_neck_and_roi_is_refused_for_them():
    mixed = info(4), info(6, embedding=8)
    assert InstanceEmbeddings.build("crd", EmbeddingConfig(), *mixed).widths == (4, 6)
    roi = EmbeddingConfig("roi")
    with pytest.raises(
        UserError, match=r"method crd: the student \(any\) has no RoI head; .*methods\.crd\.embedding=neck"
    ):
        InstanceEmbeddings.build("crd", roi, *mixed)
    no_embeddings = replace(info(6, embedding=8), proposals=ProposalInfo((8, 16), (10.0, 10.0, 5.0, 5.0)))
    with pytest.raises(UserError, match="has no embeddings"):
        InstanceEmbeddings.build("crd", roi, info(4, embedding=8), no_embeddings)
    assert InstanceEmbeddings.build("crd", EmbeddingConfig("neck"), info(4, 8), info(6, 8)).embedding == "neck"


def test_half_precision_vectors_are_averaged_in_single_precision():
    vectors, zeros = torch.full((400, 2), 1.0, dtype=torch.bfloat16), torch.zeros(400, dtype=torch.long)
    means = mean_per_box(Instances(vectors, vectors, zeros, zeros))
    assert means.student.dtype == torch.float32
    assert means.student.tolist() == means.teacher.tolist() == [[1, 1]]
