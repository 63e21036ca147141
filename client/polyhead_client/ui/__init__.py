"""A page to try a model in the browser: ``polyhead-client ui``. Only `page` and `application` need the extra ``ui``."""
