"""Sources of figures beyond GPUs: one file with one class each (piolet.api.sources says what a source is)."""
