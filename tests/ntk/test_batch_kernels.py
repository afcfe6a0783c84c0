"""Kernels in blocks against the same kernels at once."""

import collections
import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import ntk
from ntk._batch_store import FolderStore

Both = collections.namedtuple("Both", ["nngp", "ntk", "cov1", "cov2"])


def kernel_fn(x1, x2, get=None, scale=1.0, mask=None):
    y = x1 if x2 is None else x2
    nngp = x1 @ y.T
    if mask is not None:
        nngp = nngp * mask[0][:, None] * mask[1][None, :]
    if get == "ntk":
        return scale * jnp.exp(nngp)
    second = None if x2 is None else jnp.sum(x2**2, -1)
    return Both(nngp, jnp.sin(nngp) * scale, jnp.sum(x1**2, -1), second)


X = np.random.default_rng(0).normal(size=(13, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)


def check(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "device_count"), [(5, 0), (1, 3), (0, -1)])
def test_any_block_size_and_device_count(batch_size, device_count):
    for on_device in (True, False):
        batched = ntk.batch(kernel_fn, batch_size, device_count, on_device)
        for x1, x2 in ((X, Y), (X, None)):
            found = batched(x1, x2, None, scale=2.0)
            check(found, kernel_fn(jnp.asarray(x1), None if x2 is None else Y, None, 2.0))
            assert isinstance(found.ntk, jax.Array if on_device else np.ndarray)


def test_blocks_under_jit():
    batched = ntk.batch(kernel_fn, 4, 0)
    check(jax.jit(lambda a: batched(a, None))(X), kernel_fn(jnp.asarray(X), None))
    slope = jax.grad(lambda a: jnp.sum(batched(a, Y, "ntk")))(X)
    expected = jax.grad(lambda a: jnp.sum(kernel_fn(a, Y, "ntk")))(X)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_symmetry_halves_the_blocks():
    seen = []

    def counted(x1, x2):
        jax.debug.callback(lambda: seen.append(1))
        return x1 @ (x1 if x2 is None else x2).T

    for symmetric, expected in ((None, 10), (False, 16)):
        seen.clear()
        ntk.batch(counted, 4, 0, False, symmetric=symmetric)(X, None)
        jax.effects_barrier()
        assert len(seen) == expected


def test_pairs_of_masks_are_cut():
    masks = (np.arange(13.0, dtype=np.float32), np.arange(7.0, dtype=np.float32))
    found = ntk.batch(kernel_fn, 4, 0)(X, Y, "ntk", mask=masks)
    check(found, kernel_fn(X, Y, "ntk", mask=masks))


@pytest.mark.parametrize(("traced", "diagonal"), [((), ()), ((-1,), (0,))])
def test_empirical_kernels_in_blocks(traced, diagonal):
    w = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    function = ntk.empirical_ntk_fn(lambda w, x: jnp.tanh(x @ w), traced, diagonal)
    batched = ntk.batch(function, 5, 0)
    check(batched(X, None, w), function(X, None, w))
    if not diagonal:
        check(batched(X, Y, w), function(X, Y, w))


def test_a_killed_computation_goes_on(tmp_path, monkeypatch):
    finish = FolderStore.finish

    def killed(self, i, j):
        if self.done.sum() == 4:
            raise KeyboardInterrupt
        finish(self, i, j)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            ntk.batch(kernel_fn, 4, 0, out=tmp_path)(X, None)
    assert np.load(tmp_path / "done.npy").sum() == 4
    counted = []

    def counting(x1, x2):
        jax.debug.callback(lambda: counted.append(1))
        return kernel_fn(x1, x2)

    found = ntk.batch(counting, 4, 0, out=tmp_path)(X, None)
    jax.effects_barrier()
    assert isinstance(found.ntk, np.memmap)
    assert len(counted) == 10 - 4
    check(found, kernel_fn(jnp.asarray(X), None))
    assert json.loads((tmp_path / "about.json").read_text())["blocks"] == [4, 4]
    with pytest.raises(ValueError, match="holds another kernel"):
        ntk.batch(counting, 4, 0, out=tmp_path)(X + 1, None)


PROGRAM = """
import sys, numpy as np, jax.numpy as jnp, ntk
x = np.random.default_rng(0).normal(size=(700, 16)).astype(np.float32)
dot = lambda a, b: jnp.exp(a @ (a if b is None else b).T / 16)
ntk.batch(dot, 30, 0, out=sys.argv[1])(x, None)
"""


@pytest.mark.slow
def test_a_process_killed_at_once_resumes_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", PROGRAM]
    subprocess.run([*command, tmp_path / "whole"], check=True)
    process = subprocess.Popen([*command, tmp_path / "killed"])
    while not (tmp_path / "killed" / "about.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    while np.load(tmp_path / "killed" / "done.npy").sum() < 20:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = np.load(tmp_path / "killed" / "done.npy")
    assert 20 <= done.sum() < 300  # of 24 * 25 / 2 blocks
    subprocess.run([*command, tmp_path / "killed"], check=True)
    files = [(tmp_path / name / "kernel.npy").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_solver_factorizes_the_result_where_it_lies(tmp_path, where):
    def dot(x1, x2):
        return x1 @ (x1 if x2 is None else x2).T

    kernel = ntk.batch(dot, 5, 0, False, out=tmp_path if where == "file" else None)(X, None)
    np.einsum("ii->i", kernel)[:] += 40.0
    factor, lower = scipy.linalg.cho_factor(
        kernel.T, lower=True, overwrite_a=True, check_finite=False
    )
    assert np.shares_memory(factor, kernel)
    found = scipy.linalg.cho_solve((factor, lower), np.ones(13, np.float32))
    whole = X @ X.T + 40.0 * np.eye(13)
    np.testing.assert_allclose(whole @ found, np.ones(13), rtol=1e-4)


def test_progress_bar(capsys):
    check(ntk.batch(kernel_fn, 4, 0, progress=True)(X, Y), kernel_fn(X, Y))
    assert "8/8" in capsys.readouterr().err


def test_refusals():
    with pytest.raises(ValueError, match="batch_size must be >= 0"):
        ntk.batch(kernel_fn, -1)
    with pytest.raises(ValueError, match="device_count must be between"):
        ntk.batch(kernel_fn, 0, 1000)
    with pytest.raises(ValueError, match="same number"):
        ntk.batch(lambda x1, x2: x1[0] @ x2[0].T)((X, Y), None)
