"""Answer quality on five public data sets, beside linear models, fastText and spaCy; docs/quality.md explains it."""
