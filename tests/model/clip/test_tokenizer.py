"""Tokenisation: open_clip's ids, the reference's cutting, a vocabulary cut to its first merges."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.clip import tokenizer as tokenizer_module
from model.clip.compat import import_open_clip
from model.clip.pretrained import ClipError
from model.clip.tokenizer import ClipTokenizer, OwnTokenizer, build_tokenizer, visible
from model.config import ClipConfig, TokenizerConfig

TEXTS = [
    "a man is slicing a potato",
    "A Man Is SLICING a potato!",
    "  two   dogs\tplay\nfetch ",
    "the chef's knife isn't sharp, it'll slip",
    "50% off: 3.14159 & 2,718 #1",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; more",
    "naïve café, Zürich, Ελληνικά, 東京の夜景, العربية, हिन्दी",
    "emoji 🎥🐈‍⬛ and a flag 🇨🇭",
    "mojibake: schÃ¶n âœ” No problems",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "",
    "   ",
    "!?!?",
    "a" * 300,
    "word " * 200,
    "\x00control\x07characters\u200b",
]


@pytest.fixture(scope="module")
def full():
    return build_tokenizer(TokenizerConfig(max_words=32), ClipConfig())


@pytest.mark.parametrize("max_words", [3, 4, 32, 77])
def test_ids_equal_those_of_open_clip(max_words):
    tokenizer = build_tokenizer(TokenizerConfig(max_words=max_words), ClipConfig())
    ids, mask = tokenizer(TEXTS, pad_to="max")
    texts = [text.replace("\u200b", "") for text in TEXTS]  # which we drop, and open_clip spells out
    expected = import_open_clip().tokenize(texts, context_length=max_words)
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert torch.equal(ids, expected)
    assert tokenizer.vocab_size == 49408


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_text_gives_the_ids_of_open_clip(full, texts):
    ids, mask = full(texts)
    for row, real, expected in zip(
        ids, mask, import_open_clip().tokenize([visible(text) for text in texts], context_length=32), strict=True
    ):
        end = int(expected.argmax())  # where CLIP pools: the first EOT
        assert row[real].tolist() == expected[: end + 1].tolist()
        assert not row[~real].any()


def test_long_text_keeps_its_first_pieces_and_the_end_token(full):
    ids, mask = full(["word " * 200])
    assert ids.shape == (1, 32)
    assert mask.all()
    assert ids[0, 0] == 49406
    assert ids[0, -1] == 49407
    assert (ids[0, 1:-1] == ids[0, 1]).all()


def test_an_end_token_spelt_out_in_the_text_ends_it(full):
    """CLIP pools at the first EOT, we at the last real token: both must be the same one."""
    assert torch.equal(full(["a cat <end_of_text> and a dog"])[0], full(["a cat"])[0])


def test_padding_is_zero_and_masked(full):
    ids, mask = full(["a cat", "a cat sleeps on the warm roof"])
    assert ids.shape == mask.shape == (2, 9)
    assert mask.sum(dim=1).tolist() == [4, 9]
    assert not ids[~mask].any()
    # EOT is the highest id, so the reference's argmax finds the last real token
    assert torch.equal(ids.argmax(dim=1), mask.sum(dim=1) - 1)


def test_a_text_is_the_same_alone_and_in_a_batch(full):
    together, mask = full(TEXTS)
    for text, row, real in zip(TEXTS, together, mask, strict=True):
        alone, all_real = full([text])
        assert all_real.all()
        assert torch.equal(alone[0], row[real])


def test_one_string_and_no_strings(full):
    assert torch.equal(full("a cat")[0], full(["a cat"])[0])
    ids, mask = full([])
    assert ids.shape == mask.shape == (0, 0)


@pytest.mark.parametrize("merges", [0, 1, 200, 5000, 48894])
def test_first_merges_give_a_dense_small_id_space(merges):
    tokenizer = ClipTokenizer(TokenizerConfig(max_words=1024, merges=merges))
    assert tokenizer.vocab_size == 512 + merges + 2
    ids, mask = tokenizer(TEXTS)
    assert int(ids.max()) == tokenizer.vocab_size - 1  # EOT is the highest, as pooling by argmax needs it
    assert (ids[:, 0] == tokenizer.vocab_size - 2).all()
    assert (ids.argmax(dim=1) == mask.sum(dim=1) - 1).all()
    bpe = tokenizer.bpe
    for text, row, real in zip(TEXTS, ids, mask, strict=True):
        pieces = row[real][1:-1].tolist()
        assert (
            bpe.decode(pieces).split() == import_open_clip().tokenizer._tokenizer.decode(bpe_ids(visible(text))).split()
        )


def bpe_ids(text: str) -> list[int]:
    return import_open_clip().tokenizer._tokenizer.encode(text)


def test_all_merges_are_the_whole_vocabulary(full):
    every = ClipTokenizer(TokenizerConfig(max_words=32, merges=48894))
    assert torch.equal(every(TEXTS)[0], full(TEXTS)[0])


def test_cut_pieces_are_those_that_the_first_merges_build():
    """Encoding with N merges is the whole encoding stopped after rank N: checked against merging one rank at a time."""
    merges = 300
    tokenizer = ClipTokenizer(TokenizerConfig(max_words=1024, merges=merges))
    ranked = list(tokenizer.bpe.bpe_ranks)
    assert ranked == list(import_open_clip().tokenizer._tokenizer.bpe_ranks)[:merges]
    for word in ("throwing", "sunrise", "strawberries", "kitchen"):
        symbols = [*word[:-1], word[-1] + "</w>"]
        for pair in ranked:
            position = 0
            while position < len(symbols) - 1:
                if (symbols[position], symbols[position + 1]) == pair:
                    symbols[position : position + 2] = ["".join(pair)]
                position += 1
        ids, _ = tokenizer([word])
        assert [tokenizer.bpe.decoder[int(piece)] for piece in ids[0, 1:-1]] == symbols


def test_vocabularies_do_not_touch_each_other(full):
    before = full(TEXTS)[0]
    ClipTokenizer(TokenizerConfig(merges=10))(["a cat sleeps"])
    fresh = ClipTokenizer(TokenizerConfig(max_words=32))
    assert torch.equal(fresh(TEXTS)[0], before)
    theirs = import_open_clip().tokenize([text.replace("\u200b", "") for text in TEXTS], context_length=32)
    assert torch.equal(theirs[:, : before.shape[1]], before)


def test_word_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "CACHED_WORDS", 50)
    tokenizer = ClipTokenizer(TokenizerConfig())
    first = tokenizer(["zebra crossing"])[0]
    for number in range(300):
        tokenizer([f"word{chr(97 + number % 26)}{chr(97 + number // 26)} unseen"])
        assert len(tokenizer.bpe.cache) <= 60
    tokenizer.row_of.cache_clear()
    assert torch.equal(tokenizer(["zebra crossing"])[0], first)


def test_threads_share_a_tokenizer(full):
    expected = full(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for ids, mask in pool.map(lambda _: full(TEXTS), range(32)):
            assert torch.equal(ids, expected[0])
            assert torch.equal(mask, expected[1])


def test_more_words_than_positions_is_an_error():
    with pytest.raises(ClipError, match="max_words is 78, but the text tower has 77 positions"):
        build_tokenizer(TokenizerConfig(max_words=78), ClipConfig())


def test_more_ids_than_embeddings_is_an_error(tiny_config):
    build_tokenizer(tiny_config.tokenizer, tiny_config.clip)
    with pytest.raises(ClipError, match=r"715 ids, but the text tower embeds 714; set tokenizer.merges to 200"):
        build_tokenizer(TokenizerConfig(merges=201), tiny_config.clip)


def test_cleaning_of_an_architecture_is_used(tiny_config):
    custom = {**tiny_config.clip.custom, "custom_text": True}
    custom["text_cfg"] = {**custom["text_cfg"], "tokenizer_kwargs": {"clean": "canonicalize"}}
    canonical = build_tokenizer(tiny_config.tokenizer, ClipConfig(custom=custom))
    lower = build_tokenizer(tiny_config.tokenizer, tiny_config.clip)
    assert torch.equal(canonical(["Hello, World!"])[0], lower(["hello world"])[0])


def test_own_tokenizer_masks_its_own_padding():
    rows = {"a": [5, 1, 1, 1], "b": [7, 8, 9, 1]}
    tokenizer = OwnTokenizer(
        lambda texts: torch.tensor([rows[text] for text in texts]), vocab_size=10, pad_id=1, count=len, context=4
    )
    ids, mask = tokenizer(["a", "b"])
    assert ids.tolist() == [rows["a"], rows["b"]]
    assert mask.tolist() == [[True, False, False, False], [True, True, True, False]]
    assert tokenizer.vocab_size == 10
    assert [tokenizer.truncates(text) for text in ("abcd", "abcde")] == [False, True]


def test_texts_that_the_model_does_not_read_to_the_end_are_known(tiny_config):
    tokenizer = build_tokenizer(TokenizerConfig(max_words=8), ClipConfig(architecture="ViT-B-32"))
    assert not tokenizer.truncates("one two three four five six")
    assert tokenizer.truncates("one two three four five six seven")
    whole, cut = tokenizer(["one two three four five six"]), tokenizer(["one two three four five six seven"])
    assert torch.equal(whole[0], cut[0])


def test_invisible_characters_are_dropped(tiny_config):
    tokenizer = build_tokenizer(tiny_config.tokenizer, tiny_config.clip)
    plain, pasted = tokenizer(["a cockatoo"])[0], tokenizer(["\ufeffa cock\u200ba\u00adtoo\u2060"])[0]
    assert torch.equal(plain, pasted)
    persian = "\u0645\u06cc\u200c\u062e"  # the joiner decides how the word is written
    assert not torch.equal(tokenizer([persian])[0], tokenizer([persian.replace("\u200c", "")])[0])


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_architecture_whose_tokenizer_needs_a_package_says_so():
    with pytest.raises(ClipError, match=r"timm/ViT-B-16-SigLIP.*needs another package.*transformers"):
        build_tokenizer(TokenizerConfig(), ClipConfig(architecture="ViT-B-16-SigLIP", pretrained="webli"))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a white cockatoo looks into the camera", None),
        ("ein Hund springt über größere Pfützen", None),
        ("qwertyuiop zxcvbnm 2023 ❤️", None),
        ("α particle", None),
        ("ＦＵＬＬ ｗｉｄｔｈ", None),
        ("собака прыгает в озеро", "Cyrillic"),
        ("a dog named собака", "Cyrillic"),
        ("ένας σκύλος", "Greek"),
        ("犬", "Han"),
        ("개가 뛰어든다", "Hangul"),
        ("كلب يقفز في البحيرة", "Arabic"),
        ("एक कुत्ता", "Devanagari"),
    ],
)
def test_a_script_that_is_spelt_out_is_not_known(text, script):
    tokenizer = build_tokenizer(TokenizerConfig(max_words=77), ClipConfig(architecture="ViT-B-32"))
    assert tokenizer.unknown_script(text) == script


def test_an_own_tokenizer_does_not_know_what_is_outside_its_vocabulary():
    tokenizer = OwnTokenizer(
        lambda texts: torch.zeros(len(texts), 4), vocab_size=10, pad_id=1, count=len, context=4,
        unknown=lambda text: "ю" in text,
    )  # fmt: skip
    assert tokenizer.unknown_script("a собака") is None
    assert tokenizer.unknown_script("a юла") == "Cyrillic"
