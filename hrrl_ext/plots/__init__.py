"""Pictures of a run: the loss, what the adversary did, and what it did to each concept.

They are drawn from the rows of metrics.jsonl, without the model and the data; those of a clustering
from it and its images, the noise of gradients from the rows of a VarianceRecorder, and certified
accuracy from certificates of linear classifiers, what a search found from its images.
"""

from .certified import plot_certified
from .contact_sheet import plot_check, plot_contact_sheet, plot_found
from .gradients import plot_clusters, plot_variances
from .runs import plot_errors, plot_histories, plot_runs, read_history

__all__ = [
    "plot_certified",
    "plot_check",
    "plot_clusters",
    "plot_contact_sheet",
    "plot_errors",
    "plot_found",
    "plot_histories",
    "plot_runs",
    "plot_variances",
    "read_history",
]
