"""A page to try a model in the browser: ``polyhead-client ui``. It needs the extra ``ui``; only `page` and `serve` do."""
