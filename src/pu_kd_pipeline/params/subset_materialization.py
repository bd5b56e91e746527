"""The block `subset_materialization`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.learning.selection_criteria import CRITERIA
from pu_kd_pipeline.learning.selection_size import SHOWINGS
from pu_kd_pipeline.params.base import SEEDS, Block, OpenShare, Share
from pu_kd_pipeline.params.names import one_of


class MixtureParams(Block):
    """Option block of the rule `mixture`: which images are related, and how long they prevail."""

    score: Literal["pu_score", "teacher_log_odds"] = Field(
        "pu_score",
        description="larger means more related: pu_score of the PU classifier, or teacher_log_odds "
        "of the teacher's class, for which a comparison trains no PU classifier",
    )
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="share of the pool, by rank, in which the probability of a related draw falls "
        "by a factor of e; about twice this share of the pool is drawn often. null: half of the "
        "class prior, the largest one of its readings; 0.05 in a comparison that ranks by "
        "teacher_log_odds, which estimates none",
    )
    first: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="share of related images among the pool images of the first batches"
    )
    max_repeats: float = Field(
        150.0,
        gt=0,
        description="how often a related image is shown at most in the whole training, on average "
        "over the related draws: the share of related images falls so far that this holds",
    )


class RetrievedParams(Block):
    """Option block of the rule `retrieved`: in which space images are near, and when copies."""

    space: Literal["descriptor", "probability"] = Field(
        "descriptor",
        description="cosine of the teacher's standardized descriptors, or of its probabilities, "
        "which are enough for many classes and cheaper",
    )
    n_clusters: int = Field(
        100, ge=1, description="k-means clusters of the pool that give equally many images"
    )
    duplicate_cosine: float = Field(
        0.98,
        gt=0,
        description="images at least this similar to the labeled image, or to another one that was "
        "retrieved for it, are skipped as copies; above 1: none",
    )


class RollingParams(Block):
    """Option block of the rule `rolling`: how often, and on how many images, it is measured."""

    n_phases: int = Field(
        5,
        ge=2,
        description="equal parts of the training; the student is measured before each "
        "but the first",
    )
    n_sampled: int = Field(
        4096, ge=1, description="random pool images that teacher and student answer each time"
    )
    uniform_share: Share = Field(
        0.25, description="share of the draws that is uniform over the kept images"
    )


class SubsetParams(Block):
    """The block `subset_materialization`: which pool images are kept."""

    seed: int = Field(ge=0, lt=SEEDS, description="of every draw, and of ties between scores")
    rule: Annotated[str, one_of(RULES)] = Field(
        description="which pool images are kept, and how often each is drawn: docs/methods.md"
    )
    criterion: Annotated[str, one_of(CRITERIA)] = Field(
        description="nnpu only. sign: score > 0; quantile: the top class_prior share, with a "
        "flagged class prior the top `budget`; "
        "precision: down to target_precision; budget: the top `budget`"
    )
    budget: int | None = Field(
        gt=0,
        description="most pool images kept; null: rules that cut by a number keep as many as "
        "`showings` gives, the criteria sign, quantile and precision what passes, and other rules "
        "the whole pool",
    )
    showings: float = Field(
        SHOWINGS,
        gt=0,
        description="without a budget, how often the training shows each image of a rule that cuts "
        "by a number: n_updates x batch_size x (1 - labeled_share) / showings images are kept, at "
        "most the pool",
    )
    target_precision: OpenShare = Field(
        description="criterion precision: lowest estimated precision of the subset"
    )
    exclude_test_duplicates: bool = Field(
        True,
        description="leave pool and labeled images out of every manifest "
        "that are copies of test images",
    )

    # Option blocks of the rules. Those of rules that are not chosen may be present.
    mixture: MixtureParams = MixtureParams()
    retrieved: RetrievedParams = RetrievedParams()
    rolling: RollingParams = RollingParams()

    @property
    def reads_pu_score(self) -> bool:
        """Whether a PU classifier has to be trained for the rule."""
        return RULES[self.rule].reads_pu_score and self.ranked_by != "teacher_log_odds"

    @property
    def ranked_by(self) -> str | None:
        """The score that the rule ranks by; None: by no score, see `Rule.ranked_by`."""
        if RULES[self.rule].options == "mixture":
            return self.mixture.score
        return RULES[self.rule].ranked_by

    def unread_option_blocks(self) -> set[str]:
        """Return the option blocks that only other rules read."""
        blocks = {record.options for record in RULES.values() if record.options is not None}
        return blocks - {RULES[self.rule].options}
