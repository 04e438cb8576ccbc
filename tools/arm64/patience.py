"""A plugin of pytest's: tests with random data may be slow, and have fewer examples, where programs are emulated."""

from hypothesis import HealthCheck, settings

settings.register_profile("emulated", deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
settings.load_profile("emulated")
