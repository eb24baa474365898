"""One vector an instance: which, from where, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import roi_align

from detdistill.errors import UserError
from detdistill.methods.shared.embeddings import EmbeddingConfig, InstanceEmbeddings, Instances, one_a_box
from detdistill.types import Need, ProposalInfo
from tests.methods.instances import info, look, maps, targets
from tests.methods.pairs import built, looks, pair


def test_a_box_on_the_neck_is_the_mean_of_its_region():
    embeddings = InstanceEmbeddings.build("pkt", EmbeddingConfig(), info(4), info(6))
    assert (embeddings.embedding, embeddings.widths, embeddings.need) == (
        "neck",
        (4, 6),
        Need(pyramids=frozenset({"neck"})),
    )
    student, teacher, given = look(4, 0), look(6, 1), targets([0], [1, 0, 1])
    found = embeddings(student, teacher, given)
    assert (found.images.tolist(), found.boxes.tolist()) == ([0, 1, 1, 1], [0, 0, 1, 2])
    region = roi_align(
        maps(teacher)[0], [given.boxes[0], given.boxes[1]], 7, 1 / 8, 2, aligned=True
    )  # small boxes: the finest level
    torch.testing.assert_close(found.teacher, region.mean((2, 3)))
    assert found.student.shape == (4, 4) and found.student.requires_grad and not found.teacher.requires_grad
    assert len(embeddings(student, teacher, targets([], [])).student) == 0


def test_roi_heads_give_theirs_for_the_positives_of_the_students_proposals():
    student, teacher = pair("faster_rcnn")
    method = built("pkt", student, teacher)
    embeddings = method.embeddings
    assert (embeddings.embedding, method.need) == ("roi", Need(classify=True))
    mine, theirs, _ = looks(method, student, teacher)
    found = embeddings(mine, theirs, None)
    positive = mine.stages[-1].assignment.positive
    assert len(found.student) == int(positive.sum()) > 3
    assert found.images.tolist() == [0] * len(found.images)  # the second image has no objects
    assert found.boxes.unique().tolist() == [0, 1, 2]
    assert embeddings.widths == (found.student.shape[1], found.teacher.shape[1]) == (128, 128)
    taught = theirs.proposals.classify(mine.proposals.boxes).embeddings[positive]
    torch.testing.assert_close(found.teacher, taught)
    assert found.student.requires_grad and not found.teacher.requires_grad


def test_a_box_is_the_mean_of_its_proposals():
    vectors = torch.tensor([[1.0, 5], [2, 6], [3, 7], [8, 8]])
    found = one_a_box(Instances(vectors, vectors[:, :1], torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 2, 0])))
    assert (found.images.tolist(), found.boxes.tolist()) == ([0, 1, 1], [0, 0, 2])
    assert found.student.tolist() == [[2, 6], [8, 8], [2, 6]]
    assert found.teacher.tolist() == [[2], [8], [2]]
    nothing = one_a_box(
        Instances(vectors[:0], vectors[:0], torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    )
    assert nothing.student.shape == (0, 2)


def test_mixed_pairs_meet_at_the_neck_and_roi_is_refused_there():
    mixed = info(4), info(6, embedding=8)
    assert InstanceEmbeddings.build("crd", EmbeddingConfig(), *mixed).widths == (4, 6)
    asked = EmbeddingConfig("roi")
    with pytest.raises(
        UserError, match=r"method crd: the student \(any\) has no RoI head; .*methods\.crd\.embedding=neck"
    ):
        InstanceEmbeddings.build("crd", asked, *mixed)
    with pytest.raises(UserError, match="without embeddings"):
        InstanceEmbeddings.build(
            "crd",
            asked,
            info(4, embedding=8),
            replace(info(6, embedding=8), proposals=ProposalInfo((8, 16), (10.0, 10.0, 5.0, 5.0))),
        )
    assert InstanceEmbeddings.build("crd", EmbeddingConfig("neck"), info(4, 8), info(6, 8)).embedding == "neck"


def test_half_precision_adds_many_proposals_of_a_box_in_single():
    vectors, first = torch.full((400, 2), 1.0, dtype=torch.bfloat16), torch.zeros(400, dtype=torch.long)
    found = one_a_box(Instances(vectors, vectors, first, first))
    assert found.student.dtype == torch.float32
    assert found.student.tolist() == found.teacher.tolist() == [[1, 1]]
