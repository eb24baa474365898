"""The sentence and the verdict at the top of the page, by hand."""

import pytest

from detdistill.reporting.words import number, sentence, signed, span, verdict

from .stories import gain, member, story


def test_numbers_have_a_sign_where_they_are_changes() -> None:
    assert [number(1.25), number(-0.04), number(None), number(-3.0, 0)] == ["1.2", "0.0", "-", "\u22123"]
    assert [signed(1.0), signed(-1.0), signed(-0.04), signed(None)] == ["+1.0", "\u22121.0", "+0.0", "-"]
    assert span((-1.0, 2.0)) == "\u22121.0 to +2.0" and span(None) == "-"


def test_one_sentence_says_what_was_done() -> None:
    assert sentence(story()) == (
        "gfl:resnet18 was trained on photographs (200 training images) plainly, and with pkd and crosskd from the "
        "teacher gfl:resnet18, with 2 seeds each, and measured on 50 images of the test split."
    )
    lone = story(members=[member("plain", "plain", 20.0, seeds=(3,))], images=None, training_images=None)
    assert sentence(lone) == "gfl:resnet18 was trained on photographs plainly, with 1 seed."


@pytest.mark.parametrize(
    ("value", "seeds", "images", "tone", "title", "text"),
    [
        (3.0, (1.0, 5.0), (2.0, 4.0), "better", "Distillation helped: +3.0 AP with pkd", "+1.0 to +5.0 over seeds"),
        (-3.0, (-5.0, -1.0), (-4.0, -2.0), "worse", "Distillation made the student worse: \u22123.0 AP", "pkd changes"),
        (3.0, (-1.0, 7.0), (2.0, 4.0), "unsure", "No proof of a gain (+3.0 AP", "over seeds contains 0, so"),
        (3.0, (-1.0, 7.0), (2.0, 4.0), "unsure", "No proof of a gain (+3.0 AP", "With 2 seeds this interval is wide"),
        (3.0, (1.0, 5.0), (-2.0, 8.0), "unsure", "No proof of a gain", "over images contains 0"),
        (-3.0, (-7.0, 1.0), (-9.0, 3.0), "unsure", "No proof of a gain (\u22123.0", "seeds and over images contain 0"),
        (3.0, None, (2.0, 4.0), "unsure", "Better by 3.0 AP with one seed; no proof", "train more seeds"),
        (-3.0, None, (-4.0, -2.0), "unsure", "Worse by 3.0 AP with one seed", "other seeds could show"),
        (0.0, (0.0, 0.0), (0.0, 0.0), "unsure", "No proof of a gain (+0.0", "contain 0"),
    ],
)
def test_a_gain_counts_only_if_no_interval_contains_zero(
    value: float, seeds: tuple, images: tuple, tone: str, title: str, text: str
) -> None:
    pair = [member("plain", "plain", 20.0), member("pkd", "distilled", 20 + value, gain=gain(value, seeds, images))]
    found = verdict(story(members=pair))
    assert found.tone == tone and found.title.startswith(title) and text in found.text


def test_without_a_plain_baseline_no_gain_is_known() -> None:
    found = verdict(story(members=[member("pkd", "distilled", 20.0)]))
    assert found.tone == "unknown" and found.title == "No gain is known" and "No plain baseline is here" in found.text
    assert verdict(story(members=[member("plain", "plain", 20.0)])).title == "No student was distilled"


def test_the_best_of_several_is_told_to_look_too_good() -> None:
    assert "the best of 2 distilled students" in verdict(story()).text
    one = [each for each in story().members if each.label != "crosskd"]
    assert "distilled students" not in verdict(story(members=one)).text


def test_a_proven_gain_is_told_before_a_larger_one_that_is_not() -> None:
    plain, pkd = story().members[1:3]
    larger = member("crosskd", "distilled", 26.0, gain=gain(6.0, (-2.0, 14.0)))
    assert verdict(story(members=[plain, larger, pkd])).title == "Distillation helped: +3.0 AP with pkd"
    worse = member("fgd", "distilled", 12.0, gain=gain(-8.0, (-9.0, -7.0)))
    assert "with crosskd" in verdict(story(members=[plain, larger, worse])).title


def test_a_plain_student_that_has_not_learned_gives_no_verdict() -> None:
    unsure = gain(3.0, (1.0, 5.0))
    unsure = type(unsure)(**{**vars(unsure), "unsure": "no verdict: the plain student has not learned (AP 0.1)"})
    pair = [member("plain", "plain", 0.1), member("pkd", "distilled", 3.0, gain=unsure)]
    found = verdict(story(members=pair))
    assert (found.tone, found.title) == ("unsure", "No verdict") and "has not learned" in found.text
