"""Every published figure against a second transcription of the paper's tables."""

from model.evaluate.paper_results import BETA_SWEEP, OTHER_TASKS, PUBLISHED
from model.study.sweep import SUPPLEMENTARY_2

MAIN = """
msrvtt      | JSFusion                | 10.2 31.2 43.2 13
msrvtt      | CE                      | 20.9 48.8 62.4 6
msrvtt      | MMT                     | 24.6 54.0 67.1 4
msrvtt      | CLIP4Clip               | 44.5 71.4 81.6 2
msrvtt      | EMCL-Net                | 46.8 73.1 83.1 2
msrvtt      | EMCL-Net + dual softmax | 51.6 78.1 85.3 1
activitynet | CE                      | 18.2 47.7 91.4 6
activitynet | MMT                     | 22.7 54.2 93.2 5
activitynet | CLIP4Clip               | 40.5 72.4 98.1 2
activitynet | EMCL-Net                | 41.2 72.7 98.1 2
activitynet | EMCL-Net + dual softmax | 50.6 78.7 98.1 1
lsmdc       | JSFusion                | 9.1 21.2 34.1 36
lsmdc       | CE                      | 11.2 26.9 34.8 25.3
lsmdc       | MMT                     | 13.2 29.2 38.8 21
lsmdc       | CLIP4Clip               | 22.6 41.0 49.1 11
lsmdc       | EMCL-Net                | 23.9 42.4 50.9 10
lsmdc       | EMCL-Net + dual softmax | 25.9 46.4 53.7 8
"""
SUPPLEMENTARY = """
activitynet | MMT                               | EMCL supplementary, table 1 | 22.3 55.8 71.0   | 23.2 56.6 71.6
activitynet | MMT + EMCL at inference           | EMCL supplementary, table 1 | 23.3 56.4 71.2   | 24.6 56.8 72.5
activitynet | MMT + EMCL in training            | EMCL supplementary, table 1 | 25.5 57.3 72.1   | 25.6 57.7 72.9
lsmdc       | MMT                               | EMCL supplementary, table 1 | 13.1 29.6 40.4   | 12.1 29.2 40.1
lsmdc       | MMT + EMCL at inference           | EMCL supplementary, table 1 | 13.9 30.3 42.4   | 12.5 29.9 40.8
lsmdc       | MMT + EMCL in training            | EMCL supplementary, table 1 | 14.6 32.5 42.1   | 14.0 31.5 40.7
msrvtt      | EMCL-Net + dual softmax, beta 0   | EMCL supplementary, table 2 | 42.4 70.8 80.6 2 | 43.2 70.0 81.1 2
msrvtt      | EMCL-Net + dual softmax, beta 1   | EMCL supplementary, table 2 | 43.6 72.1 81.4 2 | 43.2 70.8 80.8 2
msrvtt      | EMCL-Net + dual softmax, beta 2   | EMCL supplementary, table 2 | 45.1 69.9 79.7 2 | 45.9 71.0 78.9 2
msrvtt      | EMCL-Net + dual softmax, beta 3   | EMCL supplementary, table 2 | 51.6 78.1 85.3 1 | 51.8 80.2 88.0 1
msrvtt      | EMCL-Net + dual softmax, beta 4   | EMCL supplementary, table 2 | 41.5 71.3 81.4 2 | 44.2 72.1 82.8 2
msrvtt      | CLIP2Video                        | EMCL code                   | 45.6 72.6        | 43.5 72.3
msrvtt      | CLIP2Video + EMCL at inference    | EMCL code                   | 46.6 72.7        | 44.0 72.3
"""
READMES = {
    ("msrvtt", "EMCL-Net, 2 GPUs"): ({"R@1": 47.0, "R@5": 72.6, "R@10": 83.0, "MnR": 13.6}, {}),
    ("msrvtt", "EMCL-Net, 8 GPUs"): ({"R@1": 48.2, "R@5": 74.7, "R@10": 83.6, "MnR": 13.1}, {}),
    ("msvd", "EMCL-Net"): (
        {"R@1": 42.1, "R@5": 71.3, "R@10": 81.1, "MdR": 2, "MnR": 17.6},
        {"R@1": 54.3, "R@5": 81.3, "R@10": 88.1, "MdR": 1, "MnR": 5.6},
    ),
    ("didemo", "EMCL-Net"): (
        {"R@1": 46.8, "R@5": 74.3, "R@10": 83.1, "MdR": 2, "MnR": 12.3},
        {"R@1": 45.0, "R@5": 73.2, "R@10": 82.7, "MdR": 2, "MnR": 9.0},
    ),
}


def lines(table):
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def figures(cell, data_set="msrvtt", source=""):
    third = "R@50" if data_set == "activitynet" and source == "EMCL paper" else "R@10"
    return dict(zip(["R@1", "R@5", third, "MdR"], map(float, cell.split()), strict=False))


def test_every_published_row_is_as_printed():
    expected = {}
    for data_set, method, cell in lines(MAIN):
        expected[data_set, method, "EMCL paper"] = (figures(cell, data_set, "EMCL paper"), {})
    for data_set, method, source, to_videos, to_texts in lines(SUPPLEMENTARY):
        expected[data_set, method, source] = (figures(to_videos), figures(to_texts))
    for (data_set, method), both in READMES.items():
        expected[data_set, method, "EMCL code"] = both
    found = {(row.data_set, row.method, row.source): row for row in PUBLISHED}
    assert len(found) == len(PUBLISHED), "a row stands twice"
    assert set(found) == set(expected)
    for key, (to_videos, to_texts) in expected.items():
        assert (dict(found[key].text_to_video), dict(found[key].video_to_text)) == (to_videos, to_texts), key


def test_the_main_table_has_its_68_figures():
    assert sum(len(row.text_to_video) for row in PUBLISHED if row.source == "EMCL paper") == 68


def test_the_beta_sweep_prints_the_published_r1():
    assert list(BETA_SWEEP) == [0, 1, 2, 3, 4]
    assert SUPPLEMENTARY_2.published == {0.0: 42.4, 1.0: 43.6, 2.0: 45.1, 3.0: 51.6, 4.0: 41.5}


def test_the_other_tasks_are_as_printed():
    assert [(row.base, row.data_set, row.without_emcl, row.with_emcl) for row in OTHER_TASKS] == [
        ("SimCLR", "CIFAR10", 93.36, 93.52),
        ("MAML", "miniImageNet", 47.5, 47.7),
        ("CLIP4Clip", "ActivityNet", 51.7, 52.3),
    ]
