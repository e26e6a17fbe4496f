"""Images, their concepts, and reproducible mini-batches."""

from .augmix import AugMix
from .batches import Augmentation, Batches
from .check_report import CheckReport, Finding, read_check
from .checking import check
from .classes import with_classes
from .concept_map import ConceptMap
from .concepts import Concepts, concepts_of, resolve_concepts
from .leaving_out import without
from .mixup import Mixup
from .sampling import GroupSampling
from .shifts import concept_shares, few_per_class, imbalance, lower_resolution
from .sources import (
    ArrayImages,
    CsvImages,
    FolderImages,
    ImageSet,
    ProductImages,
    Source,
    load_images,
)
from .unreadable import readable, unreadable
from .views import RandomErasing, RandomResizedCrop, Views, view_family

__all__ = [
    "ArrayImages",
    "AugMix",
    "Augmentation",
    "Batches",
    "CheckReport",
    "ConceptMap",
    "Concepts",
    "CsvImages",
    "Finding",
    "FolderImages",
    "GroupSampling",
    "ImageSet",
    "Mixup",
    "ProductImages",
    "RandomErasing",
    "RandomResizedCrop",
    "Source",
    "Views",
    "check",
    "concept_shares",
    "concepts_of",
    "few_per_class",
    "imbalance",
    "load_images",
    "lower_resolution",
    "read_check",
    "readable",
    "resolve_concepts",
    "unreadable",
    "view_family",
    "with_classes",
    "without",
]
