"""What was done and whether it helped, in words."""

from dataclasses import dataclass
from typing import Literal

from detdistill.errors import plural
from detdistill.reporting.content import Gain, Interval, Member, Story

FEW = 5  # seeds; with fewer, the interval over seeds is wide
MINUS = "\u2212"
Tone = Literal["better", "worse", "unsure", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """tone: better and worse only if no known interval contains 0. title: one line. text: the numbers behind it."""

    tone: Tone
    title: str
    text: str


def number(value: float | None, digits: int = 1) -> str:
    """The number, or `-` if it is not known. Never `-0.0`."""
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def amount(value: float) -> str:
    """A count that may be a mean: 3, 3.5, 12345."""
    return f"{value:.1f}".removesuffix(".0")


def signed(value: float | None, digits: int = 1) -> str:
    """The number with its sign, or `-` if it is not known."""
    return "-" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", MINUS)


def span(interval: Interval | None) -> str:
    """An interval of signed numbers, or `-`."""
    return "-" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def joined(words: list[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(story: Story) -> str:
    """What was done, in one sentence."""
    students = [*story.of("plain"), *story.of("distilled")]
    images = "" if story.training_images is None else f" ({plural(story.training_images, 'training image')})"
    ways = ["plainly"] * bool(story.of("plain"))
    if taught := [member.label for member in story.of("distilled")]:
        names = joined(list(dict.fromkeys(member.model for member in story.of("teacher"))))
        ways.append(f"with {joined(taught)} from {f'the teacher {names}' if names else 'a teacher'}")
    seeds = plural(max((len(member.seeds) for member in students), default=1), "seed")
    each = " each" if len(students) > 1 else ""
    measured = (
        "" if story.images is None else f", and measured on {plural(story.images, 'image')} of the {story.split} split"
    )
    return f"{story.student} was trained on {story.data}{images} {', and '.join(ways)}, with {seeds}{each}{measured}."


def verdict(story: Story) -> Verdict:
    """Whether distillation helped, from the best distilled student."""
    best = story.best
    if best is None:
        return Verdict(
            "unknown", "No student was distilled", "These runs had no teacher, so there is no gain to measure."
        )
    if best.gain is None:
        text = (
            "No plain baseline is here: the same student, trained the same way without a teacher. Without it, nobody "
            "knows what distillation changed. Train it with “detdistill train”, or use “detdistill compare”, and give "
            "both folders to “detdistill report”."
        )
        return Verdict("unknown", "No gain is known", text)
    found = about(best, best.gain)
    return Verdict(found.tone, found.title, found.text + _choice(story))


def about(member: Member, gain: Gain) -> Verdict:
    """Whether distillation helped this student."""
    size, label = abs(round(gain.value, 1)), member.label
    amount = f"{signed(gain.value)} AP"
    if gain.unsure:
        return Verdict("unsure", "No verdict", f"{label}: {gain.unsure.removeprefix('no verdict: ')}.")
    known = [f"{span(interval)} over {name}" for name, interval in gain.intervals.items()]
    intervals = f"95 % intervals: {' and '.join(known)}" if known else "no interval is known"
    numbers = f"{label} changes AP by {signed(gain.value)} ({intervals})."
    if gain.recovered is not None and gain.recovered > 0:
        numbers += f" That is {100 * gain.recovered:.0f} % of the teacher's lead."
    if gain.crossing:
        inside = joined([f"over {name}" for name in gain.crossing])
        contains = "The interval" if len(gain.crossing) == 1 else "The intervals"
        verb = "contains" if len(gain.crossing) == 1 else "contain"
        text = f"{numbers} {contains} {inside} {verb} 0, so chance alone could explain the difference."
        if "seeds" in gain.crossing and len(gain.by_seed) < FEW:
            text += f" With {len(gain.by_seed)} seeds this interval is wide; train more."
        return Verdict("unsure", f"No proof of a gain ({amount} with {label})", text)
    better = gain.value > 0
    if not gain.is_proven:
        text = f"{numbers} There is one pair of runs, and other seeds could show something else: train more seeds."
        side = "Better" if better else "Worse"
        return Verdict("unsure", f"{side} by {size:.1f} AP with one seed; no proof for other seeds", text)
    if better:
        return Verdict("better", f"Distillation helped: {amount} with {label}", numbers)
    return Verdict("worse", f"Distillation made the student worse: {amount} with {label}", numbers)


def _choice(story: Story) -> str:
    """A warning if the best of several methods was chosen on these images."""
    count = len(story.of("distilled"))
    if count < 2:
        return ""
    return (
        f" It is the best of {count} distilled students on these images. The best of several looks a little better "
        "than it is."
    )
