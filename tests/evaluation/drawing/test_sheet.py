"""side_by_side: two pictures under their titles."""

from PIL import Image, ImageChops

from detdistill.evaluation import side_by_side
from detdistill.evaluation.drawing.sheet import GAP


def test_pictures_stand_side_by_side_under_their_titles() -> None:
    left, right = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (200, 120), "blue")
    sheet = side_by_side([left, right], ["a: 1 box", "b: 2 boxes"])
    bar = sheet.height - 120
    assert sheet.width == 2 * 200 + GAP
    assert [sheet.getpixel((100, bar + 5)), sheet.getpixel((200 + GAP + 5, bar + 5))] == [(255, 0, 0), (0, 0, 255)]
    assert sheet.getpixel((100, bar + 110)) == (255, 255, 255)  # the left picture is lower
    titles = [sheet.crop((x, 0, x + 200, bar)) for x in (0, 200 + GAP)]
    assert all(title.convert("L").getextrema()[0] < 100 for title in titles)


def test_a_long_title_keeps_its_end_and_stays_over_its_picture() -> None:
    picture = Image.new("RGB", (200, 100))
    one = side_by_side([picture], [f"{'folder/' * 20}run: 3 boxes"])
    other = side_by_side([picture], [f"{'folder/' * 30}run: 3 boxes"])
    assert one.size == (200, one.height)
    assert not ImageChops.difference(one, other).getbbox()
