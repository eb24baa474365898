"""Values that are NaN or infinite stop the run."""

import pytest
import torch

from detdistill.engine.watch import NotFiniteError, Watch

from .fakes import send_later


def test_the_message_names_step_term_and_images() -> None:
    watch = Watch()
    watch.look(6, ("x.jpg",), {"task_box": torch.tensor(1.0)})
    with pytest.raises(NotFiniteError, match=r"step 7: task_box is nan; the batch was a\.jpg, b\.jpg") as caught:
        watch.look(7, ("a.jpg", "b.jpg"), {"task_box": torch.tensor(float("nan")), "total": torch.tensor(1.0)})
    assert isinstance(caught.value, FloatingPointError)


def test_an_exempt_value_may_be_infinite() -> None:
    watch = Watch(exempt=("grad_norm",))
    watch.look(1, (), {"total": torch.tensor(2.0), "grad_norm": torch.tensor(float("inf"))})
    assert watch.settle() == {"total": 2.0, "grad_norm": float("inf")}


def test_on_a_gpu_the_values_of_a_step_are_read_during_the_next_step_or_by_settle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("detdistill.engine.watch._send", send_later)
    watch = Watch()
    watch.look(1, ("a.jpg",), {"total": torch.tensor(1.0)})
    first = watch.pending
    assert first is not None
    assert not first.arrived.is_awaited  # type: ignore[union-attr, attr-defined]
    watch.look(2, ("b.jpg",), {"total": torch.tensor(float("inf"))})
    assert first.arrived.is_awaited  # type: ignore[union-attr, attr-defined]
    assert watch.latest == {"total": 1.0}
    with pytest.raises(NotFiniteError, match=r"step 2: total is inf; the batch was b\.jpg"):
        watch.settle()
