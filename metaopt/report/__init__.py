"""Pages that open offline, and their pictures."""
