"""A graph of ONNX's operators of version 18, written with those of version 17.

torch writes version 18 or later, and ONNX's own converter does not know all operators.
"""

from typing import Any

import onnx
from onnx import NodeProto, defs, helper, numpy_helper

from detdistill.errors import UserError

NEW_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "Split": {"num_outputs": None},
}
"""Attributes of version 18 and the value with which they have no effect; None: any."""
UNCHANGED = ("ScatterElements", "ScatterND", "Pad")  # they have new options, which are checked below


def to_opset17(model: onnx.ModelProto) -> None:
    """Change a model of opset 18 in place. Raises UserError if a node has no equal in opset 17."""
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name in ("value", "value_ints"):
            value = helper.get_attribute_value(node.attribute[0])
            constants[node.output[0]] = numpy_helper.to_array(value).tolist() if hasattr(value, "dims") else list(value)
    for node in graph.node:
        if defs.get_schema(node.op_type, 18, node.domain).since_version == 18 and not _changed(node, constants):
            raise UserError(f"--opset 17: it can't express {node.op_type} as this detector needs it; use --opset 18")
    del graph.value_info[:]
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = 17


def _changed(node: NodeProto, constants: dict[str, list[int]]) -> bool:
    """Rewrite one node, in place. False if it has no equal."""
    if node.op_type.startswith("Reduce"):
        return node.op_type == "ReduceSum" or _axes_as_attribute(node, constants)
    if node.op_type in NEW_ATTRIBUTES:
        allowed = NEW_ATTRIBUTES[node.op_type]
        kept = [attribute for attribute in node.attribute if attribute.name not in allowed]
        new = [attribute for attribute in node.attribute if attribute.name in allowed]
        del node.attribute[:]
        node.attribute.extend(kept)
        is_default = all(allowed[each.name] in (None, helper.get_attribute_value(each)) for each in new)
        return is_default and not any(attribute.name == "axes" for attribute in kept)
    if node.op_type == "Pad":
        return len(node.input) < 4
    reduction = [helper.get_attribute_value(each) for each in node.attribute if each.name == "reduction"]
    return node.op_type in UNCHANGED and reduction in ([], [b"none"], [b"add"], [b"mul"])


def _axes_as_attribute(node: NodeProto, constants: dict[str, list[int]]) -> bool:
    """Turn the axes of a reduction from an input into an attribute. False if they are not constant."""
    if len(node.input) < 2 or not node.input[1]:
        return True
    if node.input[1] not in constants:
        return False
    node.attribute.append(helper.make_attribute("axes", constants[node.input[1]]))
    del node.input[1:]
    return True
