"""Each kind of suspicious box is found and named, and ordinary boxes are not."""

from detdistill.inspection.findings import Finding
from detdistill.inspection.suspicious import suspicious

from .made import Box, members_of, record

ORDINARY: list[Box] = [(0, 10, 10, 60, 60), (1, 50, 50, 120, 90), (0, 10, 100, 60, 160)]


def found(*boxes: Box) -> dict[str, Finding]:
    """The findings of an image of 200 x 200 pixels with these boxes, by kind."""
    return {finding.kind: finding for finding in suspicious(members_of(record("a.png", boxes)))}


def test_ordinary_boxes_give_no_finding() -> None:
    assert found(*ORDINARY) == {}
    assert suspicious(members_of(record("empty.png"))) == []


def test_a_thin_box_is_named_with_file_class_and_corners() -> None:
    findings = found(*ORDINARY, (1, 20, 30, 21.5, 50), (1, 20, 60, 22, 70))  # 1.5 and 2 pixels wide
    assert set(findings) == {"thin"}
    assert findings["thin"].text == "1 box is thinner than 2 pixels"
    assert findings["thin"].examples == ("a.png (train): dog (20, 30, 21.5, 50)",)


def test_a_slender_box() -> None:
    assert set(found((0, 0, 10, 126, 16))) == {"slender"}  # 21 to 1
    assert set(found((0, 10, 0, 16, 126))) == {"slender"}
    assert set(found((0, 0, 10, 120, 16))) == set()  # 20 to 1


def test_a_box_of_the_whole_image() -> None:
    assert set(found((0, 0, 0, 200, 191))) == {"whole-image"}  # 95.5 %
    assert set(found((0, 0, 0, 200, 190))) == set()


def test_two_boxes_of_one_class_that_overlap_almost_completely() -> None:
    findings = found((0, 10, 10, 110, 110), (0, 10, 10, 110, 105))  # IoU 0.95
    assert set(findings) == {"twice"}
    assert findings["twice"].examples == ("a.png (train): cat (10, 10, 110, 110) and cat (10, 10, 110, 105)",)
    assert found((0, 10, 10, 110, 110), (0, 10, 10, 110, 100)) == {}  # IoU 0.9
    assert found((0, 10, 10, 110, 110), (1, 10, 10, 110, 105)) == {}  # another class


def test_the_same_box_with_two_classes_is_a_problem() -> None:
    findings = found((0, 10, 10, 60, 60), (1, 10, 10, 60, 60.5))
    assert findings["two-classes"].level == "problem"
    assert findings["two-classes"].text == "1 pair of boxes are the same box with two classes"


def test_pairs_are_only_found_within_an_image() -> None:
    records = [record(name, [(label, 10, 10, 60, 60)]) for name, label in (("a", 0), ("b", 0), ("c", 1))]
    assert suspicious(members_of(*records)) == []


def test_a_size_far_from_the_median_of_its_class() -> None:
    usual = [record(f"{index}.png", [(0, 10, 10, 50 + index % 3, 50)]) for index in range(19)]
    tiny = record("tiny.png", [(0, 10, 10, 16, 16), (1, 30, 10, 36, 16)])
    (finding,) = suspicious(members_of(*usual, tiny))
    assert finding.kind == "unusual-size"
    assert finding.examples == ("tiny.png (train): cat (10, 10, 16, 16)",)
    assert suspicious(members_of(*usual[1:], tiny)) == []  # 19 cats are too few to know what is usual


def test_sizes_that_vary_widely_are_no_outliers() -> None:
    spread = [record(f"{index}.png", [(0, 0, 0, 2.0 * 1.2**index, 2.0 * 1.2**index)]) for index in range(24)]
    assert suspicious(members_of(*spread)) == []


def test_five_examples_are_named_and_all_are_counted() -> None:
    records = [record(f"{index}.png", [(0, 5, 5, 6, 15)]) for index in range(7)]
    (finding,) = suspicious(members_of(*records))
    assert (finding.count, len(finding.examples)) == (7, 5)
