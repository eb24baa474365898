"""draw: the pixels that get the color of a class."""

from itertools import combinations

import numpy as np
import torch
from PIL import Image, ImageChops

from detdistill.evaluation import draw
from detdistill.evaluation.drawing import color
from detdistill.evaluation.drawing.draw import Style

GRAY = (90, 90, 90)
CLASSES = ("ship", "cat")


def drawn(size: tuple[int, int], rows: list[tuple[list[float], int, float]], threshold: float = 0.3) -> Image.Image:
    """A gray image of (width, height) with the detections (box, label, score) drawn on it."""
    boxes = torch.tensor([box for box, _, _ in rows]).reshape(-1, 4)
    labels, scores = torch.tensor([label for _, label, _ in rows]).long(), torch.tensor([score for _, _, score in rows])
    return draw(Image.new("RGB", size, GRAY), boxes, labels, scores, CLASSES, threshold)


def test_a_box_is_drawn_on_its_pixels_in_the_color_of_its_class() -> None:
    picture = drawn((800, 600), [([100.0, 200.0, 300.0, 400.0], 1, 0.9)])
    assert picture.size == (800, 600)
    edges = [(100, 300), (300, 300), (200, 400), (250, 200)]
    assert [picture.getpixel(edge) for edge in edges] == [color(1)] * 4
    assert [picture.getpixel(spot) for spot in [(95, 300), (305, 300), (200, 405), (200, 300)]] == [GRAY] * 4


def test_the_label_is_above_the_box() -> None:
    picture = drawn((800, 600), [([100.0, 200.0, 300.0, 400.0], 1, 0.9)])
    plate = picture.crop((100, 180, 200, 199))
    assert sum(plate.getpixel((x, y)) == color(1) for x in range(100) for y in range(19)) > 300
    # Another score gives another text, so the label is more than a filled rectangle.
    other_score = drawn((800, 600), [([100.0, 200.0, 300.0, 400.0], 1, 0.5)])
    assert ImageChops.difference(plate, other_score.crop((100, 180, 200, 199))).getbbox()


def test_small_pictures_are_enlarged_with_their_boxes() -> None:
    picture = drawn((160, 120), [([40.0, 50.0, 80.0, 100.0], 0, 0.9)])
    assert picture.size == (640, 480)
    assert picture.getpixel((160, 300)) == picture.getpixel((320, 300)) == picture.getpixel((200, 400)) == color(0)
    assert picture.getpixel((240, 300)) == GRAY


def test_only_scores_of_at_least_the_threshold_are_drawn() -> None:
    box = [100.0, 200.0, 300.0, 400.0]
    below = drawn((800, 600), [(box, 1, 0.25)])
    assert ImageChops.difference(below, Image.new("RGB", (800, 600), GRAY)).getbbox() is None
    assert drawn((800, 600), [(box, 1, 0.5)], threshold=0.5).getpixel((100, 300)) == color(1)


def test_the_best_box_is_on_top() -> None:
    box = [100.0, 200.0, 300.0, 400.0]
    for order in (1, -1):
        assert drawn((800, 600), [(box, 1, 0.9), (box, 0, 0.8)][::order]).getpixel((100, 300)) == color(1)


def test_labels_stay_inside_the_image() -> None:
    corners = [[0.0, 0.0, 20.0, 20.0], [780.0, 0.0, 800.0, 20.0], [780.0, 590.0, 800.0, 600.0]]
    for box in corners:
        picture = drawn((800, 600), [(box, 1, 0.9)])
        plate = sum(count for count, shade in picture.getcolors(100_000) if shade != GRAY)
        assert plate > 700  # the whole label has about 65 x 14 pixels


def test_the_input_image_is_not_changed_and_may_have_any_mode() -> None:
    image = Image.new("L", (800, 600), 90)
    picture = draw(image, torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.tensor([0]), torch.tensor([0.9]), CLASSES, 0.3)
    assert picture.mode == "RGB"
    assert image.getextrema() == (90, 90)
    assert drawn((800, 600), []).getpixel((5, 5)) == GRAY


def test_colors_of_labels_differ() -> None:
    colors = [color(label) for label in range(12)]
    for first, second in combinations(colors, 2):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 60


def test_boxes_of_the_ground_truth_are_all_drawn_without_a_score() -> None:
    boxes, labels = torch.tensor([[100.0, 200.0, 300.0, 400.0], [400.0, 200.0, 600.0, 400.0]]), torch.tensor([1, 0])
    picture = draw(Image.new("RGB", (800, 600), GRAY), boxes, labels, None, CLASSES)
    assert [picture.getpixel((200, 400)), picture.getpixel((500, 400))] == [color(1), color(0)]
    scored = drawn((800, 600), [([100.0, 200.0, 300.0, 400.0], 1, 0.9)])
    width = [sum(image.getpixel((x, 190)) == color(1) for x in range(800)) for image in (picture, scored)]
    assert width[0] < width[1]  # the plate of the label is shorter without a score


def test_a_tiny_box_stays_visible() -> None:
    picture = drawn((800, 600), [([400.0, 300.0, 404.0, 304.0], 1, 0.9)])
    assert [picture.getpixel(spot) for spot in ((401, 301), (402, 303))] == [GRAY] * 2
    assert color(1) in [picture.getpixel((x, 302)) for x in range(390, 400)]


def test_a_class_with_too_many_labels_gets_a_legend_instead() -> None:
    grid = [[20.0 + 60 * x, 20.0 + 40 * y, 60.0 + 60 * x, 50.0 + 40 * y] for y in range(14) for x in range(12)]
    rows = [(box, 1, 0.9) for box in grid]
    rows.append(([745.0, 20.0, 795.0, 70.0], 0, 0.5))
    boxes, labels = torch.tensor([box for box, _, _ in rows]), torch.tensor([label for _, label, _ in rows])
    scores = torch.tensor([score for _, _, score in rows])
    image = Image.new("RGB", (800, 600), GRAY)
    plain = draw(image, boxes, labels, scores, CLASSES)
    picture = draw(image, boxes, labels, scores, CLASSES, legend=True)
    assert plain.size == (800, 600)
    assert picture.width == 800 and picture.height > 600
    strip = [shade for _, shade in picture.crop((0, 601, 800, picture.height)).getcolors(10_000)]
    assert color(0) in strip and color(1) in strip
    # The boxes keep only their outlines; the only box of the other class keeps its label.
    covered = [sum(shade == color(label) for shade in image.getdata()) for image in (plain, picture) for label in (1,)]
    assert covered[1] < 0.7 * covered[0]
    assert sum(picture.getpixel((x, y)) == color(0) for x in range(690, 800) for y in range(0, 110)) > 400


def test_few_boxes_have_no_legend() -> None:
    boxes, labels, scores = torch.tensor([[100.0, 200.0, 120.0, 220.0]]), torch.tensor([1]), torch.tensor([0.9])
    image = Image.new("RGB", (1600, 1200), GRAY)
    assert draw(image, boxes, labels, scores, CLASSES, legend=True).size == (1600, 1200)


def test_sizes_follow_the_picture_and_the_typical_box() -> None:
    sides = np.array([[0.0, 0, 100, 100], [0, 0, 80, 80], [0, 0, 2000, 1500]])
    alone, small, large = (Style.of((2560, 1920), boxes) for boxes in (None, sides[:2], sides[2:]))
    assert (small.line, small.text) == (3, 23)  # 1/800 and 1/110 of the longer side
    assert small.text < alone.text < large.text == 53
    assert Style.of((640, 480), sides[:1]) == Style(2, 13)


def test_given_colors_are_used() -> None:
    boxes = torch.tensor([[100.0, 200.0, 300.0, 400.0]])
    colors = {"cat": (1, 2, 3), "ship": (9, 9, 9)}
    picture = draw(Image.new("RGB", (800, 600), GRAY), boxes, torch.tensor([1]), None, CLASSES, colors=colors)
    assert picture.getpixel((100, 300)) == (1, 2, 3)
