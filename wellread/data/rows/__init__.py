"""From rows to samples: schemas, templates, malformed rows."""
