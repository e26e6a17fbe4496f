"""ConceptMap and resolve_concepts: values counted by hand, edges, and every refusal."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages, ConceptMap, resolve_concepts

# Of the 100 official coarse labels in class order, joined by ",".
CIFAR100_SHA256 = "3a9790b7ff45ea61a5f9d5d5c798ef0e028ebce0211201a9cd93372be327536a"

ANIMALS = ConceptMap(torch.tensor([0, 0, 1]), ["animal", "vehicle"])


def image_set(target, classes=("cat", "dog", "car"), concept_map=None) -> ArrayImages:
    images = np.zeros((len(target), 4, 4), dtype=np.uint8)
    return ArrayImages(images, target, classes=classes, concept_map=concept_map, name="toys")


def test_concept_of_each_target():
    concept = ANIMALS.concept(torch.tensor([2, 0, 1, 2]))
    assert concept.tolist() == [1, 0, 0, 1]
    assert concept.dtype == torch.int64


def test_concept_of_no_target():
    assert ANIMALS.concept(torch.tensor([], dtype=torch.int64)).shape == (0,)
    assert ANIMALS.concept_count(torch.tensor([], dtype=torch.int64)).tolist() == [0, 0]


def test_concept_count_counts_images_not_classes():
    # Two of three classes are animals, but only one of five images.
    count = ANIMALS.concept_count(torch.tensor([2, 2, 2, 2, 1]))
    assert count.tolist() == [1, 4]
    assert count.dtype == torch.int64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_concept_stays_on_the_device_of_target():
    concept = ANIMALS.concept(torch.tensor([2, 0], device="cuda"))
    assert concept.device.type == "cuda"
    assert concept.tolist() == [1, 0]


@pytest.mark.parametrize("target", [[-1], [3], [0, 3]])
def test_target_outside_the_classes(target):
    with pytest.raises(IndexError, match=r"target must lie in 0\.\.2"):
        ANIMALS.concept(torch.tensor(target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_target_must_be_integers(dtype):
    with pytest.raises(TypeError, match="target must hold integers"):
        ANIMALS.concept(torch.ones(2).to(dtype))


def test_one_concept_is_legal():
    one = ConceptMap.from_names(["thing"] * 3)
    assert (one.num_classes, one.num_concepts) == (3, 1)
    assert one.concept(torch.tensor([0, 2])).tolist() == [0, 0]


def test_from_names_numbers_by_first_appearance():
    named = ConceptMap.from_names(["vehicle", "animal", "vehicle"])
    assert named.names == ["vehicle", "animal"]
    assert named.class_to_concept.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("ids", "names", "error", "message"),
    [
        ([0, -1], ["a", "b"], ValueError, r"in 0\.\.1, got -1 at position 1"),
        ([0, 2], ["a", "b"], ValueError, r"in 0\.\.1, got 2 at position 1"),
        ([0, 2], ["a", "b", "c"], ValueError, "no class belongs to concept 'b'"),
        ([0, 0], ["a", "b"], ValueError, "no class belongs to concept 'b'"),
        ([0, 1], ["a", "a"], ValueError, "names must be unique"),
        ([0, 1], ["a", ""], ValueError, "names must be unique and not empty"),
        ([0], [], ValueError, "names must be unique and not empty"),
        ([[0, 1]], ["a", "b"], ValueError, r"must have shape \[N\], got \[1, 2\]"),
        ([0.0, 1.0], ["a", "b"], TypeError, "must be an int64 tensor, got torch.float32"),
    ],
)
def test_illegal_maps(ids, names, error, message):
    with pytest.raises(error, match=message):
        ConceptMap(torch.tensor(ids), names)


@pytest.mark.parametrize("ids", [torch.tensor([0, 1], dtype=torch.int32), np.array([0, 1]), [0, 1]])
def test_only_int64_tensors(ids):
    with pytest.raises(TypeError, match="int64 tensor"):
        ConceptMap(ids, ["a", "b"])


def test_from_names_refuses_one_string():
    with pytest.raises(TypeError, match="list of names"):
        ConceptMap.from_names("animal")


def test_map_owns_its_content():
    ids, names = torch.tensor([0, 1]), ["a", "b"]
    concepts = ConceptMap(ids, names)
    ids[0], names[0] = 1, "changed"
    assert concepts.class_to_concept.tolist() == [0, 1]
    assert concepts.names == ["a", "b"]


def test_equality_and_hash():
    same = ConceptMap.from_names(["animal", "animal", "vehicle"])
    assert same == ANIMALS
    assert hash(same) == hash(ANIMALS)
    assert ConceptMap(torch.tensor([0, 1, 1]), ANIMALS.names) != ANIMALS
    assert ConceptMap(ANIMALS.class_to_concept, ["animal", "car"]) != ANIMALS
    assert ANIMALS != "animal"


def test_cifar100_super_classes():
    concepts = ConceptMap.cifar100()
    assert (concepts.num_classes, concepts.num_concepts) == (100, 20)
    assert concepts.class_to_concept.bincount().tolist() == [5] * 20
    assert concepts.names[:2] == ["aquatic_mammals", "fish"]
    # Known ids of the official coarse labels: apple, aquarium_fish, baby, ..., woman, worm.
    assert concepts.class_to_concept[[0, 1, 2, 98, 99]].tolist() == [4, 1, 14, 14, 13]
    digest = hashlib.sha256(",".join(map(str, concepts.class_to_concept.tolist())).encode())
    assert digest.hexdigest() == CIFAR100_SHA256


def test_cifar100_by_name_in_any_order_and_selection():
    concepts = ConceptMap.cifar100(["worm", "apple", "bear", "pear"])
    # In the official order of the super-classes, without those that have no class here.
    assert concepts.names == [
        "fruit_and_vegetables",
        "large_carnivores",
        "non-insect_invertebrates",
    ]
    assert concepts.class_to_concept.tolist() == [2, 0, 1, 0]


def test_cifar100_by_index_where_all_names_are_foreign():
    assert ConceptMap.cifar100([str(i) for i in range(100)]) == ConceptMap.cifar100()


@pytest.mark.parametrize("classes", [["apple", "bannana"], [str(i) for i in range(99)]])
def test_cifar100_refuses_other_classes(classes):
    with pytest.raises(ValueError, match="CIFAR-100 cover its 100 classes"):
        ConceptMap.cifar100(classes)


def test_resolve_the_map_that_the_images_carry():
    concept, names = resolve_concepts(None, image_set([2, 0, 1], concept_map=ANIMALS))
    assert concept.tolist() == [1, 0, 0]
    assert concept.dtype == torch.int64
    assert names == ["animal", "vehicle"]


def test_resolve_none_without_a_map_says_what_may_be_given():
    with pytest.raises(ValueError, match='toys carries none of its own; give "classes"'):
        resolve_concepts(None, image_set([0, 1, 2]))


def test_resolve_classes():
    concept, names = resolve_concepts("classes", image_set([2, 0, 1, 2]))
    assert concept.tolist() == [2, 0, 1, 2]
    assert names == ["cat", "dog", "car"]


def test_resolve_a_map_and_a_file(tmp_path):
    images = image_set([2, 0, 1])
    assert resolve_concepts(ANIMALS, images)[0].tolist() == [1, 0, 0]
    path = tmp_path / "concepts.csv"
    path.write_text("class,concept\ncar,vehicle\ncat,animal\ndog,animal\n")
    for given in (path, str(path)):
        concept, names = resolve_concepts(given, images)
        assert concept.tolist() == [0, 1, 1]
        assert names == ["vehicle", "animal"]


def test_resolve_builtin_tables():
    cifar = image_set([0, 1, 2], classes=["worm", "apple", "bear"])
    assert resolve_concepts("cifar100", cifar)[0].tolist() == [2, 0, 1]
    wnids = image_set([0, 1], classes=["n03791053", "n02085620"])  # motor scooter, chihuahua
    concept, names = resolve_concepts("imagenet", wnids)
    assert [names[k] for k in concept] == ["vehicle", "dog"]


@pytest.mark.parametrize(
    "ids", [[1, 0, 1], np.array([1, 0, 1], dtype=np.uint8), torch.tensor([1, 0, 1])]
)
def test_resolve_an_id_per_example(ids):
    concept, names = resolve_concepts(ids, image_set([0, 1, 2]))
    assert concept.tolist() == [1, 0, 1]
    assert concept.dtype == torch.int64
    assert names == ["0", "1"]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 1], ValueError, r"shape \[3\], one entry per image, got \[2\]"),
        ([0, -1, 0], ValueError, "got -1 at position 1"),
        ([0, 10**12, 1], ValueError, r"in 0\.\.2, got 1000000000000"),
        ([0, 2, 0], ValueError, "no example of concept '1'"),
        ([0.0, 1.0, 0.0], TypeError, "must hold integers"),
        ([True, False, True], TypeError, "must hold integers, got bool"),
        (["a", "b", "a"], TypeError, "must hold integers"),
    ],
)
def test_resolve_refuses_ids(ids, error, message):
    with pytest.raises(error, match=message):
        resolve_concepts(ids, image_set([0, 1, 2]))


def test_resolve_names_a_concept_without_examples():
    images = image_set([0, 1, 0])  # no car
    with pytest.raises(ValueError, match=r"no example of concept 'vehicle'.*N/N_k"):
        resolve_concepts(ANIMALS, images)
    with pytest.raises(ValueError, match="no example of concept 'car'"):
        resolve_concepts("classes", images)


def test_resolve_needs_a_map_of_these_classes():
    with pytest.raises(ValueError, match="the map has 3 classes, toys has 2"):
        resolve_concepts(ANIMALS, image_set([0, 1], classes=["cat", "dog"]))


def test_resolve_unknown_word():
    with pytest.raises(FileNotFoundError, match=r"'imagnet' is no file; give .*\"imagenet\""):
        resolve_concepts("imagnet", image_set([0, 1, 2]))


@pytest.mark.parametrize("concepts", ["classes", [], ANIMALS])
def test_resolve_without_images(concepts):
    with pytest.raises(ValueError, match="has no images"):
        resolve_concepts(concepts, image_set([]))
