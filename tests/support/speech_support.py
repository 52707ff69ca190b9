"""A Whisper model of faster-whisper's layout with random weights, and videos with sound."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import av
import numpy as np

WORD = "squid"
_END = 8
_WIDTH, _LAYERS, _HEADS, _MELS = 16, 1, 2, 80
_SPECIAL = ("endoftext", "startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech")


def write_whisper(folder: Path) -> Path:
    """An English-only model (its vocabulary is smaller than 51,865 tokens) that says one word a few times, then ends.

    All weights are random but those that make it so: the decoder's positions up to the eighth point to the word, later
    ones to the end.
    """
    import tokenizers
    from ctranslate2.specs.whisper_spec import WhisperSpec

    words = [f"\u0120{WORD}", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    special = [f"<|{name}|>" for name in _SPECIAL]
    tokens = [*words, *special, "<|notimestamps|>", *(f"<|{n * 0.02:.2f}|>" for n in range(1501))]
    rng = np.random.default_rng(0)
    spec = WhisperSpec(_LAYERS, _HEADS, _LAYERS, _HEADS)

    def random(*shape: int) -> np.ndarray:
        return (0.02 * rng.standard_normal(shape)).astype(np.float32)

    def linear(layer, rows: int, columns: int) -> None:
        layer.weight, layer.bias = random(rows, columns), np.zeros(rows, np.float32)

    def norm(layer) -> None:
        layer.gamma, layer.beta = np.ones(_WIDTH, np.float32), np.zeros(_WIDTH, np.float32)

    def attention(layer, *, of_encoder: bool) -> None:
        norm(layer.layer_norm)
        sizes = (_WIDTH, 2 * _WIDTH, _WIDTH) if of_encoder else (3 * _WIDTH, _WIDTH)
        for part, rows in zip(layer.linear, sizes, strict=True):
            linear(part, rows, _WIDTH)

    def feed_forward(layer) -> None:
        norm(layer.layer_norm)
        linear(layer.linear_0, 4 * _WIDTH, _WIDTH)
        linear(layer.linear_1, _WIDTH, 4 * _WIDTH)

    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = random(_WIDTH, _MELS, 3), random(_WIDTH)
    encoder.conv2.weight, encoder.conv2.bias = random(_WIDTH, _WIDTH, 3), random(_WIDTH)
    encoder.position_encodings.encodings = random(1500, _WIDTH)
    decoder.position_encodings.encodings = random(448, _WIDTH)
    decoder.embeddings.weight = random(len(tokens), _WIDTH)
    linear(decoder.projection, len(tokens), _WIDTH)
    spoken, ended = np.eye(_WIDTH, dtype=np.float32)[:2]
    decoder.position_encodings.encodings[:_END] += spoken
    decoder.position_encodings.encodings[_END:] += ended
    decoder.projection.weight[0] = 10 * spoken
    decoder.projection.weight[tokens.index("<|endoftext|>")] = 10 * ended
    for part in (encoder, decoder):
        norm(part.layer_norm)
        for layer in part.layer:
            attention(layer.self_attention, of_encoder=False)
            feed_forward(layer.ffn)
    for layer in decoder.layer:
        attention(layer.attention, of_encoder=True)
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = []
    spec.config.lang_ids = []
    spec.config.alignment_heads = list(itertools.product(range(_LAYERS), range(_HEADS)))
    spec.validate()
    folder.mkdir(parents=True)
    spec.save(str(folder))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in tokens if token.startswith("<|")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": _MELS}))
    return folder


def write_with_sound(path: Path, *, seconds: float = 3.0, sound: bool = True, seed: int = 0) -> Path:
    """A video of noise, with a tone or without a sound track."""
    rng = np.random.default_rng(seed)
    rate = 16_000
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = output.add_stream("aac", rate=rate, layout="mono") if sound else None
        for _ in range(round(seconds * 10)):
            picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(video.encode())
        if audio is not None:
            tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
            for start in range(0, len(tone), 1024):
                part = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
                part.sample_rate, part.pts = rate, start
                output.mux(audio.encode(part))
            output.mux(audio.encode())
    return path
