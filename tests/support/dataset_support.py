"""Look-alikes of the published sets: their annotation files in the exact format, tiny videos under the real names."""

import json
import os
import pickle

import av
import numpy as np

from model.data.registry import parse_stored_set

KINDS = ("msrvtt", "msvd", "lsmdc", "activitynet", "didemo", "vatex")
TEST_VIDEOS = {"msrvtt": 1000, "msvd": 670, "lsmdc": 1000, "activitynet": 4917, "didemo": 1004, "vatex": 1500}


def write_video(path, seconds=2, size=32):
    """Two frames per second; the picture's grey is 50 times the second that it is shown in."""
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=2, options={"crf": "10", "threads": "1"})
        stream.width = stream.height = size
        for number in range(2 * seconds):
            image = np.full((size, size, 3), 50 * (number // 2), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def place(video, root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(video, root / name)


def dump(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def make_msrvtt(folder, root, video, sizes):
    train = [f"video{n}" for n in range(sizes["train"] + sizes["val"])]
    test = [f"video{9999 - n}" for n in range(sizes["test"])]
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\n" + "\n".join(train) + "\n", encoding="utf-8")
    (folder / "MSRVTT_train.7k.csv").write_text("video_id\n" + "\n".join(train[:-1]) + "\n", encoding="utf-8")
    rows = [f'ret{n},msr{name[5:]},{name},"test of {name}, quoted"' for n, name in enumerate(test)]
    header = "key,vid_key,video_id,sentence"
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    sentences = [{"video_id": name, "caption": f"{n} of {name}"} for n in range(2) for name in [*train, *test]]
    dump(folder / "MSRVTT_data.json", {"videos": [], "sentences": sentences})
    place(video, root, [f"{name}.mp4" for name in [*train, *test[1:]]] + [f"{test[0]}.webm"])
    return {"held_out_videos": sizes["val"]}


def make_msvd(folder, root, video, sizes):
    captions = {}
    for split, count in sizes.items():
        names = [f"{split}-x_{n}_9" for n in range(count)]
        (folder / f"{split}_list.txt").write_text("\n".join(names), encoding="utf-8")  # no newline at the end
        captions |= {name: [["one", "of", name], ["two", "of", name]] for name in names}
        place(video, root, [f"{name}.avi" for name in names])
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    return {}


def make_lsmdc(folder, root, video, sizes):
    files = {
        "train": "LSMDC16_annos_training.csv",
        "val": "LSMDC16_annos_val.csv",
        "test": "LSMDC16_challenge_1000_publictect.csv",
    }
    for split, count in sizes.items():
        names = [f"{n:04d}_Film_{split}_00.00.{n % 60:02d}.926-00.01.54.129" for n in range(count)]
        lines = [f'{name}\t0\t1\t\t\tSOMEONE says "of {name}"' for name in names]
        if split == "train":
            lines.append(lines[0] + " again")  # the same clip with another sentence
        (folder / files[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
        place(video, root, [f"{name[:15]}/{name}.avi" for name in names])
    return {}


def make_activitynet(folder, root, video, sizes):
    train = [f"v_train{n}" for n in range(sizes["train"] + sizes["val"])]
    test = [f"v_test{n}" for n in range(sizes["test"])]
    for names, ids, texts in ((train, "train_ids", "train"), (test, "val_ids", "val_1")):
        dump(folder / f"{ids}.json", names)
        records = {n: {"duration": 2.5, "timestamps": [], "sentences": [" First. ", f" Of {n}."]} for n in names}
        dump(folder / f"{texts}.json", records)
    place(video, root, [f"{name}.mp4" for name in test] + [f"{name[2:]}.mp4" for name in train])
    return {"held_out_videos": sizes["val"]}


def make_didemo(folder, root, video, sizes):
    for split, count in sizes.items():
        names = [f"{n}@N02_{split}.avi" for n in range(count)]
        (folder / f"{split}_list.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        records = [{"video": n, "description": f"{part} of {n}", "times": []} for part in ("a", "b") for n in names]
        dump(folder / f"{split}_data.json", records)
        place(video, root, [name.replace(".avi", ".mp4") for name in names])
    return {}


def make_vatex(folder, root, video, sizes):
    records = {}
    for split, count in sizes.items():
        names = [f"{split}-_{n}_000001_000011" for n in range(count)]
        (folder / f"{split}_list.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        records |= {name: {"enCap": [f"{n} of {name}" for n in range(3)], "chCap": []} for name in names}
        place(video, root, [f"{name}.mp4" for name in names])
    dump(folder / "vatex_data.json", records)
    return {}


MAKERS = {
    "msrvtt": make_msrvtt,
    "msvd": make_msvd,
    "lsmdc": make_lsmdc,
    "activitynet": make_activitynet,
    "didemo": make_didemo,
    "vatex": make_vatex,
}


def make(kind, folder, video, *, test=None, **settings):
    """A look-alike with 6 training, 3 validation and the published number of test videos."""
    annotations, root = folder / "annotations", folder / "videos"
    annotations.mkdir()
    root.mkdir()
    sizes = {"train": 6, "val": 3, "test": test or TEST_VIDEOS[kind]}
    more = MAKERS[kind](annotations, root, video, sizes)
    return parse_stored_set(
        {"kind": kind, "root": str(root), "annotations": str(annotations), **more, **settings}, "test"
    )
