"""Records on disk behind the same interface: Grain, ArrayRecord, and what TFDS prepares."""

import io
import json

import numpy as np
import pytest

from shared import data

grain = pytest.importorskip("grain", reason="needs the extra 'data'")
array_record_module = pytest.importorskip(
    "array_record.python.array_record_module", reason="needs the extra 'data'"
)


def write_records(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def decode_json(record):
    values = json.loads(record)
    return {"inputs": np.array(values["x"], np.float32), "label": np.int32(values["y"])}


@pytest.fixture
def record_files(tmp_path):
    rows = [{"x": [i, i / 2], "y": i % 3} for i in range(11)]
    packed = [json.dumps(row).encode() for row in rows]
    write_records(tmp_path / "set.array_record-00000-of-00002", packed[:7])
    write_records(tmp_path / "set.array_record-00001-of-00002", packed[7:])
    return tmp_path / "set.array_record-*"


@pytest.mark.parametrize("num_threads", [0, 2])
def test_array_record_files_give_what_arrays_give(record_files, num_threads):
    source = data.array_record(record_files, decode_json, num_threads=num_threads)
    assert isinstance(source, data.Source)
    assert source.num_examples == 11
    memory = data.Arrays(
        {
            "inputs": np.stack([np.arange(11), np.arange(11) / 2], axis=1).astype(np.float32),
            "label": np.arange(11, dtype=np.int32) % 3,
        }
    )
    index = np.array([10, 0, 6, 7])
    ours, theirs = source.batch(index), memory.batch(index)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
        assert ours[name].dtype == theirs[name].dtype


def test_array_record_refuses_missing_empty_and_damaged_files(tmp_path):
    with pytest.raises(data.DataError, match="no file matches"):
        data.array_record(tmp_path / "nothing*", decode_json)
    with pytest.raises(data.DataError, match="does not exist"):
        data.array_record([tmp_path / "nothing"], decode_json)
    path = tmp_path / "x.array_record"
    path.write_bytes(b"")
    with pytest.raises(data.DataError, match=r"x\.array_record is empty"):
        data.array_record(path, decode_json)
    write_records(path, [])
    with pytest.raises(data.DataError, match="zero examples"):
        data.array_record(path, decode_json)


def test_a_cut_array_record_file_is_noticed(tmp_path):
    path = tmp_path / "x.array_record"
    rng = np.random.default_rng(0)
    write_records(path, [rng.bytes(5000) for _ in range(60)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def read_all():
        source = data.array_record(path, lambda record: {"x": np.frombuffer(record, np.uint8)})
        return source.batch(np.arange(source.num_examples))

    with pytest.raises(data.DataError, match=r"x\.array_record"):
        read_all()


def test_examples_that_disagree_are_named():
    records = [{"x": np.zeros(2)}, {"x": np.zeros(3)}]
    with pytest.raises(data.DataError, match=r"'x' \(shapes \[\(2,\), \(3,\)\]\)"):
        data.RandomAccess(records).batch(np.array([0, 1]))


def test_a_grain_data_set_is_a_source():
    records = grain.MapDataset.range(20).map(lambda i: {"inputs": np.float32([i, -i])})
    batch = data.RandomAccess(records, num_threads=2).batch(np.array([3, 17]))
    np.testing.assert_array_equal(batch["inputs"], [[3, -3], [17, -17]])
    assert batch["index"].tolist() == [3, 17]


def test_grain_reads_the_loops_batches_and_resumes_in_the_middle():
    source = data.Arrays({"label": np.arange(50)})
    batches = data.grain_batches(source, seed=3, batch_size=8, num_epochs=2)
    assert len(batches) == 12
    for step in (0, 5, 6, 11):
        index = data.batch_index(3, step, num_examples=50, batch_size=8)
        np.testing.assert_array_equal(batches[step]["index"], index)
        np.testing.assert_array_equal(batches[step]["label"], index)
    iterator = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0)))
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    following = [next(iterator)["index"] for _ in range(3)]
    iterator.set_state(state)
    for expected in following:
        np.testing.assert_array_equal(next(iterator)["index"], expected)


def example_class():
    """tf.train.Example built by the protobuf library from its published definition."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name, *fields, owner=None):
        made = (owner.nested_type if owner else file.message_type).add(name=name)
        for field_name, number, kind, label, type_name in fields:
            added = made.field.add(name=field_name, number=number, type=kind, label=label)
            if type_name:
                added.type_name = type_name
        return made

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", ("value", 1, field.TYPE_BYTES, many, ""))
    message("FloatList", ("value", 1, field.TYPE_FLOAT, many, ""))
    message("Int64List", ("value", 1, field.TYPE_INT64, many, ""))
    feature = message(
        "Feature",
        ("bytes_list", 1, field.TYPE_MESSAGE, one, ".t.BytesList"),
        ("float_list", 2, field.TYPE_MESSAGE, one, ".t.FloatList"),
        ("int64_list", 3, field.TYPE_MESSAGE, one, ".t.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = message("Features", ("feature", 1, field.TYPE_MESSAGE, many, ".t.Features.Entry"))
    entry = message(
        "Entry",
        ("key", 1, field.TYPE_STRING, one, ""),
        ("value", 2, field.TYPE_MESSAGE, one, ".t.Feature"),
        owner=features,
    )
    entry.options.map_entry = True
    message("Example", ("features", 1, field.TYPE_MESSAGE, one, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def test_a_prepared_tfds_folder_is_read_without_tfds(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    numbers = rng.normal(size=(5, 2, 2)).astype(np.float32)
    Example = example_class()
    records = []
    for i, (pixels, number) in enumerate(zip(images, numbers)):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        example = Example()
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        example.features.feature["label"].int64_list.value.append(i)
        example.features.feature["matrix"].float_list.value.extend(number.ravel())
        example.features.feature["offsets"].int64_list.value.extend([-i, 2**40])
        example.features.feature["name"].bytes_list.value.append(b"no array")
        records.append(example.SerializeToString())
    write_records(tmp_path / "small-train.array_record-00000-of-00001", records)
    kinds = {
        "image": {"image": {"shape": {"dimensions": ["4", "6", "3"]}, "dtype": "uint8"}},
        "label": {"classLabel": {"numClasses": "5"}},
        "matrix": {"tensor": {"shape": {"dimensions": ["2", "2"]}, "dtype": "float32"}},
        "offsets": {"tensor": {"shape": {"dimensions": ["2"]}, "dtype": "int64"}},
        "name": {"text": {}},
    }
    features = tmp_path / "features.json"
    features.write_text(json.dumps({"featuresDict": {"features": kinds}}))
    source = data.tfds(tmp_path, "train")
    batch = source.batch(np.array([4, 1]))
    np.testing.assert_array_equal(batch["image"], images[[4, 1]])
    assert batch["label"].tolist() == [4, 1]
    np.testing.assert_array_equal(batch["matrix"], numbers[[4, 1]])
    assert batch["offsets"].tolist() == [[-4, 2**40], [-1, 2**40]]
    assert "name" not in batch
    with pytest.raises(data.DataError, match="no records of split 'test', but small-train"):
        data.tfds(tmp_path, "test")
    kinds["video"] = {"pythonClassName": "Video"}
    features.write_text(json.dumps({"featuresDict": {"features": kinds}}))
    with pytest.raises(data.DataError, match=r"'video' \(Video\) has no decoder"):
        data.tfds(tmp_path, "train")
    features.write_text("{")
    with pytest.raises(data.DataError, match=r"features\.json is damaged"):
        data.tfds(tmp_path, "train")
