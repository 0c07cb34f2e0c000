"""What `llama2-pl` can do: the registry of tool commands, and the Lightning subcommands."""
