"""Sources: in memory, changed, augmented on the device, generated on the device, prefetched."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared import data

KEY = jax.random.key(0)


def keys_for(index, step=0):
    step_key = jax.random.fold_in(jax.random.key(4), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.asarray(index))


def test_arrays_hands_out_rows_by_number():
    values = np.random.default_rng(0).normal(size=(20, 3, 2))
    source = data.Arrays({"image": values, "label": np.arange(20)})
    assert isinstance(source, data.Source)
    batch = source.batch(np.array([7, 3, 7]))
    np.testing.assert_array_equal(batch["image"], values[[7, 3, 7]])
    np.testing.assert_array_equal(batch["label"], [7, 3, 7])
    assert batch["index"].dtype == np.int32
    assert batch["index"].tolist() == [7, 3, 7]
    assert "0x" not in repr(source)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no arrays"),
        ({"index": np.arange(3)}, "rename that array"),
        ({"a": np.arange(3), "b": np.arange(4)}, "differ in their number of examples"),
        ({"a": np.zeros((0, 2))}, "zero examples"),
        ({"a": np.float32(1)}, "no axis of examples"),
    ],
)
def test_arrays_refuses(arrays, message):
    with pytest.raises(ValueError, match=message):
        data.Arrays(arrays)


def test_digits_are_scikit_learns_and_every_one_is_in_one_part():
    from sklearn.datasets import load_digits

    whole = load_digits()
    train, test = data.digits(seed=3)
    assert (train.num_examples, test.num_examples) == (1437, 360)
    assert train.arrays["image"].shape == (1437, 8, 8, 1)
    assert train.arrays["image"].max() == 1
    rows = np.concatenate([part.arrays["image"].reshape(-1, 64) for part in (train, test)])
    labels = np.concatenate([part.arrays["label"] for part in (train, test)])
    ours = sorted(map(tuple, np.column_stack([rows * 16, labels]).astype(int)))
    theirs = sorted(map(tuple, np.column_stack([whole["data"], whole["target"]]).astype(int)))
    assert ours == theirs
    again, _ = data.digits(seed=3)
    np.testing.assert_array_equal(train.arrays["label"], again.arrays["label"])
    other, _ = data.digits(seed=4)
    assert (other.arrays["label"] != train.arrays["label"]).any()
    with pytest.raises(ValueError, match="test_fraction"):
        data.digits(test_fraction=1.0)


def test_a_smaller_subset_is_part_of_a_larger_one():
    source = data.Arrays({"label": np.arange(100)})
    small, large = (data.subset(source, n, seed=1).arrays["label"] for n in (10, 40))
    assert set(small) < set(large)
    assert len(set(large)) == 40
    with pytest.raises(ValueError, match="between 1 and the 100"):
        data.subset(source, 101, seed=1)


def test_label_noise_changes_the_promised_number_uniformly():
    n, classes = 30_000, 5
    labels = (np.arange(n) % classes).astype(np.int32)
    source = data.Arrays({"label": labels})
    noisy = data.with_label_noise(source, 0.3, num_classes=classes, seed=2)
    new = noisy.arrays["label"]
    assert new.dtype == np.int32
    assert (new != labels).sum() == 9000
    np.testing.assert_array_equal(noisy.arrays["clean_label"], labels)
    shifts = np.bincount((new - labels) % classes, minlength=classes)[1:]
    assert ((shifts - 2250) ** 2 / 2250).sum() < 16.3  # chi-square, 3 degrees, 1e-3
    less = data.with_label_noise(source, 0.1, num_classes=classes, seed=2).arrays["label"]
    changed = less != labels
    np.testing.assert_array_equal(less[changed], new[changed])
    everything = data.with_label_noise(source, 1.0, num_classes=classes, seed=2)
    assert (everything.arrays["label"] != labels).all()


def test_label_noise_and_subset_of_one_seed_are_independent():
    source = data.Arrays({"label": np.zeros(2000, np.int32)})
    noisy = data.with_label_noise(source, 0.5, num_classes=2, seed=0)
    share = data.subset(noisy, 1000, seed=0).arrays["label"].mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 1000)  # four standard errors


@pytest.mark.parametrize(
    ("change", "message"),
    [({"fraction": 1.5}, "fraction"), ({"num_classes": 3}, "run from 0 to 4")],
)
def test_label_noise_refuses(change, message):
    source = data.Arrays({"label": np.arange(5)})
    arguments = {"fraction": 0.1, "num_classes": 5, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        data.with_label_noise(source, arguments.pop("fraction"), **arguments)


def test_a_crop_is_one_of_the_shifts_and_each_is_as_likely():
    image = jnp.arange(1.0, 37).reshape(6, 6, 1)
    wide = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
    shifts = {(i, j): wide[i : i + 6, j : j + 6] for i in range(3) for j in range(3)}
    crop = jax.jit(jax.vmap(data.random_crop(1), (0, None)))
    keys = jax.random.split(KEY, 1800)
    made = np.asarray(crop(keys, {"image": image})["image"])
    counts = [(made == shift).all((1, 2, 3)).sum() for shift in shifts.values()]
    assert sum(counts) == 1800
    assert ((np.array(counts) - 200) ** 2 / 200).sum() < 26.1  # chi-square, 8 degrees, 1e-3


def test_a_flip_mirrors_left_and_right_with_its_probability():
    image = jnp.arange(12.0).reshape(2, 3, 2)
    flip = jax.vmap(data.random_flip(0.25), (0, None))
    made = np.asarray(flip(jax.random.split(KEY, 1600), {"image": image})["image"])
    mirrored = (made == np.asarray(image)[:, ::-1]).all((1, 2, 3))
    assert ((made == np.asarray(image)).all((1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1600)


def test_augmentation_follows_the_example_and_not_its_place():
    source = data.Augmented(
        data.digits()[0], [data.random_crop(2, mode="reflect"), data.random_flip()]
    )
    prepare = jax.jit(data.on_device(source))
    index = np.arange(16)
    whole = prepare(keys_for(index), source.batch(index))["image"]
    mixed = index[[9, 2, 14, 5]]
    part = prepare(keys_for(mixed), source.batch(mixed))["image"]
    np.testing.assert_array_equal(part, whole[mixed])
    later = prepare(keys_for(index, step=1), source.batch(index))["image"]
    assert (np.asarray(later) != np.asarray(whole)).any()


def test_augmentation_of_generated_examples_and_the_identity():
    made = data.Generated(lambda key, i: {"image": jnp.full((2, 2, 1), i)}, num_examples=5)
    double = data.Augmented(made, [lambda key, e: {**e, "image": 2 * e["image"]}])
    twice = data.Augmented(double, [lambda key, e: {**e, "image": 1 + e["image"]}])
    batch = data.on_device(twice)(keys_for([1, 4]), twice.batch(np.array([1, 4])))
    assert batch["image"][:, 0, 0, 0].tolist() == [3, 9]
    assert batch["index"].tolist() == [1, 4]
    plain = {"index": np.arange(2), "label": np.arange(2)}
    source = data.Arrays({"label": np.arange(2)})
    assert data.on_device(source)(keys_for([0, 1]), plain) == plain


@pytest.mark.parametrize("fresh", [False, True])
def test_generated_examples_depend_on_the_number_or_on_the_visit(fresh):
    source = data.teacher_student(
        lambda x: x[:1] ** 2, num_examples=8, input_size=3, key=KEY, fresh=fresh
    )
    prepare = jax.jit(data.on_device(source))
    index = np.array([5, 1])
    first, second = (prepare(keys_for(index, step), source.batch(index)) for step in (0, 1))
    assert (np.asarray(first["inputs"] == second["inputs"])).all() != fresh
    np.testing.assert_allclose(first["targets"], first["inputs"][:, :1] ** 2, rtol=1e-6)
    assert (first["inputs"][0] != first["inputs"][1]).all()


def test_gaussian_regression_has_its_two_power_laws():
    n, size = 20_000, 6
    source = data.gaussian_regression(
        num_examples=n,
        input_size=size,
        key=KEY,
        spectrum_exponent=1.5,
        target_exponent=0.5,
        noise=0.1,
    )
    arrays = source.materialize(KEY).arrays
    x, y = arrays["inputs"].astype(float), arrays["targets"][:, 0].astype(float)
    ranks = np.arange(1, size + 1)
    # A sample variance of a Gaussian has relative error sqrt(2 / n); four of them.
    np.testing.assert_allclose((x**2).mean(0), ranks**-1.5, rtol=4 * np.sqrt(2 / n))
    weights, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(np.abs(weights), ranks**-0.25, atol=0.02)
    assert abs(residual[0] / n - 0.01) < 4 * 0.01 * np.sqrt(2 / n)


def test_gaussian_classes_are_unit_gaussians_around_centres_at_the_separation():
    n = 12_000
    source = data.gaussian_classes(
        num_examples=n, num_classes=3, input_size=4, key=KEY, separation=2.0
    )
    arrays = source.materialize(KEY).arrays
    counts = np.bincount(arrays["label"], minlength=3)
    assert ((counts - n / 3) ** 2 / (n / 3)).sum() < 13.8  # chi-square, 2 degrees, 1e-3
    for label in range(3):
        x = arrays["inputs"][arrays["label"] == label]
        assert abs(np.linalg.norm(x.mean(0)) - 2) < 0.1
        np.testing.assert_allclose(np.cov(x.T), np.eye(4), atol=0.1)


def test_generated_sets_differ_by_their_key():
    first, second = (
        data.gaussian_classes(
            num_examples=4, num_classes=2, input_size=2, key=jax.random.key(i), fresh=True
        ).materialize(KEY)
        for i in (0, 1)
    )
    assert (first.arrays["inputs"] != second.arrays["inputs"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.gaussian_classes(num_examples=4, num_classes=1, input_size=2, key=KEY), "2"),
        (lambda: data.Generated(lambda key, i: {}, num_examples=0), "num_examples"),
        (
            lambda: data.gaussian_regression(
                num_examples=4, input_size=2, key=KEY, noise=float("nan")
            ),
            "noise",
        ),
        (lambda: data.random_crop(-1), "padding"),
        (lambda: data.random_flip(1.1), "probability"),
        (lambda: data.Prefetch(lambda step: step, 0, depth=0), "depth"),
    ],
)
def test_bad_arguments_of_sources_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_prefetch_keeps_the_order_and_runs_at_most_its_depth_ahead():
    started = []

    def make(step):
        started.append(step)
        return step

    with data.Prefetch(make, 3, 40, depth=2) as batches:
        time.sleep(0.2)
        assert len(started) <= 3  # two that are ready and one in the thread's hand
        assert list(batches) == list(range(3, 40))
        assert list(batches) == []


def test_prefetch_raises_what_the_reader_raised_and_ends_its_thread():
    def make(step):
        if step == 2:
            raise data.DataError("record 2 is damaged")
        return step

    batches = data.Prefetch(make, 0)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(data.DataError, match="record 2"):
        next(batches)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_prefetch_closes_while_its_queue_is_full():
    batches = data.Prefetch(lambda step: step, 0)
    time.sleep(0.1)
    batches.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    with pytest.raises(StopIteration):
        next(batches)
