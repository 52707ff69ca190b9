"""``emcl calibrate --form bases``: encode the pairs, choose, and write the choice into a store or beside a checkpoint.

In: the command's options. Out: the text for the terminal, and files. Errors of the user are ``ValueError`` or
``OSError``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model.data.dataset import VideoTextSet
from model.data.registry import open_for_evaluation
from model.data.validation import data_digest, open_for_choosing
from model.emcl.correction import CorrectionSettings, save_settings
from model.encoder import Encoder, correction_path, load_encoder
from model.evaluate.query_bank import open_bank
from model.evaluate.run import encode_corpus
from model.study.bases import BasesCalibration, BasesGrid, Material, calibrate_bases
from model.study.options import CalibrateOptions

STORE_FILE, STORE_MARK = "correction.npz", "catalogue.db"
"""What a store keeps the choice in, and what shows that a folder is one (``indexer.store.bank``, ``generation``)."""


def run_bases(options: CalibrateOptions) -> str:
    """Choose, write, and return what the terminal shows."""
    target = None if options.dry_run else target_of(options)
    chosen = open_for_choosing(options.data, options.split, allow_missing=options.allow_missing)
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device)
    encoder.net.set_emcl(encoder.config.emcl.model_copy(update={"beta": 0.0}))  # what bases are compared with
    corpus = encode_corpus(encoder, chosen.clips)
    found = calibrate_bases(
        encoder,
        corpus,
        BasesGrid.quick() if options.quick else BasesGrid(),
        material=_material(options, encoder, chosen),
        source=chosen.name,
        folds=options.folds,
        seed=options.seed,
        progress=_bar,
    )
    digest = data_digest(chosen.clips)
    facts = {"data": chosen.name, "data_digest": digest, "split": options.split, "seed": options.seed}
    if options.json_file is not None:
        options.json_file.write_text(
            json.dumps({**facts, "model": encoder.fingerprint, **found.as_dict()}, indent=2) + "\n", encoding="utf-8"
        )
    if target is None:
        return f"{found.text()}\ndry run: nothing was written"
    return f"{found.text()}\n{_write(target, found, facts, encoder, options)}"


def target_of(options: CalibrateOptions) -> Path:
    """The file that the choice goes to. Raises ``ValueError`` before the work if there is no place for it."""
    if options.store is not None:
        if not (options.store / STORE_MARK).exists():
            raise ValueError(f"--store {options.store} holds no store; make one with `emcl index build PATH --store …`")
        return options.store / STORE_FILE
    if options.model == "demo" or not Path(options.model).with_suffix(".safetensors").is_file():
        raise ValueError(
            f"--model {options.model} is not a checkpoint file, so a choice cannot be written beside it; pass --store "
            "STORE, which keeps it for that index, or --dry-run"
        )
    return correction_path(Path(options.model))


def _write(
    target: Path, found: BasesCalibration, facts: dict[str, Any], encoder: Encoder, options: CalibrateOptions
) -> str:
    record = json.dumps({**facts, **found.as_dict()})
    settings: CorrectionSettings = replace(found.settings, record=record, fingerprint=encoder.fingerprint)
    save_settings(target, settings)
    store = options.store or "STORE"
    return f"written: {target}\nPublish it with `emcl index rebuild --store {store}`, without decoding anything."


def _material(options: CalibrateOptions, encoder: Encoder, chosen: VideoTextSet) -> Material:
    """More pairs and texts to fit on. Raises ``ValueError`` if they hold what is to be ranked."""
    material, own = Material.none(encoder.dim), set(chosen.captions)
    if options.query_bank is not None:
        bank = open_bank(str(options.query_bank), None)
        if shared := bank.shared_with(own):
            raise ValueError(
                f"{shared} captions of --query-bank {options.query_bank} are in --data too, so the choice would be "
                "made on what it was fitted on; take them out of the bank"
            )
        material = replace(material, bank_ND=encoder.encode_texts(bank.texts))
    if options.pairs is not None:
        pairs = open_for_evaluation(options.pairs, "train", allow_missing=options.allow_missing)
        files = [{clip.path.resolve() for clip in clips} for clips in (pairs.clips, chosen.clips)]
        if shared := len(files[0] & files[1]):
            raise ValueError(f"{shared} videos of --pairs {options.pairs} are in --data too; take them out")
        corpus = encode_corpus(encoder, pairs.clips)
        pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
        material = replace(
            material,
            pair_text_ND=corpus.text_TD,
            pair_video_ND=pooled_VD[corpus.video_of_text_T],
            bank_ND=np.concatenate([material.bank_ND, corpus.text_TD]),
        )
    return material


def _bar(steps: Iterator[Any], count: int) -> Iterator[Any]:
    return iter(tqdm(steps, total=count, desc="calibrate", unit="fold"))
