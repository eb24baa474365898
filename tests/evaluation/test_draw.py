"""draw: where the color lands."""

import torch
from PIL import Image, ImageChops

from detdistill.evaluation import draw
from detdistill.evaluation.draw import color

GRAY = (90, 90, 90)
CLASSES = ("ship", "cat")


def drawn(size: tuple[int, int], rows: list[tuple[list[float], int, float]], threshold: float = 0.3) -> Image.Image:
    boxes = torch.tensor([box for box, _, _ in rows]).reshape(-1, 4)
    labels, scores = torch.tensor([label for _, label, _ in rows]).long(), torch.tensor([score for _, _, score in rows])
    return draw(Image.new("RGB", size, GRAY), boxes, labels, scores, CLASSES, threshold)


def test_box_lands_on_its_pixels_in_the_color_of_its_class() -> None:
    picture = drawn((800, 600), [([100.0, 200.0, 300.0, 400.0], 1, 0.9)])
    assert picture.size == (800, 600)
    edges = [(100, 300), (300, 300), (200, 400), (250, 200)]
    assert [picture.getpixel(edge) for edge in edges] == [color(1)] * 4
    assert [picture.getpixel(spot) for spot in [(95, 300), (305, 300), (200, 405), (200, 300)]] == [GRAY] * 4


def test_label_stands_on_the_box() -> None:
    picture = drawn((800, 600), [([100.0, 200.0, 300.0, 400.0], 1, 0.9)])
    plate = picture.crop((100, 180, 200, 199))
    assert sum(plate.getpixel((x, y)) == color(1) for x in range(100) for y in range(19)) > 300
    # Another score is another text: the label is not a plate alone.
    assert ImageChops.difference(
        plate, drawn((800, 600), [([100.0, 200.0, 300.0, 400.0], 1, 0.5)]).crop((100, 180, 200, 199))
    ).getbbox()


def test_small_pictures_are_enlarged_with_their_boxes() -> None:
    picture = drawn((160, 120), [([40.0, 50.0, 80.0, 100.0], 0, 0.9)])
    assert picture.size == (640, 480)
    assert picture.getpixel((160, 300)) == picture.getpixel((320, 300)) == picture.getpixel((200, 400)) == color(0)
    assert picture.getpixel((240, 300)) == GRAY


def test_only_scores_from_the_threshold_on_are_drawn() -> None:
    box = [100.0, 200.0, 300.0, 400.0]
    assert (
        ImageChops.difference(drawn((800, 600), [(box, 1, 0.25)]), Image.new("RGB", (800, 600), GRAY)).getbbox() is None
    )
    assert drawn((800, 600), [(box, 1, 0.5)], threshold=0.5).getpixel((100, 300)) == color(1)


def test_the_best_box_lies_on_top() -> None:
    box = [100.0, 200.0, 300.0, 400.0]
    for order in (1, -1):
        assert drawn((800, 600), [(box, 1, 0.9), (box, 0, 0.8)][::order]).getpixel((100, 300)) == color(1)


def test_labels_stay_in_the_picture() -> None:
    corners = [[0.0, 0.0, 20.0, 20.0], [780.0, 0.0, 800.0, 20.0], [780.0, 590.0, 800.0, 600.0]]
    for box in corners:
        picture = drawn((800, 600), [(box, 1, 0.9)])
        plate = sum(count for count, shade in picture.getcolors(100_000) if shade != GRAY)
        assert plate > 700  # the whole label, of some 65 x 14 pixels


def test_the_image_itself_is_left_alone_and_any_mode_is_taken() -> None:
    image = Image.new("L", (800, 600), 90)
    picture = draw(image, torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.tensor([0]), torch.tensor([0.9]), CLASSES, 0.3)
    assert picture.mode == "RGB"
    assert image.getextrema() == (90, 90)
    assert drawn((800, 600), []).getpixel((5, 5)) == GRAY


def test_colors_of_neighbors_differ() -> None:
    shades = [color(label) for label in range(12)]
    assert all(
        sum(abs(a - b) for a, b in zip(one, two, strict=True)) > 60
        for n, one in enumerate(shades)
        for two in shades[:n]
    )
