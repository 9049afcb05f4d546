"""A user's own rows: files, folders and shards of ``type: pairs``."""
