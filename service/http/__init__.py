"""HTTP below the routes: middleware, error answers, uploads, connection limits."""
