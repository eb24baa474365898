"""An ONNX graph whose layers compute in half precision.

Convolutions and matrix products with weights read and write half-precision numbers, and their weights are stored so.
Norms, softmax, attention, boxes and suppression stay in single precision. Operations between two layers that can't
enlarge a number stay in half precision, so that it is not converted back and forth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from detdistill.exporting.onnx_layers import largest, layers

LARGEST = 65504 / 4  # of half precision; a quarter of it, because other images can have larger values
BETWEEN = ("Relu", "MaxPool", "Concat")


def to_half(model: onnx.ModelProto, images: Sequence[Tensor]) -> int:
    """Change a simplified model in place. Returns the number of layers that stay in single precision.

    images: (3, H, W) uint8. A layer stays in single precision if a weight, or an input or output of it for these
    images, is too large for half precision.
    """
    graph = model.graph
    found = layers(graph)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = list(dict.fromkeys(name for node in found for name in (node.input[0], node.output[0])))
    peaks = largest(model, names, images)
    peaks |= {name: float(np.abs(values[name]).max(initial=0)) for node in found for name in node.input[1:] if name}
    chosen = [node for node in found if all(peaks[name] <= LARGEST for name in (*node.input, node.output[0]) if name)]
    _rewrite(graph, {node.output[0] for node in chosen})
    onnx.checker.check_model(model)
    return len(found) - len(chosen)


@dataclass
class _Rewriter:
    """The new nodes and weights of a graph. half: name of the tensor in half precision, by its name in single."""

    weights: dict[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    half: dict[str, str] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)

    def read(self, name: str) -> str:
        """The tensor in half precision; it is converted at its first use."""
        if name and name not in self.half:
            self.half[name] = f"{name}_half"
            if name in self.weights:
                value = numpy_helper.to_array(self.weights[name]).astype(np.float16)
                self.weights[self.half[name]] = numpy_helper.from_array(value, self.half[name])
            else:
                self.nodes.append(helper.make_node("Cast", [name], [self.half[name]], to=TensorProto.FLOAT16))
        return self.half.get(name, name)

    def compute(self, node: NodeProto) -> None:
        """Add the node in half precision, and the conversion of its output."""
        name = node.output[0]
        node.input[:] = [self.read(each) for each in node.input]
        node.output[0] = self.half[name] = f"{name}_half"
        self.computed.add(name)
        self.nodes += [node, helper.make_node("Cast", [node.output[0]], [name], to=TensorProto.FLOAT)]


def _rewrite(graph: onnx.GraphProto, chosen: set[str]) -> None:
    """Convert the nodes with these outputs, in place, and drop what is not used any more."""
    rewriter = _Rewriter({tensor.name: tensor for tensor in graph.initializer})
    for node in list(graph.node):
        is_between = node.op_type in BETWEEN and len(node.output) == 1 and rewriter.computed.issuperset(node.input)
        if node.output[0] in chosen or is_between:
            rewriter.compute(node)
        else:
            rewriter.nodes.append(node)
    used = {output.name for output in graph.output}
    nodes = []
    for node in reversed(rewriter.nodes):
        if used & set(node.output):
            nodes.append(node)
            used |= set(node.input)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensor for name, tensor in rewriter.weights.items() if name in used)
