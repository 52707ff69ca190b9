"""The store on disk: catalogue, feature shards, generations, and reading and writing them."""
