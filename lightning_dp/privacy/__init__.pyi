from .clipping.book_keeping import BookKeeping as BookKeeping
from .clipping.engine import ClippingEngine as ClippingEngine
from .clipping.functions import (
    Automatic as Automatic,
    ClippingFunction as ClippingFunction,
    Flat as Flat,
    PerGroup as PerGroup,
    PerLayer as PerLayer,
)
from .clipping.loop import Loop as Loop
from .clipping.materialised import Materialised as Materialised
from .clipping.one_by_one import OneByOne as OneByOne
from .grouped_moments import GroupedSecondMoments as GroupedSecondMoments, GroupedSums as GroupedSums
from .ledger.ledger import RELATION as RELATION, Ledger as Ledger
from .plan import PrivacyPlan as PrivacyPlan
from .preparation import Preparation as Preparation
from .release import (
    BoundedMean as BoundedMean,
    BoundedVariance as BoundedVariance,
    Histogram as Histogram,
    Mechanism as Mechanism,
    PublicBounds as PublicBounds,
    VectorSum as VectorSum,
    Vote as Vote,
    VoteCounts as VoteCounts,
)
from .top_k import ExponentialTopK as ExponentialTopK, GapTestedTopK as GapTestedTopK
from .units import PrivacyUnit as PrivacyUnit
