"""The page in a browser: every control, both widths and themes, the contrast, print, and a page without JavaScript."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detdistill.reporting import page

from .browser import chromium, prefer, resize
from .stories import HOSTILE, story

CONTRAST = """
const luminance = color => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgb = color => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const behind = element => {
  for (let node = element; node; node = node.parentElement) {
    const color = rgb(getComputedStyle(node).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255, 255];
};
const low = [];
for (const element of document.querySelectorAll("main *, nav *, header *, footer *")) {
  const text = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  if (!text || element.closest("title")) continue;
  const style = getComputedStyle(element);
  const front = rgb(element.closest("svg") ? style.fill : style.color);
  const values = [front, behind(element)].map(color => luminance(color.join(" "))).sort((a, b) => b - a);
  const ratio = (values[0] + 0.05) / (values[1] + 0.05);
  if (ratio < 4.5) low.push(`${element.tagName} ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return low;
"""


TOO_WIDE = """
return [...document.querySelectorAll("main *")].filter(
  element => !element.closest(".scroll, pre, svg") && element.getBoundingClientRect().right > innerWidth + 1
).map(element => element.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page([story()]), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def opened(driver: Any, address: str) -> Any:
    """The page as it is when it is opened for the first time, 1400 pixels wide, on a system with the light theme."""
    resize(driver, 1400)
    prefer(driver, "light")
    driver.get(address)
    driver.execute_script("try { localStorage.clear() } catch {}")
    driver.get_log("browser"), driver.get_log("performance")
    driver.get(address)
    yield driver
    assert driver.get_log("browser") == []  # no error, and no refusal by the policy of the page


def background(driver: Any) -> str:
    return str(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))


def test_the_page_makes_no_request(opened: Any) -> None:
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


def test_a_hostile_name_is_shown_as_text(opened: Any) -> None:
    assert HOSTILE in opened.find_element("css selector", "table[aria-label='AP by class'] tbody").text
    assert opened.execute_script("return document.scripts.length") == 1
    assert opened.find_element("tag name", "img").get_attribute("alt").startswith(HOSTILE)
    assert HOSTILE in opened.execute_script("return document.querySelector('.points').textContent")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_is_wider_than_the_page_and_texts_can_be_read(opened: Any, width: int, theme: str) -> None:
    resize(opened, width)
    prefer(opened, theme)
    opened.execute_script("for (const details of document.querySelectorAll('details')) details.open = true")
    assert opened.execute_script("return document.documentElement.scrollWidth") == width
    assert opened.execute_script(TOO_WIDE) == []
    assert opened.execute_script(CONTRAST) == []


def columns(driver: Any) -> list[tuple[Any, int]]:
    """Each sortable column with its table."""
    tables = driver.find_elements("css selector", "table[data-sortable]")
    return [(table, index) for table in tables for index in range(len(table.find_elements("css selector", "thead th")))]


SORTED = """
const [heading, index] = arguments, table = heading.closest("table");
return [heading.getAttribute("aria-sort"), table.querySelectorAll("th[aria-sort]").length,
        [...table.tBodies[0].rows].map(row => row.cells[index].dataset.key ?? null)];
"""


@pytest.mark.parametrize("by_keyboard", [False, True])
def test_each_column_is_sorted_both_ways(opened: Any, by_keyboard: bool) -> None:
    opened.execute_script("for (const details of document.querySelectorAll('details')) details.open = true")
    tested = columns(opened)
    assert len(tested) > 30
    for table, index in tested:
        heading = table.find_elements("css selector", "thead th")[index]
        button = heading.find_element("tag name", "button")
        orders = []
        for state in ("ascending", "descending"):
            if by_keyboard:
                button.send_keys("\ue007" if state == "ascending" else " ")  # Enter, Space
            else:
                opened.execute_script("arguments[0].click()", button)
            now, count, values = opened.execute_script(SORTED, heading, index)
            assert (now, count) == (state, 1)
            known = [value for value in values if value is not None]
            assert values == known + [None] * (len(values) - len(known))  # unknown values stay last
            orders.append(known)
        try:
            assert [float(value) for value in orders[0]] == sorted(map(float, orders[0]))
            assert [float(value) for value in orders[1]] == sorted(map(float, orders[0]), reverse=True)
        except ValueError:  # texts, in the order of the language
            assert orders[1] == orders[0][::-1] and len(set(orders[0])) in (1, len(orders[0]))


def test_the_theme_can_be_changed_and_is_kept(opened: Any, address: str) -> None:
    button = opened.find_element("id", "theme")
    light = background(opened)
    assert button.text == "Dark theme"
    button.click()
    dark = background(opened)
    assert dark != light and button.text == "Light theme"
    opened.get(address)
    assert background(opened) == dark  # kept, although the system prefers light
    button = opened.find_element("id", "theme")
    button.send_keys("\ue007")
    assert background(opened) == light and button.text == "Dark theme"


def test_the_theme_follows_the_system(opened: Any) -> None:
    light = background(opened)
    prefer(opened, "dark")
    assert background(opened) != light and opened.find_element("id", "theme").text == "Light theme"


def test_links_lead_to_their_sections_and_details_open(opened: Any) -> None:
    opened.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    for link in opened.find_elements("css selector", "nav a"):
        target = link.get_attribute("href").partition("#")[2]
        opened.execute_script("arguments[0].click()", link)
        section = opened.find_element("id", target)
        assert opened.execute_script("return location.hash") == f"#{target}"
        assert opened.execute_script("return arguments[0].getBoundingClientRect().bottom", section) > 0
        end = "return innerHeight + scrollY >= document.documentElement.scrollHeight - 2"
        top = opened.execute_script("return arguments[0].getBoundingClientRect().top", section)
        assert abs(top) < 40 or opened.execute_script(end)
    for details in opened.find_elements("tag name", "details"):
        was_open = details.get_attribute("open")
        details.find_element("tag name", "summary").send_keys("\ue007")
        assert details.get_attribute("open") != was_open


def test_focus_is_visible_on_everything_that_takes_it(opened: Any) -> None:
    body, seen = opened.find_element("tag name", "body"), set()
    for _ in range(60):
        opened.switch_to.active_element.send_keys("\ue004")  # Tab
        active = opened.switch_to.active_element
        if active == body:
            break
        style = "const style = getComputedStyle(arguments[0]); return [style.outlineStyle, style.outlineWidth]"
        assert opened.execute_script(style, active) == ["solid", "3px"], active.get_attribute("outerHTML")[:80]
        seen.add(active.tag_name)
    assert {"a", "button", "div", "summary"} <= seen


def test_without_javascript_everything_is_there(driver: Any, address: str) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(address)
        assert not driver.find_element("id", "theme").is_displayed()
        assert driver.find_elements("css selector", "th button") == []
        for section in driver.find_elements("tag name", "section"):
            assert section.is_displayed() and section.text
        summary = driver.find_element("tag name", "summary")
        summary.send_keys("\ue007")
        assert summary.find_element("xpath", "..").get_attribute("open")
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        driver.get_log("browser")


def test_paper_is_light_and_shows_what_is_folded(opened: Any, tmp_path: Path) -> None:
    opened.find_element("id", "theme").click()  # dark
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert background(opened) == "rgb(255, 255, 255)"
    assert not opened.find_element("tag name", "nav").is_displayed()
    closed = opened.find_elements("css selector", "details:not([open])")
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert closed and opened.find_elements("css selector", "details:not([open])") == []
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert len(opened.find_elements("css selector", "details:not([open])")) == len(closed)
    opened.find_element("tag name", "body")
    prefer(opened, "light")
    opened.execute_script("try { localStorage.clear() } catch {}")
