"""A first look, on real images that come with scikit-learn: what each level is for, in two minutes.

:mod:`.levels` learns features of digits, some of them rare, with and without either level, and shifts
what each level is for; :mod:`.groups` has groups that nobody labelled; :mod:`.show` compares, and says
what the intervals say. :mod:`.retrieval` is a first look of its own, at images and texts.
"""

from .retrieval import run_retrieval_demo
from .show import run_demo

__all__ = ["run_demo", "run_retrieval_demo"]
