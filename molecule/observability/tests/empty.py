"""What may be empty on a healthy platform of a few minutes, with the reason."""

EMPTY_PANELS: dict[tuple[str, str], str] = {}
MISSING_METRICS: dict[str, str] = {}
