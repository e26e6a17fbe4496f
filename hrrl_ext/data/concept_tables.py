"""The two class hierarchies that come with the library: CIFAR-100's super-classes and ImageNet's 11
concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from ..spec import nearest
from .concept_files import csv_pairs

# The official super-classes in their official order. A class index is the rank of the class name in
# sorted order.
_CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

CIFAR100_CONCEPTS = tuple(_CIFAR100)

# Table 1 of the paper, in its order.
IMAGENET_CONCEPTS = (
    "dog",
    "bird",
    "mammal",
    "animal",
    "vehicle",
    "container",
    "device",
    "structure",
    "instrumentality",
    "artifact",
    "other",
)


def cifar100_table() -> dict[str, str]:
    """Class name → super-class, in class order."""
    return dict(
        sorted((name, concept) for concept, names in _CIFAR100.items() for name in names.split())
    )


def imagenet_table() -> dict[str, str]:
    """WordNet id → concept for the 1000 ILSVRC classes, in class order (sorted ids)."""
    table = files(__package__).joinpath("imagenet_concepts.csv").read_text(encoding="utf-8")
    return dict(csv_pairs(table))


def look_up(table: Mapping[str, str], classes: Sequence[str] | None, what: str) -> list[str]:
    """Concept name of each class [C]: by class name, or by index for a full set whose classes are
    named otherwise.

    Raises ValueError where some of the names are in the table and some are not, or where none is
    and the number of classes differs.
    """
    if classes is None:
        return list(table.values())
    unknown = [name for name in classes if name not in table]
    if not unknown:
        return [table[name] for name in classes]
    if len(unknown) == len(classes) == len(table):
        return list(table.values())
    raise ValueError(
        f"the concepts of {what} cover its {len(table)} classes; got {len(classes)}, "
        f"unknown: {nearest(unknown, table)}; for other classes write a concept file"
    )
