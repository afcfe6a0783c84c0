"""Files that tests write: read back, and refused in one line when something is wrong with them."""

import gzip
import itertools
import json
import struct

import numpy as np
import pytest

from shared import data

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(array):
    """The format by hand: two zero bytes, type, rank, big-endian sizes, big-endian values."""
    code = CODES[array.dtype.str[1:]]
    values = b"".join(
        struct.pack(">" + {8: "B", 9: "b", 11: "h", 12: "i", 13: "f", 14: "d"}[code], v)
        for v in array.ravel()
    )
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + values


def write_idx_folder(folder, *, zipped=True, sizes=(12, 5)):
    rng = np.random.default_rng(0)
    suffix, pack = (".gz", gzip.compress) if zipped else ("", bytes)
    written = []
    for part, n in zip(("train", "t10k"), sizes):
        images = rng.integers(0, 256, (n, 4, 3)).astype(np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))
        written.append((images, labels))
    return written


@pytest.mark.parametrize("dtype", CODES)
def test_idx_of_every_type(tmp_path, dtype):
    array = np.random.default_rng(1).normal(50, 20, (2, 3)).astype(dtype)
    (tmp_path / "x").write_bytes(idx_bytes(array))
    read = data.read_idx(tmp_path / "x")
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_of_idx_files(tmp_path, zipped):
    written = write_idx_folder(tmp_path, zipped=zipped)
    for source, (images, labels) in zip(data.idx_folder(tmp_path), written):
        np.testing.assert_array_equal(source.arrays["image"][..., 0], images)
        np.testing.assert_array_equal(source.arrays["label"], labels)
        assert source.arrays["image"].dtype == np.uint8
        assert source.arrays["label"].dtype == np.int32


def test_fashion_mnist_is_found_by_argument_and_by_environment(tmp_path, monkeypatch):
    write_idx_folder(tmp_path)
    monkeypatch.delenv("OPTGEN_FASHION_MNIST", raising=False)
    assert data.fashion_mnist(tmp_path)[0].num_examples == 12
    monkeypatch.setenv("OPTGEN_FASHION_MNIST", str(tmp_path))
    assert data.fashion_mnist()[1].num_examples == 5
    monkeypatch.setenv("OPTGEN_FASHION_MNIST", str(tmp_path / "nothing"))
    with pytest.raises(data.DataError, match="nothing is no folder"):
        data.fashion_mnist()


def test_fashion_mnist_of_the_operating_system(monkeypatch):
    monkeypatch.delenv("OPTGEN_FASHION_MNIST", raising=False)
    if data.find_fashion_mnist() is None:
        with pytest.raises(data.DataError, match="dataset-fashion-mnist"):
            data.fashion_mnist()
        return
    train, test = data.fashion_mnist()
    assert train.arrays["image"].shape == (60000, 28, 28, 1)
    assert np.bincount(train.arrays["label"]).tolist() == [6000] * 10
    assert np.bincount(test.arrays["label"]).tolist() == [1000] * 10
    # The mean and spread that users of the data set normalize with.
    counts = np.bincount(train.arrays["image"].ravel(), minlength=256) / (60000 * 784)
    mean = counts @ np.arange(256) / 255
    assert abs(mean - 0.2860) < 5e-5
    assert abs(np.sqrt(counts @ (np.arange(256) / 255) ** 2 - mean**2) - 0.3530) < 5e-5


def damage(kind, path):
    raw = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "truncated header":
        path.write_bytes(raw[:6])
    elif kind == "longer":
        path.write_bytes(raw + b"more")
    elif kind == "another format":
        path.write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("folder", "is a folder"),
        ("truncated", "cut short"),
        ("truncated header", "cut short inside its header"),
        ("longer", "longer than its header says"),
        ("another format", "is no IDX file"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, kind, message):
    write_idx_folder(tmp_path, zipped=False)
    path = tmp_path / "train-images-idx3-ubyte"
    damage(kind, path)
    with pytest.raises(data.DataError, match=message) as caught:
        data.idx_folder(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_zipped_idx_file_is_noticed(tmp_path):
    packed = gzip.compress(idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)))
    path = tmp_path / "x.gz"
    for length in range(len(packed)):
        path.write_bytes(packed[:length])
        with pytest.raises(data.DataError, match=r"x\.gz"):
            data.read_idx(path)


def test_idx_files_that_do_not_belong_together(tmp_path):
    write_idx_folder(tmp_path, zipped=False)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    with pytest.raises(data.DataError, match=r"12 images .* 5 labels"):
        data.idx(images, labels)
    with pytest.raises(data.DataError, match="swapped"):
        data.idx(labels, images)
    (tmp_path / "none").write_bytes(idx_bytes(np.zeros((0, 4, 4), np.uint8)))
    (tmp_path / "no labels").write_bytes(idx_bytes(np.zeros(0, np.uint8)))
    with pytest.raises(data.DataError, match="zero examples"):
        data.idx(tmp_path / "none", tmp_path / "no labels")


def test_npz_by_its_own_names_and_by_given_names(tmp_path):
    path = tmp_path / "set.npz"
    x, y = np.random.default_rng(0).normal(size=(6, 2)), np.arange(6)
    np.savez(path, x=x, label=y)
    whole = data.npz(path)
    np.testing.assert_array_equal(whole.arrays["x"], x)
    assert whole.arrays["label"].dtype == np.int32
    named = data.npz(path, {"inputs": "x"})
    assert list(named.arrays) == ["inputs"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("folder", "is a folder"),
        ("truncated", "cut short or no .npz"),
        ("another format", "npz"),
    ],
)
def test_a_damaged_npz_file_is_refused_by_name(tmp_path, kind, message):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(60, 20)))
    damage(kind, path)
    with pytest.raises(data.DataError, match=message) as caught:
        data.npz(path)
    assert str(path) in str(caught.value)


def test_npz_with_a_flipped_byte_lacking_arrays_or_with_objects(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, x=np.arange(400.0))
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1
    path.write_bytes(raw)
    with pytest.raises(data.DataError, match="CRC"):
        data.npz(path)
    np.savez(path, x=np.arange(4), empty=np.zeros((0, 2)))
    with pytest.raises(data.DataError, match=r"lacks image; it holds empty, x"):
        data.npz(path, {"image": "image"})
    with pytest.raises(data.DataError, match="differ in their number"):
        data.npz(path)
    with pytest.raises(data.DataError, match="zero examples"):
        data.npz(path, {"inputs": "empty"})
    np.savez(path, x=np.array([{}, None], dtype=object))
    with pytest.raises(data.DataError, match="Python objects"):
        data.npz(path)
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(data.DataError, match=r"no \.npz archive"):
        data.npz(tmp_path / "plain.npy")


def test_csv_for_regression_and_classification(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,class\n1,2.5,0\n-3,4e1,2\n\n")
    table = data.csv(path, target="b")
    np.testing.assert_array_equal(table.arrays["inputs"], np.float32([[1, 0], [-3, 2]]))
    np.testing.assert_array_equal(table.arrays["targets"], np.float32([[2.5], [40]]))
    classes = data.csv(path, target="class", inputs=["b", "a"], task="classification")
    np.testing.assert_array_equal(classes.arrays["inputs"], np.float32([[2.5, 1], [40, -3]]))
    assert classes.arrays["label"].dtype == np.int32
    assert classes.arrays["label"].tolist() == [0, 2]
    path.write_text("\ufeffa;b\n1;2\n", encoding="utf-8")  # as spreadsheets write it
    assert data.csv(path, target="b", delimiter=";").num_examples == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "zero examples"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields where the first line names 2"),
        ("a,b\n1,x\n", "line 2: could not convert string to float: 'x'"),
        ("a,b\n1,2\n1,nan\n", "data row 2, column 'b': nan is not finite"),
        ("a,c\n1,2\n", "has no column b; its columns are a, c"),
        ("b\n1\n", "no column of inputs"),
        ("a,a,b\n1,2,3\n", "names a column twice"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(data.DataError, match=message) as caught:
        data.csv(path, target="b")
    assert str(path) in str(caught.value)


def test_csv_refuses_fractional_classes_and_other_encodings(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3,0.5\n")
    with pytest.raises(data.DataError, match=r"data row 2: class 0\.5"):
        data.csv(path, target="b", task="classification")
    path.write_bytes("a,b\n1,é\n".encode("latin-1"))
    with pytest.raises(data.DataError, match="no UTF-8"):
        data.csv(path, target="b")
    with pytest.raises(ValueError, match="task"):
        data.csv(path, target="b", task="ranking")


def test_text_windows_cover_the_file_and_share_one_token(tmp_path):
    raw = bytes(range(65, 91)) * 4
    path = tmp_path / "book.txt"
    path.write_bytes(raw)
    train, test = data.text(path, context_length=5, test_fraction=0.25)
    assert train.num_examples == (78 - 1) // 5
    batch = train.batch(np.array([2, 0]))
    assert bytes(batch["tokens"][0].tolist()) == raw[10:16]
    assert bytes(batch["tokens"][1].tolist()) == raw[0:6]
    assert batch["tokens"].dtype == np.int32
    assert batch["index"].tolist() == [2, 0]
    assert bytes(test.batch(np.array([0]))["tokens"][0].tolist()) == raw[78:84]
    with pytest.raises(data.DataError, match="fewer than one window of 101"):
        data.text(path, context_length=100)
    with pytest.raises(data.DataError, match=r"nowhere\.txt does not exist"):
        data.text(tmp_path / "nowhere.txt", context_length=4)


WORDS = ["the", "cat", "hat", "that", "sat", "aaaa", "aaaaa", "a", "on\n", "  mat", "\té"]


def slow_byte_pairs(text, vocabulary_size):
    """Byte-pair encoding with lists and loops, as one would write it on a blackboard."""
    pieces = [bytes([b]) for b in range(256)]
    tokens, merges = list(text), []
    while len(pieces) < vocabulary_size:
        counts = {}
        for left, right in itertools.pairwise(tokens):
            if not pieces[right][:1].isspace():
                counts[left, right] = counts.get((left, right), 0) + 1
        if not counts or max(counts.values()) < 2:
            break
        best = min(pair for pair in counts if counts[pair] == max(counts.values()))
        out, i = [], 0
        while i < len(tokens):
            if tuple(tokens[i : i + 2]) == best:
                out.append(len(pieces))
                i += 2
            else:
                out.append(tokens[i])
                i += 1
        tokens = out
        merges.append(best)
        pieces.append(pieces[best[0]] + pieces[best[1]])
    return merges, tokens


def test_byte_pairs_equal_the_slow_algorithm_and_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(WORDS, 300)).encode()
    merges, tokens = slow_byte_pairs(text, 330)
    tokenizer = data.BytePairs.train(text, vocabulary_size=330)
    assert tokenizer.merges == merges
    assert tokenizer.encode(text).tolist() == tokens
    assert len(tokens) < len(text) / 2
    unseen = bytes(rng.integers(0, 256, 500).astype(np.uint8)) + b"aaa aaaa aaaaaaa"
    assert tokenizer.decode(tokenizer.encode(unseen)) == unseen
    assert tokenizer.encode(b"").tolist() == []
    tokenizer.save(tmp_path / "pairs.json")
    assert data.BytePairs.load(tmp_path / "pairs.json").merges == merges
    (tmp_path / "book").write_bytes(text)
    train, _ = data.text(tmp_path / "book", context_length=8, tokenizer=tokenizer)
    assert train.vocabulary_size == tokenizer.vocabulary_size
    assert train.tokens.max() >= 256


def test_byte_pairs_refuse_bad_files_and_sizes(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps({"merges": [[300, 1]]}))
    with pytest.raises(data.DataError, match=r"pairs\.json"):
        data.BytePairs.load(tmp_path / "pairs.json")
    (tmp_path / "pairs.json").write_text("{")
    with pytest.raises(data.DataError, match=r"pairs\.json"):
        data.BytePairs.load(tmp_path / "pairs.json")
    with pytest.raises(ValueError, match="vocabulary_size"):
        data.BytePairs.train(b"text", vocabulary_size=255)
