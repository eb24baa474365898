"""DETRDistill: distillation between set predictors. Chang et al., ICCV 2023, arXiv:2211.10156.

    L = instance + weight_relation relation + weight_feature feature + weight_assignment assignment
    instance   = sum over pairs of stages of  1/N [ weight_class sum over P+ of H(p_t, p_s)
                 + sum over P+ and P- of (weight_box L1 + weight_giou (1 - GIoU)) ]
    feature    = sum over levels of  1/(d H W M) sum over teacher queries i of q_i |psi_i (F_t - a(F_s))|^2
                 psi_i = <F_t, Q_i>,  q_i = c_i^gamma IoU(box of i, best ground truth)^(1 - gamma)
    assignment = task loss of the teacher's queries in the student's decoder, with the teacher's assignment

P+ are the pairs (student query, teacher query) whose teacher query is assigned to a ground truth. P- are the other
pairs. For P-, only the boxes are compared, because the class is background. N is the number of pairs in P+ and P-, as
in the released code; the paper gives no normalizer. P+ and P- come from one matching per stage and image. Its cost
is H + 5 L1 - 2 GIoU, without H for unassigned teacher queries. H is the cross-entropy, summed over classes. c_i is the
best class score, Q_i the embedding of the last decoder layer, a a 1x1 convolution, d the number of channels and M the
number of teacher queries. If student and teacher predict the same, the class term is the entropy of the scores, the box
and feature terms are 0, and the assignment term is the task loss of these queries.

The released code (`variant: released`, a row of `methods.presets`) compares class and box of all pairs (`pairs: joint`)
and clips boxes to the image (`clip`). Its feature term has one mask per stage, computed from cosines, and sums the
masks (`mask: aggregated`). q is c IoU (`gamma: none`), and there is no adapter if the channel counts are equal
(`adapter: when_needed`). Its assignment term uses the student's own assignment of the teacher's queries
(`assignment: student`). It adds a contrastive relation between paired embeddings after learned projections, with weight
0.2, which the paper does not have.

These points differ from the released code. Padded cells are left out. The teacher's queries are detached. Only the
decoder runs a second time, not the encoder. A student query without a partner has no terms; the released code gives it
a label of 80 for every class. We do not know the paper's weights of its three parts; 1 each is from the released code.
Queries that a detector chooses from each image (two-stage Deformable DETR, RT-DETR, D-FINE) cannot be passed to another
decoder: set `weight_assignment: 0` for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from detdistill.losses import relation_contrast, target_aware_distance
from detdistill.methods.detrdistill_masks import Mask, feature_mask
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import Level, LevelConfig, PairedLevels, always, when_channels_differ
from detdistill.methods.shared.queries import (
    StagePair,
    Stages,
    Weights,
    instance_terms,
    pair_stages,
    require_learned_queries,
    require_queries,
    require_transferable_queries,
    stage_indices,
    sum_terms,
    transferred_queries,
)
from detdistill.types import (
    Assignment,
    DetectorInfo,
    DetectorOutput,
    Layout,
    Need,
    Predictions,
    Queries,
    QueryInfo,
    QuerySet,
    Targets,
    TrainState,
    required,
)


@dataclass(frozen=True)
class DETRDistillConfig(LevelConfig):
    """variant: `paper`, or `released` for the presets of the released code.
    weight_class, weight_box, weight_giou: weights of the instance part; all 0 turns it off.
    weight_relation, weight_feature, weight_assignment: weights of the other parts; 0 turns a part off.
    stages: `all` pairs of stages, or only the `last` stage of each detector, in the instance part and the relation.
    pairs: `split` uses P+ and P- as in the paper, `joint` compares class and box of all pairs as in the released code,
        `positives` uses only P+.
    clip: clip the teacher's boxes to the image in the instance part.
    mask: mask of the feature part. `query`: the paper's. `aggregated`: the released code's. `box`: cells of ground
        truths. `off`: all cells have the same weight.
    gamma: exponent of the class score in q; none: q = c IoU.
    adapter: learn a 1x1 convolution per level of the feature part `always`, or `when_needed`: only if the channel
        counts differ.
    assignment: detector whose assignment is used in the assignment part.
    The other options, of the feature part: see `LevelConfig`.
    """

    variant: Literal["paper", "released"] = "paper"
    weight_class: Weight = 1.0
    weight_box: Weight = 5.0
    weight_giou: Weight = 2.0
    weight_relation: Weight = 0.0
    weight_feature: Weight = 1.0
    weight_assignment: Weight = 1.0
    stages: Stages = "all"
    pairs: Literal["split", "joint", "positives"] = "split"
    clip: bool = False
    mask: Mask = "query"
    gamma: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    adapter: Literal["always", "when_needed"] = "always"
    assignment: Literal["teacher", "student"] = "teacher"

    @property
    def instance_weights(self) -> Weights:
        """Weights of the instance part."""
        return self.weight_class, self.weight_box, self.weight_giou

    @property
    def uses_pairs(self) -> bool:
        """True if a part reads pairs of queries."""
        return any(self.instance_weights) or bool(self.weight_relation)

    @property
    def uses_teacher_assignment(self) -> bool:
        """True if a part reads which ground truth each teacher query is assigned to."""
        in_pairs = self.uses_pairs and self.pairs != "joint"
        return in_pairs or (bool(self.weight_assignment) and self.assignment == "teacher")

    @property
    def mask_uses_queries(self) -> bool:
        """True if the feature part compares the teacher's maps with the teacher's queries."""
        return bool(self.weight_feature) and self.mask in ("query", "aggregated")


class DETRDistill(Method):
    """See the module docstring. Terms: `class`, `box`, `giou`, `relation`, `feature`, `assignment`."""

    name = "detrdistill"
    group = "set predictions"
    paper = "arXiv:2211.10156"
    copies = "the teacher's queries: boxes and classes per stage, neck features similar to them, and assigned objects"
    requires = "queries on both sides; for the assignment part, learned queries of equal width"
    reads = "decoder stages, queries, neck features, boxes of the ground truth"
    learns = "a 1x1 convolution per level; with a relation, two projections of the embeddings"
    gain = "Deformable DETR R50 44.1 to 46.6 (Deformable DETR R101)"
    Config = DETRDistillConfig

    def __init__(
        self,
        config: DETRDistillConfig,
        shared: SharedClasses,
        levels: PairedLevels | None,
        student_queries: QueryInfo,
        teacher_queries: QueryInfo,
    ):
        """levels: for the feature part, None without it."""
        super().__init__()
        self.config, self.shared, self.levels, self.parts = config, shared, levels, student_queries.parts
        widths = (student_queries.width, teacher_queries.width) if config.weight_relation else ()
        self.projections = nn.ModuleList(projection(width) for width in widths)  # student, teacher
        feature_need = Need() if levels is None else levels.need
        reads_stages = config.uses_pairs or config.uses_teacher_assignment or config.mask_uses_queries
        decodes_again = bool(config.weight_assignment)
        reads_queries = decodes_again or config.uses_teacher_assignment
        self.need = Need(predictions=reads_stages, queries=reads_queries) | feature_need
        self.student_need = Need(predictions=config.uses_pairs, queries=decodes_again) | feature_need

    @classmethod
    def build(cls, config: DETRDistillConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if a detector has no queries, if they share no class, or if a used part lacks its input."""
        require_queries(cls.name, student, teacher)
        student_queries, teacher_queries = required(student.queries), required(teacher.queries)
        is_active = config.uses_pairs or config.weight_feature or config.weight_assignment
        require(bool(is_active), cls.name, "all its weights are 0", "see the options of methods.detrdistill")
        if config.uses_teacher_assignment:
            remedy = "set methods.detrdistill.pairs to joint and weight_assignment to 0"
            for name in student.classes:
                problem = f"the teacher does not have the class {name!r}, so its queries cannot be assigned to it"
                require(name in teacher.classes, cls.name, problem, remedy)
        if config.weight_assignment:
            remedy = "set methods.detrdistill.weight_assignment to 0"
            require_learned_queries(cls.name, student, teacher, remedy)
            require_transferable_queries(cls.name, student, teacher, remedy)
        levels = None
        if config.weight_feature:
            connect = when_channels_differ if config.adapter == "when_needed" else always
            levels = PairedLevels.build(cls.name, config, student, teacher, connect)
            channels, width = teacher.width(config.pyramid), teacher_queries.width
            problem = f"the teacher's {config.pyramid} has {channels} channels, its queries have width {width}"
            fits = channels == width or not config.mask_uses_queries
            require(fits, cls.name, problem, "set methods.detrdistill.pyramid to memory, or mask to box")
        shared = SharedClasses.between(cls.name, student, teacher)
        return cls(config, shared, levels, student_queries, teacher_queries)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        config = self.config
        assignments: tuple[Assignment, ...] = ()
        if config.uses_teacher_assignment:
            teacher_targets = self.shared.targets(targets)
            assignments = required(teacher_output.queries).match(teacher_output.stages, teacher_targets)
        terms: dict[str, Tensor] = {}
        if config.uses_pairs:
            pairs = self.paired_stages(student_output, teacher_output, assignments)
            negatives = config.pairs != "positives"
            terms |= sum_terms([instance_terms(pair, config.instance_weights, negatives) for pair in pairs])
            if config.weight_relation:
                terms["relation"] = config.weight_relation * torch.stack([self.relation(pair) for pair in pairs]).sum()
        if self.levels is not None:
            stages = [self.shared.of_teacher(stage) for stage in teacher_output.stages]
            sizes = teacher_output.pyramids[config.pyramid].sizes
            levels = self.levels(student_output, teacher_output)
            distances = [self.feature(level, stages, targets, sizes) for level in levels]
            terms["feature"] = config.weight_feature * torch.stack(distances).sum()
        if config.weight_assignment:
            student_queries, teacher_queries = required(student_output.queries), required(teacher_output.queries).own
            value = self.assignment(student_queries, teacher_queries, assignments, targets)
            terms["assignment"] = config.weight_assignment * value
        return terms

    def paired_stages(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, assignments: Sequence[Assignment]
    ) -> list[StagePair]:
        """Stages with paired queries. assignments: of each teacher stage; not read if `pairs` is joint."""
        student_stages = [self.shared.of_student(stage) for stage in student_output.stages]
        teacher_stages = [self.shared.of_teacher(stage) for stage in teacher_output.stages]
        indices = stage_indices(len(student_stages), len(teacher_stages), self.config.stages)
        is_joint = self.config.pairs == "joint"
        classified = None if is_joint else [assignment.positive for assignment in assignments]
        sizes = teacher_output.pyramids["neck"].sizes
        return pair_stages(student_stages, teacher_stages, indices, sizes, classified, clip=self.config.clip)

    def relation(self, pair: StagePair) -> Tensor:
        """Unweighted relation of one pair of stages, (): embeddings of paired queries, after the projections."""
        student_embeddings = required(pair.student.embeddings)  # (B, Q, D)
        teacher_embeddings = pair.of_partner(required(pair.teacher.embeddings).detach())  # (B, M, D) -> (B, Q, D)
        rows = pair.has_partner
        student_rows = self.projections[0](student_embeddings[rows])  # (B, Q, D) -> (n, 512)
        teacher_rows = self.projections[1](teacher_embeddings[rows])
        return relation_contrast(student_rows, teacher_rows)

    def feature(self, level: Level, stages: Sequence[Predictions], targets: Targets, sizes: Tensor) -> Tensor:
        """Unweighted feature term of one level, (). stages: the teacher's. sizes (B, 2): of the images."""
        shape = level.teacher.shape[-2], level.teacher.shape[-1]
        valid = Layout((shape,), (level.stride,)).valid(sizes).unflatten(1, shape)  # (B, H W) -> (B, H, W)
        mask = feature_mask(self.config.mask, self.config.gamma, level, stages, targets, sizes, valid)
        return target_aware_distance(level.student, level.teacher, mask, valid)

    def assignment(
        self, student: Queries, teacher: QuerySet, assignments: Sequence[Assignment], targets: Targets
    ) -> Tensor:
        """Unweighted assignment term, (). assignments: of each teacher stage; not read if `assignment` is student."""
        stages = student.redecode(transferred_queries(teacher, self.parts))
        if self.config.assignment == "student":
            assignments = student.match(stages, targets)
        else:
            # If several teacher stages are paired with a student stage, the last of them counts.
            teacher_stage = dict(stage_indices(len(stages), len(assignments)))
            assignments = [assignments[teacher_stage[index]] for index in range(len(stages))]
        assigned = [replace(stage, assignment=match) for stage, match in zip(stages, assignments, strict=True)]
        return torch.stack(list(student.criterion(assigned, targets).values())).sum()


def projection(width: int) -> nn.Sequential:
    """Projects embeddings for the relation, (N, width) to (N, 512), as in the released code."""
    return nn.Sequential(
        nn.Linear(width, 512), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512)
    )
