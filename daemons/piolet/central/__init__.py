"""The central service: keeps what nodes and Slurm say, judges it by rules, and says what it would do."""
