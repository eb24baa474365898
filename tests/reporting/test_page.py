"""The page as text: what it has, what it escapes, and that it asks for nothing."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from detdistill.reporting import Confusion, Story, page

from .stories import HOSTILE, gain, member, story

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements, the texts and the attributes of a page. Raises AssertionError if a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of this kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_name_is_text_and_nothing_else() -> None:
    text = page([story()])
    found = Page(text)
    assert len(found.all("script")) == 1 and "<script>alert" not in text and "49" not in found.texts
    whole = "\n".join(found.texts)
    assert whole.count(HOSTILE) >= 5  # class tables, confusion, note, recipe, captions
    assert any(HOSTILE in (attributes["alt"] or "") for attributes in found.all("img"))
    events = [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert events == []


def test_the_policy_allows_the_one_script_and_no_request() -> None:
    text = page([story()])
    found = Page(text)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(meta["content"] for meta in found.all("meta") if "http-equiv" in meta)
    assert policy is not None and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    addresses = [
        value for _, attributes in found.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses and all(value and value.startswith(("data:", "#")) for value in addresses)
    assert "url(" not in text and "@import" not in text


def test_each_link_of_the_contents_has_its_section() -> None:
    for stories in ([story()], [story(), story(data="others")]):
        found = Page(page(stories))
        ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
        links = [attributes["href"] or "" for attributes in found.all("a")]
        assert len(set(ids)) == len(ids) and len(links) == 9 * len(stories) + 1
        assert [link for link in links if link[1:] not in ids] == []


def test_the_verdict_is_the_title() -> None:
    assert "<title>gfl:resnet18: Distillation helped: +3.0 AP with pkd</title>" in page([story()])
    worse = [member("plain", "plain", 20.0), member("pkd", "distilled", 17.0, gain=gain(-3.0, (-5.0, -1.0)))]
    text = page([story(members=worse)])
    assert text.index("Distillation made the student worse") < text.index("<nav")


def test_stories_that_can_not_be_compared_are_parts() -> None:
    text = page([story(), story(data="others")])
    assert "Their numbers are not comparable" in text and "<title>Report of several runs</title>" in text


def bare() -> Story:
    """A lone run whose data set is gone: only metrics.json is known."""
    metrics = {"AP": None, "AP50": None, "per_class": {}}
    lone = member("pkd", "distilled", 1.0, metrics=metrics, quality=None, deviation=None, bytes=None, seeds=(0,))
    lone = type(lone)(**{**vars(lone), "log": type(lone.log)({})})
    return story(members=[lone], helped=[], hurt=[], notes=[], images=None, absent={"data": "The folder is gone."})


def test_what_is_not_known_is_said() -> None:
    text = page([bare()])
    whole = "\n".join(Page(text).texts)
    assert "No gain is known" in whole and whole.count("The folder is gone.") == 5
    assert "no log.jsonl" in whole and "None" not in whole and "nan" not in whole


def test_many_classes_give_a_list_of_confusions() -> None:
    names = tuple(f"class {index}" for index in range(30))
    counts = [[0] * 31 for _ in range(31)]
    counts[4][9], counts[2][30], counts[30][1], counts[3][3] = 7, 5, 99, 50  # 99 without an object, 50 are right
    pair = story().members[1]
    assert pair.quality is not None
    quality = type(pair.quality)(**{**vars(pair.quality), "confusion": Confusion(names, counts)})
    text = page([story(members=[type(pair)(**{**vars(pair), "quality": quality})])])
    cells = re.findall(r'<t[hd][^>]*data-key="class [249]"[^>]*>([^<]*)', text)
    assert cells == ["class 4", "class 9", "class 2"]


def test_exports_are_shown_where_there_are_any() -> None:
    assert "student.onnx" in page([story()]) and "onnxruntime" in page([story()])
    assert "Exported files" not in page([story(members=story().members[:2])])
