"""A stage of AdaMixer's decoder against a plain loop."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.detectors.adamixer.boxes import log_iof, position_embedding, to_boxes, to_xyzr
from detdistill.detectors.adamixer.decoder import Sizes, Stage
from detdistill.detectors.adamixer.mixing import mix
from detdistill.detectors.adamixer.sampling import place
from tests.detectors.adamixer.plain import plain_sample

TINY = Sizes(groups=2, in_points=3, out_points=4, heads=2, ffn=12)


def plain_stage(
    stage: Stage, content: Tensor, xyzr: Tensor, query: int, levels: list[Tensor], strides: tuple[int, ...]
) -> Tensor:
    """The new content (D,) of one query after one stage, with loops over heads and groups."""
    boxes = to_boxes(xyzr)
    placed = content + torch.stack([position_embedding(row, 8) for row in xyzr])
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        weights = stage.attention.in_proj_weight.chunk(3)
        biases = stage.attention.in_proj_bias.chunk(3)
        q, k, v = [F.linear(placed, weight[rows], bias[rows]) for weight, bias in zip(weights, biases, strict=True)]
        overlap = stage.overlap[head] * log_iof(boxes[None])[0, query]
        heads.append((k @ q[query] / math.sqrt(4) + overlap).softmax(0) @ v)
    value = stage.norms[0](placed[query] + stage.attention.out_proj(torch.cat(heads)))
    offsets = stage.sampling.offsets(value).view(2, 3, 3)
    weights = stage.mixing.generator(value).view(2, 4 * 4 + 4 * 3)
    mixed = []
    for group in range(2):
        channels = slice(4 * group, 4 * group + 4)
        samples = []
        for offset in offsets[group]:
            point = place(offset.view(1, 1, 1, 1, 3), xyzr[query].view(1, 1, 4)).flatten()
            samples.append(plain_sample(levels, strides, point, 0, channels))
        channel, spatial = weights[group, :16].view(4, 4), weights[group, 16:].view(4, 3)
        mixed.append(mix(torch.stack(samples), channel, spatial).flatten())
    value = stage.norms[1](value + stage.mixing.project(torch.cat(mixed)))
    return stage.norms[2](value + stage.feed_forward(value))


def test_a_large_overlap_parameter_limits_attention_to_overlapping_boxes():
    torch.manual_seed(0)
    stage = Stage(8, 3, TINY).eval()
    xyzr = to_xyzr(torch.tensor([[[0.0, 0, 40, 40], [10, 10, 50, 50], [100, 100, 140, 140]]]))
    content = torch.randn(1, 3, 8)
    changed = torch.cat([content[:, :2], torch.randn(1, 1, 8)], 1)
    with torch.no_grad():
        for overlap, depends in ((0.0, True), (4.0, False)):
            stage.overlap.fill_(overlap)
            difference = (stage.attend(content, xyzr) - stage.attend(changed, xyzr)).abs().amax(-1)[0]
            assert bool(difference[0] > 1e-4) is depends


def test_a_stage_equals_a_plain_loop():
    torch.manual_seed(0)
    stage = Stage(8, 3, TINY).eval()
    with torch.no_grad():  # with published initial weights nothing depends on the content
        for weight in (stage.sampling.offsets.weight, stage.mixing.generator.weight, stage.bbox_embed.weight):
            weight.normal_(std=0.2)
    levels, strides = [torch.randn(1, 8, 6, 8), torch.randn(1, 8, 3, 4)], (8, 16)
    xyzr = to_xyzr(torch.tensor([[[4.0, 6, 40, 44], [10, 2, 60, 30], [20, 20, 50, 40]]]))
    content = torch.randn(1, 3, 8)
    with torch.no_grad():
        state, logits, delta = stage(content, xyzr, levels, strides)
        for query in range(3):
            expected = plain_stage(stage, content[0], xyzr[0], query, levels, strides)
            expected_logits = stage.class_embed(stage.classify(expected))
            expected_delta = stage.bbox_embed(stage.regress(expected))
            torch.testing.assert_close(state[0, query], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[0, query], expected_logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(delta[0, query], expected_delta, rtol=1e-4, atol=1e-5)
