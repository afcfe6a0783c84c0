import shutil
import warnings

import jax
import jax.numpy as jnp
import pytest

from shared.checkpoint import Checkpoints, describe, digest
from shared.devices import make_devices
from shared.errors import CheckpointError


def make_state(value: float, num_devices: int = 4):
    devices = make_devices("shard_map", num_devices)
    table = jnp.arange(128.0).reshape(64, 2) + value
    return {
        "step": jnp.asarray(int(value), jnp.int32),
        "params": [jnp.full((3, 5), float(value)), jnp.linspace(0, value, 7).astype(jnp.bfloat16)],
        "nothing": (),
        "empty": jax.device_put(jnp.zeros((64, 0)), devices.sharding(split=True)),
        "table": jax.device_put(table, devices.sharding(split=True)),
    }


def targets(num_devices: int):
    devices = make_devices("shard_map", num_devices)
    state = make_state(0.0)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    split = {**jax.tree.map(lambda _: False, state), "table": True, "empty": True}
    return shapes, devices.shardings(split)


def saved(folder, steps=(1, 2, 3)):
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    for step in steps:
        checkpoints.save(step, make_state(step), {"pending": [[0.1, 1 / 3]], "step": step})
    checkpoints.close()
    return folder / "checkpoints"


def restored(folder, num_devices=4):
    checkpoints = Checkpoints(folder, keep=2)
    try:
        return checkpoints.restore(*targets(num_devices))
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("master"))


@pytest.fixture
def folder(master, tmp_path):
    return shutil.copytree(master, tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_reads_back_bit_for_bit_on_any_number_of_devices(folder, num_devices):
    found = restored(folder, num_devices)
    assert found.step == 3
    assert found.record == {"pending": [[0.1, 1 / 3]], "step": 3}
    assert digest(found.state) == digest(make_state(3))
    assert found.state["table"].sharding.num_devices == num_devices
    assert sorted(int(p.name) for p in folder.iterdir()) == [2, 3]


def test_hash_is_of_the_values_and_not_of_their_place():
    assert digest(make_state(1, 8)) == digest(make_state(1, 1))
    assert digest(make_state(1)) != digest(make_state(2))
    changed = make_state(1) | {"table": make_state(1)["table"].at[63, 1].add(1e-5)}
    before, after = describe(make_state(1)), describe(changed)
    assert [name.split(".")[1] for name in after if after[name] != before[name]] == ["table"]


def damage(file, how):
    data = file.read_bytes()
    if how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "deleted":
        file.unlink()
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])


def check_damage(master, tmp_path, name, how):
    folder = shutil.copytree(master, tmp_path / str(name).replace("/", "_") / "checkpoints")
    damage(folder / "3" / name, how)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = restored(folder)
    want = digest(make_state(found.step))
    assert digest(found.state) == want, f"{name} {how}: silently wrong"
    if found.step == 3:  # harmless: the file is not read, and nothing was changed
        assert not caught
        return "harmless"
    assert found.step == 2
    (warning,) = caught
    assert str(folder / "3" / name) in str(warning.message)
    assert "Step 2 is used instead" in str(warning.message)
    assert (folder.parent / "damaged" / "3").is_dir()
    return "detected"


def array_file(master):
    """The file that holds the values: the largest one."""
    files = [path for path in (master / "3" / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size).relative_to(master / "3")


def test_a_flipped_byte_among_values_is_found_by_their_own_hash(tmp_path):
    # Random numbers do not compress, so the byte in the middle of the largest file is one of them,
    # and Orbax reads the file without an error.
    state = {"table": jax.random.normal(jax.random.key(0), (64, 1000))}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    shardings = {"table": make_devices("shard_map", 1).sharding(split=True)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (2, 3):
        checkpoints.save(step, state, {})
    checkpoints.wait()
    damage(tmp_path / "checkpoints" / "3" / array_file(tmp_path / "checkpoints"), "flipped")
    (tmp_path / "checkpoints" / "3" / "sha256.json").unlink()
    with pytest.warns(UserWarning, match=r"values of 0000\.table are not those that were saved"):
        assert checkpoints.restore(shapes, shardings).step == 2
    checkpoints.close()


def test_a_changed_record_is_detected(folder):
    file = folder / "3" / "record" / "metadata"
    (folder / "3" / "sha256.json").unlink()
    text = file.read_text()
    assert "0.3333333333333333]" in text
    file.write_text(text.replace("0.3333333333333333]", "0.3333333333333334]"))
    with pytest.warns(UserWarning, match=r"record in .*3 was changed \(SHA-256 differs\)"):
        assert restored(folder).step == 2


@pytest.mark.parametrize("how", ["truncated", "emptied", "deleted", "flipped"])
def test_no_damage_to_any_file_is_silently_wrong(master, tmp_path, how):
    names = [p.relative_to(master / "3") for p in (master / "3").rglob("*") if p.is_file()]
    results = {str(name): check_damage(master, tmp_path, name, how) for name in names}
    assert results[str(array_file(master))] == "detected"
    assert results["record/metadata"] == "detected"


def test_saving_goes_on_after_a_fall_back(folder):
    damage(folder / "3" / array_file(folder), "flipped")
    checkpoints = Checkpoints(folder, keep=2)
    with pytest.warns(UserWarning, match="Step 2 is used instead"):
        assert checkpoints.restore(*targets(4)).step == 2
    checkpoints.save(3, make_state(3.5), {})
    checkpoints.close()
    assert digest(restored(folder).state) == digest(make_state(3.5))


def test_says_so_when_no_checkpoint_can_be_used(folder):
    for step in ("2", "3"):
        damage(folder / step / "record" / "metadata", "emptied")
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        restored(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]  # nothing was moved


def test_refuses_a_step_that_is_not_newer(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(2, make_state(2), {})
    for step in (1, 2):
        with pytest.raises(CheckpointError, match=f"checkpoint {step} would not be newer than 2"):
            checkpoints.save(step, make_state(step), {})
    checkpoints.close()


def test_refuses_a_state_of_another_shape_or_dtype(folder):
    shapes, shardings = targets(4)
    for leaf in (
        jax.ShapeDtypeStruct((3, 6), jnp.float32),
        jax.ShapeDtypeStruct((3, 5), jnp.int32),
    ):
        other = {**shapes, "params": [leaf, shapes["params"][1]]}
        checkpoints = Checkpoints(folder)
        with pytest.raises(CheckpointError, match=r"params\.0 is \('float32', \[3, 5\]\)"):
            checkpoints.restore(other, shardings)
        checkpoints.close()


def test_what_a_kill_left_behind_is_removed(folder):
    left = folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", left)
    assert restored(folder).step == 3
    assert not left.exists()


def test_keeps_two_at_least(tmp_path):
    with pytest.raises(ValueError, match="keep_checkpoints must be at least 2, got 1"):
        Checkpoints(tmp_path, keep=1)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot use .*file/checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_no_checkpoint_is_no_error(tmp_path):
    assert restored(tmp_path / "checkpoints") is None
