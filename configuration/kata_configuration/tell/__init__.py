"""What people and tools are shown of a configuration: reports, references, files, and fixes."""
