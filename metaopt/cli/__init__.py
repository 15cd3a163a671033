"""The command `metaopt`: one file a command."""
