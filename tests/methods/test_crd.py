"""CRD on instances: memory updates, slots, draws, the term, resuming, and the same memory on two processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from detdistill.distributed import gather_rows
from detdistill.errors import UserError
from detdistill.losses import contrast_scores, noise_contrast, unit
from detdistill.methods.crd import CRD, CRDConfig
from detdistill.methods.crd_memory import InstanceBank
from detdistill.types import Targets, TrainState
from tests.losses.test_contrast import BANKS, VECTORS
from tests.methods.instances import info, maps, neck_output, select_images, targets
from tests.methods.pairs import built, method_inputs, pair

LABELS = [0, 1, 0], [1, 1]


def built_on(student_width: int, teacher_width: int, **options: object) -> CRD:
    """Returns the method for one-stage detectors of these widths, with a small memory."""
    torch.manual_seed(0)
    config = CRDConfig(**{"capacity": 16, "negatives": 6, "width": 8, **options})
    return CRD.build(config, info(student_width), info(teacher_width))


def call(method: CRD, step: int = 0, ids: tuple[int, ...] = (7, 9), boxes: Targets | None = None) -> torch.Tensor:
    """Returns the term for the random outputs of this step. ids: image ids."""
    state = TrainState(step, ids=torch.tensor(ids), generator=torch.Generator().manual_seed(step))
    student, teacher = neck_output(4, 2 * step, len(ids)), neck_output(6, 2 * step + 1, len(ids))
    return method(student, teacher, boxes or targets(*LABELS), state)["contrast"]


def bank_with(labels: list[int], capacity: int = 10) -> InstanceBank:
    """Returns a bank with one instance per label, of image 0, in slots 0, 1, 2, ..."""
    bank = InstanceBank(capacity, 4)
    bank.register(torch.tensor([[0, box] for box in range(len(labels))]), torch.tensor(labels))
    return bank


def test_memory_update_equals_published_numbers():
    bank = InstanceBank(50, 4).double()
    bank.vectors.copy_(torch.stack(BANKS))
    bank.write(torch.tensor([3, 7]), torch.stack(VECTORS), 0.5)
    first = [-0.7644918781084517, -0.3042630897123704, 0.15286308787553807, 0.5473655240422527]
    second = [-0.23579436884329008, -0.6589596446499967, -0.607194510569414, -0.37614894480632877]
    assert bank.vectors[0, 3].tolist() == pytest.approx(first, rel=1e-9)
    assert bank.vectors[1, 7].tolist() == pytest.approx(second, rel=1e-9)
    others = [slot for slot in range(50) if slot not in (3, 7)]
    assert torch.equal(bank.vectors[:, others], torch.stack(BANKS)[:, others])


def test_a_slot_written_twice_gets_the_mean():
    bank = InstanceBank(3, 2)
    bank.write(torch.tensor([1, 1]), torch.tensor([[[1.0, 0], [0, 1]], [[1.0, 0], [1, 0]]]), 0.0)
    assert bank.vectors[:, 1].flatten().tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 1, 0])


def test_initial_memory_is_uniform():
    bound = 1 / math.sqrt(128 / 3)
    vectors = InstanceBank(500, 128).vectors
    assert 0.99 * bound < vectors.abs().max() <= bound
    assert vectors.square().sum(-1).mean().item() == pytest.approx(1, rel=0.01)


def test_an_instance_keeps_its_slot_and_the_oldest_slots_are_reused():
    bank = InstanceBank(4, 2)

    def register(*keys: tuple[int, int]) -> tuple[list[int], list[bool]]:
        slots, new = bank.register(torch.tensor(keys), torch.tensor([image for image, _ in keys]))
        return slots.tolist(), new.tolist()

    assert register((5, 0), (5, 1), (5, 0)) == ([0, 1, 0], [True] * 3)
    assert register((6, 0), (5, 1)) == ([2, 1], [True, False])
    assert register((8, 0), (9, 0)) == ([3, 0], [True, True])  # the oldest was (5, 0)
    assert register((5, 1), (1, 1)) == ([1, 2], [False, True])  # slot 1 is next, but its instance is in the batch
    assert bank.labels.tolist() == [9, 5, 1, 8]
    assert bank.keys.tolist() == [[9, 0], [5, 1], [1, 1], [8, 0]]
    message = r"a batch has 5 instances, but the memory has 4 slots; set a larger methods\.crd\.capacity"
    with pytest.raises(UserError, match=message):
        register(*((2, box) for box in range(5)))
    slots, new = bank.register(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert len(slots) == len(new) == 0


def test_negatives_are_drawn_evenly_from_other_classes_and_the_positive_is_the_own_slot():
    bank = bank_with([2, 0, 1, 0, 2, 0])
    index = bank.draw(torch.tensor([1, 0]), 4000, False, torch.Generator().manual_seed(0))
    assert index.shape == (2, 4001) and index[:, 0].tolist() == [1, 0]
    for row, other_slots in zip(index, ([0, 2, 4], [1, 2, 3, 5]), strict=True):
        counts = row[1:].bincount(minlength=10)
        assert counts.nonzero()[:, 0].tolist() == other_slots
        assert counts[other_slots].tolist() == pytest.approx([4000 / len(other_slots)] * len(other_slots), rel=0.1)


def test_relaxed_positives_are_drawn_from_the_same_class():
    bank = bank_with([2, 0, 1, 0, 2, 0])
    index = bank.draw(torch.tensor([1, 2] * 300), 2, True, torch.Generator().manual_seed(0))
    assert index[::2, 0].bincount(minlength=10)[[1, 3, 5]].tolist() == pytest.approx([100] * 3, rel=0.3)
    assert set(index[::2, 0].tolist()) == {1, 3, 5}
    assert set(index[1::2, 0].tolist()) == {2}


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 0, 0], {0, 2}), ([0, 0], {0}), ([0], {1, 2, 3, 4, 5, 6, 7, 8, 9})]
)
def test_with_one_class_negatives_are_other_boxes(labels: list[int], expected: set[int]):
    own_slot = min(1, len(labels) - 1)
    index = bank_with(labels).draw(torch.tensor([own_slot]), 500, False, torch.Generator().manual_seed(0))
    assert set(index[0, 1:].tolist()) == expected


def test_the_first_term_is_near_twice_log_of_the_negatives_plus_one():
    # With a random memory, as published: the mean of the scores is 1 / M.
    method = built_on(4, 6, begin="random", capacity=20000, negatives=2000, width=128, weight=1.0)
    term = call(method, boxes=targets(*([0, 1] * 30, [1, 0] * 30)))
    assert term.item() == pytest.approx(2 * (math.log(2001) + 1), rel=0.15)


def test_the_term_is_the_formula_and_z_stays_fixed():
    method = built_on(4, 6, weight=0.5)
    initial = method.bank.vectors.clone()
    term = call(method)
    with torch.no_grad():
        instances = method.embeddings(neck_output(4, 0), neck_output(6, 1), targets(*LABELS))
        student_vectors = unit(method.maps[0](instances.student))
        teacher_vectors = unit(method.maps[1](instances.teacher))
    vectors = torch.stack([student_vectors, teacher_vectors])
    constants = [
        (own @ memory.t() / 0.07).exp().mean() * 16 for own, memory in zip(vectors, initial.flip(0), strict=True)
    ]
    torch.testing.assert_close(method.constants, torch.stack(constants))
    slots = torch.arange(5)  # image 7's boxes, then image 9's
    index = method.bank.draw(slots, 6, False, torch.Generator().manual_seed(0))
    memory = initial.clone()
    memory[:, :5] = vectors  # a new slot starts with the box's own vectors
    rows = [
        noise_contrast(contrast_scores(own, other, index) / constant, 16)
        for own, other, constant in zip(vectors, memory.flip(0), constants, strict=True)
    ]
    torch.testing.assert_close(term.detach(), 0.5 * (rows[0] + rows[1]).mean())
    torch.testing.assert_close(method.bank.vectors[:, :5], vectors)  # half old, half new, which are equal at first
    call(method, step=1)
    torch.testing.assert_close(method.constants, torch.stack(constants))
    assert not torch.allclose(method.bank.vectors[:, :5], vectors)
    assert torch.equal(method.bank.vectors[:, 5:], initial[:, 5:])


def test_only_the_student_and_both_maps_get_a_gradient():
    method = built_on(4, 6)
    student, teacher = neck_output(4, 0), neck_output(6, 1)
    method(student, teacher, targets(*LABELS), TrainState(ids=torch.tensor([7, 9])))["contrast"].backward()
    assert maps(student)[0].grad.abs().sum() > 0
    assert all(level.grad is None for level in maps(teacher))
    assert all(linear.weight.grad.abs().sum() > 0 for linear in method.maps)


def test_without_boxes_the_term_is_zero_and_nothing_is_stored():
    method = built_on(4, 6)
    term = call(method, boxes=targets([], []))
    term.backward()
    assert term == 0 and not method.constants.any() and (method.bank.keys == -1).all()
    assert call(method, step=1).isfinite() and method.constants.all()


def test_missing_image_ids_are_refused():
    with pytest.raises(ValueError, match=r"pass state\.ids"):
        built_on(4, 6)(neck_output(4, 0), neck_output(6, 1), targets(*LABELS))


def test_a_resumed_run_continues_bit_for_bit():
    whole = built_on(4, 6, capacity=8)  # fewer slots than boxes
    terms = [call(whole, step, ids=(step, step + 1)) for step in range(4)]
    interrupted, resumed = built_on(4, 6, capacity=8), built_on(4, 6, capacity=8)
    for step in range(2):
        call(interrupted, step, ids=(step, step + 1))
    resumed.bank.vectors.zero_()
    resumed.load_state_dict(interrupted.state_dict())
    resumed_terms = [call(resumed, step, ids=(step, step + 1)) for step in range(2, 4)]
    assert torch.equal(torch.stack(resumed_terms), torch.stack(terms[2:]))
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_draws_use_the_generator_of_the_state():
    terms = []
    for seed in (0, 0, 1):
        method, generator = built_on(4, 6), torch.Generator().manual_seed(seed)
        state = TrainState(ids=torch.tensor([7, 9]), generator=generator)
        terms.append(method(neck_output(4, 0), neck_output(6, 1), targets(*LABELS), state)["contrast"].item())
    assert terms[0] == terms[1] != terms[2]


def test_scores_do_not_overflow_in_half_precision():
    method = built_on(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(method).dtype == torch.float32
    torch.testing.assert_close(call(built_on(4, 6)), call(built_on(4, 6).double()).float())


def test_a_two_stage_pair_contrasts_one_mean_roi_embedding_per_box():
    student, teacher = pair("faster_rcnn")
    method = built("crd", student, teacher, capacity=16, negatives=6)
    torch.manual_seed(0)
    student_output, teacher_output, boxes = method_inputs(method, student, teacher)
    term = method(student_output, teacher_output, boxes, TrainState(ids=torch.tensor([3, 4])))["contrast"]
    term.backward()
    assert term > 0 and method.maps[0].weight.shape == (128, 128)
    assert method.bank.keys[:3].tolist() == [[3, 0], [3, 1], [3, 2]] and (method.bank.keys[3:] == -1).all()
    assert method.bank.labels[:3].tolist() == boxes.labels[0].tolist()
    assert student.model.roi_heads.box_head.fc7.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


# One box per image. The box of the other image is the only possible negative, so that the draw does not matter.
PAIR = targets([0], [1])


def two_steps(images: slice) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Returns the terms of two steps on these images of the pair, and the state of the method after them."""
    method, terms = built_on(4, 6), []
    for step in range(2):
        student = select_images(neck_output(4, 2 * step), images)
        teacher = select_images(neck_output(6, 2 * step + 1), images)
        state = TrainState(step, ids=torch.tensor([7, 9])[images])
        boxes = Targets(PAIR.boxes[images], PAIR.labels[images])
        terms.append(method(student, teacher, boxes, state)["contrast"].item())
    return terms, method.state_dict()


def one_of_two(rank: int, folder: str) -> None:
    """One process of two. Saves its results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    terms, state = two_steps(slice(rank, rank + 1))
    rows = gather_rows(torch.arange(3.0 * rank).view(-1, 3) + rank)
    torch.save({"terms": terms, "state": state, "rows": rows}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_store_the_same_memory_as_one(tmp_path: Path):
    processes.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    terms, state = two_steps(slice(None))
    for name, value in state.items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        torch.testing.assert_close(first["state"][name], value)
    means = [(a + b) / 2 for a, b in zip(first["terms"], second["terms"], strict=True)]
    assert means == pytest.approx(terms, rel=1e-5)
    assert first["terms"] != second["terms"]
    assert (first["rows"][0].tolist(), first["rows"][1], second["rows"][1]) == ([[1, 2, 3]], 0, 0)
