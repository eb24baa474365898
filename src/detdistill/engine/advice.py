"""Warnings about settings that let a run end badly, each in one line."""

from rich.console import Console

from detdistill.recipe import TrainConfig

MANY_TIMES = 5  # a rate this many times the published one; a DETR then often learns nothing
WAITING = 0.2  # share of the time that a training may wait for its images


class Once:
    """Prints each warning once."""

    def __init__(self, console: Console) -> None:
        self.console, self.told = console, set[str]()

    def __call__(self, subject: str, warning: str | None) -> None:
        """Print the warning, unless it is None or one about the subject was printed before."""
        if warning is not None and subject not in self.told:
            self.told.add(subject)
            self.console.print(warning, highlight=False, soft_wrap=True)


def about_rate(head: str, published: float | None, config: TrainConfig) -> str | None:
    """A warning if AdamW gets many times the learning rate that a head was published with, or None.

    published: None if a larger rate does no harm to the head, or if none is known.
    """
    if published is None or config.optimizer != "adamw" or config.lr < MANY_TIMES * published:
        return None
    times = f"{config.lr / published:.3g}"
    return (
        f"warning: the learning rate {config.lr:g} is {times} times the one that {head} was published with, and the "
        f"detector may learn nothing; try --lr {published:g}, with --train.backbone-lr-factor 0.1 if the backbone is "
        "pretrained"
    )


def about_warmup(steps: int, config: TrainConfig) -> str | None:
    """A warning if the learning rate is still rising at the end of a run of `steps` steps, or None."""
    if config.warmup_steps < steps:
        return None
    return (
        f"warning: the warm-up of {config.warmup_steps} steps is not shorter than the run of {steps} steps, so the "
        f"learning rate {config.lr:g} is never reached; set a smaller --train.warmup-steps"
    )


def about_waiting(share: float, workers: int, cpus: int) -> str | None:
    """A warning if training waited for images for a large share of the time, or None.

    workers: processes that read images. cpus: cores of this machine that the run may use.
    """
    if share <= WAITING:
        return None
    remedy = "store the images at about the size of training"
    if workers < cpus:
        remedy = f"try --workers {min(cpus, 2 * workers or 1)}, or {remedy}"
    readers = "no worker processes" if workers == 0 else f"{workers} worker process" + "es" * (workers > 1)
    return f"warning: training waits for images {share:.0%} of the time, with {readers}; {remedy}"
