"""The URL annotation queue: its database, its page, and how the annotate stage waits for it."""
