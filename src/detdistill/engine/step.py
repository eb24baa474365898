"""The gradients of one optimizer step, from one batch or from several micro-batches."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detdistill.engine.gradients import sum_of
from detdistill.engine.micro import Buffers, MicroBatches, own_buffers, split
from detdistill.recipe import TrainConfig
from detdistill.types import Batch, Detector, DetectorOutput, Targets, TrainState

if TYPE_CHECKING:
    from detdistill.engine.distillation import Distillation

Pairs = Sequence[tuple[Batch, Targets]]
Outputs = Sequence[DetectorOutput | None]


@dataclass(frozen=True)
class Step:
    """Computes the gradients of a step.

    model: the distillation, wrapped for several processes if there are any. teacher: frozen, or None.
    """

    distillation: "Distillation"
    model: nn.Module
    teacher: Detector | None
    accelerator: Accelerator
    config: TrainConfig

    def backward(self, batch: Batch, targets: Targets, state: TrainState, measure: bool) -> dict[str, Tensor]:
        """Add the gradients of the batch to the parameters. Returns the weighted terms of the whole batch, scalars.

        With `train.accumulate` N, the batch is split into N micro-batches, and the objective is the mean of theirs.
        With `train.accumulate_exact` it equals that of the large batch in the same sense in which N processes equal
        one: counts are taken over all micro-batches, and statistics of batch norms are not. measure: see
        `Distillation.forward`.
        """
        pairs = split(batch, targets, self.config.accumulate)
        if len(pairs) == 1:
            terms = self._terms(self.model, 0, pairs, self._teach(batch, state), state, measure)
            self.accelerator.backward(sum_of(terms))
            return terms
        if not self.config.accumulate_exact:
            return self._accumulate(pairs, None, state, measure, None)
        outputs = [self._teach(part, state) for part, _ in pairs]
        exchange = self._rehearse(pairs, outputs, state)
        terms = self._accumulate(pairs, outputs, state, measure, exchange)
        exchange.check()
        return terms

    def _rehearse(self, pairs: Pairs, outputs: Outputs, state: TrainState) -> MicroBatches:
        """What the micro-batches exchange, except what the last one does: it is the first to run with gradients.

        Where balances are due, gradient norms are exchanged too. These depend on all counts, so a second rehearsal,
        with gradients, records them.
        """
        exchange, last = MicroBatches(len(pairs)), len(pairs) - 1
        is_due = bool(self.distillation.due(state))
        buffers = Buffers(list(self.distillation.buffers()))
        self.distillation.rehearsing = True
        try:
            for with_gradients, count in ((False, len(pairs) if is_due else last), (True, last if is_due else 0)):
                for index in range(count):
                    with exchange.running(index), torch.set_grad_enabled(with_gradients):
                        self._terms(self.distillation, index, pairs, outputs[index], state, False)
                    buffers.restore()
        finally:
            self.distillation.rehearsing = False
        return exchange

    def _accumulate(
        self,
        pairs: Pairs,
        outputs: Outputs | None,
        state: TrainState,
        measure: bool,
        exchange: MicroBatches | None,
    ) -> dict[str, Tensor]:
        """Run every micro-batch with gradients, the last one first. outputs: of the teacher; None: computed here.

        Every micro-batch sees the buffers of methods and balances as they were before the step, as every process does.
        The norms of the student see one micro-batch after the other.
        """
        count = len(pairs)
        buffers = Buffers(own_buffers(self.distillation))
        means: dict[str, Tensor] = {}
        for place, index in enumerate((count - 1, *range(count - 1))):
            buffers.restore()
            output = outputs[index] if outputs is not None else self._teach(pairs[index][0], state)
            with exchange.running(index) if exchange else nullcontext(), self._synchronized(place == count - 1):
                terms = self._terms(self.model, index, pairs, output, state, measure)
                self.accelerator.backward(sum_of(terms) / count)
            for name, term in terms.items():
                means[name] = means.get(name, term.new_zeros(())) + term.detach() / count
        return means

    def _terms(
        self,
        model: nn.Module,
        index: int,
        pairs: Pairs,
        teacher_output: DetectorOutput | None,
        state: TrainState,
        measure: bool,
    ) -> dict[str, Tensor]:
        """The terms of micro-batch `index`, with the same random numbers in every call."""
        accelerator = self.accelerator
        set_seed(step_seed(self.config.seed, state.step, accelerator.process_index * len(pairs) + index))
        batch, targets = pairs[index]
        with accelerator.autocast():
            return model(batch, targets, teacher_output=teacher_output, state=state, measure=measure)

    def _teach(self, batch: Batch, state: TrainState) -> DetectorOutput | None:
        """The teacher's output for a batch; None if no method is active."""
        need = self.distillation.need_at(state)
        if need is None or self.teacher is None:
            return None
        with torch.no_grad(), self.accelerator.autocast():
            return self.teacher.observe(batch, need=need)

    def _synchronized(self, is_last: bool) -> AbstractContextManager[None]:
        """In this context, gradients are averaged over the processes only if `is_last`."""
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()


def step_seed(seed: int, step: int, part: int) -> int:
    """The random seed of one step. Dropout and sampling depend on it alone. part: number of the process, or of the
    micro-batch over all processes.

    So a resumed run draws the same random numbers as an uninterrupted run, and no random state has to be saved. Numbers
    that the loader or an evaluation draws have no influence.
    """
    return int(np.random.SeedSequence((seed, step, part)).generate_state(1)[0])
