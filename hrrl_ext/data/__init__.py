"""Images, their concepts, and reproducible mini-batches."""

from hrrl_ext.data.batches import Augmentation, Batches
from hrrl_ext.data.concepts import ConceptMap, Concepts, resolve_concepts
from hrrl_ext.data.shifts import imbalance, lower_resolution
from hrrl_ext.data.sources import ArrayImages, FolderImages, ImageSet, Source, load_images

__all__ = [
    "ArrayImages",
    "Augmentation",
    "Batches",
    "ConceptMap",
    "Concepts",
    "FolderImages",
    "ImageSet",
    "Source",
    "imbalance",
    "load_images",
    "lower_resolution",
    "resolve_concepts",
]
