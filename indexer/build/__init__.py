"""One indexing run: discover, decode, encode, commit, publish."""
