"""The model: video decoding, CLIP towers, temporal aggregation, EMCL, training and evaluation. Knows no index."""

import os

# onnxruntime, Ray and Hugging Face's hub send usage data to their makers by default, and onnxruntime starts a thread
# for it, with which a process cannot be forked. What is searched here stays here, unless the user sets them otherwise.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
