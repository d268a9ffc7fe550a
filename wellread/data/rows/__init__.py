"""From rows to examples: schemas, templates, broken rows."""
