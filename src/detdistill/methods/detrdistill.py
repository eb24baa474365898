"""DETRDistill: knowledge of set predictors. Chang et al., ICCV 2023, arXiv:2211.10156.

    L = instance + weight_relation relation + weight_feature feature + weight_assignment assignment
    instance   = sum over pairs of stages of  1/N [ weight_class sum over P+ of H(p_t, p_s)
                 + sum over P+ and P- of (weight_box L1 + weight_giou (1 - GIoU)) ]
    feature    = sum over levels of  1/(d H W M) sum over teacher queries i of q_i |psi_i (F_t - a(F_s))|^2,   psi_i = <F_t, Q_i>,
                 q_i = c_i^gamma IoU(box of i, best ground truth)^(1 - gamma)
    assignment = the student's own task loss of the teacher's queries, decoded by the student, under the teacher's matches with the ground truth

P+ and P-: pairs (student query, teacher query) whose teacher query answers for a ground truth, and the others, which teach boxes only, as their
class is background. N: how many both are, as in the released code; the paper names no normaliser. Both come from one matching a stage and image, at
cost H + 5 L1 - 2 GIoU, in which the class of P- does not count. H: sum over classes of the cross-entropy. c_i: best class score, Q_i: embedding of
the last decoder layer, a: a 1x1 convolution. Where student and teacher agree the class term is the entropy of the scores, boxes and features are 0,
and the assignment is the task loss of those queries.

The released code (`variant: released`, a row of `methods.presets`) has: class and box of all pairs (`pairs: joint`), boxes clipped to the image
(`clip`), one mask a stage, made of cosines (`mask: aggregated`, stages added), q = c IoU (`gamma: none`), no adapter where widths agree
(`adapter: when_needed`), the student's own matches of the teacher's queries (`assignment: student`), and a contrastive relation of paired
embeddings behind learned projections, weight 0.2, which the paper hasn't got.

Not as there: cells of the padding take no part; the teacher's queries are detached; the decoder alone runs a second time, not the encoder; a
student query without a partner has no terms (there a label of 80 for every class). The paper's weights of its three parts are not known to us: 1 each,
the released ones. Queries that a detector draws from the image (two-stage Deformable DETR, RT-DETR, D-FINE) can't be handed over:
`weight_assignment: 0` there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.geometry import focal_masks
from detdistill.losses import relation_contrast, target_aware_distance
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels, always, when_widths_differ
from detdistill.methods.shared.queries import (
    Depth,
    StagePair,
    instance_terms,
    pair_stages,
    require_queries,
    stage_places,
)
from detdistill.methods.shared.query_masks import aggregated_mask, query_mask
from detdistill.methods.shared.transfer import handed_over, require_learned, require_width
from detdistill.types import (
    Assignment,
    DetectorInfo,
    DetectorOutput,
    Layout,
    Need,
    Predictions,
    QueryPart,
    Targets,
    TrainState,
    required,
)


@dataclass(frozen=True)
class DETRDistillConfig(LevelConfig):
    """weight_class, weight_box, weight_giou: of the instance part; all 0: it is off. weight_relation, weight_feature, weight_assignment: of the
    others. stages: `all`, or the `last` of each, in the instance part and the relation. pairs: `split` as in the paper; `joint` as in the code;
    `positives` leaves P- out. mask: `query` (the paper's), `aggregated` (the code's), `box` (cells of ground truths), `off` (all cells alike).
    variant, gamma, clip, adapter, assignment: see the module's head. The others, of the feature part: see `LevelConfig`."""

    variant: Literal["paper", "released"] = "paper"
    weight_class: Weight = 1.0
    weight_box: Weight = 5.0
    weight_giou: Weight = 2.0
    weight_relation: Weight = 0.0
    weight_feature: Weight = 1.0
    weight_assignment: Weight = 1.0
    stages: Depth = "all"
    pairs: Literal["split", "joint", "positives"] = "split"
    clip: bool = False
    mask: Literal["query", "aggregated", "box", "off"] = "query"
    gamma: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    adapter: Literal["always", "when_needed"] = "always"
    assignment: Literal["teacher", "student"] = "teacher"

    @property
    def instance(self) -> tuple[float, float, float]:
        """Weights of the instance part."""
        return self.weight_class, self.weight_box, self.weight_giou

    @property
    def paired(self) -> bool:
        """A part reads pairs of queries."""
        return any(self.instance) or bool(self.weight_relation)

    @property
    def needs_truth(self) -> bool:
        """A part reads which teacher query answers for which ground truth."""
        return (self.paired and self.pairs != "joint") or (
            bool(self.weight_assignment) and self.assignment == "teacher"
        )


class DETRDistill(Method):
    """See the module's head. Its terms: `class`, `box`, `giou`, `relation`, `feature`, `assignment`."""

    name = "detrdistill"
    group = "set predictions"
    paper = "arXiv:2211.10156"
    reads = "decoder stages, queries, neck features, boxes of the ground truth"
    learns = "a 1x1 convolution a level; with a relation, two projections of the embeddings"
    gain = "Deformable DETR R50 44.1 to 46.6 (Deformable DETR R101)"
    Config = DETRDistillConfig

    def __init__(
        self,
        config: DETRDistillConfig,
        shared: SharedClasses,
        levels: PairedLevels | None,
        widths: tuple[int, int],
        parts: frozenset[QueryPart],
    ):
        """levels: of the feature part, None without it. widths: of both detectors' embeddings. parts: of queries that the student reads."""
        super().__init__()
        self.config, self.shared, self.levels, self.parts = config, shared, levels, parts
        self.projections = (
            nn.ModuleList(projection(width) for width in widths) if config.weight_relation else nn.ModuleList()
        )
        features = levels.need if levels is not None else Need()
        masked = levels is not None and config.mask in ("query", "aggregated")
        asked = bool(config.weight_assignment)
        truth = config.needs_truth
        self.need = Need(predictions=config.paired or masked or truth, queries=truth or asked) | features
        self.student_need = Need(predictions=config.paired, queries=asked) | features

    @classmethod
    def build(cls, config: DETRDistillConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have queries and share a class, and where a part that weighs something lacks what it reads."""
        require_queries(cls.name, student, teacher)
        weighs = config.paired or config.weight_feature or config.weight_assignment
        require(bool(weighs), cls.name, "all its weights are 0", "see the options of methods.detrdistill")
        unknown = [name for name in student.classes if name not in teacher.classes]
        lacking = f"the teacher's queries are matched with ground truths, and it does not know the class {''.join(unknown[:1])!r}"
        remedy = "set methods.detrdistill.pairs to joint and weight_assignment to 0"
        require(not (config.needs_truth and unknown), cls.name, lacking, remedy)
        if config.weight_assignment:
            remedy = "set methods.detrdistill.weight_assignment to 0"
            require_learned(cls.name, student, teacher, remedy)
            require_width(cls.name, student, teacher, remedy)
        levels = _levels(config, student, teacher) if config.weight_feature else None
        widths = required(student.queries).width, required(teacher.queries).width
        return cls(
            config, SharedClasses.between(cls.name, student, teacher), levels, widths, required(student.queries).parts
        )

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        config = self.config
        terms: dict[str, Tensor] = {}
        found: tuple[Assignment, ...] = ()
        if config.needs_truth:
            found = required(teacher_output.queries).match(teacher_output.stages, self.shared.targets(targets))
        if config.paired:
            pairs = self.pairs(student_output, teacher_output, found)
            parts = [instance_terms(pair, config.instance, negatives=config.pairs != "positives") for pair in pairs]
            terms |= {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
            if config.weight_relation:
                terms["relation"] = config.weight_relation * torch.stack([self.relation(pair) for pair in pairs]).sum()
        if self.levels is not None:
            sizes = teacher_output.pyramids[config.pyramid].sizes
            stages = [self.shared.of_teacher(stage) for stage in teacher_output.stages]
            levels = [
                self.feature(level, stages, targets, sizes) for level in self.levels(student_output, teacher_output)
            ]
            terms["feature"] = config.weight_feature * torch.stack(levels).sum()
        if config.weight_assignment:
            terms["assignment"] = config.weight_assignment * self.assignment(
                student_output, teacher_output, found, targets
            )
        return terms

    def pairs(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, found: Sequence[Assignment]
    ) -> list[StagePair]:
        """found: the teacher's matches with the ground truth, a stage; where the pairs are not joint, who is of P+."""
        mine = [self.shared.of_student(stage) for stage in student_output.stages]
        theirs = [self.shared.of_teacher(stage) for stage in teacher_output.stages]
        places = stage_places(len(mine), len(theirs), self.config.stages)
        classified = None if self.config.pairs == "joint" else [own.positive for own in found]
        return pair_stages(
            mine, theirs, places, teacher_output.pyramids["neck"].sizes, classified, clip=self.config.clip
        )

    def relation(self, pair: StagePair) -> Tensor:
        """(): the teacher's embeddings against those of their paired students, each side behind its projection."""
        mine, theirs = required(pair.student.embeddings), pair.of_partner(required(pair.teacher.embeddings).detach())
        return relation_contrast(self.projections[0](mine[pair.paired]), self.projections[1](theirs[pair.paired]))

    def feature(self, level: Level, stages: Sequence[Predictions], targets: Targets, sizes: Tensor) -> Tensor:
        """(): the distance on one level under the mask asked for."""
        config, shape = self.config, (level.teacher.shape[-2], level.teacher.shape[-1])
        valid = Layout((shape,), (level.stride,)).valid(sizes).unflatten(1, shape)
        if config.mask == "off":
            masks = [torch.ones_like(level.teacher[:, 0])]
        elif config.mask == "box":
            masks = [(focal_masks(targets.boxes, shape, level.stride, sizes)[0] > 0).to(level.teacher)]
        elif config.mask == "query":
            masks = [query_mask(level.teacher, stages[-1], targets, config.gamma)]
        else:
            masks = [aggregated_mask(level.teacher, stage, targets, config.gamma, valid) for stage in stages]
        return target_aware_distance(level.student, level.teacher, torch.stack(masks).sum(0), valid)

    def assignment(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        found: Sequence[Assignment],
        targets: Targets,
    ) -> Tensor:
        """(): the student's task loss on the teacher's queries. found: the teacher's matches, those that teach a stage last."""
        queries = required(student_output.queries)
        stages = queries.redecode(handed_over(required(teacher_output.queries).own, self.parts))
        if self.config.assignment == "student":
            own = queries.match(stages, targets)
        else:
            last = dict(stage_places(len(stages), len(found)))
            own = tuple(found[last[index]] for index in range(len(stages)))
        assigned = [replace(stage, assignment=matches) for stage, matches in zip(stages, own, strict=True)]
        return torch.stack(list(queries.criterion(assigned, targets).values())).sum()


def projection(width: int) -> nn.Sequential:
    """Embeddings (N, width) to what is contrasted (N, 512), as in the released code."""
    return nn.Sequential(
        nn.Linear(width, 512), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512)
    )


def _levels(config: DETRDistillConfig, student: DetectorInfo, teacher: DetectorInfo) -> PairedLevels:
    """Of the feature part. Raises UserError where no level can be paired, or the mask compares maps and queries of unlike width."""
    levels = PairedLevels.build(
        DETRDistill.name,
        config,
        student,
        teacher,
        when_widths_differ if config.adapter == "when_needed" else always,
    )
    width = teacher.channels[config.pyramid]
    queries = required(teacher.queries).width
    lacking = f"the teacher's {config.pyramid} is {width} wide, its queries {queries}"
    fits = width == queries or config.mask in ("box", "off")
    require(fits, DETRDistill.name, lacking, "set methods.detrdistill.pyramid to memory, or mask to box")
    return levels
