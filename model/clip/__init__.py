"""The CLIP towers and what they need: weights by name or file, tokenizer, preprocessing."""
