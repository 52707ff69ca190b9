"""Where videos come from: folders, tar shards and URLs, with captions and tags beside them."""
