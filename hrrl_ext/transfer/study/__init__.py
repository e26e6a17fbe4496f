"""When does a level pay, and what does it cost: many trainings, paired by seed, on many targets.

:class:`Study` works through a :class:`StudyConfig`; :func:`study_rows` and :func:`study_page` say what
has been found; :func:`write_weights` hands the networks on. See docs/study.md.
"""

from ..differences import Difference, difference, paired
from .analysis import missing_trials, study_rows
from .config import StudyConfig
from .page import page_tables, study_page
from .queue import STAGES, Study
from .weights import write_weights

__all__ = [
    "STAGES",
    "Difference",
    "Study",
    "StudyConfig",
    "difference",
    "missing_trials",
    "page_tables",
    "paired",
    "study_page",
    "study_rows",
    "write_weights",
]
