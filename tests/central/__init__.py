"""The central service and forwarders, as real processes with a real munged."""
