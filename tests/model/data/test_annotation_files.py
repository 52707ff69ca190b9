"""Annotation files, pickles and folders that are wrong: each complaint names the place, and nothing is executed."""

import os
import pickle

import pytest
from dataset_support import dump, make, place, write_video

from model.data.annotation_files import read_csv, read_ids, read_json
from model.data.dataset import DatasetError, VideoFolder
from model.data.msvd import read_plain_pickle


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", seconds=4)


def test_a_wrong_row_of_a_csv_is_named(tmp_path):
    file = tmp_path / "x.csv"
    for content, complaint in (
        ("a,b\n1,2\n1\n", r"x\.csv:3: the row has not 2 fields"),
        ("a,b\n1,2,3\n", r"x\.csv:2: the row has not 2 fields"),
        ("a,c\n1,2\n", r"x\.csv:1: there is no column b"),
        ("", r"x\.csv:1: there is no column a, b"),
        ("a,b\n", "lists no videos"),
        ('a,b\n1,"2\n', r"x\.csv:2: not readable"),
        ("a,b\n1,\x00\n", None),
    ):
        file.write_text(content, encoding="utf-8")
        if complaint is None:
            assert read_csv(file, ("a", "b"))[0][1]["b"] == "\x00"
            continue
        with pytest.raises(DatasetError, match=complaint):
            read_csv(file, ("a", "b"))
    file.write_bytes(b"a,b\n1,\xff\n")
    with pytest.raises(DatasetError, match=r"x\.csv:2: not UTF-8"):
        read_csv(file, ("a", "b"))
    file.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert read_csv(file, ("a", "b")) == [(f"{file}:2", {"a": "1", "b": "2"})]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("{\n\n", r"x\.json:3: not JSON"),
        ("[" * 100000, "nested too deeply"),
    ],
)
def test_wrong_json_is_named(tmp_path, content, complaint):
    file = tmp_path / "x.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=complaint):
        read_json(file)


def test_a_repeated_id_is_named(tmp_path):
    (tmp_path / "x.txt").write_text("a\n\nb\r\na", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"x\.txt:4: a is listed a second time, first at .*x\.txt:1"):
        read_ids(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match=r"docs/datasets\.md"):
        read_ids(tmp_path / "absent.txt")


def spoil(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "file", "old", "new", "complaint"),
    [
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video_id", "video", r"test\.csv:1: there is no column video_id"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video9998,", "video9999,", r"test\.csv:3: video9999 is listed"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", '"test of video9999, quoted"', '" "', r"test\.csv:2: the caption is"),
        ("lsmdc", "LSMDC16_challenge_1000_publictect.csv", "\t0\t1", "\t1", r"publictect\.csv:1: 5 fields"),
        (
            "lsmdc",
            "LSMDC16_challenge_1000_publictect.csv",
            "0001_Film_test_00.00.01",
            "0000_Film_test_00.00.00",
            r"ect\.csv:2: .*a second time",
        ),
        ("lsmdc", "LSMDC16_challenge_1000_publictect.csv", "0001_", "\t0_", r"ect\.csv:2: 7 fields"),
        ("activitynet", "val_1.json", '"duration": 2.5', '"duration": NaN', r"v_test0: the duration is nan"),
        ("activitynet", "val_1.json", '"duration": 2.5', '"duration": true', r"v_test0, duration: expected a float"),
        ("activitynet", "val_1.json", '"sentences"', '"sentence"', r"v_test0: there is no 'sentences'"),
        ("activitynet", "val_ids.json", '"v_test1"', '"v_test0"', r"ids\.json: \[1\]: v_test0 is listed a second"),
        ("didemo", "test_data.json", '"description"', '"text"', r"test_data\.json: \[0\]: there is no 'description'"),
        ("didemo", "test_list.txt", "1@N02", "0@N02", r"test_list\.txt:2: 0@N02_test\.avi is listed a second"),
        ("vatex", "vatex_data.json", '["0 of test', '[3, "0 of test', r"enCap: expected a str, got '3'"),
    ],
)
def test_a_hostile_file_is_named(kind, file, old, new, complaint, tmp_path, video):
    config = make(kind, tmp_path, video, test=2)
    spoil(config.annotations / file, old, new)
    with pytest.raises(DatasetError, match=complaint):
        config.read("test")


def test_msrvtt_sentences_are_checked(tmp_path, video):
    config = make("msrvtt", tmp_path, video, test=1)
    for value, complaint in (({}, "there is no 'sentences'"), ({"sentences": [{}]}, r"sentences\[0\]: there is no")):
        dump(config.annotations / "MSRVTT_data.json", value)
        with pytest.raises(DatasetError, match=complaint):
            config.read("train")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_pickle_cannot_run_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "raw-captions.pkl"
    for protocol in range(6):
        file.write_bytes(pickle.dumps({"a": [["x", Evil()]]}, protocol=protocol))
        with pytest.raises(DatasetError, match=r"it refers to (posix|nt)\.mkdir"):
            read_plain_pickle(file)
    assert not (tmp_path / "evil").exists()
    plain = {"a": [["ein", "Bär"]], "b": (1, 2.5, None, True)}
    for protocol in range(6):
        file.write_bytes(pickle.dumps(plain, protocol=protocol))
        assert read_plain_pickle(file) == plain
    for damaged in (b"", b"not a pickle", pickle.dumps(plain)[:-9], b"\x80\x02}q\x00(X\xff\xff\xff\x7f", b"h\x07."):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match="not a pickle of plain captions"):
            read_plain_pickle(file)


def test_words_pickled_by_python_2_are_read(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02]q\x00U\x04B\xc3\xa4rq\x01a.")
    assert read_plain_pickle(tmp_path / "x.pkl") == ["Bär"]


def test_captions_of_the_wrong_shape_are_named(tmp_path, video):
    config = make("msvd", tmp_path, video, test=1)
    (config.annotations / "raw-captions.pkl").write_bytes(pickle.dumps({"test-x_0_9": ["not a list"]}))
    with pytest.raises(DatasetError, match=r"test-x_0_9, sentence 0: expected a list"):
        config.read("test")


def test_two_files_of_one_video_are_refused(tmp_path, video):
    place(video, tmp_path, ["a/x.mp4", "b/x.mp4", "b/y.mp4", ".hidden/y.mp4", ".partial-y.mp4", "y.txt"])
    folder = VideoFolder(tmp_path)
    with pytest.raises(DatasetError, match=r"both files of the video x"):
        folder.find(["x"])
    assert folder.find(["z", "y"]) == tmp_path / "b" / "y.mp4"
    assert folder.find(["y.avi"]) == tmp_path / "b" / "y.mp4"
    assert folder.find(["z"]) is None
