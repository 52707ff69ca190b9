"""Media files: decoding in a sandbox, pictures, previews."""
