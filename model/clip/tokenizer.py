"""Text to token ids, as EMCL-Net's reference cuts it: SOT, at most ``max_words - 2`` pieces, EOT, padding masked.

In: texts. Out: ``ids_BL`` (int64, padded with 0) and ``mask_BL`` (bool, True for real tokens). The byte-pair encoding
is open_clip's. Architectures with a tokenizer of their own (SigLIP, multilingual CLIPs) use that, always padded to
their context length.

``text_buckets`` groups texts of similar length, so that short texts are not padded to long ones. The text tower's work
grows with the padded number of tokens, and small batches use the processor poorly; buckets of four tokens balance the
two (measured by ``benchmarks/encoders.py``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from model.clip.compat import import_open_clip
from model.clip.pretrained import ClipError, describe_clip
from model.config import ClipConfig, TokenizerConfig

if TYPE_CHECKING:
    from torch import Tensor

PadTo = Literal["longest", "max"]

_SPELT_OUT = 0.8
"""Pieces for each letter from which words count as spelt out: English words of CLIP's vocabulary have 0.3, German and
French 0.4 to 0.6; Russian 1.2, Arabic 1.0, Greek, Hindi, Japanese and Chinese 2 to 2.6 (the text has no meaning then).
"""

_BYTE_PIECES = 512  # 256 bytes, each inside a word and at its end

_CACHED_TEXTS = 1 << 14  # one training set's captions or a day's popular queries; about 5 MB

CACHED_WORDS = 1 << 16  # open_clip never forgets a word, so its cache is emptied at this size
BUCKET_TOKENS = 4


class Tokenizer(Protocol):
    """What encoders need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""

    def __call__(self, texts: Sequence[str], *, pad_to: PadTo = "longest") -> tuple[Tensor, Tensor]:
        """Encode texts: ids (B, L) int64 and mask (B, L) bool, L the longest text's length or the maximum."""

    def truncates(self, text: str) -> bool:
        """Whether the text is longer than the model reads, so that its end is ignored."""

    def unknown_script(self, text: str) -> str | None:
        """The script in the text that the tokenizer does not know, such as ``Cyrillic``; None if it knows all."""


class ClipTokenizer:
    """CLIP's lower-cased byte-pair encoding, whole or cut to its first merges. Safe to call from several threads."""

    def __init__(self, config: TokenizerConfig, *, clean: str = "lower") -> None:
        self.max_words = config.max_words
        self.bpe = _load_bpe(config.merges, clean)
        self.row_of = lru_cache(maxsize=_CACHED_TEXTS)(self._encode)

    @property
    def vocab_size(self) -> int:
        """512 byte pieces, the merges, SOT and EOT; the last id is EOT."""
        return int(self.bpe.vocab_size)

    def __call__(self, texts: Sequence[str], *, pad_to: PadTo = "longest") -> tuple[Tensor, Tensor]:
        """Encode texts: ids (B, L) int64 and mask (B, L) bool; L is the longest text's length or ``max_words``."""
        rows = [self.row_of(text) for text in _as_list(texts)]
        length = self.max_words if pad_to == "max" else max((len(row) for row in rows), default=0)
        ids_BL = torch.tensor([row + (0,) * (length - len(row)) for row in rows], dtype=torch.int64)
        lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return ids_BL.view(len(rows), length), torch.arange(length) < lengths_B[:, None]

    def truncates(self, text: str) -> bool:
        """Whether the text has more pieces than fit beside SOT and EOT."""
        return len(self.bpe.encode(visible(text))) > self.max_words - 2

    def unknown_script(self, text: str) -> str | None:
        """The first script other than Latin whose words are spelt out: about a piece for each letter, or more."""
        for script, words in words_by_script(text).items():
            letters = sum(letter.isalpha() for word in words for letter in word)
            if script != "Latin" and len(self.bpe.encode(" ".join(words))) >= _SPELT_OUT * letters:
                return script
        return None

    def _encode(self, text: str) -> tuple[int, ...]:
        pieces = self.bpe.encode(text)[: self.max_words - 2]
        if self.bpe.eot_token_id in pieces:  # spelt out in the text: CLIP pools at the first, what follows is unseen
            pieces = pieces[: pieces.index(self.bpe.eot_token_id)]
        if len(self.bpe.cache) > CACHED_WORDS:
            self.bpe.cache = _special_cache()
        return (self.bpe.sot_token_id, *pieces, self.bpe.eot_token_id)


class OwnTokenizer:
    """The tokenizer that an architecture brings along, cut and padded to its context length as it was trained.

    ``max_words`` is ignored: these text towers see their padding, so another length would be another input.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], Tensor],
        *,
        vocab_size: int,
        pad_id: int,
        count: Callable[[str], int],
        context: int,
        unknown: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``count`` says how many ids a text has when nothing is cut; ``context`` is how many the model reads.

        ``unknown`` says whether a text has a piece outside the vocabulary.
        """
        self._unknown = unknown
        self._tokenize = tokenize
        self._count = count
        self._context = context
        self._vocab_size = vocab_size
        self._pad_id = pad_id

    @property
    def vocab_size(self) -> int:
        """Rows of the text tower's embedding table."""
        return self._vocab_size

    def __call__(self, texts: Sequence[str], *, pad_to: PadTo = "longest") -> tuple[Tensor, Tensor]:
        """Encode texts: ids (B, L) int64 and mask (B, L) bool; L is the context length whatever ``pad_to`` says."""
        ids_BL = self._tokenize(_as_list(texts)).to(torch.int64)
        return ids_BL, ids_BL != self._pad_id

    def truncates(self, text: str) -> bool:
        """Whether the text has more ids than the context length."""
        return self._count(visible(text)) > self._context

    def unknown_script(self, text: str) -> str | None:
        """The first script with a word that has a piece outside the vocabulary."""
        known = ((script, self._unknown(" ".join(words))) for script, words in words_by_script(text).items())
        return next((script for script, unknown in known if unknown), None)


def build_tokenizer(config: TokenizerConfig, clip: ClipConfig) -> Tokenizer:
    """Build the tokenizer that goes with a CLIP model.

    Raises ``ClipError`` if the text tower has fewer positions than ``max_words`` or fewer ids than the tokenizer, and
    if the architecture's own tokenizer needs a package that is not installed or files that cannot be fetched.
    """
    text_cfg = describe_clip(clip)["text_cfg"]
    if "hf_tokenizer_name" in text_cfg:
        return _own_tokenizer(text_cfg)
    context = text_cfg.get("context_length", 77)
    if config.max_words > context:
        raise ClipError(
            f"tokenizer.max_words is {config.max_words}, but the text tower has {context} positions; lower it"
        )
    tokenizer = ClipTokenizer(config, clean=text_cfg.get("tokenizer_kwargs", {}).get("clean", "lower"))
    vocab = text_cfg.get("vocab_size", 49408)
    if tokenizer.vocab_size > vocab:
        raise ClipError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the text tower embeds {vocab}; set tokenizer.merges to "
            f"{vocab - _BYTE_PIECES - 2} or text_cfg.vocab_size to {tokenizer.vocab_size}"
        )
    return tokenizer


def _own_tokenizer(text_cfg: dict[str, Any]) -> OwnTokenizer:
    name = text_cfg["hf_tokenizer_name"]
    try:
        tokenizer = import_open_clip().tokenizer.HFTokenizer(
            name,
            context_length=text_cfg.get("context_length", 77),
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            **text_cfg.get("tokenizer_kwargs", {}),
        )
    except ImportError as error:
        raise ClipError(f"the tokenizer {name!r} of this model needs another package ({error}); install it") from error
    except OSError as error:
        raise ClipError(f"the tokenizer {name!r} of this model could not be fetched ({error})") from error
    return OwnTokenizer(
        tokenizer,
        vocab_size=text_cfg.get("vocab_size", 49408),
        pad_id=tokenizer.tokenizer.pad_token_id or 0,
        count=lambda text: len(tokenizer.tokenizer(tokenizer.clean_fn(text))["input_ids"]),
        context=text_cfg.get("context_length", 77),
        unknown=lambda text: (
            tokenizer.tokenizer.unk_token_id in tokenizer.tokenizer(tokenizer.clean_fn(text))["input_ids"]
        ),
    )


def _load_bpe(merges: int | None, clean: str) -> Any:
    """Return a fresh open_clip tokenizer; with ``merges``, its vocabulary is cut after the byte pieces and N merges."""
    bpe = import_open_clip().tokenizer.SimpleTokenizer(clean=clean)
    if merges is None:
        return bpe
    specials = list(_special_cache())
    vocabulary = [*islice(bpe.encoder, _BYTE_PIECES + merges), *specials]
    bpe.encoder = {piece: number for number, piece in enumerate(vocabulary)}
    bpe.decoder = dict(enumerate(vocabulary))
    bpe.bpe_ranks = dict(islice(bpe.bpe_ranks.items(), merges))
    bpe.vocab_size = len(vocabulary)
    bpe.all_special_ids = [bpe.encoder[special] for special in specials]
    bpe.sot_token_id, bpe.eot_token_id = bpe.all_special_ids
    return bpe


def _special_cache() -> dict[str, str]:
    return {special: special for special in ("<start_of_text>", "<end_of_text>")}


def _as_list(texts: Sequence[str]) -> list[str]:
    return [visible(text) for text in ([texts] if isinstance(texts, str) else texts)]


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))
"""Zero-width space, word joiner, byte order mark, soft hyphen: pasted texts hold them, and tokenizers spell them out.
Joiners (U+200C, U+200D) stay: they shape words of Persian and Indic scripts, and emoji."""


def visible(text: str) -> str:
    """The text without its invisible characters, as tokenizers here take it."""
    return text.translate(_INVISIBLE)


def words_by_script(text: str) -> dict[str, list[str]]:
    """Words by their script (``Latin``, ``Cyrillic``, ``Han``, …), in order of appearance.

    A word is of the script of its first letter, by the letter's name in Unicode. Single letters are left out (``α
    particle``), but for scripts in which one is a word.
    """
    words: dict[str, list[str]] = {}
    for word in unicodedata.normalize("NFKC", visible(text)).split():
        letters = [letter for letter in word if letter.isalpha()]
        if not letters:
            continue
        script = unicodedata.name(letters[0], "unknown").split()[0].title()
        script = "Han" if script == "Cjk" else script
        if len(letters) > 1 or script in ("Han", "Hangul"):
            words.setdefault(script, []).append(word)
    return words


def text_buckets(lengths: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Group the places of ``lengths``, shortest first, at most ``most`` together.

    In a group no length differs from the longest by ``BUCKET_TOKENS`` or more.
    """
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) == most or rounded_up(lengths[place]) != rounded_up(lengths[group[0]])):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def rounded_up(length: int) -> int:
    """The length to which a text of ``length`` tokens is padded: few shapes are met (see ``model.runtime.packed``)."""
    return -(-length // BUCKET_TOKENS) * BUCKET_TOKENS
