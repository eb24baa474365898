"""The graph of a detector as an ONNX file: from RGB pixels of any size to boxes, with standard operators only."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from onnxscript import opset18

from detdistill.exporting.card import ExportCard
from detdistill.exporting.onnx_opset17 import to_opset17
from detdistill.exporting.trace import Trace
from detdistill.types import MULTIPLE

OUTPUTS = ("boxes", "scores", "labels")
OPSETS = (17, 18, 19, 20, 21)  # tested
op: Any = opset18


def to_model(trace: Trace, card: ExportCard, opset: int) -> onnx.ModelProto:
    """The ONNX model of a traced detector.

    Input `images`: (B, 3, H, W) uint8, RGB. Outputs: see `Candidates.table`. The model pads the images itself.
    """
    with _quiet():
        program = torch.onnx.export(
            trace.program,
            dynamo=True,
            opset_version=max(opset, 18),  # the lowest one that torch writes
            verbose=False,
            output_names=OUTPUTS,
            custom_translation_table={
                torch.ops.detdistill.suppress.default: _suppress,
                torch.ops.aten.sort.stable: _stable_sort,
            },
        )
    assert program is not None
    model = program.model_proto
    _add_padding(model.graph, card)
    _name_batch(model.graph)
    for key, value in card.metadata().items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    if opset == 17:
        to_opset17(model)
    onnx.checker.check_model(model)
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file. ONNX allows 2 GiB for it."""
    onnx.save_model(model, str(path))


def _suppress(boxes, scores, labels, iou: float, classes: int):  # type: ignore[no-untyped-def] # read by onnxscript
    """`candidates.suppress` as NonMaxSuppression, in which a box has a score for each class: here 0 for the others."""
    one = op.Constant(value_ints=[1])
    ids = op.Reshape(
        op.Range(op.Constant(value_int=0), op.Constant(value_int=classes), op.Constant(value_int=1)),
        op.Constant(value_ints=[1, -1, 1]),
    )
    own = op.Equal(op.Unsqueeze(labels, one), ids)  # (B, K, M)
    per_class = op.Where(own, op.Unsqueeze(scores, one), op.Constant(value_float=0.0))
    kept = op.NonMaxSuppression(
        boxes,
        per_class,
        op.Constant(value_ints=[2**31 - 1]),
        op.Constant(value_floats=[iou]),
        op.Constant(value_floats=[0.0]),
    )  # (kept, 3): image, class, row
    places = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
    nothing = op.Mul(scores, op.Constant(value_float=0.0))
    return op.ScatterND(nothing, places, op.GatherND(scores, places))


def _stable_sort(values, *, stable: bool, dim: int, descending: bool):  # type: ignore[no-untyped-def]
    """`torch.sort` as TopK of ONNX, which keeps the order of equal values."""
    count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, count, axis=dim, largest=1 if descending else 0)


def _add_padding(graph: onnx.GraphProto, card: ExportCard) -> None:
    """Give the graph the one input `images` of any size, and pad it to what the traced graph reads, in place.

    The traced graph has the inputs `images`, padded, and `sizes`.
    """
    for node in graph.node:
        node.input[:] = ["canvas" if name == "images" else name for name in node.input]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "height", "width"]))
    constants = {
        "pad_axes": [2, 3],
        "pad_batch_axis": [0],
        "pad_multiple": [MULTIPLE],
        "pad_canvas": list(card.canvas),
        "pad_none": [0],
        "pad_no_starts": [0] * 6,  # of all four axes; then the ends of the first two
        "pad_one": [1],
        "pad_size_shape": [1, 2],
        "pad_canvas_shape": [0, 3, *card.canvas],
    }
    nodes = [
        helper.make_node("Shape", ["images"], ["pad_shape"]),
        helper.make_node("Gather", ["pad_shape", "pad_axes"], ["pad_size"]),  # (height, width)
        helper.make_node("Gather", ["pad_shape", "pad_batch_axis"], ["pad_count"]),
        helper.make_node("Reshape", ["pad_size", "pad_size_shape"], ["pad_row"]),
        helper.make_node("Concat", ["pad_count", "pad_one"], ["pad_rows"], axis=0),
        helper.make_node("Tile", ["pad_row", "pad_rows"], ["sizes"]),
    ]
    if card.multiple is not None:
        nodes += [
            helper.make_node("Neg", ["pad_size"], ["pad_negative"]),
            helper.make_node("Mod", ["pad_negative", "pad_multiple"], ["pad_missing"]),
            helper.make_node("Pad", ["images", "pad_missing_ends"], ["canvas"]),
        ]
    else:
        nodes += [
            helper.make_node("Sub", ["pad_canvas", "pad_size"], ["pad_difference"]),
            # Not negative, which would cut off a part of a larger image: the Reshape then fails.
            helper.make_node("Max", ["pad_difference", "pad_none"], ["pad_missing"]),
            helper.make_node("Pad", ["images", "pad_missing_ends"], ["pad_padded"]),
            helper.make_node("Reshape", ["pad_padded", "pad_canvas_shape"], ["canvas"]),
        ]
    starts = helper.make_node("Concat", ["pad_no_starts", "pad_missing"], ["pad_missing_ends"], axis=0)
    nodes.insert(-1 if card.multiple is not None else -2, starts)
    used = {name for node in nodes for name in node.input}
    tensors = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in constants.items()
        if name in used
    ]
    graph.initializer.extend(tensors)
    traced = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *traced])
    del graph.value_info[:]  # the traced shapes have other names for the sizes


def _name_batch(graph: onnx.GraphProto) -> None:
    """Name the first axis of the outputs as that of the input, in place."""
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress and the warnings of the exporter."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
