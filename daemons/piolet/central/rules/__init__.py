"""Rules over events: read from TOML, judged as events come, replayed, explained. Pure: no clock and no network."""
