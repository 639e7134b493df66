"""From a configuration to a finished workdir."""
